"""PPO of an actor and its critics: hyper-parameters, and the update in epochs and minibatches.

state = learner.init(params)                          # plain decoder weights on the mesh
batch, metrics = learner.score(state, batch)          # old and reference log-probs, values
batch, metrics = learner.advantages(state, batch)     # by the estimator of the settings, or one that is passed
state, metrics = learner.update(state, batch, key)    # epochs x minibatches; the token loss may be passed, too
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.learners.actor import Actor, ActorState, mean_weights
from pal_jax.learners.critic import Critic
from pal_jax.learners.ppo_settings import PPO
from pal_jax.learners.training import Lora, TrainState, any_of, floats, global_norm, skipped, take, zeros
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives import kl as kl_divergence
from pal_jax.objectives import policy as losses
from pal_jax.objectives.advantages import Estimates, EstimatorInputs
from pal_jax.objectives.corrections import drift_figures, sample_means
from pal_jax.objectives.masked import masked_mean, masked_sum, masked_var
from pal_jax.objectives.policy import TokenInputs, TokenLoss
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Metrics, RolloutBatch, TokenBatch

Estimate = Callable[..., Estimates]  # makes advantages of `EstimatorInputs` and further arrays; static under `jit`
# Makes the minibatch that is trained on from the state, a minibatch and the weights `[R, N, A]` of its actions: `R`
# rows, `N` samples of a row, `A` actions of a sample.
Before = Callable[['PolicyState', RolloutBatch, Array], RolloutBatch]


class PolicyState(struct.PyTreeNode):
    """An actor, its critics (none where no estimator needs them) and the coefficient of its KL penalty."""

    actor: ActorState
    critics: tuple[TrainState, ...]
    kl_coef: Float[Array, '']

    @property
    def skipped(self) -> Array:
        """The number of updates in a row, up to the last, that were left out since their gradient was not finite."""
        return self.actor.skipped


@dataclasses.dataclass(frozen=True)
class PolicyLearner:
    """Functions over `PolicyState`.

    Attributes:
      critics: towers whose heads, side by side, are the channels of rewards.
      n: the number of samples per prompt.
      length: the constant that `loss_agg='constant'` divides by, the largest number of tokens sampled.
    Raises:
      ValueError: the estimator compares the samples of a prompt, and `n` is 1.
    """

    actor: Actor
    ppo: PPO
    critics: tuple[Critic, ...] = ()
    n: int = 1
    length: int = 1

    def __post_init__(self):
        check_samples(self.ppo, self.n)

    # --- states ------------------------------------------------------------------------------------------------------

    def init(self, params: Params, scorers: Sequence[tuple[Params, Array]] = ()) -> PolicyState:
        """A state whose critics start from `scorers`, the decoder weights and the head of a scorer for each critic.

        Without scorers the critics start from the actor's weights under new heads. All weights passed in are used up.
        """
        starts = scorers or [(params, None)] * len(self.critics)
        critics = tuple(critic.init(*start) for critic, start in zip(self.critics, starts, strict=True))
        return PolicyState(self.actor.init(params), critics, self._kl_coef())

    @functools.cached_property
    def abstract(self) -> PolicyState:
        """The shapes and shardings of a state."""
        kl_coef: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(self.actor.mesh))
        return PolicyState(self.actor.abstract, tuple(critic.abstract for critic in self.critics), kl_coef)

    @property
    def abstract_weights(self) -> PolicyState:
        """A state for a checkpoint's reader: shapes and shardings of the parts that `weights` reads, and `...` for
        parts to be left out."""
        nothing: PolicyState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(actor=self.actor.abstract_weights)

    def imitate(self, state: PolicyState, batch: TokenBatch) -> tuple[PolicyState, Metrics]:
        """One supervised step of the actor."""
        actor, metrics = self.actor.imitate(state.actor, batch)
        return state.replace(actor=actor), metrics

    def anchor(self, state: PolicyState) -> PolicyState:
        """Make the actor as it is the reference and the start of the critics; all optimisers start afresh.

        The state is used up, as by an update.
        """
        jax.tree.map(lambda x: x.delete(), state.critics)  # so that two of each are never in memory
        critics = tuple(critic.init(self.actor.weights(state.actor)) for critic in self.critics)
        return PolicyState(self.actor.anchor(state.actor), critics, self._kl_coef())

    def _kl_coef(self) -> Float[Array, '']:
        """The KL coefficient of the settings, as an array on every device of every process."""
        value = np.float32(self.ppo.kl_coef)
        return jax.jit(lambda: jnp.asarray(value), out_shardings=sharding.replicated(self.actor.mesh))()

    def weights(self, state: PolicyState) -> Params:
        """The actor as a decoder takes it: plain weights, or for an exact decoder with its adapters beside the base."""
        # Merged weights round otherwise than a base with adapters.
        return state.actor.whole if self.ppo.exact else self.actor.weights(state.actor)

    # --- scores and advantages ---------------------------------------------------------------------------------------

    def score(self, state: PolicyState, batch: RolloutBatch) -> tuple[RolloutBatch, Metrics]:
        """Fill in old and reference log-probabilities and values.

        The metrics are means over the actions that count. A batch without such actions has the metric of its rows
        alone.
        """
        # With the sampler's log-probs the actor's own pass is saved.
        scores = self.actor.score(state.actor, batch.tokens, with_actor=self.ppo.old_logprobs == 'policy')
        values = [c.values(s, batch.tokens) for c, s in zip(self.critics, state.critics, strict=True)]
        batch = batch.replace(
            logprobs=batch.sampler_logprobs if scores.logprobs is None else scores.logprobs,
            ref_logprobs=scores.reference,
            values=jnp.concatenate(values, axis=-1) if values else None,
        )
        batch, left_out = self._kept(batch) if self.ppo.max_drift else (batch, {})
        metrics, share = self._scored(batch, scores.entropy, self.actor.computed(batch.tokens))
        # No mean exists where no action counts; the share of real tokens always does.
        means = floats(metrics) if any_of(counted_actions(batch)) else {}
        return batch, means | floats({'real_share': share} | left_out)

    @functools.partial(jax.jit, static_argnums=0)
    def _kept(self, batch: RolloutBatch) -> tuple[RolloutBatch, dict[str, Array]]:
        """The batch without the samples that the sampler and the policy disagree on, and how many these are."""
        assert batch.logprobs is not None
        drift = sample_means(jnp.abs(batch.logprobs - batch.sampler_logprobs), batch.tokens.acts)[..., 0]
        ok = batch.ok & (drift <= self.ppo.max_drift)
        return batch.replace(ok=ok), {'drifted_samples': jnp.sum(batch.ok & ~ok)}

    @functools.partial(jax.jit, static_argnums=0)
    def _scored(self, batch: RolloutBatch, entropy: Array | None, size: int) -> tuple[dict[str, Array], Array]:
        assert batch.logprobs is not None
        mask, metrics = counted_actions(batch), {}
        if batch.ref_logprobs is not None:
            metrics['kl'] = masked_mean(kl_divergence.token_kl(batch.logprobs, batch.ref_logprobs), mask)
        # Without the actor's own pass the update's `first_ratio_deviation` shows the same difference.
        if entropy is not None:
            metrics |= drift_figures(batch.sampler_logprobs, batch.logprobs, mask)
        # The sampled tokens estimate the entropy where no pass has computed it.
        metrics['entropy'] = masked_mean(-batch.logprobs if entropy is None else entropy, mask)
        return metrics, jnp.sum(batch.tokens.segments != 0) / size

    def advantages(
        self, state: PolicyState, batch: RolloutBatch, estimate: Estimate | None = None, *args: Any
    ) -> tuple[RolloutBatch, Metrics]:
        """Fill in advantages and returns of a batch that has its scores.

        `estimate` takes `EstimatorInputs` and further arrays `args`. It is a function or a frozen object that can be
        called; by default it is the estimator of the settings.

        Raises:
          ValueError: rewards have another number of channels than the critics have heads.
        """
        channels, heads = batch.rewards.shape[-1], sum(critic.heads for critic in self.critics)
        if self.critics and channels != heads:
            raise ValueError(
                f'rewards have {channels} channels, the critics {heads} heads; give a head for each channel'
            )
        batch, metrics = self._advantages(batch, state.kl_coef, estimate, args)
        return batch, floats(metrics) if any_of(counted_actions(batch)) else {}

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def _advantages(self, batch: RolloutBatch, kl_coef: Array, estimate: Estimate | None, args: tuple[Any, ...]):
        mask = counted_actions(batch)
        # 1. Rewards, KL penalty and values by token, as the estimators want them.
        rollout = rollout_of(self.ppo, batch, kl_coef, self.n)
        # 2. Advantages and returns (GAE, arXiv 1506.02438, or an estimator without a critic).
        advantages, returns = (estimate or self.ppo.estimate)(rollout, *args)
        # 3. Figures, taken before whitening, which would make every deviation 1.
        raw = returns if rollout.values is None else returns - rollout.values
        metrics = {'advantage_std': jnp.sqrt(masked_var(raw[..., 0], mask))}
        if rollout.values is not None:
            for channel in range(returns.shape[-1]):
                values, channel_returns = rollout.values[..., channel], returns[..., channel]
                name = channel_name('explained_variance', channel)
                metrics[name] = losses.explained_variance(values, channel_returns, mask)
        return batch.replace(advantages=advantages, returns=returns), metrics

    # --- update ------------------------------------------------------------------------------------------------------

    def update(
        self, state: PolicyState, batch: RolloutBatch, key: Array, ptx: TokenBatch | None = None, *,
        loss: TokenLoss | None = None, before: Before | None = None,
    ) -> tuple[PolicyState, Metrics]:  # fmt: skip
        """PPO on a batch with its advantages, in shuffled minibatches; `ptx` adds its cross-entropy to each of them.

        `loss` is the loss of a token, by default that of the settings. `before` makes of a minibatch what its step
        reads, from the state before the step and the weights of tokens. With `early_stop_kl` an epoch whose `approx_kl`
        is above 1.5 times that value is the last. Metrics are means over the minibatches in which an action counts;
        `first_ratio_deviation` is that of the first one.
        """
        height, parts = batch.ok.shape[0], self.ppo.minibatches
        loss = loss or self.ppo.token_loss
        epochs: list[list[Metrics]] = []
        for epoch in range(self.ppo.epochs):
            # The policy has moved far from the one that was sampled: its samples say no more about it.
            if epochs and self.ppo.early_stop_kl and _mean(epochs[-1], 'approx_kl') > 1.5 * self.ppo.early_stop_kl:
                break
            # 1. A new order of the rows in every epoch, the same in every process.
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), height))
            epochs.append([])
            for index in np.split(order, parts):
                part = take(batch, index, self.actor.mesh) if parts > 1 else batch
                # 2. Weights are decided for the minibatch as a whole, so micro-batches do not change the mean.
                weight = self.loss_weights(part)
                # A minibatch without an action that counts is left out, with its share of `ptx`.
                if any_of(weight):
                    part = before(state, part, weight) if before else part
                    # 3. One step on the clipped surrogate and on the values' error.
                    state, metrics = self.minibatch(state, part, weight, ptx, loss)
                    epochs[-1].append(metrics)
        means = {'kl_coef': float(state.kl_coef)}
        if history := [*itertools.chain(*epochs)]:
            means |= {name: _mean(history, name) for name in history[0]}
            means |= {'lr': self.actor.rate(state.actor, frozen=self.ppo.freezing_actor_steps)}
            means |= {'epochs': float(len(epochs))} if self.ppo.early_stop_kl else {}
            # No update precedes the first minibatch, so its ratios should be 1.
            means |= {'first_ratio_deviation': history[0]['ratio_deviation']}
            if self.ppo.exact and (off := means['first_ratio_deviation']):
                raise RuntimeError(f'decode.exact: a ratio is {off:.1e} off 1; leave it off (docs/performance.md)')
        # 4. The KL coefficient of the next rollout rises where the KL is above `kl_target`, and falls below.
        return state.replace(kl_coef=self._adapted_kl(batch, state.kl_coef)), means

    def minibatch(
        self, state: PolicyState, batch: RolloutBatch, weight: Float[Array, 'R N A'], ptx: TokenBatch | None,
        loss: TokenLoss,
    ) -> tuple[PolicyState, Metrics]:  # fmt: skip
        """One step of the actor's optimiser and of each critic's, from gradients summed over micro-batches."""
        step, micros = state.actor.step, list(self.actor.micro_batches((batch, weight)))
        # 1. The gradient of the policy's loss, summed over micro-batches.
        grads, losses_of, new = zeros(state.actor.model.params), [], []
        for i, (micro, counts) in enumerate(micros):
            tokens = self._corrected(tokens_of(micro, state.kl_coef), state, micro)
            grads, value, logprobs = self.actor.gradients(grads, state.actor, micro.tokens, tokens, counts, loss, i)
            losses_of.append(value)
            new.append(logprobs)
        metrics = {'policy_loss': sum(losses_of, jnp.zeros(()))} | self._progress(batch, new)
        # 2. The supervised part: cross-entropy on examples, so that the policy keeps what it has learnt from them.
        if ptx is not None:
            grads, metrics['ptx_loss'] = self.actor.imitation_gradients(
                grads, state.actor, ptx, self.ppo.ptx_coef * mean_weights(ptx)
            )
        # 3. The actor's step. A critic that knows nothing yet gives advantages of noise: the actor may wait for it.
        if self.ppo.freezing_actor_steps > 0 and int(step) < self.ppo.freezing_actor_steps:
            actor, norm = state.actor, global_norm(grads)
        else:
            actor, norm = self.actor.apply(state.actor, grads)
        metrics['grad_norm'] = norm
        # One model's gradients are in memory at a time.
        del grads
        # 4. The same for each critic: the squared error of its values, clipped about those of the rollout.
        critics, channel = [], 0
        for critic, model in zip(self.critics, state.critics, strict=True):
            grads, heads = zeros(model.params), slice(channel, channel + critic.heads)
            errors = []
            for i, (micro, counts) in enumerate(micros):
                old, returns = micro.values[..., heads], micro.returns[..., heads]
                grads, error = critic.gradients(grads, model, micro.tokens, old, returns, counts, (2, step, i))
                errors.append(error)
            model, critic_norm = critic.apply(model, grads)
            critics.append(model)
            metrics[channel_name('critic_grad_norm', len(critics) - 1)] = critic_norm
            for k, error in enumerate(sum(errors, jnp.zeros(critic.heads))):
                metrics[channel_name('value_loss', channel + k)] = error
            norm, channel = norm + critic_norm, channel + critic.heads
        # An update counts as skipped where one norm is not finite; the models with finite norms have made their step.
        actor = actor.replace(step=step + 1, skipped=skipped(state.actor.skipped, norm))
        return state.replace(actor=actor, critics=tuple(critics)), floats(metrics)

    def _corrected(self, tokens: TokenInputs, state: PolicyState, batch: RolloutBatch) -> TokenInputs:
        """The constants of a loss with those that the settings' correction reads."""
        if not (correction := self.ppo.corrects):
            return tokens
        tokens = tokens._replace(sampled=batch.sampler_logprobs)
        if not correction.of_samples:
            return tokens
        # The mean over a sample is of the policy before this step, which has to be computed first.
        now = self.actor.logprobs(state.actor.whole, batch.tokens)
        return tokens._replace(sequence=sample_means(now - batch.sampler_logprobs, batch.tokens.acts))

    @functools.partial(jax.jit, static_argnums=0)
    def _adapted_kl(self, batch: RolloutBatch, kl_coef: Array) -> Array:
        return adapted_kl(self.ppo, batch, kl_coef)

    @functools.partial(jax.jit, static_argnums=0)
    def loss_weights(self, batch: RolloutBatch) -> Float[Array, 'R N A']:
        """The weight of each action in the loss, were the batch one minibatch."""
        return loss_weights(self.ppo, batch, self.length)

    @functools.partial(jax.jit, static_argnums=0)
    def _progress(self, batch: RolloutBatch, new: list[Array]) -> dict[str, Array]:
        """Figures of how far the policy before this minibatch's step is from the policy that was sampled."""
        assert batch.logprobs is not None
        clip, high = self.ppo.clip, self.ppo.clip_high or None
        acts = counted_actions(batch)
        return losses.policy_metrics(jnp.concatenate(new), batch.logprobs, acts, clip=clip, clip_high=high)


