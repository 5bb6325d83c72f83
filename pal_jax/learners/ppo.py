"""PPO on a micro-batch of rows: hyper-parameters, the passes over a model and the losses. Pure functions.

A row holds prompts and their `N` completions (`types.TokenBatch`); `[R, N, A]` speaks of their actions, `[R, M]` of a
row's actions side by side, `[B, A]` of samples as the estimators in `objectives` want them, those of a prompt together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models import decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives import advantages as adv
from pal_jax.objectives import kl as kl_divergence
from pal_jax.objectives import logprobs as lp
from pal_jax.objectives import policy as losses
from pal_jax.objectives.masked import keep, masked_mean, masked_sum, masked_var
from pal_jax.runtime.sharding import constrain
from pal_jax.types import RolloutBatch, TokenBatch

CHUNK = 512  # states whose logits a device has at once: rows with few actions skip most of theirs


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
    kl_coef: float = 0.01
    kl_estimator: kl_divergence.KLEstimator = 'k1'
    kl_in: Literal['reward', 'loss'] = 'reward'
    kl_target: float = 0.0  # nats; adapts kl_coef when above 0
    kl_target_per: Literal['token', 'sample'] = 'token'  # the KL that meets it: a token's mean, or a sample's sum
    kl_horizon: int = 10_000
    reward_clip: tuple[float, float] = (-10.0, 10.0)
    negative_scale: float = 1.0  # weight of negative advantages
    std_floor: float = 0.0  # added to a group's standard deviation (group_norm): what is below it is taken for noise
    loss_agg: losses.Aggregation = 'seq_mean'
    micro_train_batch_size: int = 4  # samples whose tokens loss_agg='micro_token_mean' takes the mean of
    epochs: int = 1
    early_stop_kl: float = 0.0  # above 0: epochs end once approx_kl is above 1.5 times it (P-Soups' target_kl)
    minibatches: int = 1
    micro_rows: int = 4  # rows in a device's memory at once
    row_tokens: int = 0  # prompts share rows of so many tokens; 0: a row a prompt
    ptx_coef: float = 0.0
    freezing_actor_steps: int = -1  # the actor stays as it is while step <= this: time for the critic to settle
    temperature: float = 1.0  # of the samples: log-probs are taken at it

    def __post_init__(self):
        known = {
            'estimator': adv.Estimator,
            'kl_estimator': kl_divergence.KLEstimator,
            'kl_in': Literal['reward', 'loss'],
            'kl_target_per': Literal['token', 'sample'],
            'loss_agg': losses.Aggregation,
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

    @property
    def has_critic(self) -> bool:
        return self.estimator in adv.CRITIC


def flat(x: Array) -> Array:
    """[R, N, A] to [R, M]."""
    return x.reshape(x.shape[0], -1)


def by_sample(x: Array) -> Array:
    """[R, N, A] to [B, A]."""
    return x.reshape(-1, x.shape[-1])


def used(batch: RolloutBatch) -> Array:
    """[B, A]: the actions that count."""
    return by_sample(batch.tokens.acts & batch.ok[..., None])


def hidden_states(params: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R T D']:
    return decoder.forward(params, cfg, batch.tokens, batch.positions, batch.segments, batch.prefix)


class Order(NamedTuple):
    """A row's actions with the real ones first, so that nothing is spent on the rest (see `objectives.logprobs`)."""

    columns: Int[Array, 'R M']
    acts: Bool[Array, 'R M']

    def sort(self, x: Float[Array, 'R N A']) -> Float[Array, 'R M']:
        return jnp.take_along_axis(flat(x), self.columns, axis=1)

    def unsort(self, x: Float[Array, 'R M'], shape: tuple[int, ...]) -> Float[Array, 'R N A']:
        return jnp.take_along_axis(x, jnp.argsort(self.columns, axis=1), axis=1).reshape(shape)

    def states(self, hidden: Float[Array, 'R T D'], batch: TokenBatch) -> Float[Array, 'R M D']:
        """The hidden state that chose each action."""
        chosen = jnp.take_along_axis(hidden, self.sort(batch.states)[..., None], axis=1)
        return constrain(chosen, decoder.ROWS)


def real_first(batch: TokenBatch) -> Order:
    acts = flat(batch.acts)
    columns = jnp.argsort(~acts, axis=1, stable=True)
    return Order(columns, jnp.take_along_axis(acts, columns, axis=1))


