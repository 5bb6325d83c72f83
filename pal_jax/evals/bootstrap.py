"""How far figures of people would move with other people: the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DRAWS = 1000
LEVEL = 0.95


def means(cells: Float[np.ndarray, '... P K']) -> Float[np.ndarray, '... K']:
    """Means over people of each column. A NaN, a cell that nobody could fill, counts nowhere; of nothing it is 0."""
    known = np.isfinite(cells)
    return np.where(known, cells, 0.0).sum(axis=-2) / np.maximum(known.sum(axis=-2), 1)


def resampled_means(
    cells: Float[np.ndarray, 'P K'], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, 'draws K']:
    """`means` of as many people, drawn with replacement, `draws` times. A person's cells stay together, so a figure of
    a whole row (a slope, say) may be made from each draw."""
    people = len(cells)
    chosen = np.random.default_rng(seed).integers(people, size=(draws, people))
    return means(cells[chosen])


def interval(statistics: Float[np.ndarray, 'draws ...'], level: float = LEVEL) -> list[float] | list[list[float]]:
    """The lower and the upper end of the middle `level` of each statistic."""
    tail = (1.0 - level) / 2.0
    return np.quantile(statistics, [tail, 1.0 - tail], axis=0).tolist()
