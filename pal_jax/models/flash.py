"""Attention of packed rows on a GPU as Pallas kernels, which Triton compiles: no `[T, T]` array exists at any time.

The online softmax and the two backward passes are those of FlashAttention-2 (Dao 2023). The mask is this package's, as
in `models/splash.py`: a token sees its own segment, one more segment and the row's opening, so all branches of a prompt
attend to the one copy of it in their row. cuDNN's kernels and jax's own know one segment a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.places import MASKED, Places, Scoring, alibi_slopes, blocks_seen, round_up
from pal_jax.types import OPENING

# The number of queries or keys of a block.
BLOCK = 64
# The mesh axes of rows and of heads, see run.sharding.
BATCH, HEADS = ('data', 'fsdp'), 'tensor'


class Settings(NamedTuple):
    """The static settings of a call."""

    scoring: Scoring
    block: int
    interpret: bool


class Lists(NamedTuple):
    """The places of tokens, the slopes of heads, and which blocks meet: for each block the number of others and the
    others in rising order."""

    places: Places
    slopes: Float[Array, ' H']
    key_count: Int[Array, 'R n']
    keys: Int[Array, 'R n n']
    query_count: Int[Array, 'R n']
    queries: Int[Array, 'R n n']


def flash_attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R T G K'],
    v: Float[Array, 'R T G K'],
    places: Places,
    scoring: Scoring,
    *,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, 'R T H K']:
    """Softmax attention in which token `t` sees columns `s <= t` that `places.visible` lets it see.

    Head `h` reads kv head `h // (H / G)`; the softmax is in float32, and products take the dtype of `q`. Outputs of
    padding mean nothing.

    Args:
      block: tokens of a block, a power of two of at least 16.
      interpret: runs the kernels on any platform, slowly.
    """
    length, width = q.shape[1], q.shape[3]
    # Triton's products need widths that are powers of two, of at least 16.
    missing, wider = round_up(length, block) - length, max(pl.next_power_of_2(width), 16) - width
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, wider))) for x in (q, k, v))
    places = places.padded(missing)
    # Each block of queries has a list of the blocks of keys that any of its queries sees, and each block of keys one of
    # the blocks of queries. A kernel goes through its list and touches nothing else.
    seen = blocks_seen(places, places, (block, block), scoring.window, causal=True)
    slopes = jnp.asarray(alibi_slopes(q.shape[2])) if scoring.alibi else jnp.zeros(q.shape[2])
    lists = Lists(places, slopes, *_listed(seen), *_listed(seen.swapaxes(1, 2)))
    # Where a mesh is in context, rows and heads are spread over it as `run.sharding.RULES` spreads them.
    out = _on_mesh(Settings(scoring, block, interpret))(q, k, v, lists)
    return out[:, :length, :, :width]


def _listed(seen: Bool[Array, 'R n m']) -> tuple[Int[Array, 'R n'], Int[Array, 'R n m']]:
    """The number of true entries of each row, and their places first among all."""
    return seen.sum(-1, dtype=jnp.int32), jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32)


def _on_mesh(settings: Settings) -> Callable[..., Array]:
    """The attention function that runs the kernels on every device's own rows and heads; no compiler splits kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_attend, settings)
    if mesh.empty or mesh.size == 1:
        return attend
    heads, rows = PartitionSpec(BATCH, None, HEADS), PartitionSpec(BATCH)
    lists = Lists(rows, PartitionSpec(HEADS), rows, rows, rows, rows)  # type: ignore[arg-type]
    return jax.shard_map(attend, in_specs=(heads, heads, heads, lists), out_specs=heads, check_vma=False)


# --- passes: q, out [R, T, H, K], k, v [R, T, G, K] -----------------------------------------------------------------


def _attend(settings: Settings, q: Array, k: Array, v: Array, lists: Lists) -> Array:
    return _forward(settings, q, k, v, lists)[0]


def _forward(settings: Settings, q: Array, k: Array, v: Array, lists: Lists) -> tuple[Array, tuple[Any, ...]]:
    """The output, and the arrays for the backward pass, with the log of the softmax's denominator [R, H, T]."""
    grid = _FlashGrid(settings, q, k)
    specs = [grid.query, grid.all_keys, grid.all_keys, *grid.by_query]
    shapes = _like(q), jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
    call = grid.call(_forward_kernel, 'query', specs, (grid.query, grid.number), shapes, products=2)
    out, log_total = call(q, k, v, *lists.places, lists.slopes, lists.key_count, lists.keys)
    return out, (q, k, v, lists, out, log_total)


