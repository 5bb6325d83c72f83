"""Groups of people with a reward each, by expectation and maximisation: the rewards of MaxMin-RLHF (arXiv 2402.08925).

    E: a person goes to the group whose reward makes the person's choices likeliest, or belongs to each group in part
    M: each group's reward learns from its people's pairs

The rewards are PAL's prototypes, one a group, whose people stand still while they learn (`Loss.mix='losses'`).

A new person belongs to groups by the likelihood of known choices and the groups' shares, `weights_of`, and is predicted
by the mean probability over groups, `mixed_margin`. The published code puts held-out people into groups by the pairs
that it then scores, by which two coins have .57 on ten pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import jax
import numpy as np

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState

Belonging = Literal['hard', 'soft']

CERTAIN = 20.0  # a logit beside which the other groups have no weight


def likelihoods(margins: np.ndarray, users: np.ndarray, people: int, weight: np.ndarray | None = None) -> np.ndarray:
    """The log likelihood `[U, G]` of each person's choices by each group's margins `[n, G]`."""
    values = -np.logaddexp(0.0, -np.asarray(margins, np.float64))
    total = np.zeros((people, values.shape[1]))
    np.add.at(total, users, values if weight is None else values * weight[:, None])
    return total


def weights_of(likelihood: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """People's belonging `[U, G]` to groups: `softmax(log likelihood + log share)`; without choices, the shares."""
    logits = likelihood + np.log(np.maximum(shares, 1e-12))
    logits -= logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def assign(likelihood: np.ndarray) -> np.ndarray:
    """One group for each person, as rows of zeros and a one; the first of equals.

    A group that nobody would join gets the person whom all groups explain worst, for its reward would stay as it was
    for ever.
    """
    group, best = np.argmax(likelihood, axis=1), np.max(likelihood, axis=1)
    for empty in range(likelihood.shape[1]):
        counts = np.bincount(group, minlength=likelihood.shape[1])
        if not counts[empty] and (counts[group] > 1).any():
            # Nobody is taken who is alone in a group.
            group[np.argmin(np.where(counts[group] > 1, best, np.inf))] = empty
    return np.eye(likelihood.shape[1])[group]


def run(
    learner: IdealPointLearner, state: PALState, batches: Callable[[int], Iterable[PairBatch]], pairs: PairBatch,
    weight: np.ndarray, start: np.ndarray, *, rounds: int, belonging: Belonging = 'hard',
) -> tuple[np.ndarray, PALState]:  # fmt: skip
    """Alternate M and E steps from people's first belonging `[U, G]`; the last belonging, and the groups' rewards.

    Args:
      learner: a learner of one replica with `Loss.mix='losses'` and rate 0 of users.
      batches: the batches `[1, updates, B]` that the prototypes learn from in a round, in turn, by the round's number.
      pairs: all pairs `[1, n]`, by which people are put into groups; those of `weight` 0 do not count.

    Raises:
      ValueError: people would move while prototypes learn, or rewards would be mixed in place of losses; `belonging` is
        neither hard nor soft, or there are no rounds.
    """
    if learner.rates.users or learner.loss.mix != 'losses' or learner.loss.pull:
        raise ValueError('groups need rates.users=0, loss.pull=0 and loss.mix=losses')
    if belonging not in ('hard', 'soft') or rounds < 1:
        raise ValueError(f'belonging={belonging!r} must be hard or soft, and rounds={rounds} at least 1')
    people, users, table = start, np.asarray(pairs.users)[0], state.users.z
    for done in range(rounds):
        # M: each group's reward learns from its people, who stand at the logarithms of their belonging, whose softmax
        # it is again.
        z = np.zeros(table.shape, np.float32)
        z[0, : len(people)] = np.maximum(np.log(np.maximum(people, 1e-30)), -CERTAIN)
        state = state.replace(users=state.users.replace(z=jax.device_put(z, table.sharding)))
        for batch in batches(done):
            state, _ = learner.update(state, batch)
        # E: people go where their choices are likely.
        margins = np.asarray(learner.by_prototype(state.params, pairs))[0]
        likelihood = likelihoods(margins, users, len(start), weight)
        people = assign(likelihood) if belonging == 'hard' else weights_of(likelihood, people.mean(axis=0))
    return people, state


def mixed_margin(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The logit `[n]` of the mean over groups of the probability of a choice, from margins and weights `[n, G]`.

    It is the negative one where sides are swapped.
    """
    # Probabilities are mixed, for a mean of margins is no mean of groups.
    yes = np.logaddexp.reduce(np.log(np.maximum(weights, 1e-30)) - np.logaddexp(0.0, -margins), axis=1)
    no = np.logaddexp.reduce(np.log(np.maximum(weights, 1e-30)) - np.logaddexp(0.0, margins), axis=1)
    return yes - no
