"""The percentile bootstrap (Efron 1979) of figures that are no means, shares, areas or differences (those have
`run/intervals.py`): how far they would move with other people."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from pal_jax.run.intervals import tail

DRAWS = 1000


def means(cells: Float[np.ndarray, '... P K'], nothing: float = 0.0) -> Float[np.ndarray, '... K']:
    """The means of each column over people.

    A NaN, a cell that nobody could fill, counts nowhere; the mean of a column without cells is `nothing`.
    """
    known = np.isfinite(cells)
    count = known.sum(axis=-2)
    return np.where(count > 0, np.where(known, cells, 0.0).sum(axis=-2) / np.maximum(count, 1), nothing)


def resampled_means(
    cells: Float[np.ndarray, 'P K'], *, draws: int = DRAWS, seed: int = 0, nothing: float = 0.0
) -> Float[np.ndarray, 'draws K']:
    """The `means` of as many people, drawn with replacement, `draws` times."""
    people = len(cells)
    chosen = np.random.default_rng(seed).integers(people, size=(draws, people))
    # A person's cells stay together, so a figure of a whole row (a slope, for example) may be made from each draw.
    return means(cells[chosen], nothing)


def resampled_counts(people: int, *, draws: int = DRAWS, seed: int = 0) -> Int[np.ndarray, 'draws P']:
    """The number of times that each person is in a draw of `resampled_means`, for figures that are no means of cells.

    Multiplied with the sums of a person's cells it gives the sums of a draw; rows repeated by it are the rows of a
    draw.
    """
    chosen = np.random.default_rng(seed).integers(people, size=(draws, people))
    return np.stack([np.bincount(row, minlength=people) for row in chosen])


def interval(statistics: Float[np.ndarray, 'draws ...'], people: int) -> list[float] | list[list[float]] | None:
    """The lower and the upper end of the 95 % interval of each statistic, whose draws are of `people` people; None of
    a single person."""
    if people < 2:
        return None
    # With fewer people the ends lie further out, see `intervals.tail`.
    beyond = tail(people)
    return np.quantile(statistics, [beyond, 1.0 - beyond], axis=0).tolist()
