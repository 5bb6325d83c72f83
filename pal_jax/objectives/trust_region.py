"""Steps of policy gradients within a trust region, with one constraint: CPO and PCPO, as pure functions of vectors.

Both maximise the reward to first order, `g'x`, where the cost to first order stays within its limit, `b'x + c <= 0`,
and the KL to the old policy to second order within `delta`, `x'Hx / 2 <= delta`. `g` and `b` are the gradients of mean
reward and mean cost, `c` is the mean cost less its limit in the unit of `b`, and `H` is the Fisher matrix, which is
known by its products with vectors alone. Sources: CPO, Achiam et al. 2017, arXiv 1705.10528, theorem 2; PCPO, Yang et
al. 2020, arXiv 2010.03152.

With `r = -g'H⁻¹b`, as here, a reward that grows with the cost makes the multiplier of the cost positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A squared length below this number is that of no gradient.
SMALL = 1e-10
# The squared sine of the angle between two gradients below which they point the same way, or opposite.
PARALLEL = 1e-5


class Gradients(NamedTuple):
    """The gradients `g` of the mean reward and `b` of the mean cost, and `H⁻¹g` and `H⁻¹b`."""

    g: Float[Array, ' P']
    b: Float[Array, ' P']
    natural_g: Float[Array, ' P']
    natural_b: Float[Array, ' P']


class TrustRegionStep(NamedTuple):
    """A step `x [P]`, and what came of it: the multipliers `lam` of the trust region and `nu` of the cost, and whether
    the limit could be kept within the region."""

    x: Float[Array, ' P']
    lam: Float[Array, '']
    nu: Float[Array, '']
    feasible: Array


def conjugate_gradient(
    product: Callable[[Float[Array, ' P']], Float[Array, ' P']], right: Float[Array, ' P'], iterations: int
) -> Float[Array, ' P']:
    """Solve `H x = right` for a positive definite `H`, of which `product` gives the product with a vector."""
    # The residual is held against that of the start, so small gradients are solved as exactly as large ones.
    scale = jnp.vdot(right, right)

    def step(_: int, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, direction, size = carry
        turned = product(direction)
        curvature = jnp.vdot(direction, turned)
        going = (size > SMALL * scale) & (curvature > 0.0)
        length = jnp.where(going, size / jnp.where(going, curvature, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * turned
        smaller = jnp.vdot(residual, residual)
        ahead = residual + jnp.where(going, smaller / jnp.where(size > 0.0, size, 1.0), 0.0) * direction
        return x, residual, jnp.where(going, ahead, direction), jnp.where(going, smaller, size)

    return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(right), right, right, scale))[0]


def cpo(gradients: Gradients, c: Float[Array, ''] | float, delta: float) -> TrustRegionStep:
    """CPO's step, with `c` the mean cost less its limit and `delta` the largest mean KL, in nats."""
    g, b, natural_g, natural_b = gradients
    # With `r` of the other sign the step would ignore the constraint wherever the two gradients point the same way.
    q, r, s = jnp.vdot(g, natural_g), -jnp.vdot(g, natural_b), jnp.vdot(b, natural_b)
    c, q = jnp.asarray(c, q.dtype), jnp.maximum(q, SMALL)
    # A cost without a gradient cannot be moved.
    steep = s > SMALL
    s = jnp.where(steep, s, 1.0)
    # What is left of the reward's gradient along the limit; of gradients in parallel that is a rounding error.
    gain, room = q - r**2 / s, 2.0 * delta - c**2 / s
    gain = jnp.where(gain > PARALLEL * q, gain, 0.0)
    # Where the cost cannot be moved or the limit lies outside of the region, the reward alone decides.
    free = ~steep | ((c < 0.0) & (room <= 0.0))
    # Where the limit cannot be reached, the step lowers the cost alone.
    lost = steep & (c >= 0.0) & (room <= 0.0)
    # The dual's two branches, each on its side of lam * c = r: with the limit in force, and without.
    room = jnp.where(room > 0.0, room, 1.0)
    border = jnp.where(c == 0.0, 0.0, r / jnp.where(c == 0.0, 1.0, c))
    border = jnp.maximum(border, 0.0)
    below, above = (jnp.zeros_like(border), border), (border, jnp.full_like(border, jnp.inf))
    # At c = 0 the sign of r alone says whether the limit is in force.
    bound_where, loose_where = _choose(c > 0.0, above, below), _choose(c > 0.0, below, above)
    lam_bound = jnp.clip(jnp.sqrt(gain / room), *bound_where)
    lam_loose = jnp.clip(jnp.sqrt(q / (2.0 * delta)), *loose_where)
    lam_bound = jnp.where(c == 0.0, jnp.sqrt(gain / room), lam_bound)
    value_bound = -0.5 * (gain / jnp.maximum(lam_bound, SMALL) + room * lam_bound) - r * c / s
    # A reward that falls with the cost never puts a limit in force that is kept, so there the branch is empty.
    value_bound = jnp.where((c < 0.0) & (r >= 0.0), -jnp.inf, value_bound)
    value_loose = -0.5 * (q / jnp.maximum(lam_loose, SMALL) + 2.0 * delta * lam_loose)
    in_force = jnp.where(c == 0.0, r < 0.0, value_bound >= value_loose)
    lam = jnp.maximum(jnp.where(in_force, lam_bound, lam_loose), SMALL)
    nu = jnp.maximum(0.0, lam * c - r) / s
    length_g = jnp.sqrt(2.0 * delta / q)
    # As lam falls to 0, what is left of the step goes straight to the limit.
    x = jnp.where(in_force & (gain == 0.0), -c / s * natural_b, (natural_g - nu * natural_b) / lam)
    x = jnp.where(free, length_g * natural_g, jnp.where(lost, -jnp.sqrt(2.0 * delta / s) * natural_b, x))
    return TrustRegionStep(x, jnp.where(free, 1.0 / length_g, lam), jnp.where(free, 0.0, nu), ~lost)


