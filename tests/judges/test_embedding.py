"""Vectors of sentences: those of the same model elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.judges.embedding import SentenceEncoder
from pal_jax.models.files import packages


@pytest.fixture(scope='module')
def minilm():
    try:
        return SentenceEncoder(packages.encoder_folder('minilm'))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_control_tokens_in_a_text_are_plain_text(minilm):
    np.testing.assert_allclose(*minilm(['says [MASK] to [SEP]', 'says [ mask ] to [ sep ]']), atol=1e-6)


@pytest.mark.slow
def test_minilm_is_that_of_transformers_on_torch(minilm):
    torch = pytest.importorskip('torch')
    from transformers import BertModel, BertTokenizerFast

    folder = packages.encoder_folder('minilm')
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)
    texts = ['pet: ferret', 'She has kept bees for years.', '']
    batch = tokenizer(texts, padding=True, return_tensors='pt')
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(minilm(texts), means, atol=1e-5)
