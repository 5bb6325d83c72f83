"""From reward to behaviour: does a reward that predicts choices also lead a model to what people like?

Under reward-guided decoding, reward accuracy is said to predict little of what the guided model prefers (arXiv
2512.23067). The definitions here are our own, since the paper's exact score was not at hand:

    policy accuracy    the share of pairs whose preferred reply has the higher log-probability pi
    best of n          the utility of the reply with the highest reward of n samples, without bias from N samples
    tau-b              the agreement of two orders of methods, such as by reward accuracy and by policy accuracy
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from pal_jax.run.accuracy import hits
from pal_jax.run.bootstrap import DRAWS, interval

FEWEST = 6  # methods: with 4, 5, 6 of them the least two-sided p of an order is .083, .017, .0028
EXACT = 7  # methods: of up to so many all orders are tried


# --- policies ---------------------------------------------------------------------------------------------------------


class PolicyAccuracy(NamedTuple):
    """Shares of pairs, ties 1/2: by log pi, by log pi less log ref (the implicit reward), and by log pi a token."""

    policy: float
    implicit: float
    by_token: float


def policy_accuracy(
    guided: Float[np.ndarray, 'B 2'], ref: Float[np.ndarray, 'B 2'], lengths: Int[np.ndarray, 'B 2']
) -> PolicyAccuracy:
    """The accuracies of pairs by log-probabilities of the preferred reply and of the other one, and their lengths in
    tokens."""

    def share(scores: np.ndarray) -> float:
        return float(hits(scores[:, 0] - scores[:, 1]).mean())

    return PolicyAccuracy(share(guided), share(guided - ref), share(guided / lengths))


# --- choosing among samples -------------------------------------------------------------------------------------------


def best_of_n(rewards: Float[np.ndarray, ' N'], utilities: Float[np.ndarray, ' N'], n: int) -> float:
    """The mean utility of the sample with the highest reward among `n` of `N`, over all choices of `n`.

    It is `sum_i C(i, n - 1) u_(i) / C(N, n)` over samples sorted by reward, `i` from 0; samples of equal reward share
    their places. Raises ValueError where `n` is not between 1 and N.
    """
    size = len(rewards)
    if not 1 <= n <= size:
        raise ValueError(f'n={n} must be between 1 and the {size} samples')
    order = np.argsort(rewards, kind='stable')
    weight = np.array([math.comb(i, n - 1) for i in range(size)], float) / math.comb(size, n)
    _, tied = np.unique(np.asarray(rewards)[order], return_inverse=True)
    means = np.bincount(tied, np.asarray(utilities, float)[order]) / np.bincount(tied)
    return float(weight @ means[tied])


def regret(rewards: Float[np.ndarray, ' N'], utilities: Float[np.ndarray, ' N']) -> float:
    """The best utility less that of the sample with the highest reward; the mean over samples of equal reward."""
    return float(np.max(utilities)) - best_of_n(rewards, utilities, len(rewards))


# --- orders of methods ------------------------------------------------------------------------------------------------


def tau_b(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b; NaN where all values of one side are equal."""
    result: Any = stats.kendalltau(np.asarray(x), np.asarray(y), variant='b')
    return float(result.statistic)


def permutation_p(x: Sequence[float], y: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> float:
    """The two-sided p of tau-b: the share of orders of the methods with a tau as far from 0.

    All orders are tried of up to `EXACT` methods, else `draws` random ones. Without a tau there is no p: it is NaN.
    """
    values, rng = np.asarray(y), np.random.default_rng(seed)
    if np.isnan(tau_b(x, values)):
        return np.nan
    if len(values) <= EXACT:
        orders = map(list, itertools.permutations(range(len(values))))
    else:
        orders = (rng.permutation(len(values)).tolist() for _ in range(draws))
    least = abs(tau_b(x, values)) - 1e-12
    far = [abs(tau_b(x, values[order])) >= least for order in orders]
    return float(np.mean(far))


class Agreement(NamedTuple):
    """Tau-b between two figures of methods, its bootstrap over people, and its p by permuting methods."""

    tau: float
    low: float
    high: float
    mean: float  # over the draws
    p: float
    enough: bool  # False with fewer than `FEWEST` methods, of which no claim is made


def agreement(
    reward: Float[np.ndarray, 'P M'], behaviour: Float[np.ndarray, 'P M'], *, draws: int = DRAWS, seed: int = 0
) -> Agreement:
    """The agreement of two figures of `M` methods by `P` people; of few people all draws are made.

    Draws in which all methods are equal say nothing and are left out.
    """
    people, methods = reward.shape
    if people**people <= 4096:
        chosen = np.array(list(itertools.product(range(people), repeat=people)))
    else:
        chosen = np.random.default_rng(seed).integers(people, size=(draws, people))
    # Means are rounded, so that methods that are equal are not put in an order by the last bit.
    taus = [tau_b(*(np.round(x[rows].mean(axis=0), 12) for x in (reward, behaviour))) for rows in chosen]
    known = np.array([tau for tau in taus if np.isfinite(tau)])
    low, high = (len(known) and interval(known, people)) or (np.nan, np.nan)
    means = [np.round(x.mean(axis=0), 12) for x in (reward, behaviour)]
    p = permutation_p(means[0].tolist(), means[1].tolist())
    mean = float(known.mean()) if len(known) else np.nan
    return Agreement(tau_b(*means), float(np.asarray(low)), float(np.asarray(high)), mean, p, methods >= FEWEST)
