"""Losses of labels: of the properties of a reply (BeaverTails, arXiv 2307.04657), and of the sign of a cost (Safe RLHF,
arXiv 2310.12773, section 3.2). A label is 1 or 0, or NaN where nobody gave one; such a label has no loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def label_loss(
    logit: Float[Array, '*S K'], label: Float[Array, '*S K'], positive_weight: float | Float[Array, ' K'] = 1.0
) -> Float[Array, '*S K']:
    """Binary cross-entropy `softplus(z) - z y`, in nats; a label of 1 counts `positive_weight` times."""
    has, loss = label == 1.0, jnp.where(label == 1.0, jax.nn.softplus(-logit), jax.nn.softplus(logit))
    return jnp.where(jnp.isnan(label), 0.0, jnp.where(has, positive_weight, 1.0) * loss)


def sign_loss(cost: Float[Array, '*S'], unsafe: Float[Array, '*S']) -> Float[Array, '*S']:
    """The loss `-log sigmoid(s C)` with `s` 1 for an unsafe reply and -1 for a safe one: a cost above 0 means
    unsafe."""
    return label_loss(cost, unsafe)
