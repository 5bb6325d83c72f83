"""Attention of packed rows on a TPU, block by block in its fast memory: no `[T, T]` array exists at any time.

The online softmax and the two backward passes are those of FlashAttention-2 (Dao 2023), as Pallas kernels. The mask is
this package's: a token sees its own segment, one more segment and the row's opening, so all branches of a prompt attend
to the one copy of it in their row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pal_jax.models.places import MASKED, Places, round_up
from pal_jax.types import BATCH, OPENING

# The number of queries or columns of a block, where a row is that long.
BLOCK = 512
LANES = 128
# The mesh axis of heads, see run.sharding.
HEADS = 'tensor'


class Settings(NamedTuple):
    """The static settings of a call. `same` says that queries and keys are the same tokens."""

    scale: float
    window: int | None
    soft_cap: float | None
    block: int
    same: bool
    interpret: bool


class Ids(NamedTuple):
    """Segments, prefixes and positions as the kernels read them: by query, by column, and their extremes by block."""

    queries: Int[Array, 'R 8 T']  # rows: segment, prefix, position
    columns: Int[Array, 'R S 128']  # columns: segment, position
    # Least and largest segment, prefix, position: of the blocks of queries, then of those of columns.
    bounds: Int[Array, 'R blocks 6']


def splash_attention(
    q: Float[Array, 'R T H K'],
    k: Float[Array, 'R S G K'],
    v: Float[Array, 'R S G K'],
    segments: Int[Array, 'R T'],
    prefix: Int[Array, 'R T'],
    positions: Int[Array, 'R T'],
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    keys: Places | None = None,
    block: int | None = None,
    interpret: bool = False,
) -> Float[Array, 'R T H K']:
    """Softmax attention in which token `t` sees columns `s <= t` of its own segment, of segment `prefix[t]` and of the
    row's opening (`types.OPENING`).

    The result is that of `attention.attention`: head `h` reads kv head `h // (H / G)`, and the softmax is in float32.
    Segment 0 is padding, and a token of it sees itself alone. Products take the dtype of `q`.

    Args:
      scale: of the scores; `1 / sqrt(K)` by default.
      window: a token sees only tokens less than so many positions before it.
      soft_cap: bounds scores by `cap * tanh(score / cap)`.
      keys: the places of the keys; None: queries and keys are the same tokens. Others have no gradient, and each query
        sees one of them.
      block: the tokens of a block; by default `BLOCK`, or fewer for short rows. The output of a query depends on its
        keys alone where all calls have blocks of one size, and its segment begins at a multiple of that.
      interpret: runs the kernels on any platform, slowly.
    """
    length = q.shape[1]
    block = block or min(BLOCK, round_up(length, LANES))
    factor = q.shape[3] ** -0.5 if scale is None else scale
    settings = Settings(factor, window, soft_cap, block, keys is None, interpret)
    missing, absent = (round_up(x.shape[1], block) - x.shape[1] for x in (q, k))
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0))).swapaxes(1, 2) for x, n in ((q, missing), (k, absent), (v, absent))
    )
    queries = Places(segments, prefix, positions).padded(missing)
    # Where a mesh is in context, rows and heads are spread over it as `run.sharding.RULES` spreads them.
    out = _on_mesh(settings)(q, k, v, _ids(queries, queries if keys is None else keys.padded(absent), block))
    return out.swapaxes(1, 2)[:, :length]


def _on_mesh(settings: Settings) -> Callable[..., Array]:
    """The attention function that runs the kernels on every device's own rows and heads; no compiler splits kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_attend, settings)
    if mesh.empty or mesh.size == 1:
        return attend
    heads, rows = PartitionSpec(BATCH, HEADS), PartitionSpec(BATCH)
    return jax.shard_map(attend, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)


