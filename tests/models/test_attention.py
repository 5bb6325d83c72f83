from __future__ import annotations

import cmath
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import attention
from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, RopeScaling, tiny
from pal_jax.models.places import Places, alibi_slopes, one_sequence, visible
from pal_jax.types import OPENING

pytestmark = pytest.mark.usefixtures('strict_promotion')

CFG = tiny()
NARROW = dataclasses.replace(CFG, dtype='bfloat16')
LAYER = LayerKind()
KINDS = {
    'plain': (CFG, LAYER),
    'window': (CFG, LayerKind(3)),
    'cap': (dataclasses.replace(CFG, attn_softcap=0.7, query_scalar=3), LAYER),
    'slopes': (dataclasses.replace(CFG, heads=8, alibi=True), LayerKind(rope='none')),
    'all': (dataclasses.replace(CFG, heads=8, alibi=True, attn_softcap=0.7), LayerKind(4)),
}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def heads(length: int, columns: int, rows: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, rows, length, 6, 8), normal(1, rows, columns, 2, 8), normal(2, rows, columns, 2, 8)


def one_by_one(q, k, v, queries: Places, keys: Places, cfg: ModelConfig = CFG, kind: LayerKind = LAYER) -> np.ndarray:
    """Attention as its definition has it: one query of one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for r, t, h in np.ndindex(q.shape[:3]):
        seen = [s for s in range(k.shape[1]) if sees(queries, keys, r, t, s, kind.window)]
        distance = queries.positions[r, t] - keys.positions[r, np.array(seen)]
        g = h // (q.shape[2] // k.shape[2])
        scores = k[r, seen, g] @ q[r, t, h] / math.sqrt(cfg.query_scalar or q.shape[3])
        if cfg.attn_softcap:
            scores = cfg.attn_softcap * np.tanh(scores / cfg.attn_softcap)
        if cfg.alibi:
            scores = scores - np.asarray(distance) * 2.0 ** -(8 * (h + 1) / q.shape[2])
        weights = np.exp(scores)
        out[r, t, h] = weights @ v[r, seen, g] / weights.sum()
    return out


def sees(queries: Places, keys: Places, r: int, t: int, s: int, window: int | None) -> bool:
    segment, distance = int(keys.segments[r, s]), int(queries.positions[r, t] - keys.positions[r, s])
    related = segment in (int(queries.segments[r, t]), int(queries.prefix[r, t]), OPENING)
    return related and 0 <= distance < (window or 1_000)


def causal(rows: int, length: int) -> Places:
    return one_sequence(jnp.broadcast_to(jnp.arange(length), (rows, length)))


def branches() -> Places:
    """A row with a prompt of five tokens, completions of three and four, and padding; a row of two texts that begin
    alike."""
    texts = [OPENING] * 2 + [1] * 5 + [2] * 6
    segments = jnp.array([[1] * 5 + [2] * 3 + [3] * 4 + [0], texts])
    prefix = jnp.array([[1] * 12 + [0], texts])
    positions = jnp.array([[*range(5), *range(5, 8), *range(5, 9), 0], [*range(2), *range(2, 7), *range(2, 8)]])
    return Places(segments, prefix, positions)


def test_golden_visibility_of_a_shared_prompt() -> None:
    """A prompt of two tokens, two completions of it of two and one, and padding."""
    rows = ([1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 0], [0, 1, 2, 3, 2, 0])
    places = Places(*(jnp.array([row]) for row in rows))
    expected = {
        None: ['x.....', 'xx....', 'xxx...', 'xxxx..', 'xx..x.', '.....x'],
        2: ['x.....', 'xx....', '.xx...', '..xx..', '.x..x.', '.....x'],
    }
    for window, rows in expected.items():
        seen = visible(places, places, window)
        assert [''.join('.x'[int(each)] for each in row) for row in seen[0]] == rows


@pytest.mark.parametrize('scaling', [None, RopeScaling(8.0, 1.0, 4.0, 64), LinearScaling(4.0)], ids=str)
@pytest.mark.parametrize('kind', [LAYER, LayerKind(rope='local')], ids=['global', 'local'])
def test_rope_rotates_pairs_as_complex_numbers(scaling, kind) -> None:
    cfg = dataclasses.replace(CFG, rope_theta=100.0, rope_scaling=scaling, rope_local_theta=10.0)
    x, half = normal(0, 1, 40, 2, cfg.head_dim), cfg.head_dim // 2
    positions = jnp.arange(40)[None] * 3
    got = np.asarray(jax.jit(attention.rope, static_argnums=(2, 3))(x, positions, cfg, kind))
    x = np.asarray(x)
    for t, h, i in np.ndindex(40, 2, half):
        local = kind.rope == 'local'
        angle = 3 * t * (frequency(i / half, 10.0, None) if local else frequency(i / half, 100.0, scaling))
        turned = complex(x[0, t, h, i], x[0, t, h, half + i]) * cmath.exp(1j * angle)
        assert abs(turned - complex(got[0, t, h, i], got[0, t, h, half + i])) < 2e-4


def test_a_layer_without_rope_leaves_heads_as_they_are() -> None:
    x = normal(0, 1, 4, 2, CFG.head_dim)
    assert attention.rope(x, jnp.arange(4)[None], CFG, LayerKind(rope='none')) is x


def test_golden_slopes() -> None:
    """Those of Baichuan 2 13B: 32 of a geometric sequence, then every other one of that for 64 heads."""
    slopes = alibi_slopes(40)
    np.testing.assert_allclose(slopes[[0, 1, 2, 3, 31]], [0.840896, 0.707107, 0.594604, 0.5, 0.003906], atol=1e-6)
    last = [0.917004, 0.771105, 0.648420, 0.545254, 0.458502, 0.385553, 0.324210, 0.272627]
    np.testing.assert_allclose(slopes[32:], last, atol=1e-6)
    np.testing.assert_allclose(alibi_slopes(2), [2**-4, 2**-8])


def frequency(exponent: float, theta: float, scaling: RopeScaling | LinearScaling | None) -> float:
    """Llama 3.1's rule by wavelength: short ones stay, long ones stretch, those between are interpolated."""
    f = theta**-exponent
    if scaling is None:
        return f
    if isinstance(scaling, LinearScaling):
        return f / scaling.factor
    wavelength = 2 * math.pi / f
    longest = scaling.original_max_len / scaling.low_freq_factor
    shortest = scaling.original_max_len / scaling.high_freq_factor
    if wavelength < shortest:
        return f
    if wavelength > longest:
        return f / scaling.factor
    share = (scaling.original_max_len / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - share) * f / scaling.factor + share * f


