"""The table of methods: means over seeds, intervals over people, and people whose differences stay together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pal_jax.recipes.plus import methods
from pal_jax.recipes.plus.figures import METHODS
from pal_jax.recipes.plus.methods import Entry
from pal_jax.run.pages import markdown

RNG = np.random.default_rng(0)
RIGHT = {'plus': RNG.binomial(1, 0.9, (3, 64)), 'context': RNG.binomial(1, 0.7, (3, 64))}


def entry(method, seed):
    right = RIGHT[method][seed]
    record = {
        'people': 64, 'accuracy': float(right.mean()), 'accuracy_by_person': right.tolist(), 'reward': -0.5,
        'words': 3.0, 'animals_accuracy': 0.25, 'animals_accuracy_by_person': [0.0, 0.5],
    }  # fmt: skip
    return Entry(method, seed, record, [{'step': i, 'reward': -0.7 + 0.01 * i} for i in range(8)])


ENTRIES = [entry(method, seed) for seed in range(3) for method in RIGHT]


def test_errors_are_over_seeds_and_intervals_over_people():
    record = methods.figures(ENTRIES)
    for name, right in RIGHT.items():
        means = right.mean(axis=1)
        assert record[f'{name}_accuracy'] == pytest.approx(means.mean())
        assert record[f'{name}_accuracy_se'] == pytest.approx(stats.sem(means))
        low, high = record[f'{name}_interval']
        error = stats.sem(right.mean(axis=0))  # of people, each a mean over seeds
        assert low == pytest.approx(means.mean() - 1.96 * error, abs=0.012)
        assert high == pytest.approx(means.mean() + 1.96 * error, abs=0.012)
        assert record[f'{name}_animals_accuracy'] == 0.25


def test_differences_are_of_the_same_people():
    head, plus, context = methods.table(ENTRIES)
    assert head[:6] == ['what the reward model reads', 'seeds', 'accuracy', '95 %', 'plus is better by', 'animals']
    assert 'names the kind' not in head  # nobody's kind is known
    assert plus[:2] == [METHODS['plus'], '3']
    assert plus[4] == ''
    difference = RIGHT['plus'].mean(axis=0) - RIGHT['context'].mean(axis=0)
    mean, low, _, high = context[4].replace('(', '').replace(')', '').split()
    assert float(mean) == pytest.approx(difference.mean(), abs=5e-4)
    error = stats.sem(difference)
    assert (float(low), float(high)) == pytest.approx(
        (difference.mean() - 1.96 * error, difference.mean() + 1.96 * error), abs=0.015
    )


def test_one_seed_has_no_error():
    rows = methods.table(ENTRIES[:2])
    assert rows[1][2] == f'{RIGHT["plus"][0].mean():.3f}'
    assert methods.figures(ENTRIES[:2])['plus_accuracy_se'] is None


def test_markdown_has_a_line_a_method():
    text = markdown(methods.table(ENTRIES))
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({line.count('|') for line in lines}) == 1
    assert lines[2].startswith(f'| {METHODS["plus"]} | 3 |')


def test_pictures_are_drawn():
    table, curves = methods.make_exhibits(ENTRIES)
    assert table.picture.startswith(b'\x89PNG')
    assert curves.picture.startswith(b'\x89PNG')
    assert 'over seeds' in table.text


def test_a_curve_has_the_steps_that_all_seeds_have_made():
    short, long = ({step: -0.1 * seed - step for step in steps} for seed, steps in enumerate([(0, 1, 6), (0, 1, 2, 6)]))
    own = [Entry('plus', 0, {}, [{'step': s, 'reward': r} for s, r in each.items()]) for each in (short, long)]
    steps, rewards = methods.rewards_by_step(own)
    assert steps == [0, 1, 6]
    np.testing.assert_allclose(rewards, [[0, -1, -6], [-0.1, -1.1, -6.1]])
