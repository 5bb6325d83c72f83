"""The embedding matcher: its assignment by enumeration, its calibration on our phrasings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.matcher import figures
from pal_jax.judges.embedding import SentenceEncoder
from pal_jax.models.files import packages
from pal_jax.recipes.rlpa.matcher import THRESHOLD, assigned, make_embedding_matcher


@pytest.mark.parametrize('seed', range(5))
def test_the_assignment_pairs_as_many_as_any_can(seed):
    excess = np.random.default_rng(seed).normal(-0.2, 0.5, (3, 4))
    best = max(sum(excess[i, j] >= 0 for i, j in enumerate(order)) for order in itertools.permutations(range(4), 3))
    assert assigned(excess) == assigned(excess.T) == best


def test_one_fact_covers_one_and_nothing_covers_nothing():
    def encode(texts):
        return np.array([[1.0, 0.0] if 'cat' in text else [0.0, 1.0] for text in texts])

    match = make_embedding_matcher(encode)  # type: ignore[arg-type]
    inferred = [['has a cat', 'owns a cat'], ['has a cat'], [], ['pet: cat'], ['PET: dog']]
    golden = [['pet: cat', 'job: baker'], ['a cat', 'cat food'], ['pet: cat'], [], ['pet: cat']]
    assert match(inferred, golden) == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match='is no cosine'):
        make_embedding_matcher(encode, threshold=2.0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_our_phrasings_are_told_apart():
    try:
        minilm = SentenceEncoder(packages.encoder_folder('minilm'))
    except RuntimeError as error:
        pytest.skip(str(error))
    recall, false, plain = figures(minilm, THRESHOLD)
    assert recall > 0.9 and false < 0.05 and plain < 0.05
    assert make_embedding_matcher(minilm)(
        [['pet: cat', 'works as a nurse']], [['pet: cat', 'job: nurse', 'city: Oslo']]
    ) == [2]