def pcpo(gradients: Gradients, c: Float[Array, ''] | float, delta: float) -> TrustRegionStep:
    """PCPO's step: the longest step of the reward, then its projection onto the limit in the metric of `H`.

    Arguments as of `cpo`. The linearised cost `b'x + c` of the result is at most 0.
    """
    g, b, natural_g, natural_b = gradients
    q, s = jnp.maximum(jnp.vdot(g, natural_g), SMALL), jnp.vdot(b, natural_b)
    # The step of the reward reaches the border of the region.
    length = jnp.sqrt(2.0 * delta / q)
    above = length * jnp.vdot(b, natural_g) + c
    nu = jnp.where(s > SMALL, jnp.maximum(above, 0.0) / jnp.where(s > SMALL, s, 1.0), 0.0)
    return TrustRegionStep(length * natural_g - nu * natural_b, 1.0 / length, nu, jnp.asarray(True))


def line_search(
    accept: Callable[[Float[Array, '']], Array], decay: float, tries: int
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """The first of the scales `1, decay, decay², ...` that `accept` takes, and 1; or, of no scale, 0 and 0.

    A scale at which something is not finite is refused as any other, and the next one is tried.
    """

    def search(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        number, _ = carry
        return number + 1, accept(decay ** number.astype(jnp.float32))

    start = jnp.zeros((), jnp.int32), jnp.asarray(False)
    number, taken = jax.lax.while_loop(lambda carry: ~carry[1] & (carry[0] < tries), search, start)
    scale = decay ** (number - 1).astype(jnp.float32)
    return jnp.where(taken, scale, 0.0), taken.astype(jnp.float32)


def _choose(condition: Array, first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.where(condition, first[0], second[0]), jnp.where(condition, first[1], second[1])
