"""Models of a panel of people on several splits at once: new choices of seen people, and new people by their known
choices.

A trial is a random split with the users that its models were told; models of all trials stand side by side in a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data.comparisons import Comparisons, PairBatch, Split, rank_within, take
from pal_jax.models.params import Params
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState

CHUNK = 65536  # pairs judged at once


class Trial(NamedTuple):
    """A split and, for every pair, the user that its models are told: the true user, or another one where ids are
    shuffled."""

    split: Split
    users: np.ndarray
    seed: int
    shuffled: bool


class Newcomers(NamedTuple):
    """New people of all trials `[R, ...]`, numbered from 0 in each: pairs to fit them by and pairs to test them on."""

    fit: PairBatch
    rank: np.ndarray  # the rank of each pair among those of its person; PADDING on padding
    test: PairBatch
    tested: np.ndarray  # True for pairs of `test` that exist
    testers: list[np.ndarray]  # the people of these pairs by trial, numbered as in the data
    people: int

    @property
    def most(self) -> int:
        """The largest number of comparisons that a person has."""
        return int(np.max(self.rank, where=self.rank < PADDING, initial=-1)) + 1


PADDING = 2**30


def make_trials(data: Comparisons, seeds: int, control: bool, seed: int, split: Callable[[int], Split]) -> list[Trial]:
    """The trials of `seeds` splits; with `control` there are as many more, whose users are shuffled among the pairs."""
    trials = []
    for shuffled in (False, True)[: 1 + control]:
        for number in range(seed, seed + seeds):
            parts, users = split(number), data.users.copy()
            if shuffled:
                rng = np.random.default_rng([number, 1])
                for index in (parts.train, parts.fit):
                    users[index] = rng.permutation(users[index])
            trials.append(Trial(parts, users, number, shuffled))
    return trials


def padded(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several lengths as one array, filled up with 0, and a mask of the entries that exist."""
    exists = np.arange(max(map(len, parts))) < np.array([[len(part)] for part in parts])
    index = np.zeros(exists.shape, np.int64)
    for row, part in zip(index, parts, strict=True):
        row[: len(part)] = part
    return index, exists


def margins(learner: IdealPointLearner, params: Params, z: Array, pairs: PairBatch) -> np.ndarray:
    """The margins of all pairs `[R, n]`, computed a chunk at a time."""
    n = pairs.users.shape[1]

    def part(start: int) -> PairBatch:
        return jax.tree.map(lambda x: x[:, start : start + CHUNK], pairs)

    return np.concatenate([np.asarray(learner.margins(params, z, part(start))) for start in range(0, n, CHUNK)], axis=1)


def seen_margins(
    learner: IdealPointLearner, state: PALState, data: Comparisons, trials: Sequence[Trial],
    part: Literal['train', 'validation', 'test'],
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """The margins of all pairs of one part of the seen people's choices and the pairs' users, by trial."""
    index, exists = padded([getattr(trial.split, part) for trial in trials])
    users = data.users[index]
    pairs = take(data, index, users, np.zeros(index.shape, np.float32), read=False)
    by_trial = margins(learner, state.params, state.users.z, pairs)
    return [(m[keep], u[keep]) for m, keep, u in zip(by_trial, exists, users, strict=True)]


def newcomers(data: Comparisons, trials: Sequence[Trial]) -> Newcomers:
    """The new people of each trial; the order in which their pairs become known is random, by the trial's seed."""
    fit, fitted = padded([trial.split.fit for trial in trials])
    test, tested = padded([trial.split.new_test for trial in trials])
    number, rank = np.zeros((len(trials), len(data.names)), np.int32), np.full(fit.shape, PADDING)
    for r, trial in enumerate(trials):
        people = np.unique(data.users[trial.split.new_test])
        number[r, people] = np.arange(len(people))
        order = np.random.default_rng([trial.seed, 2]).permutation(len(trial.split.fit))
        rank[r, fitted[r]] = rank_within(trial.users[trial.split.fit], order)
    rows = np.arange(len(trials))[:, None]
    known = number[rows, np.stack([trial.users for trial in trials])[rows, fit]]
    nothing = np.zeros(fit.shape, np.float32), np.zeros(test.shape, np.float32)
    return Newcomers(
        fit=take(data, fit, known, nothing[0]),
        rank=rank,
        test=take(data, test, number[rows, data.users[test]], nothing[1], read=False),
        tested=tested,
        testers=[data.users[trial.split.new_test] for trial in trials],
        people=int(number.max()) + 1,
    )


def questions(learner: IdealPointLearner, state: PALState, new: Newcomers, prior: Array, most: int) -> Newcomers:
    """The new people, whose comparisons become known in the order of the information expected of them.

    Up to `most` are asked in that order; the others are known after them.
    """
    exists = new.rank < PADDING
    wide = jnp.broadcast_to(prior[:, None], (prior.shape[0], new.people, prior.shape[1]))
    order = np.asarray(learner.ask(state.params, new.fit, jnp.asarray(exists), wide, 0, questions=most))
    rank = np.where(exists, np.where(order < PADDING, order, most + new.rank), PADDING)
    within = np.stack([rank_within(u, r) for u, r in zip(np.asarray(new.fit.users), rank, strict=True)])
    return new._replace(rank=np.where(exists, within, PADDING))


def population(state: PALState) -> Array:
    """The mean logits `[R, K]` of the users who were trained; 0 where nobody was."""
    trained = (state.users.updates > 0).astype(jnp.float32)[..., None]
    return jnp.sum(trained * state.users.z, axis=1) / jnp.maximum(jnp.sum(trained, axis=1), 1)


def new_margins(
    learner: IdealPointLearner, state: PALState, new: Newcomers, counts: Sequence[int], prior: Array
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The margins of new people's test pairs and the pairs' users, numbered as in the data, by number of known
    comparisons, then by trial: only the logits of new people are fitted."""
    prior = jnp.broadcast_to(prior[:, None], (prior.shape[0], new.people, prior.shape[1]))
    rows = []
    for count in counts:
        z = learner.fit(state.params, new.fit, (new.rank < count).astype(np.float32), prior)
        table = margins(learner, state.params, z, new.test)
        rows.append([(m[keep], users) for m, keep, users in zip(table, new.tested, new.testers, strict=True)])
    return rows
