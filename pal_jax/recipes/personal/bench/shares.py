"""Shares of answers that a group gives to a question: GPO's loss and score (arXiv 2310.11523).

A question has several options; a model gives each a mean and a log standard deviation.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def share_nll(
    mean: Float[Array, ' n'], log_std: Float[Array, ' n'], shares: Float[Array, ' n'], question: Int[Array, ' n'],
    questions: int,
) -> Float[Array, ' n']:  # fmt: skip
    """The negative log likelihood of each option's share, a normal one about the softmax of the question's means."""
    mean = mean - jax.lax.stop_gradient(jax.ops.segment_max(mean, question, questions))[question]
    weight = jnp.exp(mean)
    foretold = weight / jax.ops.segment_sum(weight, question, questions)[question]
    apart = (shares - foretold) * jnp.exp(-log_std)
    return jnp.square(apart) / 2.0 + log_std + math.log(2.0 * math.pi) / 2.0


def share_score(p: Float[Array, '*S A'], q: Float[Array, '*S A']) -> Float[Array, '*S']:
    """1 less the Wasserstein distance of two distributions over options in order, as a share of the largest one.

    Options stand 1 apart, so the largest distance is their number less 1.
    """
    return 1.0 - jnp.sum(jnp.abs(jnp.cumsum(p - q, axis=-1))[..., :-1], axis=-1) / (p.shape[-1] - 1)
