"""The options of PAL's learner: rates, the loss and its pulls, and the fit of new users.

LoRe, PReF, MRM and MaxMin-RLHF's groups are values of these and of `ideal_point.PAL`, see docs/methods/personal.md.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from pal_jax.objectives.preference import PairLoss
from pal_jax.recipes.personal.asking import Question
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.meta import Meta


@dataclasses.dataclass(frozen=True)
class Rates:
    """Adam's learning rates by group, without a schedule, as PAL has them, and Adam's decay of moments."""

    projector: float = 1e-4  # rate of the map from items to the space of preferences
    projector_decay: float = 0.01  # in its L2 form
    prototypes: float = 5e-3  # rate of the prototypes
    users: float = 5e-3  # rate of users' logits
    log_scale: float = 1e-1  # rate of the logarithm of the rewards' scale
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment


class Loss(NamedTuple):
    """The loss of a pair and its penalties."""

    name: PairLoss = 'logistic'
    options: tuple[tuple[str, float], ...] = ()
    pull: float = 0.0  # the precision of users' Gaussian prior; a user of n pairs loses `pull |z|² / 2` beside them
    bound: float = 0.0  # an upper limit on the length of users' points; 0: none
    bound_coef: float = 1.0  # the weight of the length above the bound
    # The mean over a batch is one over pairs, or one over people, whose pairs then weigh by `share`.
    by: Literal['pairs', 'people'] = 'pairs'
    # A user's weights mix the rewards of prototypes, or the losses of a pair by each prototype alone, as a mixture of
    # groups has them (MaxMin-RLHF).
    mix: Literal['rewards', 'losses'] = 'rewards'
    prototype_pull: float = (
        0.0  # of the prototypes' squared length beside a batch's mean loss; no user's logits feel it
    )


class NewUsers(NamedTuple):
    """The fit of a new user's logits, on all of the user's pairs."""

    steps: int = 300
    lr: float = 5e-2
    pull: float = 1.0  # the precision of a Gaussian prior
    start: Literal['zero', 'prior'] = 'zero'  # where the steps begin, at z = 0 or at the prior
    # Adam, plain gradient descent, or Newton's method (`asking.mode`) to the mode of a Bradley-Terry model, which has
    # no steps or rate of its own and needs a pull.
    optimizer: Literal['adam', 'sgd', 'newton'] = 'adam'
    average: Literal['sum', 'mean'] = 'sum'  # the loss over the user's pairs
    question: Question = 'information'  # the rule by which the next question is chosen, see `asking`


def check(pal: PAL, loss: Loss, inner: Meta | None) -> None:
    """Raises ValueError where the options of a loss or of inner steps do not fit a model."""
    if loss.prototype_pull and (pal.variant != 'A' or pal.mixture == 'own'):
        raise ValueError(
            f'loss.prototype_pull={loss.prototype_pull} pulls vectors: it needs model.variant=A with prototypes, got '
            f'variant={pal.variant} and mixture={pal.mixture}'
        )
    if loss.mix == 'losses' and pal.mixture not in ('softmax', 'partition'):
        raise ValueError(f"loss.mix='losses' needs model.mixture=softmax or partition, got {pal.mixture!r}")
    if inner is not None and (loss.pull or loss.mix == 'losses'):
        raise ValueError(f'inner steps have no pull of users and mix rewards; got pull={loss.pull}, mix={loss.mix}')
    if inner is not None and not (inner.steps >= 0 and 0 < inner.support < 1 and 0 < inner.rho <= 1):
        raise ValueError(f'inner steps need steps >= 0, a support between 0 and 1 and 0 < rho <= 1, got {inner}')
