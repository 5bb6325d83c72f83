"""PPO on a micro-batch of rows: hyper-parameters, advantages and losses. Pure functions; shapes as in `forward.py`."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.learners import forward
from pal_jax.learners.forward import by_sample
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives import advantages as adv
from pal_jax.objectives import kl as kl_divergence
from pal_jax.objectives import policy as losses
from pal_jax.objectives.masked import keep, masked_mean, masked_sum, masked_var
from pal_jax.types import RolloutBatch


@dataclasses.dataclass(frozen=True)
class PPO:
    """Hyper-parameters under the papers' names; defaults are those of RLPA's published code.

    Raises:
      ValueError: a value that is not one of those known, or two that contradict each other.
    """

    estimator: adv.Estimator = 'gae'
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    clip_high: float = 0.0  # 0: as `clip`; above it keeps entropy (DAPO)
    value_clip: float = 0.2
    kl_coef: float = 0.01  # 0: no reference is kept, and nothing tells how far the policy is from it
    kl_estimator: kl_divergence.KLEstimator = 'k1'
    kl_in: Literal['reward', 'loss'] = 'reward'
    kl_target: float = 0.0  # nats; adapts kl_coef when above 0
    kl_target_per: Literal['token', 'sample'] = 'token'  # the KL that meets it: a token's mean, or a sample's sum
    kl_horizon: int = 10_000
    reward_clip: tuple[float, float] = (-10.0, 10.0)
    negative_scale: float = 1.0  # weight of negative advantages
    std_floor: float = 0.0  # added to a group's standard deviation (group_norm): what is below it is taken for noise
    loss_agg: losses.Aggregation | Literal[''] = ''  # '': 'constant' with dr_grpo, whose half it is, else 'seq_mean'
    micro_train_batch_size: int = 4  # samples whose tokens loss_agg='micro_token_mean' takes the mean of
    epochs: int = 1
    early_stop_kl: float = 0.0  # above 0: epochs end once approx_kl is above 1.5 times it (P-Soups' target_kl)
    minibatches: int = 1
    micro_rows: int = 4  # rows in a device's memory at once
    row_tokens: int = 0  # prompts share rows of so many tokens; 0: a row a prompt
    ptx_coef: float = 0.0
    freezing_actor_steps: int = -1  # the actor stays as it is while step <= this: time for the critic to settle
    # Whose log-probs the update takes for those of before it: the policy's, computed again, or, at the cost of one pass
    # less, those that the sampler drew with, so that the ratio also makes up for what the two differ in.
    old_logprobs: Literal['policy', 'sampler'] = 'policy'
    temperature: float = 1.0  # of the samples: log-probs are taken at it

    def __post_init__(self):
        object.__setattr__(self, 'reward_clip', tuple(self.reward_clip))  # of a file it is a list
        fitting = 'constant' if self.estimator == 'dr_grpo' else 'seq_mean'
        object.__setattr__(self, 'loss_agg', self.loss_agg or fitting)
        known = {
            'estimator': adv.Estimator,
            'kl_estimator': kl_divergence.KLEstimator,
            'kl_in': Literal['reward', 'loss'],
            'kl_target_per': Literal['token', 'sample'],
            'loss_agg': losses.Aggregation,
            'old_logprobs': Literal['policy', 'sampler'],
        }
        for name, values in known.items():
            if getattr(self, name) not in get_args(values):
                raise ValueError(f'ppo.{name}={getattr(self, name)!r}; use one of {", ".join(get_args(values))}')
        if self.row_tokens < 0:
            raise ValueError(f'ppo.row_tokens={self.row_tokens} must be at least 0; 0 gives every prompt a row')
        for name in ('micro_train_batch_size', 'epochs', 'minibatches', 'micro_rows'):
            if getattr(self, name) < 1:
                raise ValueError(f'ppo.{name}={getattr(self, name)} must be at least 1')
        if self.kl_in == 'loss' and self.kl_estimator == 'k1':
            raise ValueError("ppo.kl_estimator='k1' has no gradient as a loss; use k2 or k3, or ppo.kl_in='reward'")
        if self.estimator == 'dr_grpo' and self.loss_agg != 'constant':  # arXiv 2503.20783, section 3.2
            raise ValueError(
                f"ppo.loss_agg={self.loss_agg!r} divides by lengths, ppo.estimator='dr_grpo' by a constant alone; set "
                "ppo.loss_agg='constant' or '', or another estimator"
            )
        if self.std_floor and self.estimator != 'group_norm':
            raise ValueError(
                f'ppo.std_floor={self.std_floor} is of a standard deviation that ppo.estimator={self.estimator!r} does '
                "not divide by; set it to 0, or ppo.estimator='group_norm'"
            )
        if self.kl_target and not self.has_reference:
            raise ValueError(
                f'ppo.kl_target={self.kl_target} adapts ppo.kl_coef, which is 0; raise it, or leave it out'
            )

    @property
    def has_critic(self) -> bool:
        return self.estimator in adv.CRITIC

    @property
    def has_reference(self) -> bool:
        return self.kl_coef != 0


def used(batch: RolloutBatch) -> Array:
    """[B, A]: the actions that count."""
    return by_sample(batch.tokens.acts & batch.ok[..., None])


def policy_loss(
    params: Params, cfg: ModelConfig, ppo: PPO, batch: RolloutBatch, weight: Float[Array, 'R N A'], kl_coef: Array
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:
    """Clipped surrogate, plus the KL loss where it is one, and the new log-probs. `weight`: see `loss_weights`."""

    def per_token(logprob: Array, aux: dict[str, Array]) -> Array:
        counts = aux['weight'] > 0
        logprob, aux = jax.tree.map(lambda x: keep(x, counts), (logprob, aux))
        loss = losses.ppo_token_loss(
            logprob, aux['old'], aux['advantage'], clip=ppo.clip, clip_high=ppo.clip_high or None
        )
        if ppo.kl_in == 'loss' and ppo.has_reference:
            loss += aux['kl_coef'] * losses.kl_token_loss(logprob, aux['reference'], ppo.kl_estimator)
        return aux['weight'] * loss

    aux = {
        'old': batch.logprobs,
        'advantage': batch.advantages,
        'reference': batch.ref_logprobs,
        'kl_coef': jnp.broadcast_to(kl_coef, weight.shape),
        'weight': weight,
    }
    return forward.token_loss(params, cfg, batch.tokens, aux, per_token, temperature=ppo.temperature)


def value_loss(
    critic: Params, cfg: ModelConfig, ppo: PPO, batch: RolloutBatch, weight: Float[Array, 'R N A']
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:
    """Clipped squared error of the values, and the new values."""
    new = forward.values(critic, cfg, batch.tokens)
    assert batch.values is not None and batch.returns is not None
    inputs = (keep(x, weight > 0) for x in (new, batch.values, batch.returns))
    return jnp.sum(weight * losses.value_token_loss(*inputs, clip=ppo.value_clip)), new


def loss_weights(ppo: PPO, batch: RolloutBatch, length: int) -> Float[Array, 'R N A']:
    """What each action counts in the loss of a whole minibatch."""
    assert ppo.loss_agg
    acts, sizes = batch.tokens.acts, {'length': length, 'micro': ppo.micro_train_batch_size}
    return losses.loss_weights(by_sample(acts), batch.ok.reshape(-1), ppo.loss_agg, **sizes).reshape(acts.shape)


def with_advantages(
    ppo: PPO, batch: RolloutBatch, kl_coef: Float[Array, ''], n: int
) -> tuple[RolloutBatch, dict[str, Float[Array, '']]]:
    """Advantages and returns of a batch that has its log-probs and values (rlpa_plus I.3), and what they look like.

    `n`: samples of a prompt.
    """
    acts, mask, shape = by_sample(batch.tokens.acts), used(batch), batch.tokens.acts.shape
    assert batch.logprobs is not None
    new = by_sample(batch.logprobs)
    reference = new if batch.ref_logprobs is None else by_sample(batch.ref_logprobs)
    old_values = None if batch.values is None else by_sample(batch.values)
    advantages, returns = adv.advantages_and_returns(
        batch.reward.reshape(-1),
        kl_divergence.token_kl(new, reference, ppo.kl_estimator),
        old_values,
        acts,
        batch.ok.reshape(-1),
        estimator=ppo.estimator,
        n=n,
        kl_coef=kl_coef if ppo.kl_in == 'reward' else 0.0,
        gamma=ppo.gamma,
        lam=ppo.lam,
        clip_range=ppo.reward_clip,
        negative_scale=ppo.negative_scale,
        std_floor=ppo.std_floor,
    )
    raw = returns if old_values is None else returns - old_values  # before whitening
    metrics = {'advantage_std': jnp.sqrt(masked_var(raw, mask))}
    if ppo.has_reference:
        metrics['kl'] = masked_mean(kl_divergence.token_kl(new, reference), mask)
    if ppo.old_logprobs == 'policy':  # otherwise the update's `first_ratio_deviation` tells
        drift = jnp.abs(new - by_sample(batch.sampler_logprobs))
        metrics['sampler_drift'] = masked_mean(drift, mask)
        metrics['sampler_drift_max'] = jnp.max(drift, initial=0.0, where=mask)
    if old_values is not None:
        metrics['explained_variance'] = losses.explained_variance(old_values, returns, mask)
    return batch.replace(advantages=advantages.reshape(shape), returns=returns.reshape(shape)), metrics


def adapted_kl(ppo: PPO, batch: RolloutBatch, kl_coef: Float[Array, '']) -> Float[Array, '']:
    """The KL coefficient for the next rollout; the same where no target is set."""
    if not ppo.kl_target:
        return kl_coef
    assert batch.logprobs is not None and batch.ref_logprobs is not None
    mask = used(batch)
    kl, n = kl_divergence.token_kl(by_sample(batch.logprobs), by_sample(batch.ref_logprobs)), jnp.sum(mask[:, 0])
    mean = masked_mean(kl, mask) if ppo.kl_target_per == 'token' else masked_sum(kl, mask) / jnp.maximum(n, 1)
    return kl_divergence.adapt_kl(kl_coef, mean, target=ppo.kl_target, n=n, horizon=ppo.kl_horizon)


def progress(ppo: PPO, batch: RolloutBatch, new: Float[Array, 'R N A']) -> dict[str, Float[Array, '']]:
    """How far a minibatch found the policy from the one that was sampled."""
    assert batch.logprobs is not None
    return losses.policy_metrics(
        by_sample(new), by_sample(batch.logprobs), used(batch), clip=ppo.clip, clip_high=ppo.clip_high or None
    )
