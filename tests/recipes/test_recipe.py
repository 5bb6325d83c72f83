"""What every method has in common."""

from __future__ import annotations

import jax
import pytest

from pal_jax.run import checkpoint, devices
from pal_jax.run.models import make_policy
from pal_jax.run.recipe import Context
from pal_jax.run.runs import recipe_module
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import open_run
from tests import configs

CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]))
GONE = [
    ('sft', {'data.train': 'gone.jsonl'}),
    ('dpo', {'data.train': 'gone.jsonl'}),
    ('rl', {'prompts.train': 'gone.jsonl'}),
    ('reward', {'data.train': 'gone.jsonl'}),
    ('cost', {'data.train': 'gone.jsonl'}),
    ('moderation', {'data.train': 'gone.jsonl'}),
    ('rlpa', {'reward.judge': 'endpoint:judge', 'dialogue.profiles': 'gone.jsonl'}),
    ('plus', {'data': 'gone.jsonl'}),
]


@pytest.mark.parametrize(('name', 'gone'), GONE, ids=[name for name, _ in GONE])
def test_a_run_is_opened_without_what_it_was_trained_with(tmp_path, name, gone):
    recipe = recipe_module(configs.load(name).recipe)
    trained = recipe.make_trained(configs.load(name, **gone), CONTEXT)
    there = recipe.make(configs.load(name), CONTEXT).plan.trained
    assert trained.model == there.model
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, trained.exported, there.exported))
    with pytest.raises(ValueError, match=r'gone\.jsonl|endpoint'):
        recipe.make(configs.load(name, **gone), CONTEXT)
    checkpoint.write_config(tmp_path, to_dict(configs.load(name, **gone)))
    with pytest.raises(ValueError, match='has no checkpoint; train it first'):
        open_run(str(tmp_path), CONTEXT)


@pytest.mark.parametrize('scan', [False, True])
def test_layers_are_scanned_where_a_config_asks_for_it(scan):
    config = configs.load('sft', **{'policy.scan_layers': scan})
    assert make_policy(config.policy, CONTEXT, 0).cfg.unroll is not scan
