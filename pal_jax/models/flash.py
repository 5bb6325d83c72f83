"""Attention of packed rows on a GPU as Pallas kernels, which Triton compiles: no `[T, T]` array exists at any time.

The online softmax and the two backward passes are those of FlashAttention-2 (Dao 2023). The mask is this package's, as
in `models/splash.py`: a token sees its own segment, one more segment and the row's opening, so all branches of a prompt
attend to the one copy of it in their row. cuDNN's kernels and jax's own know one segment a token. Scores are in bits
(their logarithm has base 2), as a card has an instruction for powers of two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.places import MASKED, Places, Scoring, alibi_slopes, blocks_seen, blocks_whole, round_up
from pal_jax.types import BATCH, OPENING

# Bits of a natural unit of information.
BITS = math.log2(math.e)
# The mesh axis of heads, see run.sharding.
HEADS = 'tensor'


class Tile(NamedTuple):
    """The queries and keys of a block of scores, the warps that compute it, and the blocks that are loaded ahead."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


class Tiles(NamedTuple):
    """The tiles of the forward pass, of the gradient by queries, and of the gradients by keys and values."""

    forward: Tile
    query: Tile
    key: Tile


def tiles_of(width: int, dtype: Any) -> Tiles:
    """The tiles for heads of `width`: those in bfloat16 are the fastest of a sweep on an H200 (docs/evidence/gpu.md).

    Float32 has no tensor cores, and its products are unrolled: 64 by 64 would take minutes to compile. Heads wider than
    128 leave no shared memory for more than 64 by 64.
    """
    square = Tile(64, 64)
    if jnp.dtype(dtype) == jnp.float32:
        return Tiles(*[Tile(32, 32)] * 3)
    if width <= 64:
        return Tiles(Tile(64, 64, stages=3), square, square)
    return Tiles(Tile(128, 64, stages=3), square, Tile(128, 64, warps=8)) if width <= 128 else Tiles(*[square] * 3)


class Settings(NamedTuple):
    """The static settings of a call."""

    scoring: Scoring
    tiles: Tiles
    interpret: bool


class Met(NamedTuple):
    """The blocks that each block meets: how many of them it sees whole, how many in all, and their numbers, with those
    first that are seen whole."""

    whole: Int[Array, 'R n']
    seen: Int[Array, 'R n']
    blocks: Int[Array, 'R n m']


class Lists(NamedTuple):
    """The places of queries and keys, the slopes of heads, and the blocks that meet in each kernel."""

    queries: Places
    keys: Places
    slopes: Float[Array, ' H']
    forward: Met
    query: Met
    key: Met


def flash_attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R S G K'],
    v: Float[Array, 'R S G K'],
    places: Places,
    scoring: Scoring,
    *,
    keys: Places | None = None,
    in_order: bool = False,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> Float[Array, 'R T H K']:
    """Softmax attention in which token `t` sees columns `s <= t` that `places.visible` lets it see.

    Head `h` reads kv head `h // (H / G)`; the softmax is in float32, and products take the dtype of `q`. Outputs of
    padding mean nothing.

    Args:
      keys: the places of the keys; None: queries and keys are the same tokens.
      in_order: adds up blocks of keys in the order of their columns, by the same instructions wherever a query stands.
        The output of a query then depends on its keys alone, where its segment begins at a multiple of a block.
      tiles: their queries and keys are powers of two of at least 16; by default `tiles_of`.
      interpret: runs the kernels on any platform, slowly.
    """
    length, width = q.shape[1], q.shape[3]
    tiles = tiles or tiles_of(width, q.dtype)
    block = max(max(tile.queries, tile.keys) for tile in tiles)
    # Triton's products need widths that are powers of two, of at least 16.
    missing, absent = (round_up(x.shape[1], block) - x.shape[1] for x in (q, k))
    wider = max(pl.next_power_of_2(width), 16) - width
    q, k, v = (jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, wider))) for x, n in ((q, missing), (k, absent), (v, absent)))
    same, places = keys is None, places.padded(missing)
    columns = places if keys is None else keys.padded(absent)
    slopes = jnp.asarray(alibi_slopes(q.shape[2])) if scoring.alibi else jnp.zeros(q.shape[2])
    # Each block of queries has a list of the blocks of keys that any of its queries sees, and each block of keys one of
    # the blocks of queries. A kernel goes through its list and touches nothing else.
    forward, query, key = (_meeting(places, columns, tile, scoring.window, same) for tile in tiles)
    if in_order:
        forward = forward[0], jnp.zeros_like(forward[1])
    key = tuple(x.swapaxes(1, 2) for x in key)
    lists = Lists(places, columns, slopes, _listed(*forward), _listed(*query), _listed(*key))
    # Where a mesh is in context, rows and heads are spread over it as `run.sharding.RULES` spreads them.
    out = _on_mesh(Settings(scoring, tiles, interpret))(q, k, v, lists)
    return out[:, :length, :, :width]


