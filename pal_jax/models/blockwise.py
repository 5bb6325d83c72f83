"""Attention block by block in plain JAX: memory grows with the length of a row and not with its square.

One loop over the pairs of blocks that see each other, with the online softmax of FlashAttention-2 (Dao 2023). It is
what long rows on a CPU use, and what accelerators use where their kernels do not take a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pal_jax.models.places import MASKED, Places, Scoring, alibi_slopes, blocks_seen, distance, round_up, visible

# The tokens of a block of queries and of one of keys.
QUERIES, KEYS = 256, 512


def blockwise_attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R S G K'],
    v: Float[Array, 'R S G K'],
    queries: Places,
    keys: Places,
    scoring: Scoring,
    *,
    causal: bool = False,
    dtype: Any = None,
    sizes: tuple[int, int] = (QUERIES, KEYS),
) -> Float[Array, 'R T H K']:
    """Softmax attention by `places.visible`; head `h` reads kv head `h // (H / G)`, and the softmax is in float32.

    Outputs of queries that see no key are finite and mean nothing.

    Args:
      causal: queries and keys are the same tokens, and no query sees a column after its own.
      dtype: of the inputs of products; that of `q` by default.
      sizes: tokens of a block of queries and of a block of keys.
    """
    length, columns, groups = q.shape[1], k.shape[1], k.shape[2]
    sizes = min(sizes[0], length), min(sizes[1], columns)
    missing, absent = (round_up(n, size) - n for n, size in zip((length, columns), sizes, strict=True))
    queries, keys = queries.padded(missing), keys.padded(absent)
    # Pairs of blocks that see nothing of each other in any row are left out.
    seen = blocks_seen(queries, keys, sizes, scoring.window, causal).any(0)
    # The number of pairs depends on the batch, and shapes may not, so the list is filled up.
    pairs = BlockPairs(jnp.nonzero(seen.reshape(-1), size=seen.size, fill_value=0)[0], seen.sum())
    repeated = Places(*(jnp.repeat(x, q.shape[2] // groups, axis=1) for x in queries))
    folded = sizes[0] * q.shape[2] // groups
    cut = _cut(repeated, folded), _cut(keys, sizes[1])
    blocks = _query_blocks(q, missing, groups, sizes[0])
    k, v = (_key_blocks(x, absent, sizes[1]) for x in (k, v))
    out = _attend(scoring, jnp.dtype(dtype or q.dtype), q.shape[2], blocks, k, v, cut[0], cut[1], pairs)
    return _from_query_blocks(out, sizes[0], q.shape).astype(q.dtype)


class BlockPairs(NamedTuple):
    """Pairs of blocks that see each other: the first `total` numbers, each `m` times a block of queries plus one of
    keys."""

    numbers: Array
    total: Array


# --- blocks: queries [n, R, G, t, K] with the heads of a group as rows, keys [m, R, G, s, K] --------------------------


def _query_blocks(x: Array, missing: int, groups: int, size: int) -> Array:
    rows, _, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    x = x.reshape(rows, -1, size, groups, heads // groups, width)
    return x.transpose(1, 0, 3, 2, 4, 5).reshape(x.shape[1], rows, groups, -1, width)


def _from_query_blocks(x: Array, size: int, shape: tuple[int, ...]) -> Array:
    count, rows, groups, _, width = x.shape
    x = x.reshape(count, rows, groups, size, -1, width).transpose(1, 0, 3, 2, 4, 5)
    return x.reshape(rows, count * size, -1, width)[:, : shape[1]]


def _key_blocks(x: Array, missing: int, size: int) -> Array:
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)


def _cut(places: Places, size: int) -> Places:
    return Places(*(x.reshape(len(x), -1, size).swapaxes(0, 1) for x in places))


# --- passes ---------------------------------------------------------------------------------------------------------


def _attend(
    scoring: Scoring,
    dtype: Any,
    heads: int,
    q: Array,
    k: Array,
    v: Array,
    queries: Places,
    keys: Places,
    pairs: BlockPairs,
) -> Float[Array, 'n R G t K']:
    return _forward(scoring, dtype, heads, q, k, v, queries, keys, pairs)[0]


def _forward(
    scoring: Scoring,
    dtype: Any,
    heads: int,
    q: Array,
    k: Array,
    v: Array,
    queries: Places,
    keys: Places,
    pairs: BlockPairs,
) -> tuple[Array, tuple[Any, ...]]:
    """The output in the dtype of `q`, and the arrays for the backward pass."""

    def body(_: Any, i: Array, j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        outs, tops, totals = carry
        scores, _ = _scores(scoring, dtype, heads, q[i], k[j], _at(queries, i), _at(keys, j))
        top = jnp.maximum(tops[i], scores.max(-1))
        # The barrier comes before the sum, since XLA's CPU backend does not vectorise an exp inside a reduction.
        p, shrink = lax.optimization_barrier(jnp.exp(scores - top[..., None])), jnp.exp(tops[i] - top)
        out = shrink[..., None] * outs[i] + _dot('rgts,rgsk->rgtk', p, v[j], dtype)
        return outs.at[i].set(out), tops.at[i].set(top), totals.at[i].set(shrink * totals[i] + p.sum(-1))

    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    outs, tops, totals = _over(pairs, len(k), body, (jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros))
    # A block that sees nothing has no sum.
    totals = jnp.maximum(totals, 1e-30)
    out = (outs / totals[..., None]).astype(q.dtype)
    return out, (q, k, v, queries, keys, pairs, out, jnp.log(totals) + tops)


def _backward(
    scoring: Scoring, dtype: Any, heads: int, saved: tuple[Any, ...], dout: Array
) -> tuple[Array | None, ...]:
    q, k, v, queries, keys, pairs, out, log_total = saved
    # sum(p * dp) over keys, as the shorter sum over K (Dao et al. 2022)
    mean = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

    def body(_: Any, i: Array, j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        dq, dk, dv = carry
        scores, slope = _scores(scoring, dtype, heads, q[i], k[j], _at(queries, i), _at(keys, j))
        # The probabilities are computed again from the log of their sum, in a loop over the same pairs.
        p = jnp.exp(scores - log_total[i][..., None])
        dp = _dot('rgtk,rgsk->rgts', dout[i], v[j], dtype)
        dscores = (p * (dp - mean[i][..., None]) * slope).astype(dtype)
        return (
            dq.at[i].add(_dot('rgts,rgsk->rgtk', dscores, k[j], dtype)),
            dk.at[j].add(_dot('rgts,rgtk->rgsk', dscores, q[i], dtype)),
            dv.at[j].add(_dot('rgts,rgtk->rgsk', p, dout[i], dtype)),
        )

    sums = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    gradients = [x.astype(like.dtype) for x, like in zip(_over(pairs, len(k), body, sums), (q, k, v), strict=True)]
    return *gradients, None, None, None


_attend = jax.custom_vjp(_attend, nondiff_argnums=(0, 1, 2))
_attend.defvjp(_forward, _backward)


def _over(pairs: BlockPairs, count: int, body: Callable[..., Any], start: Any) -> Any:
    """The carry of `body(step, i, j, carry)` after all pairs."""

    def step(n: Any, carry: Any) -> Any:
        return body(n, pairs.numbers[n] // count, pairs.numbers[n] % count, carry)

    return lax.fori_loop(0, pairs.total, step, start)


def _at(places: Places, i: Array) -> Places:
    return Places(*(x[i] for x in places))


def _scores(
    scoring: Scoring, dtype: Any, heads: int, q: Array, k: Array, queries: Places, keys: Places
) -> tuple[Array, Array | float]:
    """The masked scores `[R, G, t, s]` of one block, and their derivative by the product of query and key."""
    scores, slope = _dot('rgtk,rgsk->rgts', q, k, dtype) * scoring.scale, scoring.scale
    if scoring.soft_cap is not None:
        bounded = jnp.tanh(scores / scoring.soft_cap)
        scores, slope = scoring.soft_cap * bounded, scoring.scale * (1.0 - bounded * bounded)
    if scoring.alibi:
        groups, rows = scores.shape[1:3]
        slopes = jnp.tile(alibi_slopes(heads).reshape(groups, -1), (1, rows * groups // heads))
        scores -= slopes[None, :, :, None] * distance(queries, keys)[:, None].astype(jnp.float32)
    return jnp.where(visible(queries, keys, scoring.window)[:, None], scores, MASKED), slope


def _dot(spec: str, x: Array, y: Array, dtype: Any) -> Array:
    return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)
