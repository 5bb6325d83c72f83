"""States of texts: each text's own, whatever stands beside it; on disk once, and made again when anything changes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import config, decoder, params, states
from pal_jax.runtime import devices

CFG = dataclasses.replace(config.tiny(vocab=64), layers=3)
WEIGHTS = params.init(params.decoder_specs(CFG), jax.random.key(1))
TEXTS = [np.random.default_rng(i).integers(1, 64, n).tolist() for i, n in enumerate((5, 40, 1, 12, 33, 7))]


def mesh(*shape):
    return devices.make_mesh(*shape) if shape else devices.make_mesh(devices=jax.devices()[:1])


def table_of(mesh, cfg=CFG, **changes):
    table = np.full((len(TEXTS), CFG.width), np.nan, np.float32)
    for numbers, vectors in states.hidden_states(WEIGHTS, cfg, mesh, TEXTS, **changes):
        table[numbers] = vectors
    return table


@pytest.mark.parametrize(('pool', 'rows', 'layers'), [('mean', 4, 0), ('last', 2, 2)])
def test_a_state_is_that_of_the_text_by_itself(pool, rows, layers):
    cfg = states.first_layers(CFG, layers)
    found = table_of(mesh(), cfg, pool=pool, rows=rows)
    cut = {**WEIGHTS, 'layers': jax.tree.map(lambda x: x[: cfg.layers], WEIGHTS['layers'])}
    for vector, text in zip(found, TEXTS, strict=True):
        ones, place = jnp.ones((1, len(text)), jnp.int32), jnp.arange(len(text))[None]
        alone = np.asarray(decoder.forward(cut, cfg, jnp.array([text]), place, ones, ones))[0]
        np.testing.assert_allclose(vector, alone.mean(0) if pool == 'mean' else alone[-1], atol=1e-5)


@pytest.mark.slow
def test_eight_devices_read_what_one_does():
    np.testing.assert_allclose(table_of(mesh(2, 4, 1), rows=1), table_of(mesh()), atol=1e-5)


def test_states_are_computed_once_and_lie_on_disk(tmp_path):
    texts, calls = ['a', 'b', 'c'], []

    def compute():
        calls.append(1)
        yield np.array([2, 0]), np.array([[5.0, 6.0], [1.0, 2.0]])
        yield np.array([1]), np.array([[3.0, 4.0]])

    for _ in range(2):
        table = states.stored(tmp_path / 'states', texts, {'source': 'x'}, compute, 2)
        np.testing.assert_array_equal(table, [[1, 2], [3, 4], [5, 6]])
        assert isinstance(table, np.memmap)
    assert len(calls) == 1
    states.stored(tmp_path / 'states', texts, {'source': 'y'}, compute, 2)
    states.stored(tmp_path / 'states', ['a', 'b', 'd'], {'source': 'x'}, compute, 2)
    assert len(calls) == 3
    assert sorted(path.suffix for path in (tmp_path / 'states').iterdir()) == ['.npy'] * 3  # nothing half-made


def test_states_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="the state of text 'a' or of one near it is not finite"):
        states.stored(tmp_path, ['a'], {}, lambda: iter([(np.array([0]), np.array([[np.nan]]))]), 1)


def test_a_decoder_has_only_so_many_layers():
    with pytest.raises(ValueError, match=r'text.layers=4 must be between 0 \(all\) and 3'):
        states.first_layers(CFG, 4)