def make_actor_critic(
    cfg: ModelConfig, ppo: PPO, optimizer: Optimizer, mesh: Mesh, *, critic: Optimizer | None = None,
    imitation: Optimizer | None = None, n: int, length: int, adapters: Lora | None = None, anchored: bool = True,
    warmup: bool = False, seed: int = 0,
) -> PolicyLearner:  # fmt: skip
    """The actor that the settings describe and, where their estimator has one, a critic of one channel.

    Args:
      critic: the optimiser of the critic; None: the same as the actor's.
      imitation: the optimiser of supervised steps; None: the same as the actor's.
      anchored: whether a reference is kept, if `ppo` reads one.
    Raises:
      ValueError: as `Actor` and `PolicyLearner`.
    """
    rows = {'micro_rows': ppo.micro_rows, 'row_tokens': ppo.row_tokens, 'adapters': adapters, 'seed': seed}
    actor = Actor(
        cfg, optimizer, mesh, imitation,
        anchored=anchored and ppo.has_reference, warmup=warmup, temperature=ppo.temperature, **rows,
    )  # fmt: skip
    critics = (Critic(cfg, critic or optimizer, mesh, clip=ppo.value_clip, **rows),) if ppo.has_critic else ()
    return PolicyLearner(actor, ppo, critics, n, length)


