"""States of texts: each text's own, whatever stands beside it; on disk once, and made again when anything changes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.texts import Text
from pal_jax.models import config, decoder, params, states
from pal_jax.run import devices

CFG = dataclasses.replace(config.tiny(vocab=64), layers=3)
TEXTS = [Text(tuple(np.random.default_rng(i).integers(1, 64, n).tolist())) for i, n in enumerate((5, 40, 1, 12, 33, 7))]
AFTER = [Text(text.tokens, tuple(range(1, 2 + i))) for i, text in enumerate(TEXTS)]  # the same after other tokens


@functools.cache
def weights():
    return params.init(params.decoder_specs(CFG), jax.random.key(1))


def mesh(*shape):
    return devices.make_mesh(*shape) if shape else devices.make_mesh(devices=jax.devices()[:1])


def table_of(mesh, cfg=CFG, texts=TEXTS, size=None, **changes):
    table = np.full((size or len(texts), CFG.width), np.nan, np.float32)
    for numbers, vectors in states.hidden_states(weights(), cfg, mesh, texts, **changes):
        table[numbers] = vectors
    return table


def states_alone(text, cfg=CFG):
    """Of each token of a text, the only sequence in the batch."""
    cut, ids = states.first_weights(weights(), cfg), [*text.before, *text.tokens]
    ones, place = jnp.ones((1, len(ids)), jnp.int32), jnp.arange(len(ids))[None]
    return np.asarray(decoder.forward(cut, cfg, jnp.array([ids]), place, ones, ones))[0, len(text.before) :]


@pytest.mark.slow
@pytest.mark.parametrize(('pool', 'rows', 'layers', 'texts'), [('mean', 4, 0, AFTER), ('last', 2, 2, TEXTS)])
def test_a_state_is_that_of_the_text_by_itself(pool, rows, layers, texts):
    cfg = states.first_layers(CFG, layers)
    found = table_of(mesh(), cfg, texts, pool=pool, rows=rows)
    for vector, text in zip(found, texts, strict=True):
        alone = states_alone(text, cfg)
        np.testing.assert_allclose(vector, alone.mean(0) if pool == 'mean' else alone[-1], atol=1e-5)


@pytest.mark.slow
def test_states_of_all_tokens_stand_one_text_after_the_other():
    total = sum(len(text.tokens) for text in AFTER)
    found, starts = table_of(mesh(), texts=AFTER, size=total, pool='tokens', rows=2), states.token_starts(AFTER)
    for start, text in zip(starts, AFTER, strict=True):
        np.testing.assert_allclose(found[start : start + len(text.tokens)], states_alone(text), atol=1e-5)


@pytest.mark.slow
def test_eight_devices_read_what_one_does():
    np.testing.assert_allclose(table_of(mesh(2, 4, 1), rows=1), table_of(mesh()), atol=1e-5)


def test_states_are_computed_once_and_lie_on_disk(tmp_path):
    texts, calls = [Text((i,)) for i in range(3)], []

    def compute():
        calls.append(1)
        yield np.array([2, 0]), np.array([[5.0, 6.0], [1.0, 2.0]])
        yield np.array([1]), np.array([[3.0, 4.0]])

    for _ in range(2):
        table = states.stored(tmp_path / 'states', texts, {'source': 'x'}, compute, (3, 2))
        np.testing.assert_array_equal(table, [[1, 2], [3, 4], [5, 6]])
        assert isinstance(table, np.memmap)
    assert len(calls) == 1
    states.stored(tmp_path / 'states', texts, {'source': 'y'}, compute, (3, 2))
    states.stored(tmp_path / 'states', [*texts[:2], Text((1,), (2,))], {'source': 'x'}, compute, (3, 2))
    assert len(calls) == 3
    assert sorted(path.suffix for path in (tmp_path / 'states').iterdir()) == ['.npy'] * 3  # nothing half-made


def test_states_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match='row 0 of the states of 1 texts, or one near it, is not finite'):
        states.stored(tmp_path, [Text((1,))], {}, lambda: iter([(np.array([0]), np.array([[np.nan]]))]), (1, 1))


def test_a_decoder_has_only_so_many_layers():
    with pytest.raises(ValueError, match=r'text.layers=4 must be between 0 \(all\) and 3'):
        states.first_layers(CFG, 4)


@pytest.mark.parametrize('chunk', [7, 1000])
def test_principal_coordinates_are_those_of_the_covariance(chunk):
    x = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5, 3, 1, 0.1, 0.1, 0.1]) + 4.0
    found = states.in_frame(x := x.astype(np.float32), states.frame(x, 3, chunk), chunk)
    _, s, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (x - x.mean(0)) @ rows[:3].T
    np.testing.assert_allclose(
        np.abs(found), np.abs(expected) / np.sqrt((s[:3] ** 2).mean() / 50), rtol=1e-3, atol=1e-4
    )
    assert np.square(found).mean() == pytest.approx(1.0, rel=1e-5)