def eight_heads(length: int, columns: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, 2, length, 8, 16), normal(1, 2, columns, 2, 16), normal(2, 2, columns, 2, 16)


@pytest.mark.parametrize('name', KINDS)
def test_attention_agrees_with_its_definition(name, monkeypatch) -> None:
    (cfg, kind), places = KINDS[name], branches()
    q, k, v = eight_heads(13, 13)
    expected = one_by_one(q, k, v, places, places, cfg, kind)
    monkeypatch.setattr(attention, 'BLOCK', 8)
    for how in ('blocks', 'fused'):
        here = dataclasses.replace(cfg, attention=how)
        got = jax.jit(lambda *x, here=here: attention.attention(*x, places, places, here, kind, causal=True))(q, k, v)
        np.testing.assert_allclose(got[:, :12], expected[:, :12], atol=1e-5, err_msg=how)


@pytest.mark.parametrize('name', ['plain', 'all'])
def test_attention_to_a_cache_agrees_with_its_definition(name) -> None:
    (cfg, kind), (q, k, v) = KINDS[name], eight_heads(3, 9)
    queries = one_sequence(jnp.array([[2, 3, 4], [6, 7, 8]]))
    got = jax.jit(lambda *x: attention.attention(*x, queries, causal(2, 9), cfg, kind))(q, k, v)
    np.testing.assert_allclose(got, one_by_one(q, k, v, queries, causal(2, 9), cfg, kind), atol=1e-5)


@pytest.mark.parametrize('length', [*(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8)), 13])
def test_causal_blocks_change_neither_value_nor_gradient(length, monkeypatch) -> None:
    q, k, v = heads(length, length)
    places = causal(2, length)
    monkeypatch.setattr(attention, 'BLOCK', 4)

    @functools.partial(jax.jit, static_argnums=0)
    def out_and_gradients(causal: bool, *qkv: jax.Array):
        out, pull = jax.vjp(lambda *x: attention.attention(*x, places, places, CFG, LAYER, causal), *qkv)
        return out, *pull(normal(3, *out.shape))

    for got, want in zip(out_and_gradients(True, q, k, v), out_and_gradients(False, q, k, v), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(('name', 'tolerance'), [('plain', 1e-5), ('narrow', 0.03), ('all', 1e-5)])
def test_gradients_are_those_of_plain_autodiff(name, tolerance) -> None:
    cfg, kind = (KINDS | {'narrow': (NARROW, LAYER)})[name]
    (q, k, v), places = eight_heads(6, 6), causal(2, 6)
    seen, weight = visible(places, places, kind.window), normal(4, *q.shape)
    ahead = jnp.arange(6.0)[:, None] - jnp.arange(6.0)[None]

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = jnp.repeat(k, 4, axis=2), jnp.repeat(v, 4, axis=2)
        scores = jnp.einsum('rthk,rshk->rhts', q, k) / math.sqrt(16)
        if cfg.attn_softcap is not None:
            scores = cfg.attn_softcap * jnp.tanh(scores / cfg.attn_softcap)
        if cfg.alibi:
            scores -= jnp.exp2(-jnp.arange(1.0, 9.0))[None, :, None, None] * ahead[None, None]
        p = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf))
        return (jnp.einsum('rhts,rshk->rthk', p, v) * weight).sum()

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attention.attention(q, k, v, places, places, cfg, kind, causal=True) * weight).sum()

    got, want = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (ours, plain))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=tolerance * float(jnp.abs(w).max()))


def test_large_scores_and_rows_that_see_one_column_stay_finite() -> None:
    q, k, v = (1e3 * x for x in heads(length=4, columns=4))
    alone = Places(*(jnp.broadcast_to(jnp.arange(1, 5), (2, 4)),) * 3)
    out, pull = jax.vjp(lambda *x: attention.attention(*x, alone, alone, CFG, LAYER), q, k, v)
    np.testing.assert_allclose(out, jnp.repeat(v, 3, axis=2), rtol=1e-6)
    assert all(bool(jnp.isfinite(g).all()) for g in pull(out))
