"""The sentence encoder against transformers on torch, with random weights."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import bert

torch = pytest.importorskip('torch')
IDS = np.array([[2, 7, 9, 4, 3, 0, 0], [2, 5, 3, 0, 0, 0, 0], [2, 9, 9, 8, 7, 6, 3]])


def folder(path, kind):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f'{kind}Config')(
        vocab_size=20, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=300, layer_norm_eps=1e-12, pad_token_id=0 if kind == 'Bert' else 1,
    )  # fmt: skip
    model = getattr(transformers, f'{kind}Model')(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['Bert', 'MPNet'])
def test_hidden_states_and_sentences_are_those_of_transformers(tmp_path, kind):
    """Also of a long sentence, in which MPNet's farthest tokens share a bias."""
    model = folder(tmp_path, kind)
    ids = np.pad(np.where(IDS > 0, IDS, 1), ((0, 1), (0, 243)), constant_values=1)
    ids[3] = np.random.default_rng(0).integers(2, 20, 250)
    ends = np.array([5, 3, 7, 250], np.int32)
    mask = np.arange(250) < ends[:, None]
    with torch.no_grad():
        expected = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    cfg, weights = bert.load(tmp_path)
    assert cfg.max_len == (300 if kind == 'Bert' else 298)
    hidden = bert.encode(weights, cfg, jnp.asarray(ids, jnp.int32), jnp.asarray(ends))
    np.testing.assert_allclose(np.asarray(hidden)[mask], expected[mask], atol=5e-5)
    for first in (np.zeros(4, np.int32), np.array([2, 1, 0, 9], np.int32)):
        means = np.stack([row[a:b].mean(0) for row, a, b in zip(expected, first, ends, strict=True)])
        expected_vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
        vectors = bert.embed(weights, cfg, jnp.asarray(ids, jnp.int32), first, ends)
        np.testing.assert_allclose(vectors, expected_vectors, atol=2e-5)
        changed = np.where(mask, ids, 11)
        np.testing.assert_allclose(bert.embed(weights, cfg, changed, first, ends), vectors, atol=1e-6)


def test_distances_have_the_buckets_of_t5():
    buckets = bert.distance_buckets(200, 32)
    behind = [*range(8), 8, 8, 8, 8, 9, 9, 9, 9]
    assert buckets[15, ::-1][-16:].tolist() == behind and buckets[0, :16].tolist() == [0, *(16 + b for b in behind[1:])]
    assert (buckets[199, 0], buckets[0, 199], buckets[127, 0], buckets[90, 0]) == (15, 31, 15, 14)


def test_another_model_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'roberta', 'hidden_act': 'gelu'}))
    with pytest.raises(ValueError, match='only BERT and MPNet'):
        bert.load(tmp_path)
