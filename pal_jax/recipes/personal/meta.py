"""One start for everybody from which a few steps fit a person: MRM (arXiv 2601.18731, meta reward modelling).

    z_u = z0 - lr grad L_support(z0), again and again     # the inner steps; a person's logits alone move
    L_u = L_query(z_u)                                    # gradients go through the inner steps to z0 and the bases
    loss = sum_u omega_u L_u / sum_u omega_u              # hard people weigh more

The inner steps are of plain gradient descent. The published code has one step of Adam, whose size is its rate whatever
the gradient: nobody is adapted by it. Letters: `B` pairs, `U` people, `K` bases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Meta(NamedTuple):
    """The inner steps and the weights of people.

    Attributes:
      steps, lr: inner steps of gradient descent on the mean loss of a person's support, and their rate.
      support: the share of a person's pairs in a batch that are support; the rest are the query.
      rho: the share of people that are hard.
      gamma: the softness of that border; 0 leaves the others out.
    """

    steps: int = 5
    lr: float = 1.0
    support: float = 0.5
    rho: float = 0.5
    gamma: float = 0.5


Losses = Callable[[Float[Array, 'B K']], Float[Array, ' B']]  # logits by pair to losses by pair


def person_means(
    losses: Float[Array, ' B'], users: Int[Array, ' B'], people: int, weight: Float[Array, ' B']
) -> tuple[Float[Array, ' U'], Bool[Array, ' U']]:
    """Each person's weighted mean loss, 0 for a person without a pair that weighs, and who has such a pair."""
    total = jax.ops.segment_sum(weight * losses, users, people)
    count = jax.ops.segment_sum(weight, users, people)
    return total / jnp.where(count > 0, count, 1.0), count > 0


def hard_people(losses: Float[Array, ' U'], there: Bool[Array, ' U'], rho: float, gamma: float) -> Float[Array, ' U']:
    """The weights `sigmoid((L - tau) / gamma)` of people with losses `L`, where tau is the quantile `1 - rho` of L.

    With gamma 0 the weights are 1 above tau and 0 elsewhere. People who are not there weigh 0 and are not in the
    quantile.
    """
    losses = jax.lax.stop_gradient(losses)  # the weights are constants
    tau = jnp.nanquantile(jnp.where(there, losses, jnp.nan), 1.0 - rho)
    omega = jax.nn.sigmoid((losses - tau) / gamma) if gamma else (losses > tau).astype(losses.dtype)
    return jnp.where(there, omega, 0.0)


def outer_loss(
    losses: Losses, start: Float[Array, 'U K'], place: Int[Array, ' B'], support: Array, query: Array, meta: Meta
) -> tuple[Float[Array, ''], Float[Array, 'U K']]:
    """The loss of a batch of people, and their logits after the inner steps.

    `place` numbers the people of the pairs; `support` and `query` are bools by pair. A person without a pair in the
    support stays at the start, and one without a pair in the query counts nowhere.
    """
    people, weight = start.shape[0], support.astype(jnp.float32)

    def of_support(z: Array) -> Array:
        return jnp.sum(person_means(losses(z[place]), place, people, weight)[0])

    # 1. Everybody's inner steps on the support.
    z = start
    for _ in range(meta.steps):
        z = z - meta.lr * jax.grad(of_support)(z)
    # 2. Each person's loss on the query.
    by_person, there = person_means(losses(z[place]), place, people, query.astype(jnp.float32))
    # 3. Hard people weigh more.
    omega = hard_people(by_person, there, meta.rho, meta.gamma)
    return jnp.sum(omega * by_person) / jnp.maximum(jnp.sum(omega), 1e-6), z
