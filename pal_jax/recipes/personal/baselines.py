"""The methods of tables that have no learner: the majority's vote, and the mixed logit of choice modelling.

They are methods of the bench (`interface.py`), and stand beside PAL in its own table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pal_jax.recipes.personal import mixed_logit
from pal_jax.recipes.personal.interface import Choices, Fitted, Method, counted


class LogitPeople(NamedTuple):
    """A mixed logit and the choices of the people it was fitted on."""

    model: mixed_logit.MixedLogit
    seen: Choices


def fit_majority(train: Choices, seed: int) -> Fitted:
    """The votes of all people; there is nothing to fit."""
    return Fitted(counted(train)[0], 0, 0)


def majority_margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
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


def fit_mixed_logit(train: Choices, seed: int) -> Fitted:
    """The mixed logit of xlogit, a normal distribution of coefficients."""
    x, users = counted(train)
    return Fitted(LogitPeople(mixed_logit.fit(x, users, seed), train), 2 * x.shape[1], 0)


def mixed_logit_margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
    """The log-odds given a person's known choices; those of seen people are their training choices."""
    params: Any = fitted.params
    known_x, known_users = counted(params.seen if known is None else known)
    # Padding has differences, too, and its margins are read by nobody.
    return mixed_logit.margins(params.model, known_x, known_users, asked.difference, asked.users)


METHODS: dict[str, Method] = {
    'majority': Method(fit_majority, majority_margins, personal=False),
    'mixed_logit': Method(fit_mixed_logit, mixed_logit_margins),
}