def check_samples(ppo: PPO, n: int) -> None:
    """Raises ValueError where the estimator compares the samples of a prompt and there is only one of them."""
    if ppo.compares and n < 2:
        raise ValueError(
            f'ppo.estimator={ppo.estimator!r} compares the samples of a prompt, got n_samples_per_prompt={n}; '
            'use 2 or more, or the estimator gae or reinforce'
        )


def counted_actions(batch: RolloutBatch) -> Array:
    """The actions that count `[R, N, A]`: those of samples that did not fail."""
    return batch.tokens.acts & batch.ok[..., None]


def rollout_of(ppo: PPO, batch: RolloutBatch, kl_coef: Float[Array, ''], n: int) -> EstimatorInputs:
    """The record that estimators make advantages of; `n` is the number of samples of a prompt."""
    assert batch.logprobs is not None
    reference = batch.logprobs if batch.ref_logprobs is None else batch.ref_logprobs
    kl = kl_divergence.token_kl(batch.logprobs, reference, ppo.kl_estimator)
    return EstimatorInputs(
        rewards=batch.rewards,
        # An adapted coefficient may fall to 0; below it the penalty would reward distance.
        penalty=jnp.maximum(kl_coef if ppo.kl_in == 'reward' else 0.0, 0.0) * kl,
        values=batch.values,
        acts=counted_actions(batch),
        ok=batch.ok,
        role=batch.role,
        n=n,
    )


