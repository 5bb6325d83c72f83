"""Losses on pairs of completions, one of which is preferred (DPO, Rafailov et al. 2023, and its relatives).

A completion's log-ratio is log π(y|x) - log π_ref(y|x), or without a reference log π(y|x). With `h`, the chosen
completion's log-ratio minus the rejected one's:
- sigmoid: -log σ(β h), with `label_smoothing` ε: -(1 - ε) log σ(β h) - ε log σ(-β h) (DPO; cDPO, Mitchell 2023);
- hinge: max(0, 1 - β h) (SLiC, Zhao et al. 2023);
- ipo: (h - 1 / (2β))², with log-ratios that are means over tokens (IPO, Azar et al. 2023; Hugging Face's correction);
- or any function of the log-ratios and the numbers of tokens of both completions, `CompletionLoss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.masked import keep, masked_mean

PairLoss = Literal['sigmoid', 'hinge', 'ipo']
# The loss of each pair by four arrays [pairs]: the log-ratios of the chosen and of the rejected completions, sums over
# tokens, and their numbers of tokens.
CompletionLoss = Callable[[Array, Array, Array, Array], Array]


def log_ratios(
    logprobs: Float[Array, '*S A'],
    reference: Float[Array, '*S A'] | None,
    acts: Bool[Array, '*S A'],
    loss: PairLoss | CompletionLoss,
) -> Float[Array, '*S']:
    """The log-ratio of each completion: the sum over its tokens, or for `ipo` their mean; 0 where nothing acts."""
    ratio = logprobs if reference is None else logprobs - reference
    # IPO's margin is a constant, so long completions must not have larger ratios (Hugging Face's correction).
    return masked_mean(ratio, acts, axis=-1) if loss == 'ipo' else jnp.sum(keep(ratio, acts), axis=-1)


def pair_loss(
    h: Float[Array, ' P'], *, loss: PairLoss, beta: float, label_smoothing: float = 0.0
) -> Float[Array, ' P']:
    """The loss of each pair, by its difference of log-ratios. Raises ValueError where the loss is unknown."""
    match loss:
        case 'sigmoid':
            # With label smoothing a pair counts, by its share, as the wrong way round, too.
            right, wrong = jax.nn.log_sigmoid(beta * h), jax.nn.log_sigmoid(-beta * h)
            return -(1.0 - label_smoothing) * right - label_smoothing * wrong
        case 'hinge':
            return jax.nn.relu(1.0 - beta * h)
        case 'ipo':
            return jnp.square(h - 1.0 / (2.0 * beta))
    raise ValueError(f'unknown pair loss {loss!r}; use one of sigmoid, hinge, ipo')


def real_pairs(acts: Bool[Array, '*S A']) -> Bool[Array, ' P']:
    """True for pairs of neighbours with actions in both completions; other pairs are padding."""
    return jnp.any(acts, axis=-1).reshape(-1, 2).all(axis=1)


def preference(
    logprobs: Float[Array, '*S A'],
    reference: Float[Array, '*S A'] | None,
    acts: Bool[Array, '*S A'],
    *,
    loss: PairLoss | CompletionLoss,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, '*S A'], dict[str, Float[Array, '']]]:
    """The gradient of the mean loss by each log-probability, and figures of the pairs.

    Completions of a pair are neighbours, the chosen one first; a pair without actions is padding. `accuracy` is the
    share of pairs whose chosen log-ratio is the larger (a tie counts one half), `margin` the mean of β h. Without a
    reference the share is called `likelier`: it begins where the lengths of the answers put it, and not at one half.
    """
    pairs = real_pairs(acts)
    # Padding has no tokens, by which a function may divide.
    tokens = jnp.maximum(jnp.sum(acts, axis=-1).reshape(-1, 2), 1).astype(logprobs.dtype)

    def mean_loss(logprobs: Array) -> tuple[Array, Array]:
        ratios = log_ratios(logprobs, reference, acts, loss).reshape(-1, 2)
        if callable(loss):
            losses = loss(ratios[:, 0], ratios[:, 1], tokens[:, 0], tokens[:, 1])
        else:
            losses = pair_loss(ratios[:, 0] - ratios[:, 1], loss=loss, beta=beta, label_smoothing=label_smoothing)
        return masked_mean(losses, pairs), ratios

    # A policy's gradient is that of `sum(gradient * logprobs)`, a sum over tokens, which may be cut into parts.
    (value, ratios), gradient = jax.value_and_grad(mean_loss, has_aux=True)(logprobs)
    h = ratios[:, 0] - ratios[:, 1]
    metrics = {
        'loss': value,
        'likelier' if reference is None else 'accuracy': masked_mean((jnp.sign(h) + 1.0) / 2.0, pairs),
        'margin': beta * masked_mean(h, pairs),
        'chosen': beta * masked_mean(ratios[:, 0], pairs),
        'rejected': beta * masked_mean(ratios[:, 1], pairs),
    }
    return keep(gradient, acts), metrics
