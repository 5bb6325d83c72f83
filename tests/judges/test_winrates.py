"""Win rates: golden numbers, what must hold whoever wins, and what a report shows."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.judges import winrates as w


def test_wins_losses_and_ties():  # psoups I.7-13
    outcomes = np.array([[1] * 30 + [-1] * 15 + [0] * 5])
    assert w.winrate(outcomes, 'drop') == pytest.approx(0.666667, abs=1e-6)
    assert w.winrate(outcomes, 'half') == 0.65


def test_a_system_ties_with_itself_and_swapping_two_mirrors_the_rate():
    assert w.measure(np.zeros((4, 10)))['ties'] == 1
    assert w.winrate(np.zeros((4, 10)), 'drop') == w.winrate(np.zeros((4, 10)), 'half') == 0.5
    outcomes = np.random.default_rng(0).integers(-1, 2, size=(8, 50))
    for ties in ('drop', 'half'):
        assert w.winrate(-outcomes, ties) == pytest.approx(1 - w.winrate(outcomes, ties))


def test_the_outcome_is_the_sign_of_the_sum_over_criteria():
    verdicts = np.array([[1, 1, 0, -1, 0.5], [1, -1, 0, -1, 0], [-1, 0, 0, 1, 0]])
    np.testing.assert_array_equal(w.outcome(verdicts), [1, 0, 0, -1, 1])


def test_combinations_count_alike_and_prompts_are_resampled_whole():
    outcomes = np.array([[1, 1, 1, -1], [-1, 0, 0, 0]])
    assert w.winrate(outcomes, 'drop') == pytest.approx((3 / 4 + 0) / 2)
    sure = w.measure(np.ones((8, 20)))
    assert sure['half_interval'] == pytest.approx([0.025 ** (1 / 20), 1]) and sure['half_se'] == 0
    copies = np.repeat(np.random.default_rng(1).integers(-1, 2, size=(1, 50)), 8, axis=0)
    one, eight = w.measure(copies[:1]), w.measure(copies)
    assert eight['half_se'] == pytest.approx(one['half_se'])  # eight copies of a prompt's outcome tell no more than one


def test_a_draw_in_which_a_combination_is_undecided_leaves_it_out():
    outcomes = np.zeros((2, 50))
    outcomes[0], outcomes[1, 0] = 1, 1
    record = w.measure(outcomes)
    assert (record['drop'], record['drop_se'], record['drop_interval']) == (1, 0, [1, 1])
    rare = w.measure(np.eye(1, 50))  # a third of the draws have nothing that is decided
    assert 0.5 <= rare['drop_interval'][0] < rare['drop_interval'][1] == 1


def test_the_table_is_antisymmetric():
    outcomes = {('a', 'b'): np.ones((1, 4)), ('a', 'c'): np.array([[1, -1, 0, 0]]), ('b', 'c'): -np.ones((1, 4))}
    systems, rates = w.table(outcomes, 'half')
    assert systems == ['a', 'b', 'c']
    np.testing.assert_allclose(rates + rates.T, np.where(np.eye(3), np.nan, 1))
    np.testing.assert_allclose(np.nanmean(rates, axis=1), [0.75, 0, 0.75])
    assert [w.measure(w.against_all(outcomes, name))['half'] for name in systems] == [0.75, 0, 0.75]


def test_spearman():
    assert w.spearman([0, 0.25, 0.5, 1], [3, 4, 9, 10]) == pytest.approx(1)
    assert w.spearman([0, 0.25, 0.5, 1], [10, 9, 4, 3]) == pytest.approx(-1)
    assert w.spearman([0, 1], [2, 2]) == 0


def test_a_report_has_tables_and_pictures():
    outcomes = {('a', 'b'): np.array([[1, -1, 1, 0]])}
    by_criterion = {'a': {'x': 0.6, 'y': 0.5}, 'b': {'x': 0.4, 'y': 0.5}}
    alone = {'x': np.array([[1, 1], [1, 0]])}
    exhibits = w.make_exhibits(outcomes, by_criterion, alone, {('x', 'y'): [(0.0, 1.0, 2.0), (1.0, 2.0, 1.0)]})
    assert exhibits[0].table[1][:2] == ['a', '0.625'] and exhibits[1].table[1][:2] == ['a against b', '0.625']
    assert exhibits[3].table == [['', 'x', 'y'], ['a', '0.600', '0.500'], ['b', '0.400', '0.500']]
    assert exhibits[4].table[1][:2] == ['x', '0.875']
    assert [exhibits[i].picture[1:4] for i in (2, 3, 5)] == [b'PNG'] * 3
    assert len(w.make_exhibits(outcomes, by_criterion, alone, {})) == 5
