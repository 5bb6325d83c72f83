"""Numbers that are the same in every program that computes them, such as the sampler's and the trainer's."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
