"""Standard errors of means over the steps of a run, where steps resemble the steps before them.

A step's noise is autocorrelated, since its policy, its users and its conversations go on from those of the step before.
If four steps of autocorrelation 0.9 are taken as independent, the standard error of their mean is a fifth of the right
one.

The model is a regression with errors of first order (Zellner & Tiao 1964, "Bayesian analysis of the regression model
with autocorrelated errors"): a series is a curve and noise `e_t = rho e_(t-1) + s u_t`. The curve stands for learning.
It is a straight line, or a line and a bend `exp(-t / tau)`, as a loss falls fast and then slowly. A bend of another
form counts as noise, so errors become larger, not smaller.
The line and log `s` have flat priors. The prior of rho is the arcsine law, uniform in its angle, up to `MOST`. A line
without a bend has a prior of 1/2, and the bends share the other half. The height of a bend has the unit-information
prior, by which a bend that explains nothing costs a factor of sqrt(n) (Kass & Wasserman 1995, "A reference Bayesian
test for nested hypotheses"). A short series does not determine rho and the curve, so the errors of all are averaged by
their posterior. The errors of one estimate of rho would be biased downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import optimize, signal, special

LEAST = 10  # steps; a shorter series does not determine its noise
MOST = 0.99  # rho lies between minus this and this
GRID = 40  # values of rho
BENDS = 0.025, 0.05, 0.1, 0.2  # values of tau, as shares of the series
WIDTH = 1.96  # errors to either end of a 95 % interval
ROUNDING = 1e-9  # share of the largest value; smaller residuals are rounding errors and no noise


def standard_errors(values: Sequence[float], weights: Float[np.ndarray, 'K n']) -> list[float] | None:
    """The standard error of each weighted sum of a series, such as the mean of a part or the difference of two.

    An error is the half-width of the sum's 95 % interval divided by `WIDTH`, so a sum plus and minus `WIDTH` errors is
    that interval. Errors are 0 where the series is a straight line. Returns None where the series is shorter than
    `LEAST`.

    Args:
      values: the series, a number a step.
      weights: those of each of the K sums.
    """
    y, n = np.asarray(values, np.float64), len(values)
    if n < LEAST:
        return None
    if not (unit := np.abs(y).max()):
        return [0.0] * len(weights)
    y = y / unit  # squares of it neither overflow nor vanish
    line = np.stack([np.ones(n), np.linspace(-1.0, 1.0, n)], axis=1)
    residual = y - line @ np.linalg.lstsq(line, y)[0]
    if np.abs(residual).max() <= ROUNDING:
        return [0.0] * len(weights)
    return [float(unit) * error for error in _errors(residual, line, weights)]


def _errors(
    y: Float[np.ndarray, ' n'], line: Float[np.ndarray, 'n P'], weights: Float[np.ndarray, 'K n']
) -> list[float]:
    """The error of each weighted sum of `y`, which is what a straight line has left of a series."""
    (n, straight), angle = line.shape, math.asin(MOST)
    rhos = np.sin(np.linspace(-angle, angle, GRID))
    bends = [np.exp(-np.arange(n) / (share * n)) for share in BENDS]
    white = _whitened(np.column_stack([y, line, *bends]), rhos)  # [R, n, 1 + P + bends], of independent noise
    z, first = white[:, :, 0], 0.5 * np.log1p(-np.square(rhos))
    x = white[:, :, 1 : 1 + straight]
    density = first - 0.5 * np.linalg.slogdet(x.mT @ x)[1]
    factors = _spread(rhos, weights)
    evidence, scales, freedoms = [], [], []
    for k in range(len(BENDS) + 1):
        if k:
            x = white[:, :, [*range(1, 1 + straight), straight + k]]
        squares = np.sum(np.square(z - (x @ np.linalg.solve(x.mT @ x, x.mT @ z[..., None]))[..., 0]), axis=1)
        squares = np.maximum(squares, n * (ROUNDING * np.abs(y).max()) ** 2)
        prior = -math.log(len(BENDS)) - 0.5 * math.log(n) if k else 0.0
        evidence.append(prior + density - 0.5 * (n - straight) * np.log(squares))
        freedoms.append(np.full(len(rhos), n - x.shape[2]))
        scales.append(np.sqrt(squares / freedoms[-1] * factors))
    posterior = np.exp(np.concatenate(evidence) - np.max(evidence))
    posterior /= posterior.sum()
    freedom = np.concatenate(freedoms)
    return [_half_width(posterior, scale, freedom) / WIDTH for scale in np.concatenate(scales, axis=1)]


def _whitened(columns: Float[np.ndarray, 'n C'], rhos: Float[np.ndarray, ' R']) -> Float[np.ndarray, 'R n C']:
    """The columns after the filter, for each rho, that makes noise of first order independent."""
    rho = rhos[:, None, None]
    return np.concatenate([np.sqrt(1.0 - rho**2) * columns[:1], columns[1:] - rho * columns[:-1]], axis=1)


def _spread(rhos: Float[np.ndarray, ' R'], weights: Float[np.ndarray, 'K n']) -> Float[np.ndarray, 'K R']:
    """The variance of weighted sums of noise of first order, for each rho, if its innovations have variance 1."""
    rows = []
    for rho in rhos:
        # A weighted sum of this noise is a sum of independent noise with the weights `spread`.
        spread = np.asarray(signal.lfilter([1.0], [1.0, -rho], weights[:, ::-1], axis=1))[:, ::-1].copy()
        spread[:, 0] /= math.sqrt(1.0 - rho**2)
        rows.append(np.sum(np.square(spread), axis=1))
    return np.stack(rows, axis=1)


def _half_width(
    posterior: Float[np.ndarray, ' G'], scale: Float[np.ndarray, ' G'], freedom: Float[np.ndarray, ' G']
) -> float:
    """Half the width of the 95 % interval about 0 of a mixture of `G` t distributions with `freedom` degrees."""
    halves = special.stdtrit(freedom, 0.975) * scale

    def surplus(half: float) -> float:
        return float(posterior @ (2.0 * special.stdtr(freedom, -half / scale))) - 0.05

    ends = 0.999 * float(halves.min()), 1.001 * float(halves.max())
    return optimize.brentq(surplus, *ends, full_output=False)  # pyright: ignore[reportReturnType]
