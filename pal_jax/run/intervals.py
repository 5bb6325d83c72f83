"""Intervals of 95 % of measured figures: means, shares, areas under a curve, and differences of two of them.

The observations of one unit (the answers to a prompt, the choices of a person) are not independent; units are. A figure
is a ratio of sums over units, and its standard error that of a ratio (Cochran 1977, section 6.4). The interval of a
mean is Student's with one degree of freedom less than there are units. That of a share is the exact one (Clopper &
Pearson 1934) of as many trials as have the share's error (Korn & Graubard 1998), so a share of 1 is never certain. A
figure whose observations cannot decide anything has no interval: nothing may be said of it but that they are too few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Shaped

LEVEL = 0.95
# Fewer units that are all equal do not show how far others may be.
EQUAL = 10

Rows = Float[np.ndarray, ' rows']
Units = Shaped[np.ndarray, ' rows']


class Estimate(NamedTuple):
    """A figure, its standard error and the ends of its 95 % interval, which are None where nothing can be told.

    The interval decides, not the standard error, which does not say how well it is known itself.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None

    def named(self, name: str) -> dict[str, Any]:
        """The figure as entries of a record: `name`, `<name>_se` and `<name>_interval`; unknown ones are None."""
        return {name: self.value, f'{name}_se': self.error, f'{name}_interval': self.interval}

    @property
    def interval(self) -> list[float] | None:
        """The ends of the interval, if there is one."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    @property
    def form(self) -> str:
        """The format that shows two digits of the error; '.3g' where it is unknown, and there is no interval.

        Without an error it is the smaller of half the interval and the figure, as the interval of a ratio may be wide.
        """
        half = (self.high - self.low) / 2.0 if self.high is not None and self.low is not None else 0.0
        error = self.error or min(half, abs(self.value) or half)
        return f'.{max(1 - math.floor(math.log10(error)), 0)}f' if 0.0 < error < math.inf else '.3g'

    def ends(self, form: str = '.3f') -> str:
        """The interval in words."""
        return '–' if self.low is None or self.high is None else f'{self.low:{form}} to {self.high:{form}}'

    def with_error(self, form: str = '.3f') -> str:
        """The figure and its standard error, where one is known."""
        return f'{self.value:{form}}' + ('' if self.error is None else f' ± {abs(self.error):{form.lstrip("+")}}')

    def scaled(self, factor: float, shift: float = 0.0) -> Estimate:
        """`factor * figure + shift`, for a factor above 0."""
        low, high = (None if end is None else factor * end + shift for end in (self.low, self.high))
        error = None if self.error is None else factor * self.error
        return Estimate(factor * self.value + shift, error, low, high)

    def place(self, level: float) -> int | None:
        """1 where the interval is above a level, -1 where it is below, 0 where it holds it; None without interval."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > level) - int(self.high < level)


def from_record(record: Mapping[str, Any], name: str) -> Estimate:
    """The inverse of `Estimate.named`. A record without these entries has a figure without an interval."""
    low, high = record.get(f'{name}_interval') or (None, None)
    return Estimate(record[name], record.get(f'{name}_se'), low, high)


def mean(values: Rows, units: Units | None = None, weights: Rows | None = None) -> Estimate:
    """The mean of values without bounds; each is a unit of its own where `units` does not say otherwise."""
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    return of_mean(*_ratio(values * weights, weights, units))


def share(right: Rows, units: Units | None = None, weights: Rows | None = None) -> Estimate:
    """The mean of values from 0 to 1, such as hits or the accuracies of people.

    Rows of `weights` 0 do not count, so a precision is the share of hits among rows that are called positive.
    """
    right = np.asarray(right, float)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, float)
    value, error, count = _ratio(right * weights, weights, units)
    if not np.isin(right, (0.0, 0.5, 1.0)).all():
        return _exact(value, error, _size(value, error, count))
    # Rows of right or wrong are trials: as many as rows where these are the units, and never more.
    trials = float(np.count_nonzero(weights))
    return _exact(value, error, trials if count == trials else min(_size(value, error, count, trials), trials))


def of_mean(value: float, error: float | None, units: int) -> Estimate:
    """The estimate of a mean without bounds from its standard error over `units` units."""
    if error is None or units < 2 or (error == 0.0 and units < EQUAL):
        return Estimate(value, error, None, None)
    half = float(scipy.special.stdtrit(units - 1, (1.0 + LEVEL) / 2.0)) * error
    return Estimate(value, error, value - half, value + half)


def of_share(value: float, error: float | None, units: int) -> Estimate:
    """The estimate of a share from its standard error over `units` units; without one they are independent trials."""
    return _exact(value, error, _size(value, error, units) if error and units > 1 else float(units))


def constant(value: float) -> Estimate:
    """The estimate of a figure that is known."""
    return Estimate(value, 0.0, value, value)


def gain(differences: Rows, units: Units | None = None) -> Estimate:
    """The mean of paired differences of shares, from -1 to 1."""
    if not np.any(differences):
        # Where no unit differs, differences are at most as frequent as a share of 0 may be.
        none = share(differences, units)
        return Estimate(0.0, none.error, None if none.high is None else -none.high, none.high)
    return share((np.asarray(differences, float) + 1.0) / 2.0, units).scaled(2.0, -1.0)