def _backward(settings: Settings, saved: tuple[Any, ...], dout: Array) -> tuple[Array | None, ...]:
    q, k, v, lists, out, log_total = saved
    # sum(p * dp) over keys, as the shorter sum over K (Dao et al. 2022)
    mean = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    grid = _FlashGrid(settings, q, k)
    specs = [grid.query, grid.all_keys, grid.all_keys, grid.query, grid.number, grid.number, *grid.by_query]
    call = grid.call(_query_kernel, 'query', specs, grid.query, _like(q), products=3)
    dq = call(q, k, v, dout, log_total, mean, *lists.places, lists.slopes, lists.key_count, lists.keys)
    queries, numbers = grid.all_queries, grid.all_numbers
    specs = [queries, grid.key, grid.key, queries, numbers, numbers, *grid.by_key]
    call = grid.call(_key_kernel, 'key', specs, (grid.key, grid.key), (_like(k), _like(v)), products=4)
    dk, dv = call(q, k, v, dout, log_total, mean, *lists.places, lists.slopes, lists.query_count, lists.queries)
    return dq, dk, dv, None


_attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _FlashGrid:
    """The grids of the kernels, and the blocks of arrays that they read and write at each point.

    Points are (block of queries, head, row), or (block of keys, kv head, row).
    """

    def __init__(self, settings: Settings, q: Array, k: Array):
        self.settings, (rows, length, heads, width), groups = settings, q.shape, k.shape[2]
        size, members, count = settings.block, heads // groups, length // settings.block
        self.query_grid, self.key_grid = (count, heads, rows), (count, groups, rows)
        # The flops of one product; half of the square is masked.
        self.product = rows * heads * length * length * width
        self.bytes = 2 * q.size * q.dtype.itemsize
        self.query = pl.BlockSpec((None, size, None, width), lambda i, h, r: (r, i, h, 0))
        self.key = pl.BlockSpec((None, size, None, width), lambda j, g, r: (r, j, g, 0))
        self.number = pl.BlockSpec((None, None, size), lambda i, h, r: (r, h, i))
        self.all_keys = pl.BlockSpec(
            (None, length, None, width), lambda i, h, r: (r, 0, lax.div(h, jnp.int32(members)), 0)
        )
        self.all_queries = pl.BlockSpec((None, length, members, width), lambda j, g, r: (r, 0, g, 0))
        self.all_numbers = pl.BlockSpec((None, members, length), lambda j, g, r: (r, g, 0))
        row = pl.BlockSpec((None, length), lambda i, h, r: (r, 0))
        met = [
            pl.BlockSpec((None, 1), lambda i, h, r: (r, i)),
            pl.BlockSpec((None, None, count), lambda i, h, r: (r, i, 0)),
        ]
        self.by_query = [row, row, row, pl.BlockSpec((1,), lambda i, h, r: (h,)), *met]
        self.by_key = [row, row, row, pl.BlockSpec((members,), lambda j, g, r: (g,)), *met]

    def call(
        self, kernel: Any, outer: str, inputs: Any, outputs: Any, shapes: Any, products: int
    ) -> Callable[..., Any]:
        """The function that runs a kernel at every point of its grid."""
        return pl.pallas_call(
            functools.partial(kernel, self.settings),
            grid=self.query_grid if outer == 'query' else self.key_grid,
            in_specs=inputs,
            out_specs=outputs,
            out_shape=shapes,
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
            cost_estimate=pl.CostEstimate(
                products * self.product, transcendentals=self.product // 128, bytes_accessed=self.bytes
            ),
            interpret=self.settings.interpret,
            name=kernel.__name__.strip('_'),
        )


# --- kernels: scores are [queries, keys] ----------------------------------------------------------------------------


class TokenPlaces(NamedTuple):
    """The places of the tokens of a block."""

    segment: Int[Array, ' t']
    prefix: Int[Array, ' t']
    position: Int[Array, ' t']


def _tokens(refs: tuple[Any, Any, Any], at: Any) -> TokenPlaces:
    return TokenPlaces(*(ref[at] for ref in refs))


def _block(settings: Settings, i: Any) -> Any:
    return pl.ds(i * settings.block, settings.block)


