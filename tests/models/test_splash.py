"""Attention by blocks against its definition, with the kernels interpreted; that the TPU compiler takes them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.topologies import get_topology_desc

from pal_jax.models import attention, splash
from pal_jax.models.config import LayerKind, tiny
from pal_jax.models.places import Places
from pal_jax.models.splash import splash_attention
from pal_jax.run.devices import make_mesh
from pal_jax.run.sharding import sharding
from tests.models.packed_rows import definition, heads, out_and_gradients, packed


def check(monkeypatch, length: int, size: int, dtype: str = 'float32', tolerance: float = 1e-5, **settings) -> None:
    monkeypatch.setattr(splash, 'BLOCK', 128)
    inputs, ids = heads(length, size, dtype), packed(length)
    got = out_and_gradients(lambda *x: splash_attention(*x, *ids, **settings, interpret=True), *inputs)
    want = out_and_gradients(lambda *x: definition(*x, *ids, **settings), *inputs)
    for g, w in zip(got, want, strict=True):
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g, w, atol=tolerance * np.abs(w).max())


def test_values_and_gradients_are_those_of_the_definition(monkeypatch) -> None:
    """Two blocks that are not full, a window and a cap."""
    check(monkeypatch, 220, 64, window=50, soft_cap=3.0, scale=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('length', 'size', 'settings'),
    [
        (256, 64, {}),
        (300, 128, {}),
        (384, 64, {'window': 20}),
        (220, 128, {'soft_cap': 2.0}),
        (220, 64, {'dtype': 'bfloat16', 'tolerance': 0.02}),
    ],
)
def test_all_settings_agree_with_the_definition(monkeypatch, length, size, settings) -> None:
    check(monkeypatch, length, size, **settings)


def ids_of(*places: np.ndarray) -> splash.Ids:
    """What the kernels read of tokens that are queries and keys."""
    same = Places(*map(jnp.asarray, places))
    return splash._ids(same, same, 128)


def test_blocks_that_nobody_sees_are_left_out(monkeypatch) -> None:
    """Of three blocks of columns, the last block of queries meets the prompt's and its own, not the other branch's."""
    ids = [np.repeat(x, 128)[None] for x in ([1, 2, 3], [1, 1, 1])]
    positions = np.concatenate([np.arange(128), *[128 + np.arange(128)] * 2])[None]
    bounds = np.asarray(ids_of(*ids, positions).bounds)

    def met(**settings) -> list[str]:
        options = splash.Settings(1.0, settings.get('window'), None, 128, True, True)
        return [''.join('.x'[int(splash._meets(options, bounds, 0, i, j, 3))] for j in range(3)) for i in range(3)]

    assert met() == ['x..', 'xx.', 'x.x']
    assert met(window=1) == ['x..', '.x.', '..x']
    ids = [np.repeat(x, 128)[None] for x in ([-1, 2, 3], [-1, 2, 3])]  # prompts of their own behind an opening
    bounds = np.asarray(ids_of(*ids, positions).bounds)
    assert met() == ['x..', 'xx.', 'x.x']


def test_a_mesh_in_context_spreads_rows_and_heads(monkeypatch) -> None:
    monkeypatch.setattr(splash, 'BLOCK', 128)
    mesh = make_mesh(2, 1, 2, devices=jax.devices()[:4])
    inputs, ids = heads(128, 64)[:3], [x[:, :128] for x in packed(220)]

    @jax.jit
    def spread(*x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return splash_attention(*x, interpret=True)

    inputs = jax.device_put(inputs, sharding(mesh, ('batch', None, 'heads')))
    out = spread(*inputs, *jax.device_put(ids, sharding(mesh, ('batch',))))
    assert out.sharding.is_equivalent_to(sharding(mesh, ('batch', None, 'heads')), 4)
    np.testing.assert_allclose(out, definition(*jax.device_get(inputs), *ids), atol=1e-5)


def test_a_model_asks_for_it_with_its_own_settings(monkeypatch) -> None:
    kernels = functools.partial(splash_attention, interpret=True)
    monkeypatch.setattr(splash, 'splash_attention', kernels)
    cfg = dataclasses.replace(tiny(), attn_softcap=3.0, query_scalar=9.0)
    places = attention.Places(*(x[:, :128] for x in packed(220)))
    inputs = heads(128, cfg.head_dim)[:3]

    def out(way: str) -> jax.Array:
        asked = dataclasses.replace(cfg, attention=way)
        return attention.attention(*inputs, places, places, asked, LayerKind(window=20), causal=True)

    real = np.asarray(places.segments != 0)
    np.testing.assert_allclose(np.asarray(out('splash'))[real], np.asarray(out('blocks'))[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('size', 'settings'), [(64, {}), (128, {'window': 512, 'soft_cap': 30.0})])
def test_the_tpu_compiler_takes_the_kernels(size, settings) -> None:
    pytest.importorskip('libtpu', reason='needs the compiler for TPUs: pip install pal_jax[plan]')
    mesh = make_mesh(2, 1, 2, devices=get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices)

    def loss(q, k, v, *ids):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return splash_attention(q, k, v, *ids, **settings).astype(jnp.float32).sum()

    def placed(dtype: str, axes: tuple[str | None, ...], *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, axes))

    q, k = (placed('bfloat16', ('batch', None, 'heads'), 4, 1664, count, size) for count in (8, 2))
    ids = [placed('int32', ('batch',), 4, 1664)] * 3
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, *ids).compile()
    assert compiled.as_text().count('tpu_custom_call') == 3
