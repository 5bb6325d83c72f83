"""Conditional logits with linear utilities (McFadden 1974), fitted exactly in float64 on the host.

The loss of a person is the sum over choices of `weight log(1 + sum_j exp(-x_j w))`, and `sum ridge (w - toward)² / 2`
beside it, with `x_j` the chosen option less the other option j. Between two options it is the Bradley-Terry model. The
loss is convex; Newton's method without a damping diverges on it all the same, where choices that a start predicts with
certainty are flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons, choice_numbers, rank_within
from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate

STEPS, HALVINGS = 100, 30  # at most
NEAR = 1e-18  # nats above the optimum, by the quadratic about the weights, at which a person moves no more
FREE = 1e-6  # a ridge that hardly pulls, and keeps weights finite where choices can be predicted without an error
TINY = 1e-300  # a variance that is divided by
CERTAIN = 20.0  # an effect of one standard deviation on the log-odds that choices cannot tell from any larger one
ENOUGH = 1e-4  # the share of the fall that the slope promises, below which a step is halved (Armijo 1966)


SINGULAR = 1e-9  # the mean square of a combination of attributes that is 0 but for rounding


def mean_products(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers `[V]` of the attributes that vary in differences of options `[..., H]`, and the mean products
    `[V, V]` of these attributes, each divided by its root mean square."""
    x = difference.reshape(-1, difference.shape[-1]).astype(np.float64)
    size = np.sqrt(np.mean(x**2, axis=0))
    varies = np.flatnonzero(size > 0)
    x = x[:, varies] / size[varies]
    return varies, x.T @ x / len(x)


def rank(difference: np.ndarray) -> int:
    """The number of attributes, of those in differences of options `[..., H]`, that do not follow from the others."""
    _, products = mean_products(difference)
    return int(np.sum(np.linalg.eigvalsh(products) > SINGULAR))


class ChoiceSets(NamedTuple):
    """`n` choices, each of one among up to `J + 1` options.

    Attributes:
      x: the chosen option less each other option `[n, J, H]`; zeros where there was none.
      exists: False `[n, J]` where a choice had fewer options.
      users: the person of each choice `[n]`.
      situations: the number of each choice's situation `[n]`.
    """

    x: np.ndarray
    exists: np.ndarray
    users: np.ndarray
    situations: np.ndarray

    def at(self, index: np.ndarray) -> ChoiceSets:
        """The choices at these numbers, or where a mask is True."""
        return ChoiceSets(*(column[index] for column in self))


def choice_sets(
    chosen: np.ndarray, rejected: np.ndarray, users: np.ndarray, situations: np.ndarray | None = None
) -> ChoiceSets:
    """The choices of people, in the order of people, from pairs, which `comparisons.choice_numbers` puts together.

    Args:
      chosen, rejected: the options of each pair `[p, H]`.
      users, situations: those of each pair `[p]`; without situations, each pair is a choice of its own.
    """
    if situations is None:
        situations = number = np.arange(len(users))
    else:
        number = choice_numbers(situations, chosen, rejected)
    order = np.lexsort((number, users))
    x, users, number, situations = (column[order] for column in (chosen - rejected, users, number, situations))
    is_first = (np.diff(users, prepend=-1) != 0) | (np.diff(number, prepend=-1) != 0)
    choice = np.cumsum(is_first) - 1
    place = rank_within(choice, np.arange(len(x)))
    shape = int(is_first.sum()), int(place.max(initial=0)) + 1
    sets, exists = np.zeros((*shape, x.shape[1])), np.zeros(shape, bool)
    sets[choice, place], exists[choice, place] = x, True
    return ChoiceSets(sets, exists, users[is_first], situations[is_first])


def choices_in(data: Comparisons) -> ChoiceSets:
    """The choices of a table."""
    return choice_sets(data.chosen[:], data.rejected[:], data.users, data.situations)


def log_chances(margins: np.ndarray, exists: np.ndarray | bool = True) -> np.ndarray:
    """The log probabilities `[...]` of choices, by the utility of the chosen option less each other one `[..., J]`."""
    odds = np.where(exists, -margins, -np.inf)
    total = np.zeros(odds.shape[:-1])
    for j in range(odds.shape[-1]):
        total = np.logaddexp(total, odds[..., j])
    return -total


class Fit(NamedTuple):
    """The weights `[P, H]` of people, and the Hessian `[P, H, H]` of the loss there."""

    weights: np.ndarray
    hessian: np.ndarray


