"""The interface of a method that learns what each person prefers, as the bench compares methods (`recipes/bench`).

    fitted = method.fit(train, seed, **option)           # all seen people's training choices
    margins = method.margins(fitted, None, asked)        # seen people: `asked.users` are numbers of `train`
    margins = method.margins(fitted, known, asked)       # new people: what they are is read from their known choices
    rank = method.ask(fitted, pool, questions)           # optional: the order of questions to new people

Choices are a `PairBatch` of arrays of the host: `B` pairs of `people` people, who are numbered from 0. All splits are
padded to the same `B`, so that one compiled program serves them. Padding has no share, and so have pairs that are not
known yet; a method gives them no influence. Pairs of one choice among several options share a situation (`choices_of`).

To add a method of your own, write these functions in a file and a line in the table `METHODS` of
`recipes/personal/bench/methods.py`, with the method's name in words in `recipes/personal/figures.py` (`METHODS`):

    'mine': Method(mine.fit, mine.margins, options=({'pull': 0.1}, {'pull': 1.0})),

The bench does the rest: it chooses the option on validation people, fits the method on five splits and on five more
whose people are shuffled, tests seen people on new choices and new people at several numbers of known choices, times
the fit of a person, and subtracts the shared model's figures.

A margin is the reward of the chosen item less that of the other one: above 0 the choice is predicted right, and
`sigmoid(margin)` is its probability. A method must not look which side was chosen: with sides swapped it has to give
the negative margin, which the bench checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.comparisons import PairBatch, rank_within
from pal_jax.recipes.personal.figures import METHODS
from pal_jax.recipes.personal.logit import ChoiceSets, choice_sets


class Unfit(ValueError):
    """Raised by a method's `fit` where choices allow no fit. The bench says so in the place of the method's row."""


def without_rows(unfit: Mapping[str, str]) -> str:
    """Sentences on methods that have no row in a table, by their names with the reasons; each begins with a space."""
    return ''.join(f' Without a row: {METHODS.get(name, name)}, since {reason}.' for name, reason in unfit.items())


class Fitted(NamedTuple):
    """A fitted method: whatever its `margins` reads, and the numbers of its parameters."""

    params: Any
    shared: int  # parameters that all people share
    person: int  # parameters of one person


Fit = Callable[..., Fitted]  # (train: PairBatch, seed: int, **option) -> Fitted
Margins = Callable[[Fitted, PairBatch | None, PairBatch], np.ndarray]  # (fitted, known, asked) -> [B] of `asked`
Ask = Callable[[Fitted, PairBatch, int], np.ndarray]  # (fitted, pool, questions) -> [B] ranks from 0, within a person


class Method(NamedTuple):
    """A method of the bench.

    Attributes:
      fit: learns from the seen people's choices alone. The same seed gives the same result. It raises Unfit, with the
        reason, where there is none.
      margins: predicts choices. `known` is None for seen people, whose rows the method has learnt. For new people
        `known` has their choices, of which those with a share count, and `known.users` and `asked.users` number the
        same people from 0. A new person without a known choice is predicted by what all people have in common.
      options: values of hyper-parameters, one of which is chosen on validation people.
      ask: ranks a pool of choices of new people by what their answers would tell. The next question may depend only on
        answers to the earlier ones. Ranks of `questions` and more are not read, nor those of choices without a share.
        None: the method has no rule of its own.
      personal: False where all people have the same margins, so that shuffled people change nothing.
    """

    fit: Fit
    margins: Margins
    options: tuple[Mapping[str, Any], ...] = ({},)
    ask: Ask | None = None
    personal: bool = True


def counted(choices: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    """The differences `[n, H]` and users `[n]` of the pairs that count."""
    return choices.difference[choices.counts], np.asarray(choices.users)[choices.counts]


def choices_of(pairs: PairBatch) -> ChoiceSets:
    """The choices among options of which the pairs that count are parts."""
    chosen, rejected, users = (np.asarray(x)[pairs.counts] for x in (pairs.chosen, pairs.rejected, pairs.users))
    situations = None if pairs.situation is None else np.asarray(pairs.situation)[pairs.counts]
    return choice_sets(chosen, rejected, users, situations)


def by_person(choices: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of each person's choices that count as rows `[people, T]`, and a mask of the entries that exist.

    `T` is the largest number of choices of a person.
    """
    # Padding and choices that are not known yet have no place in a row.
    numbers = np.flatnonzero(choices.counts)
    users = np.asarray(choices.users)[numbers]
    # Choices keep their order within a person.
    rank = rank_within(users, np.arange(len(users)))
    index = np.zeros((choices.people, int(rank.max(initial=-1)) + 1), np.int64)
    exists = np.zeros(index.shape, bool)
    index[users, rank], exists[users, rank] = numbers, True
    return index, exists
