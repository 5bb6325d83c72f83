"""Attention by blocks, as a loop and as kernels for GPUs (interpreted), against its definition; that CUDA's compiler
takes the kernels is in tests/commands/planning/test_cuda.py."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import attention, flash
from pal_jax.models.blockwise import blockwise_attention
from pal_jax.models.config import LayerKind, tiny
from pal_jax.models.flash import Tile, Tiles, flash_attention
from pal_jax.models.places import Places, Scoring, alibi_slopes, blocks_seen, blocks_whole, one_sequence
from pal_jax.models.splash import splash_attention
from pal_jax.run.devices import make_mesh
from pal_jax.run.sharding import sharding
from tests.models.packed_rows import definition, heads, out_and_gradients, packed

LENGTH = 220
SCORINGS = {
    'plain': Scoring(0.25),
    'window': Scoring(0.25, window=50),
    'cap': Scoring(0.2, soft_cap=3.0),
    'slopes': Scoring(0.25, alibi=True),
    'all': Scoring(0.3, window=30, soft_cap=2.0, alibi=True),
}
TILES = Tiles(Tile(32, 16), Tile(16, 16), Tile(16, 32))
WAYS = {
    'loop': functools.partial(blockwise_attention, causal=True, sizes=(32, 64)),
    'kernels': functools.partial(flash_attention, tiles=TILES, interpret=True),
}


def attended(way: str, *inputs, places: Places, scoring: Scoring) -> jax.Array:
    keys = (places,) if way == 'loop' else ()
    return WAYS[way](*inputs, places, *keys, scoring)


def check(way: str, name: str, dtype: str = 'float32', tolerance: float = 1e-5, size: int = 16) -> None:
    """Outputs and gradients of the tokens that are no padding are those of the definition."""
    scoring, places = SCORINGS[name], Places(*packed(LENGTH))
    *inputs, cotangent = heads(LENGTH, size, dtype)
    cotangent = jnp.where((places.segments != 0)[..., None, None], cotangent, 0)  # as the losses of padding
    got = out_and_gradients(functools.partial(attended, way, places=places, scoring=scoring), *inputs, cotangent)
    slopes = alibi_slopes(4) if scoring.alibi else None
    settings = {'scale': scoring.scale, 'window': scoring.window, 'soft_cap': scoring.soft_cap, 'slopes': slopes}
    want = out_and_gradients(lambda *x: definition(*x, *places, **settings), *inputs, cotangent)
    real = np.asarray(places.segments != 0)
    for g, w in zip(got, want, strict=True):
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g[real], w[real], atol=tolerance * np.abs(w).max())


@pytest.mark.parametrize('name', SCORINGS)
@pytest.mark.parametrize('way', WAYS)
def test_values_and_gradients_are_those_of_the_definition(way, name) -> None:
    check(way, name)


@pytest.mark.parametrize('window', [None, 40])
@pytest.mark.parametrize('way', ['flash', 'splash'])
def test_queries_at_the_end_of_a_cache_have_the_bits_that_they_have_in_a_row(way, window) -> None:
    """The cache has room for more tokens, and the queries begin within a block."""
    q, k, v, _ = heads(256, 64)
    places = one_sequence(jnp.broadcast_to(jnp.arange(384), (2, 384)))
    row, last = (Places(*(x[:, part] for x in places)) for part in (slice(256), slice(203, 256)))
    spare = ((0, 0), (0, 128), (0, 0), (0, 0))
    caches = jnp.pad(k, spare, constant_values=3.0), jnp.pad(v, spare, constant_values=3.0)
    if way == 'flash':
        attend = functools.partial(flash_attention, scoring=Scoring(0.25, window), in_order=True, tiles=TILES)
        whole, part = (
            attend(q, k, v, row, interpret=True),
            attend(q[:, 203:], *caches, last, keys=places, interpret=True),
        )
    else:
        attend = functools.partial(splash_attention, scale=0.25, window=window, block=128, interpret=True)
        whole, part = attend(q, k, v, *row), attend(q[:, 203:], *caches, *last, keys=places)
    np.testing.assert_array_equal(part, whole[:, 203:])


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='needs a CUDA device')
@pytest.mark.parametrize('name', SCORINGS)
def test_a_card_computes_what_is_interpreted(monkeypatch, name) -> None:
    monkeypatch.setitem(WAYS, 'kernels', functools.partial(flash_attention, tiles=TILES))
    with jax.default_matmul_precision('highest'):  # a card rounds the products of the definition to TF32 otherwise
        check('kernels', name, tolerance=1e-4)


@pytest.mark.parametrize('way', WAYS)
def test_products_in_bfloat16_round_as_such(way) -> None:
    check(way, 'plain', 'bfloat16', 0.02)


def test_heads_of_a_width_that_is_no_power_of_two() -> None:
    check('kernels', 'plain', size=24)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_chunk_that_follows_a_cache_sees_what_is_before_it(dtype) -> None:
    """Not causal by column: three queries of each row at positions of their own, and columns that nobody sees."""
    queries = one_sequence(jnp.array([[2, 3, 4], [6, 7, 8]]))
    keys = one_sequence(jnp.broadcast_to(jnp.arange(21), (2, 21)))
    q, k, v, _ = heads(21, 16, dtype)
    got = blockwise_attention(q[:, :3], k, v, queries, keys, Scoring(0.25, window=4), sizes=(2, 4))
    for r, t in np.ndindex(2, 3):
        last = int(queries.positions[r, t])
        seen = slice(max(last - 3, 0), last + 1)
        for h in range(4):
            scores = k[r, seen, h // 2].astype(jnp.float32) @ q[r, t, h].astype(jnp.float32) * 0.25
            want = jax.nn.softmax(scores) @ v[r, seen, h // 2].astype(jnp.float32)
            np.testing.assert_allclose(
                got[r, t, h].astype(jnp.float32), want, atol=1e-5 if dtype == 'float32' else 0.02
            )


def test_golden_blocks_that_meet() -> None:
    """A prompt of two blocks with two branches of one block each, and two blocks of padding."""
    segments = jnp.repeat(jnp.array([[1, 1, 2, 3, 0, 0]]), 8, axis=1)
    prefix = jnp.where(segments > 0, 1, 0)
    positions = jnp.concatenate([jnp.arange(16), 16 + jnp.arange(8), 16 + jnp.arange(8), jnp.zeros(16, int)])[None]
    places = Places(segments, prefix, positions)

    def met(sizes: tuple[int, int], window: int | None = None) -> list[str]:
        seen = blocks_seen(places, places, sizes, window, True)[0]
        return [''.join('.x'[int(each)] for each in row) for row in seen]

    assert met((8, 8)) == ['x.....', 'xx....', 'xxx...', 'xx.x..', '....x.', '.....x']
    assert met((8, 8), window=8) == ['x.....', 'xx....', '.xx...', '.x.x..', '....x.', '.....x']
    assert met((8, 16)) == ['x..', 'x..', 'xx.', 'xx.', '..x', '..x']


def test_golden_blocks_seen_whole() -> None:
    """A prompt of two blocks with two branches of one and a half, the last row of blocks padded."""
    segments = jnp.repeat(jnp.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]]), 4, axis=1)
    prefix = jnp.where(segments > 0, 1, 0)
    positions = jnp.concatenate([jnp.arange(16), 16 + jnp.arange(12), 16 + jnp.arange(12), jnp.zeros(8, int)])[None]
    places = Places(segments, prefix, positions)

    def whole(window: int | None) -> list[str]:
        return [''.join('.x'[int(sees)] for sees in row) for row in blocks_whole(places, places, (8, 8), window)[0]]

    assert whole(None) == ['......', 'x.....', 'xx....', 'xx....', 'xx....', '......']
    assert whole(17) == ['......', 'x.....', '.x....', '......', '......', '......']


def test_rows_and_heads_are_spread_over_a_mesh() -> None:
    mesh, places, scoring = make_mesh(1, 2, 2, devices=jax.devices()[:4]), Places(*packed(LENGTH)), SCORINGS['slopes']
    inputs = jax.device_put(heads(LENGTH, 16)[:3], sharding(mesh, ('batch', None, 'heads')))

    @jax.jit
    def spread(q, k, v, places):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attended('kernels', q, k, v, places=places, scoring=scoring)

    out = spread(*inputs, jax.device_put(places, sharding(mesh, ('batch',))))
    want = definition(*jax.device_get(inputs), *places, scale=0.25, slopes=alibi_slopes(4))
    assert out.sharding.is_equivalent_to(sharding(mesh, ('batch', None, 'heads')), 4)
    real = np.asarray(places.segments != 0)
    np.testing.assert_allclose(np.asarray(out)[real], np.asarray(want)[real], atol=1e-5)


def test_a_model_asks_for_either_with_its_own_settings(monkeypatch) -> None:
    monkeypatch.setattr(flash, 'flash_attention', WAYS['kernels'])
    cfg = dataclasses.replace(tiny(), attn_softcap=3.0, query_scalar=9.0, alibi=True)
    places = Places(*(x[:, :128] for x in packed(LENGTH)))
    inputs = heads(128, cfg.head_dim)[:3]
    real = np.asarray(places.segments != 0)

    def out(way: str) -> np.ndarray:
        asked = dataclasses.replace(cfg, attention=way)
        return np.asarray(attention.attention(*inputs, places, places, asked, LayerKind(window=20), causal=True))[real]

    plain = out('blocks')
    np.testing.assert_allclose(out('flash'), plain, atol=1e-5)
    monkeypatch.setattr(attention, 'LONG', 100)
    np.testing.assert_allclose(out('blocks'), plain, atol=1e-5)
