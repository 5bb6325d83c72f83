"""The methods of tables that have no learner: the majority's vote, and the mixed logit of choice modelling.

They are methods of the bench (`interface.py`), and stand beside PAL in its own table.
"""

from __future__ import annotations

import numpy as np

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import mixed_logit
from pal_jax.recipes.personal.interface import Fitted, Method, counted


def fit_majority(train: PairBatch, seed: int) -> Fitted:
    """The votes of all people; there is nothing to fit."""
    return Fitted(counted(train)[0], 0, 0)


def majority_margins(fitted: Fitted, known: PairBatch | None, asked: PairBatch) -> np.ndarray:
    """The votes of seen people for the chosen item less those for the other; a person's own choices count nothing."""
    return majority(fitted.params, asked.difference)


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


METHODS: dict[str, Method] = {
    'majority': Method(fit_majority, majority_margins, personal=False),
    'mixed_logit': Method(mixed_logit.fit, mixed_logit.margins),
}
