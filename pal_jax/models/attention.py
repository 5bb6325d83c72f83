"""Rotary positions, the mask by which tokens see others, and attention."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pal_jax.models.blockwise import blockwise_attention
from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, RopeScaling
from pal_jax.models.places import MASKED, Places, Scoring, alibi_slopes, distance, visible
from pal_jax.objectives.rounding import exponential, rounded

# The queries of a causal block on CPU; smaller blocks compute fewer masked scores, but slower products.
BLOCK = 128
# The tokens of a row from which a CPU computes block by block, in memory that does not grow with the square.
LONG = 4096
# The columns of ones that sum a row of weights by a product.
ONES = 16
# The CPUs that were looked at add up a product one column after the other where its result has `NARROW` columns or
# more: for `ROWS` rows up to `DEEP` columns, and for fewer rows while the right matrix has `PANEL` numbers at most.
ROWS, DEEP, NARROW, PANEL = 64, 512, 64, 2**15
# With the kernels of accelerators each segment of an exact row begins at a multiple of so many columns.
COLUMNS = 128


def rope(
    x: Float[Array, 'R T H K'], positions: Int[Array, 'R T'], cfg: ModelConfig, kind: LayerKind
) -> Float[Array, 'R T H K']:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face, computed in float32."""
    if kind.rope == 'none':
        return x
    cos, sin = _rotation(positions, cfg, kind)
    wide = x.astype(jnp.float32)
    # In the half-split layout the partner of a number is half a head away.
    turned = jnp.roll(wide, cfg.head_dim // 2, axis=-1)
    return (rounded(wide * cos) + rounded(turned * sin)).astype(x.dtype)


def _rotation(positions: Array, cfg: ModelConfig, kind: LayerKind) -> tuple[Array, Array]:
    """The factors `[R, T, 1, K]` of a head and of its swapped halves."""
    angles = positions[..., None].astype(jnp.float32) * _frequencies(cfg, kind)[None, None]
    # The barrier keeps XLA from computing every cosine again for every head and layer.
    cos, sin = lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    return jnp.concatenate([cos, cos], -1)[:, :, None], jnp.concatenate([-sin, sin], -1)[:, :, None]


def _frequencies(cfg: ModelConfig, kind: LayerKind) -> Float[Array, ' half']:
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    if kind.rope == 'local':
        return cfg.rope_local_theta**-exponent
    frequencies = cfg.rope_theta**-exponent
    match cfg.rope_scaling:
        case RopeScaling() as scaling:
            return _llama3(frequencies, scaling)
        case LinearScaling(factor):
            return frequencies / factor
    return frequencies


def _llama3(frequencies: Array, scaling: RopeScaling) -> Array:
    """The frequencies of Llama 3.1, whose low ones are divided by `factor`."""
    turns = scaling.original_max_len * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    # The blend is 0 for low frequencies, which are stretched, and 1 for high ones, which stay.
    blend = jnp.clip(blend, 0.0, 1.0)
    return frequencies * (blend + (1.0 - blend) / scaling.factor)


def score_scale(cfg: ModelConfig) -> float:
    """The factor of the products of queries and keys."""
    return (cfg.head_dim if cfg.query_scalar is None else cfg.query_scalar) ** -0.5


def attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R S G K'],
    v: Float[Array, 'R S G K'],
    queries: Places,
    keys: Places,
    cfg: ModelConfig,
    kind: LayerKind,
    causal: bool = False,
) -> Float[Array, 'R T H K']:
    """Softmax attention with the windows, caps and slopes of `cfg` and `kind`; head `h` reads kv head `h // (H / G)`.
    The softmax is in float32.

    `causal` says that queries and keys are the same tokens and that no query sees a column after its own. The masked
    half is then left out where possible.
    """
    scoring = Scoring(score_scale(cfg), kind.window, cfg.attn_softcap, cfg.alibi)
    # An exact decoder uses the kernels of training for its caches, too. Kernels are imported where they are used, since
    # their compilers take a second.
    if cfg.attention == 'splash' and (causal or cfg.exact) and not cfg.alibi:
        from pal_jax.models.splash import splash_attention

        return splash_attention(
            q, k, v, *queries, scale=scoring.scale, window=kind.window, soft_cap=scoring.soft_cap,
            keys=None if causal else keys, block=COLUMNS if cfg.exact else None,
        )  # fmt: skip
    if cfg.attention == 'flash' and (causal or cfg.exact):
        from pal_jax.models.flash import flash_attention

        return flash_attention(q, k, v, queries, scoring, keys=None if causal else keys, in_order=cfg.exact)
    if cfg.attention in ('splash', 'flash') or (cfg.attention == 'blocks' and causal and q.shape[1] > LONG):
        return blockwise_attention(q, k, v, queries, keys, scoring, causal=causal, dtype=cfg.dtype)
    if cfg.attention == 'blocks' or cfg.attn_softcap is not None:
        return _blocked(q, k, v, queries, keys, cfg, kind, causal).astype(q.dtype)
    mask, bias = visible(queries, keys, kind.window)[:, None], None
    if cfg.alibi:
        bias = -alibi_slopes(cfg.heads)[None, :, None, None] * distance(queries, keys)[:, None].astype(jnp.float32)
    return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=score_scale(cfg))


