"""Elo ratings: what two systems' win rate says of them, and what no order of naming may change."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pal_jax.recipes.safe_rlhf import elo


def ratings(outcomes):
    found = elo.measure(outcomes, draws=1)
    return {name: found[f'elo_{name}'] for name in dict.fromkeys(name for pair in outcomes for name in pair)}


def play(strength, prompts, seed=0):
    """Outcomes of all pairs of systems whose ratings are known."""
    rng = np.random.default_rng(seed)
    names = list(strength)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    chance = {(a, b): 1 / (1 + 10 ** ((strength[b] - strength[a]) / 400)) for a, b in pairs}
    return {pair: np.where(rng.random(prompts) < share, 1, -1) for pair, share in chance.items()}


@pytest.mark.parametrize('wins', [100, 4_000, 5_000, 7_500, 9_900])
def test_two_systems_differ_by_the_logarithm_of_their_odds(wins):
    outcomes = np.where(np.arange(10_000) < wins, 1, -1)
    found = ratings({('a', 'b'): outcomes})
    exact = 400 * math.log10((wins + 0.25) / (10_000 - wins + 0.25))
    assert found['a'] - found['b'] == pytest.approx(exact, abs=1e-6)
    share = wins / 10_000
    assert found['a'] - found['b'] == pytest.approx(400 * math.log10(share / (1 - share)), abs=0.5)
    assert found['a'] + found['b'] == pytest.approx(0, abs=1e-9)


def test_ties_are_half_a_win_each():
    ties = ratings({('a', 'b'): np.array([1, 1, 0, 0])})
    halves = ratings({('a', 'b'): np.array([1, 1, 1, -1])})
    assert ties == pytest.approx(halves)
    assert ratings({('a', 'b'): np.zeros(5)}) == pytest.approx({'a': 0, 'b': 0}, abs=1e-9)


def test_known_ratings_are_found_again():
    strength = {'a': 150.0, 'b': 50.0, 'c': -20.0, 'd': -180.0}
    assert ratings(play(strength, 20_000)) == pytest.approx(strength, abs=12)


def test_the_fit_has_the_highest_likelihood():
    wins = np.random.default_rng(2).integers(0, 9, size=(4, 4)) * (1.0 - np.eye(4))
    counted = wins + elo.VIRTUAL * (1 - np.eye(4))

    def likelihood(points):
        gaps = (points[:, None] - points[None]) / elo.SCALE
        return -(counted * np.logaddexp(0, -gaps)).sum()

    found = elo.fit(wins)
    rng = np.random.default_rng(3)
    assert all(likelihood(found) > likelihood(found + rng.normal(size=4)) for _ in range(100))
    np.testing.assert_allclose(elo.fit(wins, start=found + 50), found, atol=1e-6)


def test_neither_the_order_of_systems_nor_that_of_prompts_counts():
    outcomes = play({'a': 100.0, 'b': 0.0, 'c': -100.0}, 200)
    found = ratings(outcomes)
    order = np.random.default_rng(4).permutation(200)
    turned = {(b, a): -signs[order] for (a, b), signs in reversed(outcomes.items())}
    assert ratings(turned) == pytest.approx(found)
    split = {**outcomes, ('a', 'b'): np.where(order < 100, outcomes['a', 'b'], np.nan)}
    split[('b', 'a')] = np.where(order < 100, np.nan, -outcomes['a', 'b'])
    assert ratings(split) == pytest.approx(found)


def test_an_unbeaten_system_has_a_finite_rating_that_grows_with_its_wins():
    few, many = (ratings({('a', 'b'): np.ones(n), ('a', 'c'): np.ones(n), ('b', 'c'): np.ones(n)}) for n in (5, 50))
    assert few['a'] > few['b'] > few['c'] and all(map(math.isfinite, many.values()))
    assert many['a'] > few['a']
    apart = ratings({('a', 'b'): np.ones(10), ('c', 'd'): -np.ones(10)})  # a and c never met
    assert apart['a'] == pytest.approx(apart['d'])


def test_intervals_shrink_with_prompts_and_hold_the_truth():
    strength = {'a': 60.0, 'b': 0.0, 'c': -60.0}
    few, many = (elo.measure(play(strength, n), draws=200) for n in (100, 1_600))
    for name, truth in strength.items():
        assert many[f'elo_{name}_se'] == pytest.approx(few[f'elo_{name}_se'] / 4, rel=0.3)
        low, high = few[f'elo_{name}_interval']
        assert low < few[f'elo_{name}'] < high
        assert abs(many[f'elo_{name}'] - truth) < 3 * many[f'elo_{name}_se']


def test_pairs_of_unequal_prompts_are_refused():
    with pytest.raises(ValueError, match=r'a against c.*\b3\b.*\b4\b'):
        ratings({('a', 'b'): np.ones(4), ('a', 'c'): np.ones(3)})


def test_a_report_has_a_table_and_a_picture():
    record = elo.measure(play({'worse_': -100.0, 'better_se': 100.0}, 300), draws=50)
    (exhibit,) = elo.make_exhibits(record, ['worse_', 'better_se'], 'helpful')
    assert [row[0] for row in exhibit.table[1:]] == ['better_se', 'worse_']
    assert exhibit.picture.startswith(b'\x89PNG')
