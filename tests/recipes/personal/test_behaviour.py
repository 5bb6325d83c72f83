"""Reward and behaviour: golden numbers of a world of two tokens, enumeration, and orders of methods."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pal_jax.recipes.personal import behaviour

REF = {'': (0.8, 0.2), 'a': (0.9, 0.1), 'b': (0.5, 0.5)}
REWARD = {'a': 0.1, 'b': 0.9, 'aa': 0.0, 'ab': 1.0, 'ba': 0.6, 'bb': 0.2}
REPLIES = 'aa', 'ab', 'ba', 'bb'
PAIRS = ('ab', 'aa'), ('ba', 'bb'), ('ab', 'bb'), ('ba', 'aa'), ('ab', 'ba')


def guided(reply, beta):
    """log pi of a reply under guidance by prefixes."""
    ref = np.log([REF[reply[:t]] for t in range(2)])
    rewards = np.array([[REWARD[reply[:t] + token] for token in 'ab'] for t in range(2)])
    return behaviour.guided_logprob(ref, rewards, np.array(['ab'.index(token) for token in reply]), beta)


def whole(beta):
    """log pi of each reply under guidance by whole replies."""
    ref = {reply: np.log(REF[''][reply[0] == 'b'] * REF[reply[0]][reply[1] == 'b']) for reply in REPLIES}
    rows = np.array([[ref[reply] for reply in REPLIES]])
    rewards = np.array([[REWARD[reply] for reply in REPLIES]])
    return {
        reply: behaviour.guided_logprob(rows, rewards, np.array([i]), beta) for i, reply in enumerate(REPLIES)
    }, ref  # fmt: skip


def accuracies(log_pi, ref):
    scores, base = (np.array([[table[x] for x in pair] for pair in PAIRS]) for table in (log_pi, ref))
    return behaviour.policy_accuracy(scores, base, np.full((5, 2), 2))


def test_policy_accuracy_of_two_tokens():
    by_prefix, by_whole = [], []
    for beta in (0, 0.5, 1, 2, 4, 8):
        log_pi, (of_whole, ref) = {reply: guided(reply, beta) for reply in REPLIES}, whole(beta)
        by_prefix.append(accuracies(log_pi, ref).policy)
        by_whole.append(accuracies(of_whole, ref).policy)
        if beta == 2:
            assert accuracies(log_pi, ref).implicit == pytest.approx(0.8)
            assert accuracies(of_whole, ref).implicit == pytest.approx(1.0)
            expected = (-1.405087, -1.602312, -0.963093, -1.763093)
            np.testing.assert_allclose([log_pi[reply] for reply in REPLIES], expected, atol=2e-6)
            means = [sum(np.exp(table[x]) * REWARD[x] for x in REPLIES) for table in (ref, log_pi, of_whole)]
            np.testing.assert_allclose(means, [0.160, 0.464759, 0.457602], atol=2e-6)
    # Without guidance ba and bb tie at .1, which counts 1/2 of one pair in five.
    np.testing.assert_allclose(by_prefix, [0.1, 0.2, 0.4, 0.6, 0.6, 0.6], atol=1e-12)
    np.testing.assert_allclose(by_whole, [0.1, 0.4, 0.6, 0.6, 1, 1], atol=1e-12)


def test_the_own_token_is_always_a_candidate():
    ref = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_array_equal(behaviour.candidates(ref, np.array([3, 3]), top=2), [[0, 3], [3, 2]])


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