def _blocked(
    q: Array, k: Array, v: Array, queries: Places, keys: Places, cfg: ModelConfig, kind: LayerKind, causal: bool
) -> Array:
    """Attention of one block of queries after the other, each with the columns that it may see."""
    length, columns = q.shape[1], k.shape[1]
    # Only a causal mask tells beforehand which columns a block cannot see.
    size = BLOCK if causal else length
    outs = []
    for start in range(0, length, size):
        rows, columns_seen = slice(start, start + size), slice(start + size if causal else columns)
        ours, theirs = Places(*(x[:, rows] for x in queries)), Places(*(x[:, columns_seen] for x in keys))
        outs.append(_folded(q[:, rows], k[:, columns_seen], v[:, columns_seen], ours, theirs, cfg, kind))
    return jnp.concatenate(outs, axis=1)


class Residuals(NamedTuple):
    """Arrays for the backward pass: folded `q`, `k`, `v`, probabilities, output, and a scalar of the inputs' dtype."""

    q: Array
    k: Array
    v: Array
    p: Array
    out: Array
    like: Array


def _fold_and_attend(
    q: Array, k: Array, v: Array, queries: Places, keys: Places, cfg: ModelConfig, kind: LayerKind
) -> Array:
    """Attention in float32 whose batched products have one matrix for each kv head.

    Its backward pass keeps the probabilities alone, in `cfg.dtype`.
    """
    return _folded_fwd(q, k, v, queries, keys, cfg, kind)[0]


