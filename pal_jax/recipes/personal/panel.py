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
from numpy.typing import ArrayLike

from pal_jax.data.comparisons import Comparisons, PairBatch, Split, choices_at, rank_within, shares, take
from pal_jax.models.params import Params
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.run.forecast import counted

CHUNK = 65536  # pairs judged at once
PADDING = 2**30
# Above this share of unused pairs a run warns. Of random pairs of texts .56 are in two parts, and more are unused where
# people answer few.
MOST_UNUSED = 2 / 3

Part = Literal['train', 'validation', 'test', 'fit', 'new_test']
# The margins of pairs, their users, numbered as in the data, and the numbers of their choices, by trial.
Judged = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


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
    people: list[np.ndarray]  # the numbers of these people in the data, by trial
    choices: list[np.ndarray]  # the number of the choice of each pair to test on, by trial

    @property
    def most(self) -> int:
        """The largest number of comparisons that a person has."""
        return int(np.max(self.rank, where=self.rank < PADDING, initial=-1)) + 1


def first_split(seed: int) -> int:
    """The number of the first split of a run. No run has a thousand splits, so those of another seed are others."""
    return 1000 * seed


def make_trials(data: Comparisons, seeds: int, control: bool, seed: int, split: Callable[[int], Split]) -> list[Trial]:
    """The trials of `seeds` splits; with `control` there are as many more, whose users are shuffled among the pairs.

    Runs with different seeds have no split in common.
    """
    trials, first = [], first_split(seed)
    for shuffled in (False, True)[: 1 + control]:
        for number in range(first, first + seeds):
            parts, users = split(number), data.users.copy()
            if shuffled:
                # The control shuffles people among pairs that models learn from, and leaves those of tests as they are.
                rng = np.random.default_rng([number, 1])
                for index in (parts.train, parts.fit):
                    users[index] = rng.permutation(users[index])
            trials.append(Trial(parts, users, number, shuffled))
    return trials


def in_words(data: Comparisons, trial: Trial) -> str:
    """The numbers of people and pairs in the parts of a split, in words."""
    parts, pairs = trial.split, len(data.users)
    known, new = (len(np.unique(data.users[part])) for part in (parts.train, parts.new_test))
    unused, people = pairs - sum(map(len, parts)), len(np.unique(data.users))
    left = people - len(np.unique(data.users[np.concatenate(parts)]))
    words = (
        f'the first split: {counted(len(parts.train), "pair")} of {known} known people to learn from, '
        f'{len(parts.validation)} to choose the number of prototypes by, {len(parts.test)} to test on; '
        f'{new} new people with {len(parts.fit)} and {len(parts.new_test)} to test on'
    )
    if unused:
        reason = ', since their texts are in two parts' if data.prompt is None else ''
        words += f'; {unused} pairs are unused{reason}'
    if left:
        words += f'; {left} of {people} people have too few usable pairs and are left out'
    if unused > MOST_UNUSED * pairs:
        words += (
            f'\nwarning: {unused / pairs:.0%} of the pairs are unused; ask for many more answers of each person, or '
            'give each pair a prompt, which keeps its texts in one part'
        )
    return words


def columns(
    data: Comparisons, trials: Sequence[Trial], part: Part, people: Sequence[np.ndarray] | None = None
) -> PairBatch:
    """A part of all trials `[R, n]`; rows are filled up with pairs that have no share, of user 0.

    Users have their numbers in the data, or their places among the `people` of each trial. Sides that are a `Lookup`
    are not read.
    """
    parts = [getattr(trial.split, part) for trial in trials]
    index = np.zeros((len(trials), max(map(len, parts))), np.int64)
    users, share = np.zeros(index.shape, np.int32), np.zeros(index.shape, np.float32)
    for r, (trial, pairs) in enumerate(zip(trials, parts, strict=True)):
        # Models are told shuffled people in training and among known choices; tests have the true ones.
        those = (trial.users if part in ('train', 'fit') else data.users)[pairs]
        those = those if people is None else np.searchsorted(people[r], those)
        index[r, : len(pairs)], users[r, : len(pairs)], share[r, : len(pairs)] = pairs, those, shares(those)
    count = len(data.names) if people is None else max(map(len, people))
    return take(data, index, users, share, read=False, people=count)


