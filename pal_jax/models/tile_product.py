"""A product of matrices on a TPU as a Pallas kernel, whose sums have one order in every program that has it.

XLA's compiler for TPUs cuts the columns of a product by what memory the program around it has left, so the sampler's
and the trainer's products of the same shape may add up in another order.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pal_jax.models.places import round_up

# The most rows, outputs and summed columns of a block: two blocks of each matrix in bfloat16 take 8 MiB.
ROWS, OUTPUTS, COLUMNS = 256, 256, 4096
LANES = 128


def tile_product(
    x: Float[Array, 'M I'], w: Float[Array, '...'], out_dtype: Any, *, by_output: bool = False, interpret: bool = False
) -> Float[Array, 'M O']:
    """The product `x @ w` of `w [I, O]`, or `x @ w.T` of `w [O, I]` with `by_output`, summed in float32.

    A result does not depend on the number of rows.

    Args:
      interpret: runs the kernel on any platform, slowly.
    """
    (rows, columns), outputs = x.shape, w.shape[0 if by_output else 1]
    parts = -(-columns // COLUMNS)
    width = columns if parts == 1 else round_up(-(-columns // parts), LANES)
    # Columns of zeros change no sum.
    missing = parts * width - columns
    spare = (0, 0), (0, missing)
    x, w = jnp.pad(x, spare), jnp.pad(w, spare if by_output else spare[::-1])
    if by_output:
        weights = pl.BlockSpec((OUTPUTS, width), lambda i, j, k: (j, k))
    else:
        weights = pl.BlockSpec((width, OUTPUTS), lambda i, j, k: (k, j))
    return pl.pallas_call(
        functools.partial(_kernel, 1 if by_output else 0),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), out_dtype),
        grid=(-(-rows // ROWS), -(-outputs // OUTPUTS), parts),
        in_specs=[pl.BlockSpec((ROWS, width), lambda i, j, k: (i, k)), weights],
        out_specs=pl.BlockSpec((ROWS, OUTPUTS), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((ROWS, OUTPUTS), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        interpret=interpret,
        name='tile_product',
    )(x, w)


def _kernel(axis: int, x: Any, w: Any, out: Any, total: Any) -> None:
    part, parts = pl.program_id(2), pl.num_programs(2)
    product = lax.dot_general(x[...], w[...], (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

    @pl.when(part == 0)
    def _() -> None:
        total[...] = product

    @pl.when(part > 0)
    def _() -> None:
        total[...] += product

    @pl.when(part == parts - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)
