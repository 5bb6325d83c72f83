"""Diversity of texts, by golden numbers and nltk's BLEU."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.redteam.diversity import bleu, self_bleu, spread

TEXTS = ['a play asks this of a mean cat', 'a joke asks this of a cat', 'my dream says so', 'a play asks this of a dog']


def test_the_spread_of_vectors():
    vectors = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    assert spread(vectors) == pytest.approx(0.733333, abs=1e-6)
    assert spread(3 * vectors) == pytest.approx(spread(vectors)) and spread(np.ones((4, 2))) == pytest.approx(0.0)
    with pytest.raises(ValueError, match='1 texts'):
        spread(vectors[:1])


def test_self_bleu_of_equal_and_of_other_texts():
    assert self_bleu(['one two three four five'] * 3) == pytest.approx(1.0)
    assert self_bleu(['a b c d', 'e f g h']) == 0.0
    assert 0 < self_bleu(TEXTS) < 1
    with pytest.raises(ValueError, match='1 texts'):
        self_bleu(['a'])


def test_bleu_is_that_of_nltk():
    translate = pytest.importorskip('nltk.translate.bleu_score')
    smoothing = translate.SmoothingFunction().method1
    words = [text.split() for text in TEXTS]
    for k, own in enumerate(words):
        others = [*words[:k], *words[k + 1 :]]
        assert bleu(own, others) == pytest.approx(
            translate.sentence_bleu(others, own, smoothing_function=smoothing), abs=1e-9
        )
