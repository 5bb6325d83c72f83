"""One start for everybody from which a few steps fit a person: MRM (arXiv 2601.18731, meta reward modelling).

    z_u = z0 - lr grad L_support(z0), again and again     # the inner steps; a person's logits alone move
    L_u = L_query(z_u)                                    # gradients go through the inner steps to z0 and the bases
    loss = sum_u omega_u L_u / sum_u omega_u              # hard people weigh more, see `recipes/personal/losses.py`

The inner steps are of plain gradient descent. The published code has one step of Adam, whose size is its rate whatever
the gradient: nobody is adapted by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pal_jax.recipes.personal.losses import hard_people, person_means


class Meta(NamedTuple):
    """The inner steps and the weights of people.

    Attributes:
      steps, lr: inner steps of gradient descent on the mean loss of a person's support, and their rate.
      support: the share of a person's pairs in a batch that are support; the rest are the query.
      rho: the share of people that are hard.
      gamma: the softness of that border; 0 leaves the others out.
      through: the published form: gradients flow through the weights, and losses are summed without dividing by them.
      first_order: gradients do not flow through the inner steps.
    """

    steps: int = 5
    lr: float = 1.0
    support: float = 0.5
    rho: float = 0.5
    gamma: float = 0.5
    through: bool = False
    first_order: bool = False


Losses = Callable[[Float[Array, 'B K']], Float[Array, ' B']]  # logits by pair to losses by pair


def adapt(
    losses: Losses, start: Float[Array, 'U K'], place: Int[Array, ' B'], weight: Float[Array, ' B'], meta: Meta
) -> Float[Array, 'U K']:
    """People's logits after the inner steps on pairs of this weight; without pairs that weigh, those they start at."""

    def total(z: Array) -> Array:
        return jnp.sum(person_means(losses(z[place]), place, start.shape[0], weight)[0])

    z = start
    for _ in range(meta.steps):
        step = jax.grad(total)(z)
        z = z - meta.lr * (jax.lax.stop_gradient(step) if meta.first_order else step)
    return z


def outer_loss(
    losses: Losses, z0: Float[Array, ' K'], place: Int[Array, ' B'], people: int, support: Bool[Array, ' B'],
    query: Bool[Array, ' B'], meta: Meta,
) -> tuple[Float[Array, ''], Float[Array, 'U K']]:  # fmt: skip
    """The loss of a batch of people, and their logits after the inner steps.

    `place` numbers the people of the pairs; a person without a pair in the query counts nowhere.
    """
    # 1. Everybody's inner steps on the support.
    start = jnp.broadcast_to(z0, (people, z0.shape[0]))
    z = adapt(losses, start, place, support.astype(jnp.float32), meta)
    # 2. Each person's loss on the query.
    by_person, there = person_means(losses(z[place]), place, people, query.astype(jnp.float32))
    # 3. Hard people weigh more.
    omega = hard_people(by_person, there, meta.rho, meta.gamma, through=meta.through)
    total = jnp.sum(omega * by_person)
    return total if meta.through else total / jnp.maximum(jnp.sum(omega), 1e-6), z