def _meeting(
    queries: Places, keys: Places, tile: Tile, window: int | None, same: bool
) -> tuple[Bool[Array, 'R n m'], Bool[Array, 'R n m']]:
    """The pairs of a block of queries and one of keys in which a query sees a key, and those in which each sees all."""
    sizes = tile.queries, tile.keys
    seen = blocks_seen(queries, keys, sizes, window, causal=same)
    return seen, seen & blocks_whole(queries, keys, sizes, window)


def _listed(seen: Bool[Array, 'R n m'], whole: Bool[Array, 'R n m']) -> Met:
    """The blocks that each block meets, with those first that it sees whole."""
    order = jnp.argsort(jnp.where(whole, 0, jnp.where(seen, 1, 2)), axis=-1, stable=True)
    return Met(whole.sum(-1, dtype=jnp.int32), seen.sum(-1, dtype=jnp.int32), order.astype(jnp.int32))


def _on_mesh(settings: Settings) -> Callable[..., Array]:
    """The attention function that runs the kernels on every device's own rows and heads; no compiler splits kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_attend, settings)
    if mesh.empty or mesh.size == 1:
        return attend
    heads, rows = PartitionSpec(BATCH, None, HEADS), PartitionSpec(BATCH)
    lists = Lists(rows, rows, PartitionSpec(HEADS), rows, rows, rows)  # type: ignore[arg-type]
    return jax.shard_map(attend, in_specs=(heads, heads, heads, lists), out_specs=heads, check_vma=False)


# --- passes: q, out [R, T, H, K], k, v [R, T, G, K] -----------------------------------------------------------------


def _attend(settings: Settings, q: Array, k: Array, v: Array, lists: Lists) -> Array:
    return _forward(settings, q, k, v, lists)[0]


def _forward(settings: Settings, q: Array, k: Array, v: Array, lists: Lists) -> tuple[Array, tuple[Any, ...]]:
    """The output, and the arrays for the backward pass, with the log of the softmax's denominator [R, H, T]."""
    grid = _FlashGrid(settings, settings.tiles.forward, q, k)
    specs = [grid.query, grid.all_keys, grid.all_keys, *grid.by_query]
    shapes = _like(q), jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
    call = grid.call(_forward_kernel, 'query', specs, (grid.query, grid.number), shapes, products=2)
    out, log_total = call(q, k, v, *lists.queries, *lists.keys, lists.slopes, *lists.forward)
    return out, (q, k, v, lists, out, log_total)


def _backward(settings: Settings, saved: tuple[Any, ...], dout: Array) -> tuple[Array | None, ...]:
    q, k, v, lists, out, log_total = saved
    # sum(p * dp) over keys, as the shorter sum over K (Dao et al. 2022)
    mean = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    grid = _FlashGrid(settings, settings.tiles.query, q, k)
    specs = [grid.query, grid.all_keys, grid.all_keys, grid.query, grid.number, grid.number, *grid.by_query]
    call = grid.call(_query_kernel, 'query', specs, grid.query, _like(q), products=3)
    dq = call(q, k, v, dout, log_total, mean, *lists.queries, *lists.keys, lists.slopes, *lists.query)
    grid = _FlashGrid(settings, settings.tiles.key, q, k)
    queries, numbers = grid.all_queries, grid.all_numbers
    specs = [queries, grid.key, grid.key, queries, numbers, numbers, *grid.by_key]
    call = grid.call(_key_kernel, 'key', specs, (grid.key, grid.key), (_like(k), _like(v)), products=4)
    dk, dv = call(q, k, v, dout, log_total, mean, *lists.queries, *lists.keys, lists.slopes, *lists.key)
    return dq, dk, dv, None


_attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _FlashGrid:
    """The grids of the kernels, and the blocks of arrays that they read and write at each point.

    Points are (block of queries, head, row), or (block of keys, kv head, row).
    """

    def __init__(self, settings: Settings, tile: Tile, q: Array, k: Array):
        self.settings, self.tile, (rows, length, heads, width), groups = settings, tile, q.shape, k.shape[2]
        columns, members = k.shape[1], heads // groups
        query_blocks, key_blocks = length // tile.queries, columns // tile.keys
        self.query_grid, self.key_grid = (query_blocks, heads, rows), (key_blocks, groups, rows)
        # The flops of one product; half of the square is masked.
        self.product = rows * heads * length * columns * width
        self.bytes = 2 * q.size * q.dtype.itemsize
        self.query = pl.BlockSpec((None, tile.queries, None, width), lambda i, h, r: (r, i, h, 0))
        self.key = pl.BlockSpec((None, tile.keys, None, width), lambda j, g, r: (r, j, g, 0))
        self.number = pl.BlockSpec((None, None, tile.queries), lambda i, h, r: (r, h, i))
        self.all_keys = pl.BlockSpec(
            (None, columns, None, width), lambda i, h, r: (r, 0, lax.div(h, jnp.int32(members)), 0)
        )
        self.all_queries = pl.BlockSpec((None, length, members, width), lambda j, g, r: (r, 0, g, 0))
        self.all_numbers = pl.BlockSpec((None, members, length), lambda j, g, r: (r, g, 0))
        places = [pl.BlockSpec((None, size), lambda i, h, r: (r, 0)) for size in [length] * 3 + [columns] * 3]
        number = pl.BlockSpec((None, 1), lambda i, h, r: (r, i))
        keys = pl.BlockSpec((None, None, key_blocks), lambda i, h, r: (r, i, 0))
        queries = pl.BlockSpec((None, None, query_blocks), lambda j, g, r: (r, j, 0))
        self.by_query = [*places, pl.BlockSpec((1,), lambda i, h, r: (h,)), number, number, keys]
        self.by_key = [*places, pl.BlockSpec((members,), lambda j, g, r: (g,)), number, number, queries]

    def call(
        self, kernel: Any, outer: str, inputs: Any, outputs: Any, shapes: Any, products: int
    ) -> Callable[..., Any]:
        """The function that runs a kernel at every point of its grid."""
        return pl.pallas_call(
            functools.partial(kernel, self.settings.scoring, self.tile),
            grid=self.query_grid if outer == 'query' else self.key_grid,
            in_specs=inputs,
            out_specs=outputs,
            out_shape=shapes,
            compiler_params=plgpu.CompilerParams(num_warps=self.tile.warps, num_stages=self.tile.stages),
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


def _scores(
    scoring: Scoring, q: Array, k: Array, ours: TokenPlaces, theirs: TokenPlaces, slope: Any, masked: bool
) -> tuple[Array, Any]:
    """The scores [queries, keys] in bits, and their derivative by the scaled product, in natural units over natural
    units. Without `masked`, every query sees every key."""
    product, steepness = _dot(q, k.T), 1.0
    if scoring.soft_cap is None:
        scores = product * (scoring.scale * BITS)
    else:
        bounded = jnp.tanh(product * (scoring.scale / scoring.soft_cap))
        scores, steepness = bounded * (scoring.soft_cap * BITS), 1.0 - bounded * bounded
    apart = ours.position[:, None] - theirs.position[None]
    if scoring.alibi:
        scores -= slope * BITS * apart.astype(jnp.float32)
    if not masked:
        return scores, steepness
    segment = theirs.segment[None]
    seen = (segment == ours.segment[:, None]) | (segment == ours.prefix[:, None]) | (segment == OPENING)
    seen &= apart >= 0
    if scoring.window is not None:
        seen &= apart < scoring.window
    return jnp.where(seen, scores, MASKED), steepness


def _through(whole: Any, seen: Any, body: Callable[..., Any], carry: Any) -> Any:
    """The carry after `body(n, carry, masked)` for the blocks that are seen whole, and then for the others."""
    carry = lax.fori_loop(0, whole, functools.partial(body, masked=False), carry)
    return lax.fori_loop(whole, seen, functools.partial(body, masked=True), carry)


def _forward_kernel(
    scoring: Scoring, tile: Tile, q_ref: Any, k_ref: Any, v_ref: Any, *rest: Any,
) -> None:  # fmt: skip
    queries, keys, (slopes, whole, seen, blocks, out_ref, log_total_ref) = rest[:3], rest[3:6], rest[6:]
    q, slope = q_ref[...], slopes[0]
    ours = _tokens(queries, pl.ds(pl.program_id(0) * tile.queries, tile.queries))

    def body(n: Any, carry: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
        out, top, total = carry
        at = pl.ds(blocks[n] * tile.keys, tile.keys)
        scores, _ = _scores(scoring, q, k_ref[at, :], ours, _tokens(keys, at), slope, masked)
        # Earlier sums are scaled to the new maximum, so no power overflows.
        new = jnp.maximum(top, scores.max(-1))
        p, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(top - new)
        out = shrink[:, None] * out + _dot(p.astype(q.dtype), v_ref[at, :])
        return out, new, shrink * total + p.sum(-1)

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    carry = jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros
    out, top, total = _through(whole[0], seen[0], body, carry)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = top + jnp.log(total) * BITS


def _query_kernel(
    scoring: Scoring, tile: Tile, q_ref: Any, k_ref: Any, v_ref: Any, dout_ref: Any, log_total_ref: Any, mean_ref: Any,
    *rest: Any,
) -> None:  # fmt: skip
    queries, keys, (slopes, whole, seen, blocks, dq_ref) = rest[:3], rest[3:6], rest[6:]
    q, dout, log_total, mean, slope = q_ref[...], dout_ref[...], log_total_ref[...], mean_ref[...], slopes[0]
    ours = _tokens(queries, pl.ds(pl.program_id(0) * tile.queries, tile.queries))

    def body(n: Any, dq: Array, masked: bool) -> Array:
        at = pl.ds(blocks[n] * tile.keys, tile.keys)
        k, v = k_ref[at, :], v_ref[at, :]
        scores, steepness = _scores(scoring, q, k, ours, _tokens(keys, at), slope, masked)
        p = jnp.exp2(scores - log_total[:, None])
        # The derivative of the softmax, times that of a score by its scaled product.
        dscores = p * (_dot(dout, v.T) - mean[:, None]) * steepness
        return dq + _dot(dscores.astype(k.dtype), k)

    dq = _through(whole[0], seen[0], body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * scoring.scale).astype(dq_ref.dtype)


def _key_kernel(
    scoring: Scoring, tile: Tile, q_ref: Any, k_ref: Any, v_ref: Any, dout_ref: Any, log_total_ref: Any, mean_ref: Any,
    *rest: Any,
) -> None:  # fmt: skip
    queries, keys, (slopes, whole, seen, blocks, dk_ref, dv_ref) = rest[:3], rest[3:6], rest[6:]
    k, v = k_ref[...], v_ref[...]
    theirs = _tokens(keys, pl.ds(pl.program_id(0) * tile.keys, tile.keys))

    def body(member: Any, n: Any, carry: tuple[Array, Array], masked: bool) -> tuple[Array, Array]:
        dk, dv = carry
        at = pl.ds(blocks[n] * tile.queries, tile.queries)
        q, dout = q_ref[at, member, :], dout_ref[at, member, :]
        scores, steepness = _scores(scoring, q, k, _tokens(queries, at), theirs, slopes[member], masked)
        p = jnp.exp2(scores - log_total_ref[member, at][:, None])
        dv += _dot(p.astype(dout.dtype).T, dout)
        dscores = p * (_dot(dout, v.T) - mean_ref[member, at][:, None]) * steepness
        return dk + _dot(dscores.astype(q.dtype).T, q), dv

    def of_member(member: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return _through(whole[0], seen[0], functools.partial(body, member), carry)

    # All query heads of a group read these keys.
    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, q_ref.shape[1], of_member, (zeros, zeros))
    dk_ref[...], dv_ref[...] = (dk * scoring.scale).astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _dot(x: Array, y: Array) -> Array:
    """The product of two matrices, summed in float32; float32 is not rounded to TF32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot(x, y, precision=precision, preferred_element_type=jnp.float32)
