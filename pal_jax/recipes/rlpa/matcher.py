"""The embedding matcher: facts are the same if their sentences are near, whatever their words.

It stands between the exact matcher, to which `pet: ferret` and `has a ferret` are two facts, and a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
from jaxtyping import Float

from pal_jax.data.holdouts import normal
from pal_jax.judges.embedding import SentenceEncoder
from pal_jax.models.files import packages
from pal_jax.recipes.rlpa.profiles import split_fact
from pal_jax.types import ProfileMatcher

# Precision and recall at this threshold stand in docs/evidence/rlpa.md.
THRESHOLD = 0.65
SAME_SLOT = 0.8  # the threshold between values of one slot


def open_matcher() -> ProfileMatcher:
    """The matcher by embeddings. Raises RuntimeError where its model is not installed."""
    return make_embedding_matcher(SentenceEncoder(packages.encoder_folder('minilm')))


def make_embedding_matcher(encode: SentenceEncoder, *, threshold: float = THRESHOLD) -> ProfileMatcher:
    """A matcher by embeddings. Raises ValueError where the threshold is no cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f'threshold={threshold} is no cosine; use a number from -1 to 1')

    def match(inferred: Sequence[Sequence[str]], golden: Sequence[Sequence[str]]) -> list[int | None]:
        pairs = list(zip(inferred, golden, strict=True))
        facts = dict.fromkeys(fact for pair in pairs for facts in pair for fact in facts)
        texts = list(dict.fromkeys(text for fact in facts for text in (fact, split_fact(fact)[1])))
        vectors = dict(zip(texts, encode(texts), strict=True)) if texts else {}
        return [assigned(_excess(*pair, vectors, threshold)) if all(pair) else 0 for pair in pairs]

    return match


def _excess(
    ours: Sequence[str], true: Sequence[str], vectors: Mapping[str, np.ndarray], threshold: float
) -> Float[np.ndarray, 'inferred golden']:
    """The cosine of each inferred and golden fact, less the least cosine at which they are the same fact."""
    (slots, values), (true_slots, true_values) = (
        zip(*(split_fact(fact) for fact in facts), strict=True) for facts in (ours, true)
    )
    whole, value = (
        np.stack([vectors[text] for text in left]) @ np.stack([vectors[text] for text in right]).T
        for left, right in ((ours, true), (values, true_values))
    )
    # Facts that name the same slot differ in their values alone, and sentences that share a word are near whatever the
    # other word is. So the values of such facts are compared, and have to be nearer.
    same = np.array([[bool(a) and normal(a) == normal(b) for b in true_slots] for a in slots])
    return np.where(same, value - SAME_SLOT, whole - threshold)


def assigned(excess: Float[np.ndarray, 'inferred golden']) -> int:
    """The number of facts that the best one-to-one assignment pairs: as many pairs as can be, then the nearest ones."""
    # The bonus is at least the sum of all excesses, so one pair more always wins over nearer pairs.
    gains = np.where(excess >= 0.0, excess + 2.0 * min(excess.shape), 0.0)
    # The facts of two profiles are assigned one to one (Hungarian algorithm), and pairs that are near enough count.
    rows, columns = scipy.optimize.linear_sum_assignment(gains, maximize=True)
    return int(np.sum(excess[rows, columns] >= 0.0))