def _scores(
    settings: Settings, q: Array, k: Array, ours: TokenPlaces, theirs: TokenPlaces, slope: Any
) -> tuple[Array, Any]:
    """The masked scores [queries, keys], and their derivative by the product of query and key."""
    scoring = settings.scoring
    scores, steepness = _dot(q, k.T) * scoring.scale, scoring.scale
    if scoring.soft_cap is not None:
        bounded = jnp.tanh(scores / scoring.soft_cap)
        scores, steepness = scoring.soft_cap * bounded, scoring.scale * (1.0 - bounded * bounded)
    apart = ours.position[:, None] - theirs.position[None]
    if scoring.alibi:
        scores -= slope * apart.astype(jnp.float32)
    segment = theirs.segment[None]
    seen = (segment == ours.segment[:, None]) | (segment == ours.prefix[:, None]) | (segment == OPENING)
    seen &= apart >= 0
    if scoring.window is not None:
        seen &= apart < scoring.window
    return jnp.where(seen, scores, MASKED), steepness


def _forward_kernel(
    settings: Settings, q_ref: Any, k_ref: Any, v_ref: Any, segment: Any, prefix: Any, position: Any, slopes: Any,
    count: Any, blocks: Any, out_ref: Any, log_total_ref: Any,
) -> None:  # fmt: skip
    places = segment, prefix, position
    q, ours, slope = q_ref[...], _tokens(places, _block(settings, pl.program_id(0))), slopes[0]

    def body(n: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, top, total = carry
        at = _block(settings, blocks[n])
        scores, _ = _scores(settings, q, k_ref[at, :], ours, _tokens(places, at), slope)
        # Earlier sums are scaled to the new maximum, so no exponential overflows.
        new = jnp.maximum(top, scores.max(-1))
        p, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        out = shrink[:, None] * out + _dot(p.astype(q.dtype), v_ref[at, :])
        return out, new, shrink * total + p.sum(-1)

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    out, top, total = lax.fori_loop(0, count[0], body, (jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros))
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = top + jnp.log(total)


def _query_kernel(
    settings: Settings, q_ref: Any, k_ref: Any, v_ref: Any, dout_ref: Any, log_total_ref: Any, mean_ref: Any,
    segment: Any, prefix: Any, position: Any, slopes: Any, count: Any, blocks: Any, dq_ref: Any,
) -> None:  # fmt: skip
    places = segment, prefix, position
    ours, slope = _tokens(places, _block(settings, pl.program_id(0))), slopes[0]
    q, dout, log_total, mean = q_ref[...], dout_ref[...], log_total_ref[...], mean_ref[...]

    def body(n: Any, dq: Array) -> Array:
        at = _block(settings, blocks[n])
        k, v = k_ref[at, :], v_ref[at, :]
        scores, steepness = _scores(settings, q, k, ours, _tokens(places, at), slope)
        p = jnp.exp(scores - log_total[:, None])
        # The derivative of the softmax, times that of a score by its product.
        dscores = p * (_dot(dout, v.T) - mean[:, None]) * steepness
        return dq + _dot(dscores.astype(k.dtype), k)

    dq_ref[...] = lax.fori_loop(0, count[0], body, jnp.zeros(q.shape, jnp.float32)).astype(dq_ref.dtype)


def _key_kernel(
    settings: Settings, q_ref: Any, k_ref: Any, v_ref: Any, dout_ref: Any, log_total_ref: Any, mean_ref: Any,
    segment: Any, prefix: Any, position: Any, slopes: Any, count: Any, blocks: Any, dk_ref: Any, dv_ref: Any,
) -> None:  # fmt: skip
    places = segment, prefix, position
    k, v, theirs = k_ref[...], v_ref[...], _tokens(places, _block(settings, pl.program_id(0)))
    # All query heads of a group read these keys, so the loop goes through the list once for each of them.
    met = count[0]

    def body(n: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        member, at = n // met, _block(settings, blocks[n % met])
        q, dout = q_ref[at, member, :], dout_ref[at, member, :]
        scores, steepness = _scores(settings, q, k, _tokens(places, at), theirs, slopes[member])
        p = jnp.exp(scores - log_total_ref[member, at][:, None])
        dv += _dot(p.astype(dout.dtype).T, dout)
        dscores = p * (_dot(dout, v.T) - mean_ref[member, at][:, None]) * steepness
        return dk + _dot(dscores.astype(q.dtype).T, q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, met * q_ref.shape[1], body, (zeros, zeros))
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _dot(x: Array, y: Array) -> Array:
    """The product of two matrices, summed in float32; float32 is not rounded to TF32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot(x, y, precision=precision, preferred_element_type=jnp.float32)
