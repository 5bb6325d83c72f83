"""How well choices are foretold: by pair, by person, by split; and how many prototypes the people need.

A margin is a model's reward of the item that was chosen less that of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Accuracy(NamedTuple):
    """Shares of pairs foretold: of all pairs, and of a person's pairs the mean over people and over the worst tenth."""

    pairs: float
    people: float
    worst: float


def hits(margins: np.ndarray) -> np.ndarray:
    """1 for a choice foretold, 1/2 for a tie."""
    return (np.sign(margins) + 1.0) / 2.0


def accuracy(margins: np.ndarray, users: np.ndarray) -> Accuracy:
    """Over pairs, and over the people they are of."""
    _, person = np.unique(users, return_inverse=True)
    by_person = np.bincount(person, weights=hits(margins)) / np.bincount(person)
    worst = np.sort(by_person)[: math.ceil(len(by_person) / 10)]
    return Accuracy(float(hits(margins).mean()), float(by_person.mean()), float(worst.mean()))


def majority(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Margins by a vote among the known choices between the same two items: those that went the same way, less others.

    Both are differences chosen - rejected `[n, H]`.
    """
    votes: dict[bytes, int] = {}
    for key, way in map(_ballot, known):
        votes[key] = votes.get(key, 0) + way
    return np.array([votes.get(key, 0) * way for key, way in map(_ballot, asked)], float)


def _ballot(difference: np.ndarray) -> tuple[bytes, int]:
    """A pair of items in an order of its own, and which of them was chosen."""
    way = 1 if difference[np.flatnonzero(difference)[0]] > 0 else -1
    return (way * difference + 0.0).tobytes(), way  # + 0.0: no zero has a sign


def choose(validation: Mapping[int, Sequence[float]]) -> list[int]:
    """For each split the number of prototypes with the highest accuracy on its validation part, the least of equals."""
    return [
        max(sorted(validation), key=lambda k: validation[k][split]) for split in range(len(validation[min(validation)]))
    ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over splits and its standard error; NaN for a single split."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def gain(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean difference on the same splits, and its standard error."""
    return mean_and_error([a - b for a, b in zip(ours, theirs, strict=True)])
