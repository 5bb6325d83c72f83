"""Alignment by turn and its normalised improvement rate (ALOE, arXiv 2410.03642; RLPA, arXiv 2505.15456, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Improvement(NamedTuple):
    """A least-squares line through a min-max normalised alignment curve: slope, intercept and R²."""

    n_ir: float
    intercept: float
    n_r2: float


def normalized_improvement(levels: Sequence[float] | ArrayLike) -> Improvement:
    """N-IR and N-R² of AL(1), AL(2), ...: the fit of `(AL - min) / (max - min)` on k = 1, 2, ...

    A flat curve gives zeros.

    Raises:
      ValueError: the curve has fewer than two turns.
    """
    al = np.asarray(levels, np.float64)
    if al.ndim != 1 or al.size < 2:
        raise ValueError(f'a curve needs one level for each of two or more turns, got shape {al.shape}')
    span = al.max() - al.min()
    if span == 0.0:
        return Improvement(0.0, 0.0, 0.0)
    # The curve is stretched to [0, 1] first, so N-IR measures how steadily a method improves, not by how much: read it
    # beside the mean of AL.
    y, k = (al - al.min()) / span, np.arange(1, al.size + 1)
    slope, intercept = np.polyfit(k, y, 1)
    residual = y - (slope * k + intercept)
    return Improvement(float(slope), float(intercept), float(1.0 - residual @ residual / np.sum((y - y.mean()) ** 2)))
