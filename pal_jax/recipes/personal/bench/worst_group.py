"""Objectives of the group that fares worst: MaxMin-RLHF (arXiv 2402.08925), with its published code's objective.

`r` has the rewards `[G, A]` of `A` replies by `G` groups, `pi` is a policy over the replies. The paper's objective is
the worst group's expected reward, `min_g E r_g`; its code learns from the worst reward of each reply, `E min_g r_g`,
which is never more and forbids that replies take turns.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Worst = Literal['min_expected', 'expected_min']

BISECTIONS = 60


class Optimum(NamedTuple):
    """The best policy `[A]` under a pull to a reference, the groups' weights `[G]`, and the objective's value."""

    policy: Array
    weights: Array
    value: Array


def objective(r: Float[Array, 'G A'], pi: Float[Array, ' A'], worst: Worst) -> Float[Array, '']:
    """The objective of a policy by its name: `min_expected`, or `expected_min`.

    Raises:
      ValueError: no objective has this name.
    """
    if worst == 'min_expected':
        return jnp.min(r @ pi)
    if worst == 'expected_min':
        return jnp.min(r, axis=0) @ pi
    raise ValueError(f'unknown objective {worst!r} of the worst group; use min_expected or expected_min')


def reward_of_replies(r: Float[Array, 'G A'], worst: Worst, weights: Float[Array, ' G']) -> Float[Array, ' A']:
    """The reward of each reply for a policy's update: the groups' mean by their `weights`, or the least of them.

    The weights of `min_expected` are those of `move_weights`, or 1 at the worst group and 0 elsewhere.

    Raises:
      ValueError: no objective has this name.
    """
    if worst == 'min_expected':
        return weights @ r
    if worst == 'expected_min':
        return jnp.min(r, axis=0)
    raise ValueError(f'unknown objective {worst!r} of the worst group; use min_expected or expected_min')


def move_weights(weights: Float[Array, ' G'], expected: Float[Array, ' G'], eta: float) -> Float[Array, ' G']:
    """A step of exponentiated gradient on the groups' weights: the lower a group's expected reward, the more it
    gains."""
    return jax.nn.softmax(jnp.log(weights) - eta * expected)


def centred(r: Float[Array, 'G A'], reference: Float[Array, ' A'], *, scaled: bool = False) -> Float[Array, 'G A']:
    """Rewards less their mean under a reference policy, and with `scaled` in units of their deviation there.

    Rewards that were trained apart share no zero and no scale, so that their minimum would mean nothing.
    """
    apart = r - (r @ reference)[:, None]
    if not scaled:
        return apart
    return apart / jnp.sqrt(jnp.maximum(jnp.square(apart) @ reference, 1e-12))[:, None]


def regularised(r: Float[Array, '2 A'], reference: Float[Array, ' A'], beta: float) -> Optimum:
    """The optimum of `min_g E r_g - beta KL(pi || reference)` for two groups.

    For weights w of the groups the best policy is `reference exp(w . r / beta)`, normalised. The weights are those at
    which both groups expect the same, by bisection, or all weight is at the group that fares worst even so.
    """

    def policy(first: Array) -> Array:
        mean = first * r[0] + (1.0 - first) * r[1]
        return jax.nn.softmax(jnp.log(reference) + mean / beta)

    def halve(ends: tuple[Array, Array], _) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        middle = (low + high) / 2.0
        ahead = jnp.diff(-(r @ policy(middle)))[0] > 0  # the first group has more than the second, so weighs too much
        return (jnp.where(ahead, low, middle), jnp.where(ahead, middle, high)), None

    (low, high), _ = jax.lax.scan(halve, (jnp.zeros(()), jnp.ones(())), length=BISECTIONS)
    first = (low + high) / 2.0
    pi = policy(first)
    kl = jnp.sum(jnp.where(pi > 0, pi * (jnp.log(pi) - jnp.log(reference)), 0.0))
    return Optimum(pi, jnp.stack([first, 1.0 - first]), jnp.min(r @ pi) - beta * kl)
