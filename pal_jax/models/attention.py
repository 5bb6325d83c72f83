"""Rotary positions, who sees whom, and attention. The one place where the maths asks for the platform."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.config import ModelConfig, RopeScaling

MASKED = -1e30  # finite, so that a difference of two of them is 0 and not NaN
BLOCK = 128  # queries of a causal block on CPU: smaller ones mask less in vain but make slower products


def rope(x: Float[Array, 'R T H K'], positions: Int[Array, 'R T'], cfg: ModelConfig) -> Float[Array, 'R T H K']:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face, computed in float32."""
    cos, sin = _rotation(positions, cfg)
    wide = x.astype(jnp.float32)
    return (wide * cos + jnp.roll(wide, cfg.head_dim // 2, axis=-1) * sin).astype(x.dtype)


def _rotation(positions: Array, cfg: ModelConfig) -> tuple[Array, Array]:
    """Factors `[R, T, 1, K]` of a head and of its swapped halves. The barrier keeps XLA from taking every cosine
    again for every head and layer."""
    angles = positions[..., None].astype(jnp.float32) * _frequencies(cfg)[None, None]
    cos, sin = lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    return jnp.concatenate([cos, cos], -1)[:, :, None], jnp.concatenate([-sin, sin], -1)[:, :, None]


def _frequencies(cfg: ModelConfig) -> Float[Array, ' half']:
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    frequencies = cfg.rope_theta**-exponent
    return frequencies if cfg.rope_scaling is None else _llama3(frequencies, cfg.rope_scaling)


def _llama3(frequencies: Array, scaling: RopeScaling) -> Array:
    """Divides low frequencies by `factor`, keeps high ones and blends between (Llama 3.1)."""
    turns = scaling.original_max_len * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return frequencies * (blend + (1.0 - blend) / scaling.factor)


def visibility(segments: Int[Array, 'R T'], prefix: Int[Array, 'R T']) -> Bool[Array, 'R T T']:
    """`[r, t, s]`: token `t` sees column `s <= t` of its own segment or of its `prefix` (see `types.TokenBatch`).

    Padding sees only itself, so every softmax has something to sum.
    """
    columns = jnp.arange(segments.shape[1])
    earlier = columns[:, None] >= columns[None, :]
    itself = columns[:, None] == columns[None, :]
    seen = segments[:, None, :]
    related = (seen == segments[:, :, None]) | (seen == prefix[:, :, None])
    return (related & (seen != 0) & earlier[None]) | itself[None]


def attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R S G K'],
    v: Float[Array, 'R S G K'],
    visible: Bool[Array, 'R T S'],
    cfg: ModelConfig,
    causal: bool = False,
) -> Float[Array, 'R T H K']:
    """Softmax attention scaled by `1 / sqrt(K)`; head `h` reads kv head `h // (H / G)`. The softmax is in float32.

    `causal` states that query `t` sees no column after `t`, so that work on the masked half can be left out.
    """
    if jax.default_backend() == 'cpu':
        return _blocked(q, k, v, visible, cfg, causal).astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None])


def _blocked(q: Array, k: Array, v: Array, visible: Array, cfg: ModelConfig, causal: bool) -> Array:
    """Blocks of queries one after the other, each against the columns it may see."""
    length, columns = visible.shape[1:]
    size = BLOCK if causal else length
    outs = []
    for start in range(0, length, size):
        rows, seen = slice(start, start + size), slice(start + size if causal else columns)
        outs.append(_folded(q[:, rows], k[:, seen], v[:, seen], visible[:, rows, seen], cfg.dtype))
    return jnp.concatenate(outs, axis=1)


class Saved(NamedTuple):
    """What the backward pass needs: folded `q`, `k`, `v`, probabilities, output, and a scalar of the inputs' dtype."""

    q: Array
    k: Array
    v: Array
    p: Array
    out: Array
    like: Array


def _fold_and_attend(q: Array, k: Array, v: Array, visible: Array, dtype: str) -> Array:
    """Attention whose batched products have one matrix per kv head, and whose backward pass keeps only the
    probabilities, in `dtype`. Float32 out."""
    return _folded_fwd(q, k, v, visible, dtype)[0]


def _folded_fwd(q: Array, k: Array, v: Array, visible: Array, dtype: str) -> tuple[Array, Saved]:
    folded, heads = _fold(q.astype(dtype), k.shape[2]), q.shape[2] // k.shape[2]
    p = _probabilities(folded, k, jnp.repeat(visible, heads, axis=1), dtype)
    out = _dot('rgts,rsgk->rgtk', p, v, dtype)
    return _unfold(out, q.shape[1]), Saved(folded, k.astype(dtype), v.astype(dtype), p, out, jnp.empty((), q.dtype))


def _folded_bwd(dtype: str, saved: Saved, dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, p, out, like = saved
    length = dout.shape[1]
    dout = _fold(dout, k.shape[2])
    dv = _dot('rgts,rgtk->rsgk', p, dout, dtype)
    dp = _dot('rgtk,rsgk->rgts', dout, v, dtype)
    # sum(p * dp) over S, as the shorter sum over K (Dao et al. 2022)
    mean = (dout * out).sum(-1, keepdims=True)
    dscores = (p.astype(jnp.float32) * (dp - mean) * q.shape[-1] ** -0.5).astype(dtype)
    dq = _unfold(_dot('rgts,rsgk->rgtk', dscores, k, dtype), length)
    dk = _dot('rgts,rgtk->rsgk', dscores, q, dtype)
    return dq.astype(like.dtype), dk.astype(like.dtype), dv.astype(like.dtype), None


_folded = jax.custom_vjp(_fold_and_attend, nondiff_argnums=(4,))
_folded.defvjp(_folded_fwd, _folded_bwd)


def _probabilities(q: Array, k: Array, visible: Array, dtype: str) -> Array:
    """`[R, G, T*J, S]` in `dtype`, from `q [R, G, T*J, K]`, `k [R, S, G, K]` and `visible [R, T*J, S]`."""
    scores = _dot('rgtk,rsgk->rgts', q, k, dtype) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None], scores, MASKED)
    # Written out before it is summed: XLA's CPU backend does not vectorise an exp inside a reduction.
    weights = lax.optimization_barrier(jnp.exp(scores - scores.max(-1, keepdims=True)))
    return (weights / weights.sum(-1, keepdims=True)).astype(dtype)


def _dot(spec: str, x: Array, y: Array, dtype: str) -> Array:
    return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _fold(x: Array, groups: int) -> Array:
    """`[R, T, G*J, K]` to `[R, G, T*J, K]`: heads that share keys become further rows of one matrix product."""
    rows, length, _, size = x.shape
    return x.reshape(rows, length, groups, -1, size).swapaxes(1, 2).reshape(rows, groups, -1, size)


def _unfold(x: Array, length: int) -> Array:
    """The inverse of `_fold`."""
    rows, groups, _, size = x.shape
    return x.reshape(rows, groups, length, -1, size).swapaxes(1, 2).reshape(rows, length, -1, size)