def fit(
    x: np.ndarray,
    weight: np.ndarray,
    ridge: float | np.ndarray,
    toward: np.ndarray,
    exists: np.ndarray | bool = True,
) -> Fit:
    """The models of people, each apart.

    Args:
      x: the chosen option less each other one `[P, T, J, H]`.
      weight: of choices `[P, T]`; 0 for those that do not exist.
      ridge: one number above 0, or one by coordinate `[H]`.
      toward: where people's weights are pulled to, and start, `[H]`.
      exists: False for options that do not exist `[P, T, J]`.
    """
    ridge = np.broadcast_to(np.asarray(ridge, float), toward.shape)

    def loss(w: np.ndarray) -> np.ndarray:
        fit = -np.sum(weight * log_chances(_margins(x, w), exists), axis=1)
        return fit + np.sum(ridge * (w - toward) ** 2, axis=1) / 2

    w, hessian = np.tile(np.asarray(toward, float), (len(x), 1)), np.tile(np.diag(ridge), (len(x), 1, 1))
    for _ in range(STEPS):
        p = weight[..., None] * other_chances(_margins(x, w), exists)
        mean = np.matmul(p[..., None, :], x)[..., 0, :]
        gradient = ridge * (w - toward) - np.sum(mean, axis=1)
        # The covariance of the options' differences, by the probabilities of all options.
        flat = x.reshape(len(x), -1, x.shape[-1])
        squares = np.matmul(np.swapaxes(flat * p.reshape(len(x), -1, 1), 1, 2), flat)
        of_means = np.matmul(np.swapaxes(mean / np.where(weight > 0, weight, 1.0)[..., None], 1, 2), mean)
        hessian = squares - of_means + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        slope = np.sum(gradient * step, axis=1)
        if np.all(slope <= 2 * NEAR):
            break
        # The share `[P]` of each person's step that lowers the loss: 1, or half of it, or half of that. A fall that is
        # smaller than the loss can tell counts as one.
        before, length = loss(w), np.ones(len(w))
        for _ in range(HALVINGS):
            short = loss(w - length[:, None] * step) > before - ENOUGH * length * slope + 1e-13 * before
            length = np.where(short, length / 2, length)
            if not short.any():
                break
        # Each person has a length of their own, so nobody waits for another.
        w = w - length[:, None] * step
    return Fit(w, hessian)


