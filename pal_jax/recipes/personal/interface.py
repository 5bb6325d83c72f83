"""The interface of a method that learns what each person prefers, as the bench compares methods (`recipes/bench`).

    fitted = method.fit(train, seed, **option)           # all seen people's training choices
    margins = method.margins(fitted, None, asked)        # seen people: `asked.users` are numbers of `train`
    margins = method.margins(fitted, known, asked)       # new people: what they are is read from their known choices
    rank = method.ask(fitted, pool, questions)           # optional: the order of questions to new people

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

from pal_jax.data.comparisons import rank_within


class Choices(NamedTuple):
    """`B` choices of people between two items, whose vectors are `H` wide; arrays of the host.

    All splits are padded to the same `B`, so that one compiled program serves them. Padding has weight 0, and so have
    choices that are not known yet; a method gives them no influence.
    """

    users: np.ndarray  # [B] int32, numbers from 0 to people - 1
    chosen: np.ndarray  # [B, H] float32
    rejected: np.ndarray  # [B, H] float32
    weight: np.ndarray  # [B] float32: 1 for a choice that counts, 0 for one that does not
    people: int  # the number of people, of whom some may have no choice
    prompt: np.ndarray | None = None  # [B, H] float32, where choices have prompts

    @property
    def difference(self) -> np.ndarray:
        """The vectors `[B, H]` of the chosen items less those of the others."""
        return self.chosen - self.rejected

    def swapped(self) -> Choices:
        """The choices with the other item as the chosen one."""
        return self._replace(chosen=self.rejected, rejected=self.chosen)


class Unfit(ValueError):
    """Raised by a method's `fit` where choices allow no fit. The bench says so in the place of the method's row."""


class Fitted(NamedTuple):
    """A fitted method: whatever its `margins` reads, and the numbers of its parameters."""

    params: Any
    shared: int  # parameters that all people share
    person: int  # parameters of one person


Fit = Callable[..., Fitted]  # (train: Choices, seed: int, **option) -> Fitted
Margins = Callable[[Fitted, Choices | None, Choices], np.ndarray]  # (fitted, known, asked) -> [B] margins of `asked`
Ask = Callable[[Fitted, Choices, int], np.ndarray]  # (fitted, pool, questions) -> [B] ranks from 0, within each person


class Method(NamedTuple):
    """A method of the bench.

    Attributes:
      fit: learns from the seen people's choices alone. The same seed gives the same result. It raises Unfit, with the
        reason, where there is none.
      margins: predicts choices. `known` is None for seen people, whose rows the method has learnt. For new people
        `known` has their choices by weight, and `known.users` and `asked.users` number the same people from 0. A new
        person without a known choice is predicted by what all people have in common.
      options: values of hyper-parameters, one of which is chosen on validation people.
      ask: ranks a pool of choices of new people by what their answers would tell. The next question may depend only on
        answers to the earlier ones. Ranks of `questions` and more are not read, nor those of choices of weight 0. None:
        the method has no rule of its own.
      personal: False where all people have the same margins, so that shuffled people change nothing.
    """

    fit: Fit
    margins: Margins
    options: tuple[Mapping[str, Any], ...] = ({},)
    ask: Ask | None = None
    personal: bool = True


def counted(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """The differences `[n, H]` and users `[n]` of the choices that count; padding and unknown choices weigh nothing."""
    there = choices.weight > 0
    return choices.difference[there], choices.users[there]


def by_person(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of each person's choices as rows `[people, T]`, and a mask of the entries that exist.

    Choices that weigh nothing are in no row. `T` is the largest number of choices of a person that count.
    """
    numbers = np.flatnonzero(choices.weight > 0)
    users = choices.users[numbers]
    rank = rank_within(users, np.arange(len(users)))
    index = np.zeros((choices.people, int(rank.max(initial=-1)) + 1), np.int64)
    exists = np.zeros(index.shape, bool)
    index[users, rank], exists[users, rank] = numbers, True
    return index, exists
