"""Losses of pairwise preferences, and the tokens of a pair that they are taken over.

The margin of a pair is `m = r(chosen) - r(rejected)`: it is positive where a model agrees with the choice that was
made. Losses are elementwise, so a margin may be one number a pair or one a token.

Sources: Bradley & Terry 1952; Ouyang et al. 2022 (reward models); PAL, arXiv 2406.08469 (hinges, tokens, bound).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PairLoss = Literal['logistic', 'hinge', 'smooth_hinge']
TokenWeighting = Literal['mean', 'cumulative', 'only_last']


def pair_loss(m: Float[Array, '*S'], name: PairLoss, **options: float) -> Float[Array, '*S']:
    """The loss of a margin by its name.

    Raises:
      ValueError: no loss has this name.
    """
    losses = {'logistic': logistic, 'hinge': hinge, 'smooth_hinge': smooth_hinge}
    if name not in losses:
        raise ValueError(f'unknown pair loss {name!r}; use one of {", ".join(losses)}')
    return losses[name](m, **options)


def logistic(
    m: Float[Array, '*S'], *, margin: float | Float[Array, '*S'] = 0.0, label_smoothing: float = 0.0
) -> Float[Array, '*S']:
    """The Bradley-Terry loss `-log sigmoid(m - margin)`, the cross-entropy of the logits of two choices.

    `label_smoothing` is the share of choices taken to be made by mistake.
    """
    # `softplus(-x)` is `-log sigmoid(x)` without overflow.
    right, wrong = jax.nn.softplus(margin - m), jax.nn.softplus(m - margin)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def hinge(m: Float[Array, '*S'], *, margin: float = 1.0) -> Float[Array, '*S']:
    """`max(0, margin - m)`."""
    return jnp.maximum(margin - m, 0.0)


def smooth_hinge(m: Float[Array, '*S'], *, gamma: float = 5.0, margin: float = 1.0) -> Float[Array, '*S']:
    """A hinge with a parabola for its last `gamma`: `(margin - m)² / 2γ` there, `margin - γ/2 - m` below."""
    short = jnp.maximum(margin - m, 0.0)
    return jnp.where(short <= gamma, jnp.square(short) / (2.0 * gamma), short - gamma / 2.0)


def label_loss(
    logit: Float[Array, '*S'], label: Float[Array, '*S'], positive_weight: float | Float[Array, '*S'] = 1.0
) -> Float[Array, '*S']:
    """Binary cross-entropy `softplus(z) - z y` of labels that are 1 or 0, in nats; a label of 1 counts
    `positive_weight` times, and a label that is NaN, which nobody gave, has no loss.

    The label may be a property of a reply (BeaverTails, arXiv 2307.04657), or the sign of its cost: with 1 for an
    unsafe reply the loss is `-log sigmoid(s C)`, so a cost above 0 means unsafe (Safe RLHF, arXiv 2310.12773).
    """
    # A label that nobody gave is NaN, which equals nothing and is taken out below.
    has, loss = label == 1.0, jnp.where(label == 1.0, jax.nn.softplus(-logit), jax.nn.softplus(logit))
    return jnp.where(jnp.isnan(label), 0.0, jnp.where(has, positive_weight, 1.0) * loss)


def centring(chosen: Float[Array, '*S'], rejected: Float[Array, '*S']) -> Float[Array, '*S']:
    """The penalty `(r(chosen) + r(rejected))²`, which keeps rewards about zero (Eisenstein et al. 2023)."""
    # Margins leave the level of rewards open.
    return jnp.square(chosen + rejected)


def bound(u: Float[Array, '*S D'], upper: float) -> Float[Array, '*S']:
    """The penalty `max(|u| - upper, 0)` (PAL)."""
    # A hinge's margin has no scale of its own, and distances would grow without end.
    return jnp.maximum(jnp.linalg.norm(u, axis=-1) - upper, 0.0)


def differing_span(
    chosen: Int[Array, 'B T'], rejected: Int[Array, 'B T'], exists: Bool[Array, 'B T']
) -> Bool[Array, 'B T']:
    """The tokens by which a pair is judged: from the first that differs to the last that exists in either text.

    `exists` is the union of the two responses' masks, padded on the right.
    """
    place = jnp.arange(chosen.shape[1])[None]
    end = jnp.max(jnp.where(exists, place + 1, 0), axis=1, keepdims=True)
    differs = (chosen != rejected) & exists
    # A pair of equal tokens is judged by its last one.
    first = jnp.where(jnp.any(differs, axis=1, keepdims=True), jnp.argmax(differs, axis=1, keepdims=True), end - 1)
    return (place >= first) & (place < end)


def token_weights(span: Bool[Array, 'B T'], mode: TokenWeighting) -> Float[Array, 'B T']:
    """The weight of each token of a span; the weights of a row sum to 1, or to 0 where its span is empty.

    - mean: all tokens weigh the same.
    - cumulative: the j-th token weighs j times the first.
    - only_last: the last token has all the weight.
    """
    rank = jnp.where(span, jnp.cumsum(span, axis=1), 0)
    match mode:
        case 'mean':
            weight = span.astype(jnp.float32)
        case 'cumulative':
            weight = rank.astype(jnp.float32)
        case 'only_last':
            weight = (span & (rank == jnp.max(rank, axis=1, keepdims=True))).astype(jnp.float32)
        case _:
            raise ValueError(f'unknown token weighting {mode!r}; use one of mean, cumulative, only_last')
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
