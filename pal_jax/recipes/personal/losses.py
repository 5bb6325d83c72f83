"""The loss of people from losses of pairs, and pulls on the rewards that people share.

Letters: `n` pairs, `U` people, `K` bases, `H` width of an item's vector.

Sources: LoRe (arXiv 2504.14439: people's mean losses, the pull of the bases), MRM (2601.18731: hard people weigh more),
VRF (2604.00997: uncertain margins weigh less; the formulas of `attenuated` are this project's own).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Average = Literal['pairs', 'people', 'people_sum']
Pull = Literal['squared', 'cosine']
Attenuation = Literal['none', 'probit', 'gal', 'inverse']

LEAST_VARIANCE = 1e-3  # of a margin, below which `gal` counts no pair for more


def person_means(
    losses: Float[Array, ' n'], users: Int[Array, ' n'], people: int, weight: Float[Array, ' n'] | None = None
) -> tuple[Float[Array, ' U'], Bool[Array, ' U']]:
    """Each person's weighted mean loss, 0 for a person without a pair that weighs, and who has such a pair."""
    weight = jnp.ones_like(losses) if weight is None else weight
    total = jax.ops.segment_sum(weight * losses, users, people)
    count = jax.ops.segment_sum(weight, users, people)
    return total / jnp.where(count > 0, count, 1.0), count > 0


def averaged(losses: Float[Array, ' n'], users: Int[Array, ' n'], people: int, average: Average) -> Float[Array, '']:
    """The mean over pairs, or over people the mean or the sum of each one's mean.

    Raises:
      ValueError: `average` is none of these.
    """
    if average == 'pairs':
        return jnp.mean(losses)
    means, there = person_means(losses, users, people)
    if average == 'people':
        return jnp.sum(means) / jnp.maximum(jnp.sum(there), 1)
    if average == 'people_sum':
        return jnp.sum(means)
    raise ValueError(f'unknown average {average!r}; use one of pairs, people, people_sum')


def bases_pull(V: Float[Array, 'K H'], toward: Float[Array, ' H'], form: Pull) -> Float[Array, '']:
    """The distance of the bases from one vector: `sum_k |V_k - v|²`, or `mean_k (1 - cos(V_k, v))`.

    Raises:
      ValueError: `form` is none of these.
    """
    if form == 'squared':
        return jnp.sum(jnp.square(V - toward[None]))
    if form == 'cosine':
        sizes = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(V), axis=-1) * jnp.sum(jnp.square(toward)), 1e-12))
        return jnp.mean(1.0 - V @ toward / sizes)
    raise ValueError(f'unknown form {form!r} of the pull of the bases; use squared or cosine')


def ramp(step: Int[Array, ''], steps: int) -> Float[Array, '']:
    """The share of a pull in step `step` of `steps`: 0 in the first fifth, 1 in the last, linear between.

    With `steps` 0 it is always 1.
    """
    return jnp.clip((step / steps - 0.2) / 0.6, 0.0, 1.0) if steps else jnp.ones(())


def hard_people(
    losses: Float[Array, ' U'], there: Bool[Array, ' U'], rho: float, gamma: float, *, through: bool = False
) -> Float[Array, ' U']:
    """The weights `sigmoid((L - tau) / gamma)` of people with losses `L`, where tau is the quantile `1 - rho` of L.

    With gamma 0 the weights are 1 above tau and 0 elsewhere.

    Args:
      there: the people who are in the batch; the others weigh 0 and are not in the quantile.
      through: gradients flow through the weights, as in the published code; otherwise they are constants.
    """
    losses = losses if through else jax.lax.stop_gradient(losses)
    tau = jnp.nanquantile(jnp.where(there, losses, jnp.nan), 1.0 - rho)
    omega = jax.nn.sigmoid((losses - tau) / gamma) if gamma else (losses > tau).astype(losses.dtype)
    return jnp.where(there, omega, 0.0)


def probit(m: Float[Array, '*S'], variance: Float[Array, '*S']) -> Float[Array, '*S']:
    """The log-odds of the mean probability over a margin's variance, approximately: `m / sqrt(1 + pi v / 8)`."""
    return m / jnp.sqrt(1.0 + jnp.pi * variance / 8.0)


def attenuated(m: Float[Array, '*S'], variance: Float[Array, '*S'], form: Attenuation) -> Float[Array, '*S']:
    """The Bradley-Terry loss `l` of margins whose variance `v` is known.

    - none: `l(m)`.
    - probit: `l(probit(m, v))`, the usual approximation of the loss of the mean probability.
    - gal: `l(m) / v + log(v) / 2`, v at least 1e-3.
    - inverse: `l(m) / (1 + v)`; raising v alone lowers it.

    Raises:
      ValueError: `form` is none of these.
    """
    loss = jax.nn.softplus(-m)
    match form:
        case 'none':
            return loss
        case 'probit':
            return jax.nn.softplus(-probit(m, variance))
        case 'gal':
            v = jnp.maximum(variance, LEAST_VARIANCE)
            return loss / v + jnp.log(v) / 2.0
        case 'inverse':
            return loss / (1.0 + variance)
    raise ValueError(f'unknown attenuation {form!r}; use one of none, probit, gal, inverse')
