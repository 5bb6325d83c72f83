"""Agreement of a model's people with known groups, which the model was never told."""

from __future__ import annotations

import math

import numpy as np

from pal_jax.run import intervals


def agreement(mixtures: np.ndarray, groups: np.ndarray) -> float:
    """The agreement of people's weights `[P, K]` with their groups `[P]`: the AUC of the main direction for the two
    largest groups.

    The main direction is the one in which people differ most. Either end of it may be either group, so 1/2 is chance.
    People in no group (-1) or in another one do not count; the AUC is NaN with one group.
    """
    names, counts = np.unique(groups[groups >= 0], return_counts=True)
    if len(names) < 2:
        return math.nan
    two = names[np.argsort(-counts, kind='stable')[:2]]
    counted = np.isin(groups, two)
    area = intervals.auc(main_direction(mixtures)[counted], groups[counted] == two[0]).value
    return max(area, 1.0 - area)


def main_direction(mixtures: np.ndarray) -> np.ndarray:
    """The first principal coordinate of each person."""
    centred = mixtures - mixtures.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
