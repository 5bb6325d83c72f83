"""Reductions over ragged data: the only ones that losses and advantages may use.

Every function here ignores the values on masked positions, NaN and infinity included, and gives 0 rather than NaN where
the mask is empty. Under `jit` with sharded arguments the reductions are global: they span all devices.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def keep(x: Float[Array, '*S'], mask: Bool[Array, '*S']) -> Float[Array, '*S']:
    """`x` where the mask holds, 0 elsewhere.

    A loss whose inputs may be undefined on padding applies this to the inputs, not to its result.
    """
    # The gradient of `where(mask, f(x), 0)` is NaN wherever that of `f` is.
    return jnp.where(mask, x, 0.0)


def masked_sum(x: Float[Array, '*S'], mask: Bool[Array, '*S'], axis: int | None = None) -> Float[Array, '...']:
    """The sum of the kept entries, over one axis or over all."""
    return jnp.sum(keep(x, mask), axis=axis)


def masked_mean(x: Float[Array, '*S'], mask: Bool[Array, '*S'], axis: int | None = None) -> Float[Array, '...']:
    """The mean of the kept entries, over one axis or over all; 0 where nothing is kept."""
    count = jnp.sum(mask, axis=axis).astype(x.dtype)
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1.0)


def masked_var(x: Float[Array, '*S'], mask: Bool[Array, '*S']) -> Float[Array, '']:
    """The population variance of all kept entries."""
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)


def whiten(x: Float[Array, '*S'], mask: Bool[Array, '*S'], eps: float = 1e-8) -> Float[Array, '*S']:
    """`(x - mean) / sqrt(max(var, eps))` over all kept entries, `var` the population variance; 0 elsewhere."""
    return keep((x - masked_mean(x, mask)) / jnp.sqrt(jnp.maximum(masked_var(x, mask), eps)), mask)