def tokens_of(batch: RolloutBatch, kl_coef: Float[Array, '']) -> TokenInputs:
    """The constants that a token loss reads of a batch with its advantages."""
    assert batch.logprobs is not None and batch.advantages is not None
    kl_coef = jnp.broadcast_to(kl_coef, batch.logprobs.shape)
    return TokenInputs(batch.logprobs, batch.advantages, batch.ref_logprobs, kl_coef, batch.costs)


def loss_weights(ppo: PPO, batch: RolloutBatch, length: int) -> Float[Array, 'R N A']:
    """The weight of each action in the loss of a whole minibatch."""
    sizes = {'length': length, 'micro': ppo.micro_train_batch_size}
    return losses.loss_weights(batch.tokens.acts, batch.ok, ppo.aggregation, **sizes)


def adapted_kl(ppo: PPO, batch: RolloutBatch, kl_coef: Float[Array, '']) -> Float[Array, '']:
    """The KL coefficient for the next rollout; it stays the same where no target is set."""
    if not ppo.kl_target:
        return kl_coef
    assert batch.logprobs is not None and batch.ref_logprobs is not None
    mask = counted_actions(batch)
    kl, n = kl_divergence.token_kl(batch.logprobs, batch.ref_logprobs), jnp.sum(mask[..., 0])
    mean = masked_mean(kl, mask) if ppo.kl_target_per == 'token' else masked_sum(kl, mask) / jnp.maximum(n, 1)
    return kl_divergence.adapt_kl(kl_coef, mean, target=ppo.kl_target, n=n, horizon=ppo.kl_horizon)


def channel_name(name: str, channel: int) -> str:
    """The name of a figure of a channel; channel 0, the reward, has no number in its name."""
    return f'{name}_{channel}' if channel else name


def _mean(rows: list[Metrics], name: str) -> float:
    """The mean of a metric over minibatches, 0 without any."""
    return float(np.mean([row[name] for row in rows])) if rows else 0.0