def auc(score: Rows, positive: Bool[np.ndarray, ' rows'], units: Units | None = None) -> Estimate:
    """The chance that one of the `positive` scores higher than one of the others, a tie being a half (Mann & Whitney
    1947); both kinds are there."""
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    units = np.arange(len(score)) if units is None else units
    # The share of the other kind with which a row stands in the right order.
    wins = np.empty(len(score))
    for kind, way in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(way * score[~kind])
        places = (np.searchsorted(others, way * score[kind], side) for side in ('left', 'right'))
        wins[kind] = sum(places) / (2.0 * len(others))
    value = float(wins[positive].mean())
    _, unit = np.unique(units, return_inverse=True)
    counts = np.where(positive, positive.sum(), (~positive).sum())
    # The error is that of the rows' shares of the figure (DeLong et al. 1988), summed by unit (Obuchowski 1997).
    parts = np.bincount(unit, (wins - value) / counts)
    error = float(np.sqrt(_corrected(len(parts)) * np.sum(parts**2))) if len(parts) > 1 else None
    # Where all pairs are in the right order, there are as many trials as units of the rarer kind.
    rarer = min(len(np.unique(unit[kind])) for kind in (positive, ~positive))
    return _exact(value, error, min(_size(value, error, rarer, len(score)), len(score)))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The first less the second figure, which are independent, from the intervals of both (Zou & Donner 2008).

    Of two shares this is Newcombe's interval (1998, method 10).
    """
    value = first.value - second.value
    error = None if first.error is None or second.error is None else math.hypot(first.error, second.error)
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value, error, None, None)
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, error, value - below, value + above)


def average(figures: Sequence[Estimate]) -> Estimate:
    """The mean of independent figures of the same weight, from the intervals of all (Zou & Donner 2008)."""
    count, value = len(figures), float(np.mean([figure.value for figure in figures]))
    errors = [figure.error for figure in figures]
    error = None if None in errors else math.hypot(*errors) / count  # type: ignore[arg-type]
    if any(figure.low is None or figure.high is None for figure in figures):
        return Estimate(value, error, None, None)
    below = math.hypot(*(figure.value - figure.low for figure in figures)) / count  # type: ignore[operator]
    above = math.hypot(*(figure.high - figure.value for figure in figures)) / count  # type: ignore[operator]
    return Estimate(value, error, value - below, value + above)


def p_in_words(p: float | None) -> str:
    """A p-value in the cell of a table; None: there is none."""
    return '–' if p is None else '< .001' if p < 0.001 else f'{p:.3f}'


def tail(units: int) -> float:
    """The share of draws of a bootstrap that lie beyond an end of the interval."""
    # With one unit there is no interval, and all draws are inside.
    if units < 2:
        return 0.0
    # Draws of `units` units spread by sqrt(1 - 1 / units) too little, and normal tails are shorter than Student's, so
    # the percentile interval of few units is too narrow (Hesterberg 2015, section 5.3).
    student = scipy.special.stdtrit(units - 1, (1.0 + LEVEL) / 2.0)
    return float(scipy.special.ndtr(-math.sqrt(_corrected(units)) * student))


def _ratio(part: Rows, whole: Rows, units: Units | None) -> tuple[float, float | None, int]:
    """A ratio of sums, its standard error (None of one unit) and the number of units that have a part of the whole."""
    kept = whole > 0.0
    if not kept.any():
        return math.nan, None, 0
    part, whole = part[kept], whole[kept]
    if units is not None:
        _, unit = np.unique(np.asarray(units)[kept], return_inverse=True)
        part, whole = np.bincount(unit, part), np.bincount(unit, whole)
    count, total = len(whole), whole.sum()
    value = float(part.sum() / total)
    # Equal units differ by nothing; a rounding error is no spread.
    rest = np.zeros(count) if np.ptp(part / whole) <= 1e-12 * max(abs(value), 1.0) else part - value * whole
    error = float(np.sqrt(_corrected(count) * np.sum(rest**2)) / total) if count > 1 else None
    return value, error, count


def _corrected(units: int) -> float:
    return units / (units - 1)


def _size(value: float, error: float | None, units: int, rows: float = 0.0) -> float:
    """The number of independent trials whose share has this error, less what a few units know of it (Korn & Graubard
    1998)."""
    if not error or not 0.0 < value < 1.0:
        # Without spread between units the size is the number of rows, if that is known; of a share of 0 or 1 it is the
        # number of units.
        return float(rows or units) if 0.0 < value < 1.0 and units > 1 else float(units)
    normal, student = scipy.special.ndtri((1.0 + LEVEL) / 2.0), scipy.special.stdtrit(units - 1, (1.0 + LEVEL) / 2.0)
    return value * (1.0 - value) / error**2 * float(normal / student) ** 2


def _exact(value: float, error: float | None, trials: float) -> Estimate:
    """A share's interval of Clopper and Pearson, of a number of trials that need not be whole."""
    if not trials:
        return Estimate(value, error, None, None)
    hits, half = value * trials, (1.0 - LEVEL) / 2.0
    low = 0.0 if value <= 0.0 else float(scipy.special.betaincinv(hits, trials - hits + 1.0, half))
    high = 1.0 if value >= 1.0 else float(scipy.special.betaincinv(hits + 1.0, trials - hits, 1.0 - half))
    return Estimate(value, error, low, high)
