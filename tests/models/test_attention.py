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
from pal_jax.models.config import RopeScaling, tiny

pytestmark = pytest.mark.usefixtures('strict_promotion')

CFG = tiny()
NARROW = dataclasses.replace(CFG, dtype='bfloat16')


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def heads(length: int, columns: int, rows: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, rows, length, 6, 8), normal(1, rows, columns, 2, 8), normal(2, rows, columns, 2, 8)


def one_by_one(q, k, v, visible) -> np.ndarray:
    """Attention as its definition has it: one query of one head at a time, in float64."""
    q, k, v, visible = (np.asarray(x, np.float64 if x.dtype != bool else bool) for x in (q, k, v, visible))
    out = np.zeros_like(q)
    for r, t, h in np.ndindex(q.shape[:3]):
        seen, g = visible[r, t], h // (q.shape[2] // k.shape[2])
        weights = np.exp(k[r, seen, g] @ q[r, t, h] / math.sqrt(q.shape[3]))
        out[r, t, h] = weights @ v[r, seen, g] / weights.sum()
    return out


def causal(rows: int, length: int) -> jax.Array:
    segments = jnp.ones((rows, length), jnp.int32)
    return attention.visibility(segments, segments)


def test_golden_visibility_of_a_shared_prompt() -> None:
    """A prompt of two tokens, two completions of it of two and one, and padding."""
    visible = attention.visibility(jnp.array([[1, 1, 2, 2, 3, 0]]), jnp.array([[1, 1, 1, 1, 1, 0]]))
    expected = ['x.....', 'xx....', 'xxx...', 'xxxx..', 'xx..x.', '.....x']
    assert [''.join('.x'[int(seen)] for seen in row) for row in visible[0]] == expected


@pytest.mark.parametrize('scaling', [None, RopeScaling(8.0, 1.0, 4.0, 64)])
def test_rope_rotates_pairs_as_complex_numbers(scaling) -> None:
    cfg = dataclasses.replace(CFG, rope_theta=100.0, rope_scaling=scaling)
    x, half = normal(0, 1, 40, 2, cfg.head_dim), cfg.head_dim // 2
    positions = jnp.arange(40)[None] * 3
    got = np.asarray(jax.jit(attention.rope, static_argnums=2)(x, positions, cfg))
    x = np.asarray(x)
    for t, h, i in np.ndindex(40, 2, half):
        angle = 3 * t * frequency(i / half, cfg.rope_theta, scaling)
        turned = complex(x[0, t, h, i], x[0, t, h, half + i]) * cmath.exp(1j * angle)
        assert abs(turned - complex(got[0, t, h, i], got[0, t, h, half + i])) < 2e-4


def frequency(exponent: float, theta: float, scaling: RopeScaling | None) -> float:
    """Llama 3.1's rule by wavelength: short ones stay, long ones stretch, those between are interpolated."""
    f = theta**-exponent
    if scaling is None:
        return f
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


def test_attention_agrees_with_its_definition() -> None:
    q, k, v = heads(length=5, columns=9)
    visible = jax.random.bernoulli(jax.random.key(3), 0.4, (2, 5, 9)).at[:, :, 0].set(True)
    np.testing.assert_allclose(attention.attention(q, k, v, visible, CFG), one_by_one(q, k, v, visible), atol=1e-5)


def test_attention_on_cpu_agrees_with_that_of_other_platforms(monkeypatch) -> None:
    q, k, v = heads(length=12, columns=12)
    visible = causal(2, 12)
    here = jax.jit(lambda *x: attention.attention(*x, CFG, causal=True))(q, k, v, visible)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    there = jax.jit(lambda *x: attention.attention(*x, CFG, causal=True))(q, k, v, visible)
    np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.parametrize('length', [3, 8, 13])
def test_causal_blocks_change_neither_value_nor_gradient(length, monkeypatch) -> None:
    q, k, v = heads(length, length)
    visible = causal(2, length)
    monkeypatch.setattr(attention, 'BLOCK', 4)

    @functools.partial(jax.jit, static_argnums=0)
    def out_and_gradients(causal: bool, *qkv: jax.Array):
        out, pull = jax.vjp(lambda *x: attention.attention(*x, visible, CFG, causal), *qkv)
        return out, *pull(normal(3, *out.shape))

    for got, want in zip(out_and_gradients(True, q, k, v), out_and_gradients(False, q, k, v), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(('cfg', 'tolerance'), [(CFG, 1e-5), (NARROW, 0.03)])
def test_gradients_are_those_of_plain_autodiff(cfg, tolerance) -> None:
    q, k, v = heads(length=6, columns=6)
    visible, weight = causal(2, 6), normal(4, *q.shape)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2)
        scores = jnp.einsum('rthk,rshk->rhts', q, k) / math.sqrt(8)
        p = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
        return (jnp.einsum('rhts,rshk->rthk', p, v) * weight).sum()

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attention.attention(q, k, v, visible, cfg, causal=True) * weight).sum()

    got, want = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (ours, plain))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=tolerance * float(jnp.abs(w).max()))


def test_large_scores_and_rows_that_see_one_column_stay_finite() -> None:
    q, k, v = (1e3 * x for x in heads(length=4, columns=4))
    visible = jnp.broadcast_to(jnp.eye(4, dtype=bool), (2, 4, 4))
    out, pull = jax.vjp(lambda *x: attention.attention(*x, visible, CFG), q, k, v)
    np.testing.assert_allclose(out, jnp.repeat(v, 3, axis=2), rtol=1e-6)
    assert all(bool(jnp.isfinite(g).all()) for g in pull(out))
