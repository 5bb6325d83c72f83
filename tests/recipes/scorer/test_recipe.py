"""What the three scorers have in common: a resumed run is the unbroken one, devices and packing change nothing,
transformers score the export as we do, and what cannot be exported is refused before it is trained."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pal_jax.data import rows as data
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.runs import read_settings, recipe_module
from pal_jax.run.settings import to_dict
from tests import configs
from tests.recipes.scorer.kinds import EIGHT, ONE, files, make, run

NAMES = ['reward', 'cost', 'moderation']


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    recipe = make(name, ONE, **files(name, tmp_path), **{'total_steps': 4, 'eval.every': 2})
    _, unbroken = run(recipe, 4)
    checkpoints = Checkpoints(tmp_path / 'run', recipe.plan.abstract)
    checkpoints.save(2, run(recipe, 2)[1], {}, None)
    checkpoints.close()
    restored = Checkpoints(tmp_path / 'run', recipe.plan.abstract).restore()
    assert restored
    jax.tree.map(np.testing.assert_array_equal, run(recipe, 2, restored[0], 2)[1], unbroken)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_mesh_and_packing_change_no_loss(name, tmp_path):
    changes = {**files(name, tmp_path, 36), 'data.batch_size': 16, 'data.micro_rows': 1}
    alone, _ = run(make(name, ONE, **changes, **{'data.row_tokens': 0}), 3)
    for context in (ONE, EIGHT):
        recipe = make(name, context, **changes, **{'data.row_tokens': 256})
        again, state = run(recipe, 3)
        for a, b in zip(again, alone, strict=True):
            np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=1e-4, atol=1e-5)
        assert np.isfinite(recipe.evaluate(state, 'x').record['loss'])


@pytest.mark.parametrize('name', NAMES)
def test_a_family_without_a_classifier_is_refused_before_it_is_trained(name, monkeypatch, tmp_path):
    monkeypatch.setattr('pal_jax.models.files.families.CLASSIFIERS', {'mistral': 'MistralForSequenceClassification'})
    changes = files(name, tmp_path)
    with pytest.raises(ValueError, match='no classifier of family llama; use one of mistral'):
        make(name, ONE, **changes)
    make(name, ONE, **changes, export=False)


@pytest.mark.parametrize(('name', 'variant'), [(name, '') for name in NAMES] + [(n, 'paper') for n in NAMES[1:]])
def test_the_default_and_the_published_settings_are_complete(name, variant):
    data.check(configs.load(name, variant))


@pytest.mark.parametrize('name', NAMES)
def test_a_run_of_before_names_its_method_by_one_word(name, tmp_path):
    settings = configs.load(name)
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(settings) | {'recipe': name}))
    assert read_settings(tmp_path) == settings
    assert settings.recipe == f'scorer.{name}' and isinstance(settings, recipe_module(settings.recipe).Settings)
