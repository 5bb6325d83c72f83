"""Numbers that are the same in every program that computes them, such as the sampler's and the trainer's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pal_jax.types import BATCH


def rounded(product: Float[Array, '*any']) -> Float[Array, '*any']:
    """A product to which something is added next, without its last bit.

    A compiler may round a product and a sum once, together, and does so in one program and not in another. It cannot
    where the product is rounded before.
    """
    return lax.reduce_precision(product, exponent_bits=8, mantissa_bits=22)


def exponential(x: Float[Array, '*any']) -> Float[Array, '*any']:
    """`exp(x)`, without its last bit, of what is summed next."""
    # XLA's libraries for CPUs have an exponential of their own, which they use where the sum is the only reader. They
    # leave a rounded one to XLA. A GPU would write what stands before a barrier and read it again.
    mass = rounded(jnp.exp(rounded(x)))
    return lax.platform_dependent(mass, cuda=lambda x: x, default=lax.optimization_barrier)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def by_tile(function: Callable[[Any, Any], Any], tile: int, dtype: str, shared: Any, rows: Any) -> Any:
    """`function(shared, rows)`, computed for `tile` tokens at a time, so that the numbers of a token do not depend on
    how many others there are.

    A compiler for accelerators chooses by the sizes of a product or a sum in which order it adds up. Here all sizes are
    those of a tile, and barriers keep out what stands before and after. The gradient is that of `function` on all rows
    at once, which is computed again.

    Args:
      function: computes each token of the arrays `[R, T, ...]` in `rows` by itself, in a tile as `[tile, 1, ...]`.
      dtype: of the matrices in `shared` in the forward pass.
      shared: arrays that all tokens read, such as weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_by_tile, function, tile, dtype)
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return local(shared, rows)
    # Each device has tiles of its own rows.
    spread = PartitionSpec(BATCH)
    return jax.shard_map(local, in_specs=(PartitionSpec(), spread), out_specs=spread, check_vma=False)(shared, rows)


def _by_tile(function: Callable[[Any, Any], Any], tile: int, dtype: str, shared: Any, rows: Any) -> Any:
    shape = jax.tree.leaves(rows)[0].shape[:2]
    tokens = math.prod(shape)
    # A decoder has its matrices in this type already.
    shared = jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 else w, shared)

    def cut(x: Array) -> Array:
        flat = x.reshape(tokens, 1, *x.shape[2:])
        padded = jnp.pad(flat, ((0, -tokens % tile),) + ((0, 0),) * (flat.ndim - 1))
        return padded.reshape(-1, tile, *flat.shape[1:])

    def body(part: Any) -> Any:
        return lax.optimization_barrier(function(*lax.optimization_barrier((shared, part))))

    outs = lax.map(body, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:])[:tokens].reshape(*shape, *x.shape[3:]), outs)


def _by_tile_fwd(function: Any, tile: int, dtype: str, shared: Any, rows: Any) -> tuple[Any, tuple[Any, Any]]:
    return by_tile(function, tile, dtype, shared, rows), (shared, rows)


def _by_tile_bwd(function: Any, tile: int, dtype: str, saved: tuple[Any, Any], cotangents: Any) -> tuple[Any, Any]:
    return jax.vjp(function, *saved)[1](cotangents)


by_tile.defvjp(_by_tile_fwd, _by_tile_bwd)
