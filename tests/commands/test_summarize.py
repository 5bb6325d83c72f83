"""What a run of PLUS makes of people in a file: as its parts have it, in the model's words and in others."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from pal_jax.commands.summarize import summarize
from pal_jax.data import histories
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus import recipe as plus
from pal_jax.run import checkpoint, devices
from pal_jax.run.recipe import Context
from pal_jax.run.settings import to_dict
from tests import configs

PEOPLE = [
    {'context': 'Liked: Dogs run. Disliked: Cats nap.', 'user': 'ann',
     'eval_prompt': 'Talk.', 'eval_chosen': 'Dogs dig.', 'eval_rejected': 'Cats purr.'},
    {'context': 'Liked: Cats nap.'},
]  # fmt: skip


@pytest.fixture
def people(tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(map(json.dumps, PEOPLE)))
    return path


@pytest.mark.slow
def test_summaries_and_what_is_chosen_by_them(tmp_path, people):
    settings, workdir = configs.load('plus'), tmp_path / 'run'
    context = Context(devices.make_mesh(**dataclasses.asdict(settings.mesh)), lambda _: contextlib.nullcontext())
    recipe = plus.make(settings, context)
    state, host = recipe.init()
    checkpoint.write_config(workdir, to_dict(settings))
    checkpoints = checkpoint.Checkpoints(workdir, recipe.plan.abstract)
    checkpoints.save(1, state, host)
    checkpoints.close()

    one, two = summarize(str(workdir), str(people), None)
    assert (one['user'], two['user']) == ('ann', f'{people}, line 2')
    assert 'probability' not in two
    parts = plus_parts.make_parts(settings, context)
    contexts = histories.load_contexts(people)
    texts = [context for context, _ in contexts]
    assert [one['summary'], two['summary']] == parts.describe(state, texts, [0.0], (0,)).texts
    edited, _ = summarize(str(workdir), str(people), 'Likes cats.')
    assert edited['summary'] == 'Likes cats.'
    for record in (one, edited):
        gap = parts.reader.gaps(state['reward'], parts.pair_up.compare([record['summary']], [[contexts[0][1]]]))
        assert record['probability'] == pytest.approx(1 / (1 + np.exp(-gap.item())), rel=1e-6)
    assert edited['probability'] != one['probability']


def test_a_run_of_another_method_is_refused(tmp_path, people):
    checkpoint.write_config(tmp_path, to_dict(configs.load('rlpa')))
    with pytest.raises(ValueError, match='is no run that writes summaries; give one of'):
        list(summarize(str(tmp_path), str(people), None))
