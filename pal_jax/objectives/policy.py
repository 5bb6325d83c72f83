"""Losses of PPO (Schulman et al. 2017), per token, and the weights that sum them up.

A loss is `sum(weights * token_loss)`. The weights depend on masks alone, so they are computed over a whole minibatch
before it is split. The losses and gradients of the micro-batches then add up to the minibatch's exactly, and a fused
kernel can sum tokens in any order. Token losses know no mask; where an input can be undefined on padding, `masked.keep`
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.corrections import Correction, SampledToken
from pal_jax.objectives.kl import KLEstimator, token_kl
from pal_jax.objectives.masked import masked_mean, masked_var

Aggregation = Literal['seq_mean', 'token_mean', 'micro_token_mean', 'constant']


def loss_weights(
    acts: Bool[Array, '*S A'],
    ok: Bool[Array, '*S'],
    agg: Aggregation,
    *,
    length: int | None = None,
    micro: int = 4,
) -> Float[Array, '*S A']:
    """Weight of each token; 0 on padding and on samples with `ok=False`.

    - seq_mean: mean over the tokens of a sample, then over samples.
    - token_mean: mean over all tokens.
    - micro_token_mean: mean over the tokens of every `micro` neighbouring samples, then over these groups, so that a
      token counts more where its group has few (RLPA's published code, packed).
    - constant: sum over the tokens of a sample divided by the fixed `length`, then mean over samples (Dr. GRPO).

    Samples without any action do not count. Weights of all but constant sum to 1, or to 0 when nothing is left.
    """
    used = acts & ok[..., None]
    # A sample that failed has the length 0, and so counts in no mean.
    lengths = jnp.sum(used, axis=-1, keepdims=True).astype(jnp.float32)
    samples = jnp.sum(lengths > 0.0).astype(jnp.float32)
    match agg:
        case 'seq_mean':
            total = samples * lengths
        case 'token_mean':
            total = jnp.sum(lengths)
        case 'micro_token_mean':
            # The last group may be smaller.
            group = jnp.arange(ok.size) // micro
            tokens = jax.ops.segment_sum(lengths.ravel(), group, num_segments=-(-ok.size // micro))
            # Every token is divided by the number of groups and by the tokens of its own group.
            total = (jnp.sum(tokens > 0.0) * tokens)[group].reshape(lengths.shape)
        case 'constant':
            total = samples * _checked(length)
        case _:
            raise ValueError(f'unknown aggregation {agg!r}; use one of {", ".join(get_args(Aggregation))}')
    # A minibatch without an action has weights of 0, not NaN.
    return used.astype(jnp.float32) / jnp.maximum(total, 1.0)


def _checked(length: int | None) -> float:
    if length is None or length < 1:
        raise ValueError(f"aggregation 'constant' divides by a fixed length, got {length}; pass max_tokens, say")
    return float(length)


class TokenInputs(NamedTuple):
    """The inputs of a token loss for each action, beside its new log-probability; they are constants of the update.

    Attributes:
      old: the log-probability before the update.
      advantage: the advantage, as an estimator gives it.
      reference: the log-probability under the reference policy; None without one.
      kl_coef: the weight of the distance from the reference.
      cost: a second advantage, for a loss that has one.
      sampled: the log-probability with which the token was drawn; None where no correction reads it.
      sequence: the mean of new less sampled log-probabilities over the token's sample; None likewise.
    """

    old: Float[Array, '*S']
    advantage: Float[Array, '*S']
    reference: Float[Array, '*S'] | None
    kl_coef: Float[Array, '*S']
    cost: Float[Array, '*S'] | None = None
    sampled: Float[Array, '*S'] | None = None
    sequence: Float[Array, '*S'] | None = None


# The inputs of a token loss: `TokenInputs`, or a tree of arrays of a loss that is no objective of this package.
Inputs = TypeVar('Inputs')
# Takes new log-probabilities; static under `jit`.
TokenLoss = Callable[[Float[Array, '*S'], Inputs], Float[Array, '*S']]


@dataclasses.dataclass(frozen=True)
class ClippedSurrogate:
    """PPO's loss of a token, see `ppo_token_loss`. With `correction` it is corrected for another sampler, and with `kl`
    the distance from the reference is added, see `kl_token_loss`."""

    clip: float = 0.2
    clip_high: float | None = None
    kl: KLEstimator | None = None
    correction: Correction | None = None

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        loss = ppo_token_loss(logprob, tokens.old, tokens.advantage, clip=self.clip, clip_high=self.clip_high)
        if self.correction is not None:
            assert tokens.sampled is not None
            token = SampledToken(tokens.sampled, tokens.old, tokens.advantage, tokens.sequence)
            loss = self.correction.loss(loss, logprob, token, self.correction.bounds)
        if self.kl is None or tokens.reference is None:
            return loss
        return loss + tokens.kl_coef * kl_token_loss(logprob, tokens.reference, self.kl)


def ppo_token_loss(
    logprob: Float[Array, '*S'],
    old_logprob: Float[Array, '*S'],
    advantage: Float[Array, '*S'],
    *,
    clip: float,
    clip_high: float | None = None,
) -> Float[Array, '*S']:
    """Clipped surrogate `-min(ρ A, clip(ρ, 1 - clip, 1 + clip_high) A)` with `ρ = exp(logprob - old_logprob)`.

    `clip_high` is `clip` unless given (DAPO, Yu et al. 2025, raises it to keep entropy). REINFORCE is the case ρ = 1:
    pass `stop_gradient(logprob)` as `old_logprob`.
    """
    ratio = jnp.exp(logprob - old_logprob)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    # The minimum takes the worse of both, so a ratio gains nothing by leaving the range.
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_token_loss(
    value: Float[Array, '*S'], old_value: Float[Array, '*S'], ret: Float[Array, '*S'], *, clip: float
) -> Float[Array, '*S']:
    """`max((V - G)^2, (Vc - G)^2) / 2`, where `Vc` is `V` kept within `clip` of the value at rollout time."""
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    # The larger error counts, so a value gains nothing by a move of more than `clip`.
    return jnp.maximum(jnp.square(value - ret), jnp.square(clipped - ret)) / 2.0


def kl_token_loss(
    logprob: Float[Array, '*S'], ref_logprob: Float[Array, '*S'], estimator: KLEstimator
) -> Float[Array, '*S']:
    """The KL to the reference as a loss, by k2 or k3; k1 is refused.

    Raises:
      ValueError: the estimator is k1, or unknown.
    """
    # The gradient of k1 is 0 in expectation.
    if estimator == 'k1':
        raise ValueError("KL estimator 'k1' has no use as a loss, its mean gradient is 0; use k2 or k3")
    return token_kl(logprob, ref_logprob, estimator)


def policy_metrics(
    logprob: Float[Array, '*S'],
    old_logprob: Float[Array, '*S'],
    acts: Bool[Array, '*S'],
    *,
    clip: float,
    clip_high: float | None = None,
) -> dict[str, Float[Array, '']]:
    """Figures of how far an update has moved the policy from the one that was sampled, over all tokens in `acts`.

    `clip_fraction`: the share of ratios outside the clip range; `approx_kl`: the k3 estimate of KL(old || new), in
    nats; `ratio_deviation`: the largest |ρ - 1|, which must be about 0 at the first minibatch of a rollout.
    """
    high = clip if clip_high is None else clip_high
    # `expm1` keeps the digits of a ratio near 1.
    deviation = jnp.expm1(logprob - old_logprob)
    outside = (deviation > high) | (deviation < -clip)
    return {
        'clip_fraction': masked_mean(outside.astype(jnp.float32), acts),
        'approx_kl': masked_mean(token_kl(old_logprob, logprob, 'k3'), acts),
        'ratio_deviation': jnp.max(jnp.abs(deviation), initial=0.0, where=acts),
    }


def explained_variance(
    values: Float[Array, '*S'], returns: Float[Array, '*S'], acts: Bool[Array, '*S']
) -> Float[Array, '']:
    """`1 - var(G - V) / var(G)`: 1 is a perfect critic, 0 no better than a constant; 0 where returns are constant."""
    total = masked_var(returns, acts)
    unexplained = masked_var(returns - values, acts)
    # The inner choice keeps a division by 0 out of the branch that is not taken.
    return jnp.where(total > 0.0, 1.0 - unexplained / jnp.where(total > 0.0, total, 1.0), 0.0)
