"""A test of whether people want different things, by permutations of who made which choice; agreement with groups.

Where all people want the same, a choice says nothing about other choices of the same person. The statistic is that of
the score test of random coefficients against one logit for all (Chesher 1984): a person's scores, the derivatives of
the log likelihood with respect to the weights, are summed, and the squared lengths of the sums are added. It is large
where the choices of a person err in the same direction.

Its distribution comes from permutations, so that the logit need not be true: choices of the same question are exchanged
among the people who were asked it, and choices of questions that one person alone was asked among all people. The
second needs questions that were drawn at random, or in the same way for everybody.
"""

from __future__ import annotations

import math

import numpy as np

from pal_jax.data import comparisons
from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal import logit
from pal_jax.run import intervals

PERMUTATIONS = 999
LARGE, FEWER = 100_000, 199  # choices beyond which a fifth of the permutations must do
NEAR = 1e-12  # statistics that differ by this share of them are equal


def p_of_same_wants(data: Comparisons, seed: int = 0) -> float:
    """The p-value of the hypothesis that all people want the same, of choices between items with few attributes.

    It is at least one over the number of permutations and one; it is 1 where no exchange changes the statistic.
    """
    choices = logit.choices_in(data)
    # Questions have the same number where only the person differs.
    question = comparisons.questions(data._replace(users=np.zeros_like(data.users)))
    return permuted(logit.scores(choices), choices.users, question[choices.situations], seed)


def p_of_same_groups(data: Comparisons, seed: int = 0) -> float:
    """The p-value of the hypothesis that all of the `data.groups` want the same, by permutations of whole people over
    groups; people in no group (-1) do not count."""
    assert data.groups is not None
    choices = logit.choices_in(data)
    choices = choices.at(data.groups[choices.users] >= 0)
    scores = np.zeros((len(data.names), choices.x.shape[2]))
    np.add.at(scores, choices.users, logit.scores(choices))
    people = np.unique(choices.users)
    return permuted(scores[people], data.groups[people], np.zeros(len(people), np.int64), seed)


def permuted(scores: np.ndarray, person: np.ndarray, question: np.ndarray, seed: int) -> float:
    """The p-value of the scores `[S, H]` of choices, with the numbers `[S]` of their people and questions.

    The people may also be groups, and the choices people.
    """
    # Attributes count alike, in any units, where the scores have the same variance in all directions.
    directions, size, _ = np.linalg.svd(scores, full_matrices=False)
    directions = directions[:, size > NEAR * size.max(initial=0.0)]
    by_person = np.argsort(person, kind='stable')
    starts = np.flatnonzero(np.diff(person[by_person], prepend=-1))

    def statistic(moved: np.ndarray) -> float:
        """The sum over people of squared lengths, where choice `i` has the scores of choice `moved[i]`."""
        return float(np.sum(np.add.reduceat(directions[moved[by_person]], starts) ** 2))

    asked_once = np.bincount(question)[question] == 1
    stratum, rng = np.where(asked_once, -1, question), np.random.default_rng(seed)
    place, moved = np.argsort(stratum, kind='stable'), np.arange(len(scores))
    observed, at_least = statistic(moved), 1
    count = PERMUTATIONS if len(scores) <= LARGE else FEWER
    for _ in range(count):
        moved[place] = np.lexsort((rng.random(len(scores)), stratum))
        at_least += statistic(moved) >= observed * (1.0 - NEAR)
    return at_least / (count + 1)


def agreement(mixtures: np.ndarray, groups: np.ndarray) -> float:
    """The agreement of people's weights `[P, K]` with their groups `[P]`: the AUC for the two largest groups of the
    direction in which people differ most.

    People in no group (-1) or in another one do not count; the AUC is NaN with one group.
    """
    names, counts = np.unique(groups[groups >= 0], return_counts=True)
    if len(names) < 2:
        return math.nan
    two = names[np.argsort(-counts, kind='stable')[:2]]
    counted, centred = np.isin(groups, two), mixtures - mixtures.mean(axis=0)
    # The first principal coordinate is the direction in which people differ most.
    direction = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    area = intervals.auc(direction[counted], groups[counted] == two[0]).value
    # Either end of the direction may be either group, so 1/2 is chance.
    return max(area, 1.0 - area)
