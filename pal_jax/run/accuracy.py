"""Accuracy of predicted choices, by pair, by person and by split; and the number of prototypes that a population needs.

A margin is a model's reward of the item that was chosen minus that of the other item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Accuracy(NamedTuple):
    """Shares of pairs predicted right: of all pairs, the mean over people of each person's share, and the mean over the
    worst tenth of people."""

    pairs: float
    people: float
    worst: float


def hits(margins: np.ndarray) -> np.ndarray:
    """The score of each margin: 1 for a choice predicted right, 1/2 for a tie, 0 for a wrong one."""
    return (np.sign(margins) + 1.0) / 2.0


def accuracy(margins: np.ndarray, users: np.ndarray) -> Accuracy:
    """The accuracy over pairs, and over the people who made the choices."""
    _, person = np.unique(users, return_inverse=True)
    by_person = np.bincount(person, weights=hits(margins)) / np.bincount(person)
    worst = np.sort(by_person)[: math.ceil(len(by_person) / 10)]
    return Accuracy(float(hits(margins).mean()), float(by_person.mean()), float(worst.mean()))


def majority(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Margins by a vote among the known choices between the same two items: those for the chosen item less the others.

    Both arguments are differences chosen - rejected `[n, H]`.
    """
    votes: dict[bytes, int] = {}
    for key, way in map(_ballot, known):
        votes[key] = votes.get(key, 0) + way
    return np.array([votes.get(key, 0) * way for key, way in map(_ballot, asked)], float)


def _ballot(difference: np.ndarray) -> tuple[bytes, int]:
    """A pair of items in an order of its own, and the sign of the one that was chosen."""
    way = 1 if difference[np.flatnonzero(difference)[0]] > 0 else -1
    return (way * difference + 0.0).tobytes(), way  # + 0.0 takes the sign off zeros


def choose(validation: Mapping[int, Sequence[float]]) -> list[int]:
    """The number of prototypes with the highest accuracy on each split's validation part; the smallest of equals."""
    return [
        max(sorted(validation), key=lambda k: validation[k][split]) for split in range(len(validation[min(validation)]))
    ]