def logistic(x: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """The weights `[H]` of a model of everybody, of differences chosen - rejected of pairs `[n, H]`, pulled to 0."""
    return fit(x[None, :, None], np.ones((1, len(x))), ridge, np.zeros(x.shape[1])).weights[0]


def scores(choices: ChoiceSets) -> np.ndarray:
    """The scores `[n, H]` of choices by one model of everybody, which are the derivatives of their log likelihoods with
    respect to the weights. The sum of the scores is 0."""
    return _scores(choices, _of_everybody(choices).weights[0])


class Common(NamedTuple):
    """One model of everybody: the weights `[H]`, their covariance `[H, H]` over people, and the number of people."""

    weights: np.ndarray
    covariance: np.ndarray
    people: int

    @property
    def estimates(self) -> list[Estimate]:
        """The weights with their intervals."""
        errors = np.sqrt(np.diag(self.covariance))
        pairs = zip(self.weights, errors, strict=True)
        return [intervals.of_mean(float(value), float(error), self.people) for value, error in pairs]

    def worth(self, attribute: int, price: int) -> Estimate:
        """The change of the attribute `price` that outweighs one unit of another: the ratio of their weights, negated.

        The interval is Fieller's (1954); there is none where the weight of the price may be 0.
        """
        both = [attribute, price]
        w, p = self.weights[both]
        (v, shared), (_, of_price) = self.covariance[np.ix_(both, both)]
        worth = float(-w / p) if p else math.nan
        t = float(special.stdtrit(max(self.people - 1, 1), (1.0 + intervals.LEVEL) / 2.0))
        # The worths r at which w + r p is within t errors of 0 solve a r² + 2 b r + c <= 0.
        a, b, c = p**2 - t**2 * of_price, w * p - t**2 * shared, w**2 - t**2 * v
        if a <= 0.0:
            return Estimate(worth, None, None, None)
        half = math.sqrt(max(b**2 - a * c, 0.0))
        return Estimate(worth, None, float((-b - half) / a), float((-b + half) / a))


class Units(NamedTuple):
    """The attributes of a survey.

    Attributes:
      scale: the divisor `[H]` of each in the table that models read.
      price: the number of the attribute that is a price; None: there is none.
      alone: the numbers of attributes that only a constant option has, such as "none of these".
    """

    attributes: Sequence[str]
    scale: np.ndarray
    price: int | None = None
    alone: frozenset[int] = frozenset()

    @property
    def price_name(self) -> str:
        """The attribute that is a price; '': there is none."""
        return '' if self.price is None else self.attributes[self.price]

    def effect(self, model: Common, attribute: int) -> Estimate | None:
        """The effect of one unit of an attribute; None where choices cannot tell it."""
        effect = model.estimates[attribute]
        return effect.scaled(1.0 / float(self.scale[attribute])) if is_known(effect) else None

    def worth(self, model: Common, attribute: int) -> Estimate | None:
        """The worth of one unit of an attribute in units of the price; None of the price itself, of an attribute that
        only a constant option has, without a price, and where choices cannot tell the effect of either."""
        if self.price is None or self.price == attribute or attribute in self.alone:
            return None
        if self.effect(model, attribute) is None or self.effect(model, self.price) is None:
            return None
        return model.worth(attribute, self.price).scaled(float(self.scale[self.price] / self.scale[attribute]))


def units_of(
    attributes: Sequence[str], scale: np.ndarray | None, price: str = '', alone: frozenset[int] = frozenset()
) -> Units:
    """The units of attributes; `scale` None divides by nothing, and `price` is the name of the one that is a price."""
    by = np.ones(len(attributes)) if scale is None else scale
    return Units(attributes, by, attributes.index(price) if price else None, alone)


def p_of_none(effect: Estimate, people: int) -> float | None:
    """The two-sided p-value of the hypothesis that an effect is 0, by Student's t with one degree of freedom less than
    there are people; None: it has no error."""
    return 2.0 * float(special.stdtr(people - 1.0, -abs(effect.value) / effect.error)) if effect.error else None


def is_known(mean: Estimate) -> bool:
    """False for an effect of one standard deviation that choices cannot tell: nearly all go one way, or the attribute
    never varies."""
    return abs(mean.value) <= CERTAIN and (mean.error or 0.0) <= CERTAIN


def log_likelihood(choices: ChoiceSets, weights: np.ndarray) -> float:
    """The log likelihood of choices by the weights `[H]` of a logit."""
    return float(np.sum(log_chances(choices.x @ weights, choices.exists)))


def of_all(choices: ChoiceSets) -> Common:
    """One model of everybody, a logit.

    The choices of a person are not independent, so errors are clustered by person (Liang & Zeger 1986). They are at
    least those of independent choices, so an attribute that hardly any choice contradicts has a wide interval.
    """
    fitted = _of_everybody(choices)
    w, inverse = fitted.weights[0], np.linalg.inv(fitted.hessian[0])
    names, person = np.unique(choices.users, return_inverse=True)
    of_people = np.zeros((len(names), len(w)))
    np.add.at(of_people, person, _scores(choices, w))
    clustered = inverse @ (of_people.T @ of_people) @ inverse * len(names) / max(len(names) - 1, 1)
    # An attribute that never varies has no scores at all, and its error is that of the ridge.
    clustered += np.diag(np.where(np.diag(clustered) > TINY, 0.0, np.diag(inverse)))
    wider = np.sqrt(np.maximum(np.diag(inverse) / np.diag(clustered), 1.0))
    return Common(w, clustered * wider[:, None] * wider, len(names))


def _of_everybody(choices: ChoiceSets) -> Fit:
    x, exists = choices.x[None], choices.exists[None]
    return fit(x, np.ones(x.shape[:2]), FREE, np.zeros(x.shape[-1]), exists)


def _scores(choices: ChoiceSets, w: np.ndarray) -> np.ndarray:
    return np.einsum('nj,njh->nh', other_chances(choices.x @ w, choices.exists), choices.x)


def other_chances(margins: np.ndarray, exists: np.ndarray | bool) -> np.ndarray:
    """The probability `[..., J]` of each option that was not chosen; a margin of any size overflows nothing."""
    return np.exp(np.where(exists, -margins, -np.inf) + log_chances(margins, exists)[..., None])


def _margins(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.matmul(x, w[:, None, :, None])[..., 0]
