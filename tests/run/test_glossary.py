"""Every figure that a run writes is explained, and what is not explained is shown all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_jax.commands.evaluate import COMPARED
from pal_jax.recipes.plus.methods import COLUMNS
from pal_jax.recipes.plus.table import METHODS
from pal_jax.recipes.psoups.jobs import SYSTEMS
from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.run import glossary
from pal_jax.run.glossary import COMPARED as BESIDE
from pal_jax.run.glossary import MACHINE, OPTIMISED, OTHER, PARTS, meaning

# The names in steps and evaluations of the smoke run of each method, a word each; `~` is a space in a name.
WRITTEN = json.loads(Path(__file__).with_name('figures.json').read_text(encoding='utf-8'))
NOT_SHOWN = {'intervals', 'unseen_intervals'}  # lists of ends, of figures that have a name themselves


@pytest.mark.parametrize('method', WRITTEN)
def test_every_figure_of_a_smoke_run_is_explained(method):
    names = {name.replace('~', ' ') for name in WRITTEN[method].split()} - NOT_SHOWN
    assert {name for name in names if not meaning(name).words} == set()
    assert all(meaning(name).group != OTHER for name in names)


def test_names_that_tables_print_are_explained():
    for name in (*COMPARED, *COLUMNS, *SCORES):
        assert meaning(name).words, name
    assert set(glossary.PLUS_METHODS) == set(METHODS)
    assert set(glossary.SOUP_SYSTEMS) == set(SYSTEMS)


def test_a_figure_of_other_people_or_of_a_baseline_says_whose_it_is():
    assert meaning('unseen_reward') == (OPTIMISED, f'{meaning("reward").words}; people with new values')
    assert meaning('horses_sampled_accuracy').words.endswith('; horses')
    assert meaning('seen_majority') == (
        BESIDE,
        'accuracy on new choices of known people: majority vote on the same pair',
    )
    assert meaning('seen_gain').group == OPTIMISED and meaning('strict').group == PARTS
    assert meaning('rlhf_morl_half').words.count('RLHF') == 1 and meaning('judge_cost').group == MACHINE
    assert meaning('value_loss_1').words.startswith(meaning('value_loss').words)


@pytest.mark.parametrize('name', ['warmth', 'seen_nobody', 'reward{', ''])
def test_an_unknown_name_has_no_words_and_is_no_error(name):
    assert meaning(name) == (OTHER, '')
    assert glossary.told(name, 0.5) == f'0.500  {name}'
