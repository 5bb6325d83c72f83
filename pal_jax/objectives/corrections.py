"""Corrections of a token's loss where another policy has sampled the token than the one that is updated.

The sampler may round otherwise than the trainer, or hold weights of some updates before. With `b` the sampler's
log-probability of a token, `o` that of the policy before the update, `n` the new one, `A` the advantage, and `loss` the
clipped surrogate of `n` and `o`, each function here is a loss of the token. No gradient flows but through `n`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.masked import masked_mean

Bounds = tuple[float, float]  # the lowest and the highest ratio


class SampledToken(NamedTuple):
    """The constants that a correction reads of each token: `b`, `o`, `A`, and the mean of `n - b` over its sample, of
    the policy before the step; the last is None unless a correction needs it."""

    sampled: Float[Array, '*S']
    old: Float[Array, '*S']
    advantage: Float[Array, '*S']
    sequence: Float[Array, '*S'] | None = None


def tis(loss: Float[Array, '*S'], new: Float[Array, '*S'], token: SampledToken, bounds: Bounds) -> Float[Array, '*S']:
    """Truncated importance sampling (Yao et al. 2025): `loss` times `min(exp(o - b), high)`."""
    return loss * jnp.minimum(jnp.exp(token.old - token.sampled), bounds[1])


def icepop(
    loss: Float[Array, '*S'], new: Float[Array, '*S'], token: SampledToken, bounds: Bounds
) -> Float[Array, '*S']:
    """IcePop (Ling team 2025): `loss` times `exp(o - b)`, and 0 where that lies outside of the bounds."""
    weight = jnp.exp(token.old - token.sampled)
    return loss * jnp.where((weight >= bounds[0]) & (weight <= bounds[1]), weight, 0.0)


def cispo(loss: Float[Array, '*S'], new: Float[Array, '*S'], token: SampledToken, bounds: Bounds) -> Float[Array, '*S']:
    """CISPO (MiniMax 2025, arXiv 2506.13585): `-clip(exp(n - b), low, high) A n`, with a clipped weight as a constant,
    so that no token loses its gradient."""
    return -lax.stop_gradient(jnp.clip(jnp.exp(new - token.sampled), *bounds)) * token.advantage * new


def gspo(loss: Float[Array, '*S'], new: Float[Array, '*S'], token: SampledToken, bounds: Bounds) -> Float[Array, '*S']:
    """GSPO in its token variant (Zheng et al. 2025, arXiv 2507.18071): the surrogate whose ratio is the geometric mean
    of a sample's ratios `exp(n - b)`, clipped to the bounds."""
    assert token.sequence is not None
    # The value is that of the sample, and the gradient that of the token.
    ratio = jnp.exp(token.sequence + new - lax.stop_gradient(new))
    return -jnp.minimum(ratio * token.advantage, jnp.clip(ratio, *bounds) * token.advantage)


class Correction(NamedTuple):
    """A correction with its bounds.

    `of_samples` says that it reads a mean over the tokens of a sample, and `of_drift` that it compares the policy
    before the update with the sampler.
    """

    loss: Callable[[Array, Array, SampledToken, Bounds], Array]
    bounds: Bounds
    of_samples: bool = False
    of_drift: bool = False


# By the names of `ppo.correction`, with the bounds of their papers.
CORRECTIONS = {
    'tis': Correction(tis, (0.0, 2.0), of_drift=True),
    'icepop': Correction(icepop, (0.5, 5.0), of_drift=True),
    'cispo': Correction(cispo, (0.0, 4.0)),
    'gspo': Correction(gspo, (1 - 3e-4, 1 + 4e-4), of_samples=True),
}


def sample_means(x: Float[Array, '*S A'], acts: Bool[Array, '*S A']) -> Float[Array, '*S A']:
    """The mean of `x` over the tokens of each sample, at each of them; 0 for a sample without any."""
    total = jnp.sum(x, axis=-1, keepdims=True, where=acts)
    return jnp.broadcast_to(total / jnp.maximum(acts.sum(-1, keepdims=True), 1), x.shape)


def drift_figures(
    sampled: Float[Array, '*S A'], old: Float[Array, '*S A'], counted: Bool[Array, '*S A']
) -> dict[str, Float[Array, '']]:
    """The mean and the largest `|o - b|`, in nats, and the mean and the largest `exp(o - b)`, over the tokens that
    count."""
    drift = jnp.abs(old - sampled)
    weight = jnp.exp(old - sampled)
    return {
        'sampler_drift': masked_mean(drift, counted),
        'sampler_drift_max': jnp.max(drift, initial=0.0, where=counted),
        'sampler_ratio': masked_mean(weight, counted),
        'sampler_ratio_max': jnp.max(weight, initial=0.0, where=counted),
    }
