"""Diversity of texts: distances of their embeddings, and BLEU of each against the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ORDER = 4  # of BLEU
# The floor stands for a count of 0 (Chen & Cherry 2014, method 1).
FLOOR = 0.1


def spread(vectors: Float[np.ndarray, 'N D']) -> float:
    """1 less the mean cosine of two different texts' vectors (Self-RedTeam, arXiv 2506.07468, section 4).

    Raises:
      ValueError: there are fewer than two texts.
    """
    if len(vectors) < 2:
        raise ValueError(f'the diversity of {len(vectors)} texts is undefined; give two or more')
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    return float(1.0 - cosines[~np.eye(len(unit), dtype=bool)].mean())


def self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU-4 of each text with all others as its references (Zhu et al. 2018); 1: all texts are the same.

    Raises:
      ValueError: there are fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f'self-BLEU of {len(texts)} texts is undefined; give two or more')
    # Words are cut at white space and taken in lower case.
    words = [text.lower().split() for text in texts]
    return float(np.mean([bleu(text, [*words[:k], *words[k + 1 :]]) for k, text in enumerate(words)]))


def bleu(text: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a sentence (Papineni et al. 2002) with equal weights; 0 where no word is in a reference."""
    logs = []
    for n in range(1, ORDER + 1):
        counts, most = ngrams(text, n), Counter[tuple[str, ...]]()
        for reference in references:
            # A run of words counts at most as often as in any one reference.
            most |= ngrams(reference, n)
        hits = sum(min(count, most[gram]) for gram, count in counts.items())
        if n == 1 and not hits:
            return 0.0
        logs.append(math.log((hits or FLOOR) / max(sum(counts.values()), 1)))
    # Of references that are equally near the shorter one counts.
    nearest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    brevity = 1.0 if len(text) > nearest else math.exp(1 - nearest / len(text))
    return brevity * math.exp(sum(logs) / ORDER)


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """The number of times that each run of `n` words occurs."""
    return Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
