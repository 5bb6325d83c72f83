"""The methods of the bench by name: a line for each. `recipes/personal/interface.py` says what a method has to give.

LoRe, PReF, MRM, MaxMin-RLHF's groups, GPO and an own form of VRF stand in `recipes/personal/bench/learners.py`. PAL,
its baselines with a learner, and the shared model are no lines here: they are the run that `configs/pal.py` describes,
see `pal_rows.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pal_jax.recipes.personal import mixed_logit
from pal_jax.recipes.personal.bench import learners as personal_methods
from pal_jax.recipes.personal.bench import vpl
from pal_jax.recipes.personal.interface import Choices, Fitted, Method, counted
from pal_jax.run import accuracy


class LogitPeople(NamedTuple):
    """A mixed logit and the choices of the people it was fitted on."""

    model: mixed_logit.MixedLogit
    seen: Choices


def fit_majority(train: Choices, seed: int) -> Fitted:
    """The votes of all people; there is nothing to fit."""
    return Fitted(counted(train)[0], 0, 0)


def majority_margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
    """The votes of seen people for the chosen item less those for the other; a person's own choices count nothing."""
    return accuracy.majority(fitted.params, asked.difference)


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
    'vpl': Method(vpl.fit, vpl.margins, options=({'decay': 1e-2}, {'decay': 1.0})),
    **personal_methods.METHODS,
}

FOR_TABLES = ('majority', 'mixed_logit')  # methods whose attributes need a meaning; texts have none
