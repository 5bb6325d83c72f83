"""Rewards on a scale of their own: running mean and standard deviation over all scores of a run (P-Soups, part I.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """The number of scores, their mean, and the sum of squared distances from it."""

    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 0 before there are two scores."""
        return math.sqrt(self.m2 / max(self.n - 1.0, 1.0))


def add_scores(moments: Moments, scores: Float[np.ndarray, ' B']) -> Moments:
    """The moments with the scores of a batch added (Chan et al. 1979); an empty batch changes nothing."""
    # The arithmetic is in double precision: the three numbers go into a checkpoint as JSON and come back with every
    # bit.
    scores = np.asarray(scores, np.float64)
    if not scores.size:
        return moments
    n, gap = moments.n + scores.size, float(scores.mean()) - moments.mean
    mean = moments.mean + gap * scores.size / n
    m2 = moments.m2 + float(np.square(scores - scores.mean()).sum()) + gap**2 * moments.n * scores.size / n
    return Moments(n, mean, m2)


def standardised(moments: Moments, scores: Float[np.ndarray, ' B']) -> Float[np.ndarray, ' B']:
    """`(score - mean) / (std + 1e-8)`, by moments that have seen these scores already."""
    return (np.asarray(scores, np.float64) - moments.mean) / (moments.std + 1e-8)