def _ids(queries: Places, keys: Places, block: int) -> Ids:
    both = [jnp.concatenate(pair, axis=1) for pair in zip(queries, keys, strict=True)]
    blocks = [x.reshape(len(x), -1, block) for x in both]
    return Ids(
        jnp.pad(jnp.stack(queries, axis=1), ((0, 0), (0, 5), (0, 0))),
        jnp.pad(jnp.stack([keys.segments, keys.positions], axis=-1), ((0, 0), (0, 0), (0, LANES - 2))),
        jnp.stack([extreme(x, axis=2) for x in blocks for extreme in (jnp.min, jnp.max)], axis=-1),
    )


# --- passes: q, out [R, H, T, K], k, v [R, G, T, K] -----------------------------------------------------------------


def _attend(settings: Settings, q: Array, k: Array, v: Array, ids: Ids) -> Array:
    return _forward(settings, q, k, v, ids)[0]


def _forward(settings: Settings, q: Array, k: Array, v: Array, ids: Ids) -> tuple[Array, tuple[Any, ...]]:
    """The output, and the arrays for the backward pass, with the log of the softmax's denominator [R, H, 1, T]."""
    grid = _SplashGrid(settings, q, k, outer='query')
    shapes = _like(q), jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32)
    scratch = (1, grid.block), (1, grid.block), (q.shape[3], grid.block)
    call = grid.call(_forward_kernel, [grid.q, grid.kv, grid.kv], [grid.q, grid.row], shapes, scratch, products=2)
    out, log_total = call(ids.bounds, ids.queries, ids.columns, q, k, v)
    return out, (q, k, v, ids, out, log_total)


def _backward(settings: Settings, saved: tuple[Any, ...], dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, out, log_total = saved
    # sum(p * dp) over columns, as the shorter sum over K (Dao et al. 2022)
    mean = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1)[:, :, None]
    inputs = ids.bounds, ids.queries, ids.columns, q, k, v, dout, log_total, mean

    def gradients(kernel: Callable[..., None], outer: str, products: int, *of: Array) -> Sequence[Array]:
        grid = _SplashGrid(settings, q, k, outer)
        specs = [grid.q, grid.kv, grid.kv, grid.q, grid.row, grid.row]
        scratch = [(grid.block, x.shape[3]) for x in of]
        outs = [grid.q if outer == 'query' else grid.kv for _ in of]
        return grid.call(kernel, specs, outs, [_like(x) for x in of], scratch, products)(*inputs)

    (dq,) = gradients(_query_kernel, 'query', 3, q)
    dk, dv = gradients(_key_kernel, 'key', 4, k, v)
    return dq, dk, dv, None


_attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _SplashGrid:
    """The grid of a kernel, and the blocks of its arrays that it reads and writes at each point.

    With `outer='query'`, a block of queries stays while the columns change: points are (row, head, query block, key
    block). With 'key', a block of columns stays while the queries of its group change: points are (row, kv head, key
    block, member of group, query block).
    """

    def __init__(self, settings: Settings, q: Array, k: Array, outer: str):
        self.settings, self.block, self.outer = settings, settings.block, outer
        rows, heads, length, size = q.shape
        groups, columns = k.shape[1], k.shape[2]
        self.blocks, key_blocks = length // self.block, columns // self.block
        # The flops of one product; half of the square is masked.
        self.product = rows * heads * length * columns * size
        self.exps, self.bytes = self.product // size // 2, 2 * q.size * q.dtype.itemsize
        self.members = heads // groups
        by_query = rows, heads, self.blocks, key_blocks
        by_key = rows, groups, key_blocks, self.members, self.blocks
        self.shape = by_query if outer == 'query' else by_key
        self.q = self._spec((None, None, self.block, size), lambda r, h, g, i, j: (r, h, i, 0))
        self.kv = self._spec((None, None, self.block, size), lambda r, h, g, i, j: (r, g, j, 0))
        self.row = self._spec((None, None, 1, self.block), lambda r, h, g, i, j: (r, h, 0, i))
        self.queries = self._spec((None, 8, self.block), lambda r, h, g, i, j: (r, 0, i))
        self.columns = self._spec((None, self.block, LANES), lambda r, h, g, i, j: (r, j, 0))

    def at(self, *point: Any) -> tuple[Any, ...]:
        """The row, head, kv head, query block and key block of a point."""
        if self.outer == 'query':
            r, h, i, j = point
            return r, h, lax.div(h, jnp.int32(self.members)), i, j
        r, g, j, member, i = point
        return r, g * self.members + member, g, i, j

    def _spec(self, shape: tuple[int | None, ...], index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        def place(*point: Any) -> tuple[Any, ...]:
            r, h, g, i, j = self.at(*point[: len(self.shape)])
            # Columns after the queries are masked. Naming the last block again for them copies nothing.
            if self.settings.same:
                i, j = (i, jnp.minimum(i, j)) if self.outer == 'query' else (jnp.maximum(i, j), j)
            return index(r, h, g, i, j)

        return pl.BlockSpec(shape, place)

    def call(
        self, kernel: Any, inputs: Any, outputs: Any, shapes: Any, scratch: Any, products: int
    ) -> Callable[..., Any]:
        """A function that calls `kernel(step, *refs)` at every point.

        Arrays of the shapes `scratch`, in float32, keep their values while the outer block stays.
        """

        def body(bounds: Any, queries: Any, columns: Any, *refs: Any) -> None:
            point = [pl.program_id(axis) for axis in range(len(self.shape))]
            r, _, _, i, j = self.at(*point)
            inner = range(3, len(self.shape))
            first = functools.reduce(jnp.logical_and, [point[axis] == 0 for axis in inner])
            last = functools.reduce(jnp.logical_and, [point[axis] == self.shape[axis] - 1 for axis in inner])
            accumulators = refs[len(inputs) + len(outputs) :]

            @pl.when(first)
            def _() -> None:
                # The scratch memory still holds the sums of the outer block before.
                for accumulator in accumulators:
                    accumulator[...] = jnp.zeros_like(accumulator)

            meets = _meets(self.settings, bounds, r, i, j, self.blocks)
            visible = functools.partial(_visible, self.settings, queries, columns, i, j)
            kernel(GridPoint(self.settings, first, last, meets, visible), *refs)

        return pl.pallas_call(
            body,
            out_shape=list(shapes),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=self.shape,
                in_specs=[self.queries, self.columns, *inputs],
                out_specs=list(outputs),
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=('parallel',) * 3 + ('arbitrary',) * (len(self.shape) - 3)
            ),
            cost_estimate=pl.CostEstimate(
                products * self.product, transcendentals=self.exps, bytes_accessed=self.bytes
            ),
            interpret=self.settings.interpret,
            name=kernel.__name__.strip('_'),
        )


# --- kernels: scores are [columns, queries] -------------------------------------------------------------------------


class GridPoint(NamedTuple):
    """A point of a grid, with bools for the first and the last point of an outer block.

    `meets` is True where a query of the point may see a column of it, and `visible()` is the mask [columns, queries].
    """

    settings: Settings
    first: Any
    last: Any
    meets: Any
    visible: Callable[[], Array]


def _meets(settings: Settings, bounds: Any, r: Any, i: Any, j: Any, queries: int) -> Any:
    """False where no query of block `i`, of `queries` blocks, can see a column of block `j`."""
    segment, prefix = ([bounds[r, i, n], bounds[r, i, n + 1]] for n in (0, 2))
    columns = queries + j
    least, largest = bounds[r, columns, 0], bounds[r, columns, 1]
    related = [(low <= largest) & (least <= high) for low, high in (segment, prefix)]
    may_see = related[0] | related[1] | (least == OPENING)
    if settings.window is not None:
        may_see &= bounds[r, i, 4] - bounds[r, columns, 5] < settings.window
    if not settings.same:
        return may_see & (bounds[r, columns, 4] <= bounds[r, i, 5])
    may_see &= j < i
    # A token sees itself, also in padding, so its own block always counts.
    return may_see | (j == i)