def by_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(unembed, *rows)` on every device's own rows, where a mesh is in context; leading axes are concatenated.

    It loops over chunks of logits. Left to the compiler, every turn of the loop gathers the output matrix and adds its
    gradient up over all devices; here both happen once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def mapped(unembed: Array, *rows: Any) -> Any:
        spread = PartitionSpec(('data', 'fsdp'))
        specs = PartitionSpec(), *[spread] * len(rows)
        manual = jax.shard_map(
            function, in_specs=specs, out_specs=spread, axis_names={'data', 'fsdp'}, check_vma=False
        )  # fmt: skip
        return manual(unembed, *rows)

    return mapped


def logprobs(
    params: Params, cfg: ModelConfig, ppo: PPO, batch: TokenBatch
) -> tuple[Float[Array, 'R N A'], Float[Array, 'R N A']]:
    """Log-probability of each action and the entropy it was drawn with, in nats."""
    order, unembed = real_first(batch), decoder.unembed_weight(params, cfg)
    states = order.states(hidden_states(params, cfg, batch), batch)

    def score(unembed: Array, states: Array, actions: Array, acts: Array) -> tuple[Array, Array]:
        return lp.token_logprobs(
            states, unembed, actions,
            acts=acts, temperature=ppo.temperature, softcap=cfg.final_softcap, dtype=cfg.dtype, chunk=CHUNK,
        )  # fmt: skip

    out = by_rows(score)(unembed, states, order.sort(batch.actions), order.acts)
    return jax.tree.map(lambda x: order.unsort(x, batch.acts.shape), out)


def values(critic: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R N A']:
    """The critic's value of the state before each action: a bias-free linear head on a decoder of its own."""
    hidden = hidden_states(critic['decoder'], cfg, batch)
    states = constrain(jnp.take_along_axis(hidden, flat(batch.states)[..., None], axis=1), decoder.ROWS)
    return (states.astype(jnp.float32) @ critic['head']).reshape(batch.acts.shape)


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
        if ppo.kl_in == 'loss':
            loss += aux['kl_coef'] * losses.kl_token_loss(logprob, aux['reference'], ppo.kl_estimator)
        return aux['weight'] * loss

    aux = {
        'old': batch.logprobs,
        'advantage': batch.advantages,
        'reference': batch.ref_logprobs,
        'kl_coef': jnp.broadcast_to(kl_coef, weight.shape),
        'weight': weight,
    }
    order, unembed = real_first(batch.tokens), decoder.unembed_weight(params, cfg)
    states = order.states(hidden_states(params, cfg, batch.tokens), batch.tokens)

    def loss_of(unembed: Array, states: Array, actions: Array, acts: Array, aux: Any) -> tuple[Array, Array]:
        loss, new = lp.token_loss(
            states, unembed, actions, aux, per_token,
            acts=acts, temperature=ppo.temperature, softcap=cfg.final_softcap, dtype=cfg.dtype, chunk=CHUNK,
        )  # fmt: skip
        return loss[None], new

    rows = states, order.sort(batch.tokens.actions), order.acts, jax.tree.map(order.sort, aux)
    loss, new = by_rows(loss_of)(unembed, *rows)
    return loss.sum(), order.unsort(new, weight.shape)


def value_loss(
    critic: Params, cfg: ModelConfig, ppo: PPO, batch: RolloutBatch, weight: Float[Array, 'R N A']
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:
    """Clipped squared error of the values, and the new values."""
    new = values(critic, cfg, batch.tokens)
    assert batch.values is not None and batch.returns is not None
    inputs = (keep(x, weight > 0) for x in (new, batch.values, batch.returns))
    return jnp.sum(weight * losses.value_token_loss(*inputs, clip=ppo.value_clip)), new


def imitation_loss(
    params: Params, cfg: ModelConfig, batch: TokenBatch, weight: Float[Array, 'R N A'], max_z_coef: float = 0.0
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:
    """Weighted cross-entropy of the actions (supervised fine-tuning, PTX, DPO) and max-z loss, and their log-probs."""

    def per_token(logprob: Array, weight: Array) -> Array:
        return -weight * keep(logprob, weight != 0)

    order, unembed = real_first(batch), decoder.unembed_weight(params, cfg)
    states = order.states(hidden_states(params, cfg, batch), batch)

    def loss_of(unembed: Array, states: Array, actions: Array, acts: Array, weight: Array) -> tuple[Array, Array]:
        loss, new = lp.token_loss(
            states, unembed, actions, weight, per_token,
            acts=acts, softcap=cfg.final_softcap, dtype=cfg.dtype, chunk=CHUNK,
        )  # fmt: skip
        if max_z_coef:
            loss += max_z_coef * lp.max_z_loss(states, unembed, weight, dtype=cfg.dtype, chunk=CHUNK)
        return loss[None], new

    loss, new = by_rows(loss_of)(unembed, states, order.sort(batch.actions), order.acts, order.sort(weight))
    return loss.sum(), order.unsort(new, weight.shape)


def loss_weights(ppo: PPO, batch: RolloutBatch, length: int) -> Float[Array, 'R N A']:
    """What each action counts in the loss of a whole minibatch."""
    acts, sizes = batch.tokens.acts, {'length': length, 'micro': ppo.micro_train_batch_size}
    return losses.loss_weights(by_sample(acts), batch.ok.reshape(-1), ppo.loss_agg, **sizes).reshape(acts.shape)


def with_advantages(
    ppo: PPO, batch: RolloutBatch, kl_coef: Float[Array, ''], n: int
) -> tuple[RolloutBatch, dict[str, Float[Array, '']]]:
    """Advantages and returns of a batch that has its log-probs and values (rlpa_plus I.3), and what they look like.

    `n`: samples of a prompt.
    """
    acts, mask, shape = by_sample(batch.tokens.acts), used(batch), batch.tokens.acts.shape
    assert batch.logprobs is not None and batch.ref_logprobs is not None
    new, reference = by_sample(batch.logprobs), by_sample(batch.ref_logprobs)
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
    drift = jnp.abs(new - by_sample(batch.sampler_logprobs))
    metrics = {
        'kl': masked_mean(kl_divergence.token_kl(new, reference), mask),
        'advantage_std': jnp.sqrt(masked_var(raw, mask)),
        'sampler_drift': masked_mean(drift, mask),
        'sampler_drift_max': jnp.max(drift, initial=0.0, where=mask),
    }
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
