"""Every figure that a run writes is explained by its method, and what is not explained is shown all the same."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pal_jax.commands.evaluate import COMPARED
from pal_jax.recipes.plus.figures import METHODS as READ
from pal_jax.recipes.plus.methods import COLUMNS
from pal_jax.recipes.plus.table import METHODS
from pal_jax.recipes.psoups.figures import SYSTEMS as NAMED
from pal_jax.recipes.psoups.jobs import SYSTEMS
from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.run import glossary
from pal_jax.run.glossary import COMPARED as BESIDE
from pal_jax.run.glossary import CORE, MACHINE, OPTIMISED, OTHER, PARTS, meaning, words_of

# The names in steps and evaluations of the smoke run of each recipe, a word each; `~` is a space in a name. Stages that
# are runs of another recipe write that one's.
WRITTEN = json.loads(Path(__file__).with_name('figures.json').read_text(encoding='utf-8'))
NOT_SHOWN = {'intervals', 'unseen_intervals'}  # lists of ends, of figures that have a name themselves
RECIPES = Path(glossary.__file__).parents[1] / 'recipes'
WITH_WORDS = sorted(path.parent.name for path in RECIPES.glob('*/figures.py'))


@pytest.mark.parametrize('recipe', WRITTEN)
def test_every_figure_of_a_smoke_run_is_explained(recipe):
    names, words = {name.replace('~', ' ') for name in WRITTEN[recipe].split()} - NOT_SHOWN, words_of(recipe)
    assert {name for name in names if not meaning(name, words).words} == set()
    assert all(meaning(name, words).group != OTHER for name in names)


def test_words_bring_no_method_with_them():
    code = 'import sys; from pal_jax.run.glossary import words_of; words_of("rlpa"); print(sorted(sys.modules))'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert "'pal_jax.run.glossary'" in loaded and "'pal_jax.recipes" not in loaded and "'jax'" not in loaded


def test_every_method_has_figures_here():
    folders = {path.stem for path in RECIPES.iterdir() if (path / '__init__.py').exists() or path.suffix == '.py'}
    assert {recipe.split('.')[0] for recipe in WRITTEN} == folders - {'__init__'}
    assert WITH_WORDS


@pytest.mark.parametrize('method', WITH_WORDS)
def test_a_method_explains_what_the_core_does_not(method):
    own = importlib.import_module(f'pal_jax.recipes.{method}.figures').WORDS
    assert own.figures.keys() <= CORE.figures.keys()
    names = [name for figures in (*own.figures.values(), *CORE.figures.values()) for name in figures]
    assert sorted(set(names)) == sorted(names)
    for field in ('vocabulary', 'splits', 'steps', 'levels', 'changes', 'beside'):
        assert not getattr(own, field).keys() & getattr(CORE, field).keys(), field
    # What a verdict tells of has words, and what it calls a share is a figure of its own.
    floors = [name for name in names if name.endswith('_of_commoner')]
    assert {name.removesuffix('_of_commoner') for name in floors} <= {*own.levels, *CORE.levels}
    told = [*own.levels, *own.changes, *own.beside, *(other for other, *_ in own.beside.values())]
    assert {*told, *own.shares} <= set(names) and {*own.shares, *own.less} <= {*own.levels, *own.changes}


def test_words_are_those_of_the_method_alone():
    assert meaning('seen_majority', words_of('rlpa')) == meaning('al', words_of('sft')) == (OTHER, '')
    assert words_of('sft') is CORE and words_of('personal.bench').steps['bench']
    with pytest.raises(ValueError, match="recipe='nothing' is no method"):
        words_of('nothing')


def test_names_that_tables_print_are_explained():
    for name in (*COMPARED, *SCORES):
        assert meaning(name, words_of('rlpa')).words, name
    for name in COLUMNS:
        assert meaning(name, words_of('plus')).words, name
    assert set(READ) == set(METHODS)
    assert set(NAMED) == set(SYSTEMS)


def test_a_figure_of_other_people_or_of_a_baseline_says_whose_it_is():
    rlpa, plus, pal = map(words_of, ('rlpa', 'plus', 'personal.pal'))
    assert meaning('unseen_reward', rlpa) == (OPTIMISED, f'{meaning("reward", rlpa).words}; people with new values')
    assert meaning('horses_sampled_accuracy', plus).words.endswith('; horses')
    assert meaning('seen_majority', pal) == (
        BESIDE,
        'accuracy on new choices of known people: majority vote on the same pair',
    )
    assert meaning('seen_gain', pal).group == OPTIMISED and meaning('strict', rlpa).group == PARTS
    assert meaning('rlhf_morl_half', words_of('psoups')).words.count('RLHF') == 1
    assert meaning('judge_cost', rlpa).group == MACHINE
    assert meaning('value_loss_1', CORE).words.startswith(meaning('value_loss', CORE).words)
    # The rule of Safe RLHF is a judge; what Personalized Soups says of its rules is not said of it.
    assert 'by the rule that made the questions' in meaning('rule_rl_reward_se', words_of('safe_rlhf')).words


@pytest.mark.parametrize('name', ['warmth', 'seen_nobody', 'reward{', ''])
def test_an_unknown_name_has_no_words_and_is_no_error(name):
    for words in (CORE, words_of('personal.pal')):
        assert meaning(name, words) == (OTHER, '')
        assert glossary.figure_line(name, 0.5, words) == f'0.500  {name}'
