"""Scores of many texts, a chunk of similar lengths at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.progress import track

CHUNK = 16  # texts that are scored at once


def by_length(sizes: Sequence[int], score: Callable[[list[int]], np.ndarray]) -> np.ndarray:
    """The scores of texts in their order; `score` takes the places of those of a chunk.

    Args:
      sizes: lengths of the texts, at least one. Texts of similar lengths are scored together, so little is padding.
    """
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    scores = [score(at) for at in track(chunks, 'scoring', console=Console(stderr=True), transient=True)]
    joined = np.concatenate(scores)
    return joined[np.argsort(order)]
