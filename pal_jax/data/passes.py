"""Endless shuffled passes over entries. The entries of a step are a function of its start, so that a run which resumes
has no position to remember."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

# The most entries whose order is held in memory.
HELD = 1 << 20
ROUNDS = 4


def shuffled(total: int, *, start: int, size: int, seed: int) -> np.ndarray:
    """Entries `start` to `start + size` of passes over `total` entries, each pass in an order of its own. `[size]`."""
    place = np.arange(start, start + size)
    passes, within = place // total, place % total
    out = np.empty(size, np.int64)
    # A step may cross the border between passes, and each pass has an order of its own.
    for number in range(passes[0], passes[-1] + 1):
        here = passes == number
        entries = (
            _order(total, number, seed)[within[here]]
            if total <= HELD
            else scattered(within[here], total, [seed, number])
        )
        out[here] = entries
    return out


def scattered(place: np.ndarray, total: int, seed: Sequence[int]) -> np.ndarray:
    """The images of the entries at `place` under a permutation of `total` entries, which is never written down.

    It is a Feistel network, repeated until its result is one of the entries (Black & Rogaway 2002).
    """
    # The network permutes numbers of an even number of bits, of which there may be more than entries.
    half = max(1, (total - 1).bit_length() + 1 >> 1)
    mask, keys = np.uint64((1 << half) - 1), np.random.default_rng(seed).integers(0, 1 << 63, ROUNDS, np.uint64)
    out = place.astype(np.uint64)
    outside = np.ones(len(out), bool)
    while outside.any():
        left, right = out[outside] >> np.uint64(half), out[outside] & mask
        for key in keys:
            # The function of a round need not be invertible: it multiplies and mixes the bits of one half.
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ (mixed >> np.uint64(40)) & mask
        out[outside] = left << np.uint64(half) | right
        # A number that is no entry goes through the network again, and the result stays a permutation.
        outside = out >= total
    return out.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _order(total: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(total).astype(np.int32)