def margins(learner: IdealPointLearner, params: Params, z: Array, pairs: PairBatch) -> np.ndarray:
    """The margins of all pairs `[R, n]`."""
    # Pairs go a chunk at a time, as the items of all of them may lie on disk.
    starts = range(0, pairs.users.shape[1], CHUNK)
    chunks = (jax.tree.map(lambda x, start=start: x[:, start : start + CHUNK], pairs) for start in starts)
    return np.concatenate([np.asarray(learner.margins(params, z, chunk)) for chunk in chunks], axis=1)


def seen_margins(
    learner: IdealPointLearner, state: PALState, data: Comparisons, trials: Sequence[Trial], part: Part
) -> Judged:
    """The margins of all pairs of one part of the seen people's choices, with the pairs' users and choices."""
    pairs = columns(data, trials, part)
    by_trial = margins(learner, state.params, state.users.z, pairs)
    table = zip(by_trial, pairs.counts, pairs.users, trials, strict=True)
    return [(m[keep], u[keep], choices_at(data, getattr(trial.split, part))) for m, keep, u, trial in table]


def newcomers(data: Comparisons, trials: Sequence[Trial]) -> Newcomers:
    """The new people of each trial; the order in which their pairs become known is random, by the trial's seed."""
    people = [np.unique(data.users[trial.split.new_test]) for trial in trials]
    fit, test = columns(data, trials, 'fit', people), columns(data, trials, 'new_test', people)
    rank = np.full(fit.users.shape, PADDING)
    for row, trial in zip(rank, trials, strict=True):
        order = np.random.default_rng([trial.seed, 2]).permutation(len(trial.split.fit))
        row[: len(order)] = rank_within(trial.users[trial.split.fit], order)
    # Pairs to fit by are read into memory, since they are fitted again for each number of known ones.
    choices = [choices_at(data, trial.split.new_test) for trial in trials]
    return Newcomers(jax.tree.map(lambda x: x[:], fit), rank, test, people, choices)


def questions(learner: IdealPointLearner, state: PALState, new: Newcomers, prior: Array, most: int) -> Newcomers:
    """The new people, whose comparisons become known in the order of the information expected of them.

    Up to `most` are asked in that order; the others are known after them.
    """
    exists, wide = new.rank < PADDING, for_everybody(prior, new.fit.people)
    order = np.asarray(learner.ask(state.params, new.fit, jnp.asarray(exists), wide, 0, questions=most))
    rank = [asked_first(*rows, most) for rows in zip(new.fit.users, order, new.rank, strict=True)]
    return new._replace(rank=np.stack(rank))


def asked_first(users: ArrayLike, order: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
    """The rank `[n]` of each known pair in its user, of whom `most` pairs were asked in `order`; PADDING stays."""
    # The first `most` are known in the order in which they were asked, then all others by their rank before.
    keys = np.where(order < most, order, most + np.minimum(rank, PADDING - most - 1))
    within = rank_within(users, np.where(rank < PADDING, keys, PADDING))
    return np.where(rank < PADDING, within, PADDING)


def shown_split(chosen: Sequence[int]) -> int:
    """The split that stands for all, by the K that each chose: the first of the median K, the upper of two."""
    return list(chosen).index(sorted(chosen)[len(chosen) // 2])


def population(state: PALState) -> Array:
    """The mean logits `[R, K]` of the users who were trained; 0 where nobody was."""
    # The table has rows of new users and of nobody, too, which no update has moved.
    trained = (state.users.updates > 0).astype(jnp.float32)[..., None]
    return jnp.sum(trained * state.users.z, axis=1) / jnp.maximum(jnp.sum(trained, axis=1), 1)


def for_everybody(prior: Array, people: int) -> Array:
    """A mean `[R, K]` for each of the people, `[R, people, K]`."""
    return jnp.broadcast_to(prior[:, None], (prior.shape[0], people, prior.shape[1]))


def new_margins(
    learner: IdealPointLearner, state: PALState, new: Newcomers, counts: Sequence[int], prior: Array
) -> list[Judged]:
    """The margins of new people's test pairs, with the pairs' users and choices, by number of known comparisons: only
    the logits of new people are fitted."""
    rows, wide = [], for_everybody(prior, new.fit.people)
    for count in counts:
        # Choices that are not known yet weigh nothing, so one program serves every number.
        z = learner.fit(state.params, new.fit, (new.rank < count).astype(np.float32), wide)
        of_pairs = margins(learner, state.params, z, new.test), new.test.users, new.test.counts
        table = zip(*of_pairs, new.people, new.choices, strict=True)
        rows.append([(m[keep], those[users[keep]], choices) for m, users, keep, those, choices in table])
    return rows
