"""Standard errors of means over the steps of a run, where steps resemble the steps before them.

A step's noise is autocorrelated, since its policy, its users and its conversations go on from those of the step before.
If four steps of autocorrelation 0.9 are taken as independent, the standard error of their mean is a fifth of the right
one.

The model is a regression with errors of first order (Zellner & Tiao 1964, "Bayesian analysis of the regression model
with autocorrelated errors"): a series is a straight line and noise `e_t = rho e_(t-1) + s u_t`. The line stands for
learning. Where learning bends away from it, the bend counts as noise, so errors become larger, not smaller.
The line and log `s` have flat priors. The prior of rho is the arcsine law, uniform in its angle, up to `MOST`. A short
series does not determine rho, so the errors of all rho are averaged by their posterior. The errors of one estimate of
rho would be biased downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import optimize, signal, stats

LEAST = 10  # steps; a shorter series does not determine its noise
MOST = 0.99  # rho lies between minus this and this
GRID = 40  # values of rho
ROUNDING = 1e-9  # share of the largest value; smaller residuals are rounding errors and no noise


def standard_errors(values: Sequence[float], weights: Float[np.ndarray, 'K n']) -> list[float] | None:
    """The standard error of each weighted sum of a series, such as the mean of a part or the difference of two.

    An error is the half-width of the sum's 95 % interval divided by 1.96, so a sum plus and minus 1.96 errors is that
    interval. Errors are 0 where the series is a straight line. Returns None where the series is shorter than `LEAST`.

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
    angle = math.asin(MOST)
    rhos, freedom = np.sin(np.linspace(-angle, angle, GRID)), n - line.shape[1]
    evidence, scales = zip(*[_given(rho, residual, line, weights) for rho in rhos], strict=True)
    posterior = np.exp(np.array(evidence) - max(evidence))
    posterior /= posterior.sum()
    return [float(unit) * _half_width(posterior, scale, freedom) / 1.96 for scale in np.transpose(scales)]


def _given(
    rho: float, y: Float[np.ndarray, ' n'], line: Float[np.ndarray, 'n P'], weights: Float[np.ndarray, 'K n']
) -> tuple[float, Float[np.ndarray, ' K']]:
    """The log of the posterior density at `rho`, by angle, and the scale `[K]` of each sum's t distribution there."""
    first = math.sqrt(1.0 - rho**2)
    white = np.column_stack([y, line])
    white = np.concatenate([first * white[:1], white[1:] - rho * white[:-1]])  # now the noise is independent
    z, x = white[:, 0], white[:, 1:]
    squares = float(np.sum(np.square(z - x @ np.linalg.lstsq(x, z)[0])))
    freedom = len(y) - x.shape[1]
    density = math.log(first) - 0.5 * np.linalg.slogdet(x.T @ x)[1] - 0.5 * freedom * math.log(squares)
    # A weighted sum of this noise is a sum of independent noise with the weights `spread`.
    spread = np.asarray(signal.lfilter([1.0], [1.0, -rho], weights[:, ::-1], axis=1))[:, ::-1].copy()
    spread[:, 0] /= first
    return density, np.sqrt(squares / freedom * np.sum(np.square(spread), axis=1))


def _half_width(posterior: Float[np.ndarray, ' G'], scale: Float[np.ndarray, ' G'], freedom: int) -> float:
    """Half the width of the 95 % interval about 0 of a mixture of `G` t distributions with `freedom` degrees."""
    outside = float(stats.t.ppf(0.975, freedom))

    def surplus(half: float) -> float:
        return float(posterior @ (2.0 * stats.t.sf(half / scale, freedom))) - 0.05

    ends = 0.999 * outside * float(scale.min()), 1.001 * outside * float(scale.max())
    return optimize.brentq(surplus, *ends, full_output=False)  # pyright: ignore[reportReturnType]