def _folded_fwd(
    q: Array, k: Array, v: Array, queries: Places, keys: Places, cfg: ModelConfig, kind: LayerKind
) -> tuple[Array, Residuals]:
    dtype, folded = cfg.dtype, _fold(q.astype(_forward_dtype(cfg)), k.shape[2])
    repeated = Places(*(jnp.repeat(x, q.shape[2] // k.shape[2], axis=1) for x in queries))
    weights = _weights(_scores(folded, k, cfg), repeated, keys, cfg, kind)
    total = total_of(weights, cfg)
    if cfg.exact:
        out = in_order(weights, v.swapaxes(1, 2)) / total
    else:
        out = _dot('rgts,rsgk->rgtk', weights, v, dtype) / total
    p = (weights / total).astype(dtype)
    return _unfold(out, q.shape[1]), Residuals(
        folded.astype(dtype), k.astype(dtype), v.astype(dtype), p, out, jnp.empty((), q.dtype)
    )


def _folded_bwd(cfg: ModelConfig, kind: LayerKind, saved: Residuals, dout: Array) -> tuple[Array | None, ...]:
    q, k, v, p, out, like = saved
    dtype, length = cfg.dtype, dout.shape[1]
    dout = _fold(dout, k.shape[2])
    dv = _dot('rgts,rgtk->rsgk', p, dout, dtype)
    dp = _dot('rgtk,rsgk->rgts', dout, v, dtype)
    # sum(p * dp) over S, as the shorter sum over K (Dao et al. 2022)
    mean = (dout * out).sum(-1, keepdims=True)
    dscores = p.astype(jnp.float32) * (dp - mean) * score_scale(cfg)
    if cfg.attn_softcap is not None:
        # The derivative of cap * tanh(x / cap) by x.
        dscores *= 1.0 - jnp.square(_scores(q, k, cfg) / cfg.attn_softcap)
    dscores = dscores.astype(dtype)
    dq = _unfold(_dot('rgts,rsgk->rgtk', dscores, k, dtype), length)
    dk = _dot('rgts,rgtk->rsgk', dscores, q, dtype)
    return dq.astype(like.dtype), dk.astype(like.dtype), dv.astype(like.dtype), None, None


_folded = jax.custom_vjp(_fold_and_attend, nondiff_argnums=(5, 6))
_folded.defvjp(_folded_fwd, _folded_bwd)


def _forward_dtype(cfg: ModelConfig) -> str:
    """The type of what a forward pass multiplies. A decoder multiplies its caches as they are."""
    return cfg.act_dtype if cfg.exact else cfg.dtype


def _scores(q: Array, k: Array, cfg: ModelConfig) -> Array:
    """The scores `[R, G, T*J, S]` of `q [R, G, T*J, K]` and `k [R, S, G, K]`, scaled and capped."""
    dtype, width = _forward_dtype(cfg), columns_of_scores(q.shape[2], k.shape[1], cfg)
    parts = [_dot('rgtk,rsgk->rgts', q, k[:, i : i + width], dtype) for i in range(0, k.shape[1], width)]
    scores = jnp.concatenate(parts, -1) * score_scale(cfg)
    return scores if cfg.attn_softcap is None else cfg.attn_softcap * jnp.tanh(scores / cfg.attn_softcap)


def columns_of_scores(rows: int, columns: int, cfg: ModelConfig) -> int:
    """The columns of keys with which `rows` queries are multiplied at once."""
    return min(columns, PANEL // cfg.head_dim) if cfg.exact and rows < ROWS else columns


def total_of(weights: Float[Array, 'R G M S'], cfg: ModelConfig) -> Float[Array, 'R G M 1']:
    """The sums of unnormalised attention weights over the columns, in float32."""

    # A CPU's reduction adds up by vectors, so its result depends on where the columns stand. A product adds up column
    # after column, and columns of zeros change no bit of it.
    def by_product(weights: Array) -> Array:
        columns = jnp.ones((*weights.shape[:2], weights.shape[3], NARROW if cfg.exact else ONES), weights.dtype)
        product = in_order(weights, columns) if cfg.exact else _dot('rgms,rgso->rgmo', weights, columns, 'float32')
        return product[..., :1]

    return lax.platform_dependent(weights, cpu=by_product, default=lambda x: x.sum(-1, keepdims=True))


def in_order(weights: Float[Array, 'R G M S'], values: Float[Array, 'R G S K']) -> Float[Array, 'R G M K']:
    """The product of two matrices in float32, whose sums take one column after the other.

    The columns are cut into parts. Each part's product goes on from the sum so far: the first columns of its left
    matrix are those of the identity, and the first rows of its right one are the sum.
    """
    (rows, columns), width = weights.shape[2:], values.shape[3]
    cut = DEEP if rows >= ROWS else min(DEEP, PANEL // max(width, NARROW))
    # A narrower product adds up in another order.
    values = jnp.pad(values, ((0, 0), (0, 0), (0, 0), (0, max(NARROW - width, 0))))
    if columns <= cut:
        return _dot('rgms,rgsk->rgmk', weights, values, 'float32')[..., :width]
    if rows > cut // 2:
        halves = weights[:, :, : rows // 2], weights[:, :, rows // 2 :]
        return jnp.concatenate([in_order(half, values) for half in halves], 2)[..., :width]
    kept = jnp.broadcast_to(jnp.eye(rows), (*weights.shape[:2], rows, rows))
    total = jnp.zeros((*weights.shape[:3], values.shape[3]))
    for start in range(0, columns, cut - rows):
        part = slice(start, start + cut - rows)
        left = jnp.concatenate([kept, weights[..., part]], -1)
        total = _dot('rgms,rgsk->rgmk', left, jnp.concatenate([total, values[:, :, part]], 2), 'float32')
    return total[..., :width]


@functools.cache
def adds_in_order() -> bool:
    """True where `in_order` does what it says on this machine's processor."""
    rng, columns = np.random.default_rng(0), 2 * DEEP
    for rows in (3, ROWS):
        weights = rng.exponential(size=(1, 1, rows, columns)).astype(np.float32)
        values = rng.normal(size=(1, 1, columns, NARROW)).astype(np.float32)
        total = np.zeros((1, 1, rows, NARROW), np.float32)
        for i in range(columns):
            # float64 has a product of two numbers in full, so that it is rounded once, with the sum.
            total = (weights[..., i, None].astype(np.float64) * values[:, :, i, None] + total).astype(np.float32)
        if not np.array_equal(jax.jit(in_order)(weights, values), total):
            return False
    return True


def summed(x: Float[Array, '... D']) -> Float[Array, '... 1']:
    """The sums over the last axis, in an order that does not depend on the number of rows."""
    missing = -x.shape[-1] % NARROW
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
    # Parts are added up number by number, and a product of few columns has one order.
    part = sum(jnp.split(x, x.shape[-1] // NARROW, axis=-1))
    return (part @ jnp.ones((NARROW, NARROW)))[..., :1]


def _weights(scores: Array, queries: Places, keys: Places, cfg: ModelConfig, kind: LayerKind) -> Array:
    """The unnormalised weights `[R, G, T*J, S]`. `queries` are the places of the scores' rows `T*J`."""
    if cfg.alibi:
        groups, rows = scores.shape[1:3]
        slopes = np.tile(alibi_slopes(cfg.heads).reshape(groups, -1), rows * groups // cfg.heads)
        scores -= slopes[None, :, :, None] * distance(queries, keys)[:, None].astype(jnp.float32)
    scores = jnp.where(visible(queries, keys, kind.window)[:, None], scores, MASKED)
    return exponential(scores - scores.max(-1, keepdims=True))


def _dot(spec: str, x: Array, y: Array, dtype: str) -> Array:
    return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _fold(x: Array, groups: int) -> Array:
    """An array `[R, G, T*J, K]` from `[R, T, G*J, K]`, where heads that share keys are rows of one matrix product."""
    rows, length, _, size = x.shape
    return x.reshape(rows, length, groups, -1, size).swapaxes(1, 2).reshape(rows, groups, -1, size)


def _unfold(x: Array, length: int) -> Array:
    """The inverse of `_fold`."""
    rows, groups, _, size = x.shape
    return x.reshape(rows, groups, length, -1, size).swapaxes(1, 2).reshape(rows, length, -1, size)
