"""What PLUS and its baselines have to show (rlpa_plus IV.4), read off a table that has been made:

make plus-table
PAL_JAX_PLUS_TABLE=runs/plus-table python -m pytest tests/recipes/plus/test_table.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pal_jax.recipes.plus import methods
from pal_jax.recipes.plus import table as runs
from pal_jax.recipes.plus.methods import Entry
from pal_jax.run import intervals
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.summary import fifths

pytestmark = pytest.mark.slow
FOLDER = 'PAL_JAX_PLUS_TABLE'


def last(folder: Path, method: str, seed: int) -> Entry:
    return Entry(method, seed, read_records(folder / EVALS)[-1], read_records(folder / METRICS))


@pytest.fixture(scope='module')
def entries():
    if FOLDER not in os.environ:
        pytest.skip(f'{FOLDER} names no folder of a table; make one with make plus-table')
    folder = Path(os.environ[FOLDER])
    found = {
        name: [last(path, name, int(path.name[-1])) for path in sorted(folder.glob(f'{name}-[0-9]'))]
        for name in runs.METHODS
    }
    assert {len(own) for own in found.values()} == {3}, 'three seeds of every method'
    return found


def each(entries, key):
    return np.array([entry.record[key] for entry in entries])


def test_5_nobody_is_chance_and_oracle_and_context_are_right(entries):
    assert all(each(entries['kind'], 'accuracy') >= 0.95)  # first: if this fails, data or reward model is broken
    assert all(abs(each(entries['nothing'], 'accuracy') - 0.5) <= 0.05)
    assert all(each(entries['context'], 'accuracy') >= 0.95)


def test_6_summaries_learn_to_be_right(entries):
    ours = entries['plus']
    for key in ('accuracy', 'sampled_accuracy'):
        assert all(each(ours, key) >= 0.95)
    assert each(ours, 'accuracy').mean() >= each(entries['untrained'], 'accuracy').mean() - 0.01
    assert all(each(ours, 'named') >= 0.9)
    for entry in ours:
        rewards = [step['reward'] for step in entry.steps]
        assert rewards[0] == pytest.approx(-0.69, abs=0.05)
        assert np.mean(rewards[-len(rewards) // 5 :]) >= -0.25


def test_7_the_reward_rises_and_the_loss_falls(entries):
    gains = [fifths(entry.steps, 'reward')['gain'] for entry in entries['plus']]
    assert intervals.mean(np.array(gains)).place(0.0) == 1  # over seeds
    for entry in entries['plus']:
        assert fifths(entry.steps, 'reward_loss')['last'] < 0.6


def test_8_somebody_elses_summary_is_no_use(entries):
    ours = entries['plus']
    assert all(each(ours, 'other_accuracy') <= np.minimum(0.1, 1.05 - each(ours, 'accuracy')))
    for key in ('random_accuracy', 'none_accuracy'):
        assert all(abs(each(ours, key) - 0.5) <= 0.07), key
    assert all(abs(each(entries['shuffled'], 'accuracy') - 0.5) <= 0.07)


def test_10_both_have_to_learn(entries):
    assert abs(each(entries['static-reward-model'], 'accuracy').mean() - 0.5) <= 0.07  # each head leans its own way
    people = {name: methods.people_of(entries[name]) for name in ('plus', 'static-summariser')}
    gain = intervals.gain(people['plus'] - people['static-summariser'])
    assert gain.high is not None and gain.high >= 0.0  # the static one is not better


def test_11_animals_that_nobody_was_taught(entries):
    ours, context = (each(entries[name], 'animals_accuracy').mean() for name in ('plus', 'context'))
    assert ours >= context - 0.02
