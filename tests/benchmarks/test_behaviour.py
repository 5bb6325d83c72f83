"""Reward and behaviour: golden numbers, enumeration, and orders of methods."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks import behaviour


def test_policy_accuracy_of_pairs():
    """Log-probabilities of the preferred and of the other reply: a tie, one right, one wrong."""
    guided, ref = np.log([[0.1, 0.1], [0.4, 0.2], [0.1, 0.2]]), np.log([[0.1, 0.2], [0.5, 0.2], [0.1, 0.2]])
    result = behaviour.policy_accuracy(guided, ref, np.array([[2, 2], [1, 1], [4, 1]]))
    np.testing.assert_allclose(result, [0.5, 0.5, 2.5 / 3])


def test_best_of_n_has_no_bias():
    rewards, utilities = np.array([1.0, 3, 2, 5, 0]), np.array([0.2, 0.9, 0.5, 0.7, 0.1])
    figures = [behaviour.best_of_n(rewards, utilities, n) for n in (1, 2, 3, 5)]
    np.testing.assert_allclose(figures, [0.48, 0.67, 0.74, 0.70], atol=1e-12)
    oracle = [behaviour.best_of_n(utilities, utilities, n) for n in (1, 2, 3, 5)]
    np.testing.assert_allclose(oracle, [0.48, 0.69, 0.80, 0.90], atol=1e-12)
    chosen = [utilities[max(part, key=lambda i: rewards[i])] for part in itertools.combinations(range(5), 3)]
    assert figures[2] == pytest.approx(np.mean(chosen))
    assert behaviour.regret(rewards, utilities) == pytest.approx(0.2)
    assert behaviour.best_of_n(np.zeros(5), utilities, 4) == pytest.approx(utilities.mean())  # all tie
    with pytest.raises(ValueError, match='n=6'):
        behaviour.best_of_n(rewards, utilities, 6)


def test_tau_b_with_a_tie():
    x, y = (0.62, 0.64, 0.64, 0.70, 0.71, 0.73), (0.55, 0.58, 0.54, 0.57, 0.60, 0.56)
    assert behaviour.tau_b(x, y) == pytest.approx(0.276026, abs=2e-6)
    assert behaviour.permutation_p(x, y) == pytest.approx(0.583, abs=5e-4)
    for methods, least in ((4, 0.083), (5, 0.017), (6, 0.0028)):
        order = list(range(methods))
        assert behaviour.permutation_p(order, order) == pytest.approx(least, abs=5e-4)


def test_agreement_by_people():
    reward = np.array([[0.6, 0.7, 0.5], [0.8, 0.7, 0.9], [0.5, 0.6, 0.7]])
    policy = np.array([[0.5, 0.6, 0.55], [0.6, 0.5, 0.8], [0.5, 0.45, 0.6]])
    result = behaviour.agreement(reward, policy)
    assert result.tau == pytest.approx(1 / 3)
    assert result.mean == pytest.approx(0.413580, abs=2e-6)
    assert (result.low, result.high) == (pytest.approx(-1 / 3, abs=1e-3), pytest.approx(1.0))
    assert not result.enough
