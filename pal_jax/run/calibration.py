"""The calibration of predicted choices: the distance of their confidence from the share that is right.

A model's confidence in a pair is the probability that it gives to the item it prefers, `sigmoid(|margin|)`, from 1/2 to
1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from pal_jax.run.accuracy import hits

BINS = 10  # of equal width, between the confidences 1/2 and 1


def reliability(margins: Float[np.ndarray, ' pairs']) -> Float[np.ndarray, 'bins 3']:
    """The number of pairs, the sum of their confidences and that of their hits by bin. Bins of several parts add up."""
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    # A confidence of 1 belongs to the last bin.
    place = np.minimum((2.0 * (confidence - 0.5) * BINS).astype(int), BINS - 1)
    columns = np.ones(len(margins)), confidence, hits(margins)
    return np.stack([np.bincount(place, column, BINS) for column in columns], axis=1)


def calibration_error(bins: Float[np.ndarray, 'bins 3']) -> float:
    """The expected calibration error: the mean distance of confidence from accuracy, over bins (Guo et al. 2017)."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1))
