"""Endless shuffled passes over some entries: what a step draws is a function of where it begins, so that a run which
resumes has no position to remember."""

from __future__ import annotations

import functools

import numpy as np


def shuffled(total: int, *, start: int, size: int, seed: int) -> np.ndarray:
    """Entries `start` to `start + size` of passes over `total` of them, each pass in an order of its own."""
    place = np.arange(start, start + size)
    passes, within = place // total, place % total
    out = np.empty(size, np.int64)
    for each in range(passes[0], passes[-1] + 1):
        out[passes == each] = _order(total, each, seed)[within[passes == each]]
    return out


@functools.lru_cache(maxsize=64)
def _order(total: int, each: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, each]).permutation(total).astype(np.int32)
