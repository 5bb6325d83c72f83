"""The embedding matcher: its assignment by enumeration, its calibration on our phrasings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.matcher import figures
from pal_jax.judges.embedding import THRESHOLD, SentenceEncoder, assigned, make_matcher
from pal_jax.models import bert


@pytest.mark.parametrize('seed', range(5))
def test_the_assignment_pairs_as_many_as_any_can(seed):
    excess = np.random.default_rng(seed).normal(-0.2, 0.5, (3, 4))
    best = max(sum(excess[i, j] >= 0 for i, j in enumerate(order)) for order in itertools.permutations(range(4), 3))
    assert assigned(excess) == assigned(excess.T) == best


def test_one_fact_covers_one_and_nothing_covers_nothing():
    def encode(texts):
        return np.array([[1.0, 0.0] if 'cat' in text else [0.0, 1.0] for text in texts])

    match = make_matcher(encode)  # type: ignore[arg-type]
    inferred = [['has a cat', 'owns a cat'], ['has a cat'], [], ['pet: cat'], ['PET: dog']]
    golden = [['pet: cat', 'job: baker'], ['a cat', 'cat food'], ['pet: cat'], [], ['pet: cat']]
    assert match(inferred, golden) == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match='is no cosine'):
        make_matcher(encode, threshold=2.0)  # type: ignore[arg-type]


@pytest.fixture(scope='module')
def minilm():
    try:
        return SentenceEncoder(bert.package_folder())
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_our_phrasings_are_told_apart(minilm):
    recall, false, plain = figures(minilm, THRESHOLD)
    assert recall > 0.9 and false < 0.05 and plain < 0.05
    assert make_matcher(minilm)([['pet: cat', 'works as a nurse']], [['pet: cat', 'job: nurse', 'city: Oslo']]) == [2]


@pytest.mark.slow
def test_control_tokens_in_a_text_are_plain_text(minilm):
    np.testing.assert_allclose(*minilm(['says [MASK] to [SEP]', 'says [ mask ] to [ sep ]']), atol=1e-6)


@pytest.mark.slow
def test_minilm_is_that_of_transformers_on_torch(minilm):
    torch = pytest.importorskip('torch')
    from transformers import BertModel, BertTokenizerFast

    folder = bert.package_folder()
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)
    texts = ['pet: ferret', 'She has kept bees for years.', '']
    batch = tokenizer(texts, padding=True, return_tensors='pt')
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(minilm(texts), means, atol=1e-5)
