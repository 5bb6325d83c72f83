"""A loss and a method in files of a user: the page that shows them, their checks, and what a run keeps of them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.learners.dpo import DPO, open_loss
from pal_jax.objectives.dpo import preference
from pal_jax.run import devices, inputs
from pal_jax.run.config_files import settings_of
from pal_jax.run.glossary import CORE, words_of
from pal_jax.run.recipe import Context, check_recipe
from pal_jax.run.runs import read_settings, recipe_module
from pal_jax.run.settings import to_dict
from pal_jax.run.workdir import CONFIG
from tests import configs, pages

LOSS, METHOD = 'my_losses.py:short_and_likely', 'my_method.py:make'


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """The folder of a user who has the files of the page."""
    pages.write_files(pages.DOCS / 'howto' / 'own_method.md', tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_test_of_the_page_passes():
    for name, test in runpy.run_path('test_my_losses.py').items():
        if name.startswith('test_'):
            test()


def test_an_own_loss_gets_what_its_formula_reads_and_padding_has_no_gradient():
    acts = jnp.asarray([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    logprobs = jnp.asarray([[-1.0, -2.0, 9.0], [-4.0, 9.0, 9.0], [9.0] * 3, [9.0] * 3])
    loss = open_loss(DPO(loss=LOSS, beta=0.5))
    gradient, figures = preference(logprobs, jnp.zeros_like(logprobs), acts, loss=loss, beta=0.5)
    margin = 0.5 * (-3.0 + 4.0) - 0.02 * (2 - 1)
    np.testing.assert_allclose(figures['loss'], np.log1p(np.exp(-margin)) + 0.2 * 3.0 / 2.0, rtol=1e-6)
    slope = 0.5 / (1.0 + np.exp(margin))
    np.testing.assert_allclose(gradient[0], [-slope - 0.1, -slope - 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradient[1:], [[slope, 0, 0], [0] * 3, [0] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ('body', 'error'),
    [
        ('def loss(chosen, rejected):\n    return chosen.mean()', ValueError),
        ('def loss(chosen, rejected):\n    return [0.0]', ValueError),
        ('import numpy\ndef loss(chosen, rejected):\n    return numpy.log(chosen)', ValueError),
        ('def loss(chosen, rejected):\n    return chosen if chosen[0] > 0 else rejected', ValueError),
        ('def loss(chosen, losers):\n    return chosen', ValueError),
        ('def other(chosen, rejected):\n    return chosen', ValueError),
        ('def loss(chosen, rejected):\n    return chosen.size.nothing', RuntimeError),
    ],
)
def test_a_loss_that_gives_no_number_a_pair_is_refused_before_the_weights(tmp_path, body, error):
    (tmp_path / 'bad.py').write_text(body)
    with pytest.raises(error, match=r"dpo.loss='bad.py:loss'"):
        open_loss(DPO(loss='bad.py:loss'))


def test_a_method_in_a_file_is_found_by_its_config_and_by_its_run(tmp_path):
    settings = settings_of('my_method.py:smoke', ('most=2',))
    module = recipe_module(settings.recipe)
    assert isinstance(settings, module.Settings) and settings.most == 2 and words_of(METHOD) is CORE
    (tmp_path / CONFIG).write_text(json.dumps(to_dict(settings)))
    assert read_settings(tmp_path) == settings
    read = inputs.look(to_dict(dataclasses.replace(settings, dpo=DPO(loss=LOSS))))
    assert {key: [*entry.files] for key, entry in read.items()} == {
        'recipe.0': ['my_method.py'], 'dpo.loss.0': ['my_losses.py'],
    }  # fmt: skip


def test_a_changed_method_stops_a_run_that_goes_on_unless_its_key_is_given(tmp_path):
    config = to_dict(settings_of('my_method.py', ()))
    before = inputs.look(config)
    (tmp_path / 'my_method.py').write_text((tmp_path / 'my_method.py').read_text() + '\n# changed\n')
    with pytest.raises(ValueError, match=rf"recipe='{METHOD}'.*--changed=recipe"):
        inputs.check(before, inputs.look(config), tmp_path)
    inputs.check(before, inputs.look(config), tmp_path, changed=['recipe'])


def test_the_names_of_methods_and_losses_of_the_package_are_no_files(tmp_path):
    for name in ('dpo', 'sigmoid'):
        (tmp_path / name).write_text('')
    assert inputs.look({'recipe': 'dpo', 'dpo': {'loss': 'sigmoid'}}) == {}


def test_the_step_of_the_page_repeats_until_enough_is_right():
    module = recipe_module(METHOD)
    accuracies = iter([0.2, 0.5, 0.95, 0.1])
    inner = SimpleNamespace(
        plan=None, step=lambda state, host, i: (state + 1, host, 'dpo', {'accuracy': next(accuracies)})
    )
    recipe = module.PatientDPO(None, inner, SimpleNamespace(enough=0.9, most=5))
    check_recipe(recipe, METHOD)
    assert recipe.step(0, {}, 0) == (3, {}, 'dpo', {'accuracy': 0.95, 'updates': 3.0})
    assert {*inspect.signature(module.make).parameters} == {'settings', 'ctx'}


@pytest.mark.parametrize(
    'body',
    ['def make(settings, ctx): ...', 'Settings = dict\ndef make(settings, ctx): ...', 'def make(settings): ...', ''],
)
def test_a_file_without_the_parts_of_a_method_is_refused_with_the_key(tmp_path, body):
    (tmp_path / 'bad.py').write_text(body)
    with pytest.raises(ValueError, match=r"recipe='bad.py:make'"):
        recipe_module('bad.py:make')


@pytest.mark.parametrize('recipe', [None, SimpleNamespace(plan=0, init=0, step=0, evaluate=0), DPO()])
def test_what_make_returns_has_the_parts_of_a_recipe(recipe):
    with pytest.raises(ValueError, match=r"recipe='bad.py:make'"):
        check_recipe(recipe, 'bad.py:make')


def test_a_loss_that_is_not_a_number_before_any_update_ends_the_run(tmp_path):
    (tmp_path / 'nan.py').write_text(
        'import jax.numpy as jnp\ndef loss(chosen, rejected): return jnp.log(-1.0 - 0.0 * chosen)\n'
    )
    rows = [{'prompt': f'q{i}', 'chosen': 'yes', 'rejected': 'no'} for i in range(8)]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    settings = configs.load('dpo', 'smoke', **{'data.train': 'pairs.jsonl', 'dpo.loss': 'nan.py:loss'})
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    recipe = configs.make(settings, Context(mesh, lambda name: contextlib.nullcontext()))
    state, _ = recipe.init()
    with pytest.raises(RuntimeError, match=r"dpo.loss='nan.py:loss' is nan.*before any update"):
        recipe.evaluate(state, 'base')


def test_a_method_is_the_make_of_its_own_file(tmp_path):
    settings = 'from pal_jax.run.settings import Run as Settings\n'
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        loss = 'def loss(chosen, rejected): return chosen\n'
        (tmp_path / folder / 'parts.py').write_text(f'{settings}{loss}def make(settings, ctx): return {folder!r}[9]')
    first, second = (recipe_module(f'{folder}/parts.py:make') for folder in ('a', 'b'))
    assert first.make is not second.make
    # A loss in the same file reads the file no second time.
    open_loss(DPO(loss='a/parts.py:loss'))
    assert recipe_module('a/parts.py:make').loss is first.loss
    with pytest.raises(RuntimeError, match=r"recipe='a/parts.py:make' failed.*IndexError"):
        first.make(None, None)
    with pytest.raises(ValueError, match='called make'):
        recipe_module('a/parts.py:loss')
