"""Do a model's people fall into the groups that others found, which it was never told?"""

from __future__ import annotations

import math

import numpy as np


def agreement(mixtures: np.ndarray, groups: np.ndarray) -> float:
    """How well the direction in which people `[P, K]` differ most tells the two largest groups `[P]` apart: the AUC,
    whichever end is which, so 1/2 is chance. Those in no group (-1) or in another do not count; NaN with one group.
    """
    names, counts = np.unique(groups[groups >= 0], return_counts=True)
    if len(names) < 2:
        return math.nan
    two = names[np.argsort(-counts, kind='stable')[:2]]
    counted = np.isin(groups, two)
    found = auc(main_direction(mixtures)[counted], groups[counted] == two[0])
    return max(found, 1.0 - found)


def main_direction(mixtures: np.ndarray) -> np.ndarray:
    """People by their first principal coordinate."""
    centred = mixtures - mixtures.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that one of the `positive` scores higher than one of the others (Mann & Whitney 1947)."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[place]  # ties share theirs
    n, m = int(positive.sum()), int((~positive).sum())
    return (float(rank[positive].sum()) - n * (n + 1) / 2.0) / (n * m)