def _visible(settings: Settings, queries: Any, columns: Any, i: Any, j: Any) -> Array:
    segment, prefix, position = (queries[n : n + 1, :] for n in range(3))
    column_segment, column_position = (columns[:, n : n + 1] for n in range(2))
    size = settings.block
    query = i * size + lax.broadcasted_iota(jnp.int32, (size, size), 1)
    column = j * size + lax.broadcasted_iota(jnp.int32, (size, size), 0)
    related = (column_segment == segment) | (column_segment == prefix) | (column_segment == OPENING)
    mask = related & (column_segment != 0) & (column <= query if settings.same else column_position <= position)
    if settings.window is not None:
        mask &= position - column_position < settings.window
    if not settings.same:
        return mask
    # Padding sees itself, so every softmax has something to sum.
    return mask | (column == query)


def _scores(step: GridPoint, q: Any, k: Any) -> tuple[Array, Array | float]:
    """The scores [columns, queries], and their derivative by the product of query and key."""
    settings = step.settings
    # Scores are [columns, queries]: the maximum, sum and segment of a query are then a row that is broadcast down,
    # which costs a vector unit nothing.
    scores, slope = _dot(k[...], q[...], 1, 1) * settings.scale, settings.scale
    if settings.soft_cap is not None:
        bounded = jnp.tanh(scores / settings.soft_cap)
        scores, slope = settings.soft_cap * bounded, settings.scale * (1 - bounded * bounded)
    return jnp.where(step.visible(), scores, MASKED), slope


def _forward_kernel(step: GridPoint, q: Any, k: Any, v: Any, out: Any, log_total: Any, top: Any, total: Any, acc: Any):
    @pl.when(step.first)
    def _() -> None:
        top[...] = jnp.full_like(top, MASKED)

    @pl.when(step.meets)
    def _() -> None:
        scores, _ = _scores(step, q, k)
        # Earlier sums are scaled to the new maximum, so no exponential overflows.
        new = jnp.maximum(top[...], scores.max(axis=0, keepdims=True))
        p, shrink = jnp.exp(scores - new), jnp.exp(top[...] - new)
        total[...] = shrink * total[...] + p.sum(axis=0, keepdims=True)
        acc[...] = shrink * acc[...] + _dot(v[...], p.astype(v.dtype), 0, 0)
        top[...] = new

    @pl.when(step.last)
    def _() -> None:
        out[...] = (acc[...] / total[...]).T.astype(out.dtype)
        log_total[...] = jnp.log(total[...]) + top[...]


def _gradient(step: GridPoint, q: Any, k: Any, v: Any, dout: Any, log_total: Any, mean: Any) -> tuple[Array, Array]:
    """The probabilities [columns, queries], and the gradient by the products of queries and keys."""
    scores, slope = _scores(step, q, k)
    p = jnp.exp(scores - log_total[...])
    return p, p * (_dot(v[...], dout[...], 1, 1) - mean[...]) * slope


def _query_kernel(step: GridPoint, *refs: Any) -> None:
    *inputs, dq, acc = refs

    @pl.when(step.meets)
    def _() -> None:
        _, slope = _gradient(step, *inputs)
        acc[...] += _dot(slope.astype(dq.dtype), inputs[1][...], 0, 0)

    @pl.when(step.last)
    def _() -> None:
        dq[...] = acc[...].astype(dq.dtype)


def _key_kernel(step: GridPoint, *refs: Any) -> None:
    *inputs, dk, dv, acc_k, acc_v = refs
    q, dout = inputs[0], inputs[3]

    @pl.when(step.meets)
    def _() -> None:
        p, slope = _gradient(step, *inputs)
        acc_v[...] += _dot(p.astype(dout.dtype), dout[...], 1, 0)
        acc_k[...] += _dot(slope.astype(q.dtype), q[...], 1, 0)

    @pl.when(step.last)
    def _() -> None:
        dk[...], dv[...] = acc_k[...].astype(dk.dtype), acc_v[...].astype(dv.dtype)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """The product of two matrices along one axis of each, summed in float32."""
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)
