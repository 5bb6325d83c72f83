"""An actor, its critic and its reference, with their jitted updates.

    state = learner.init(params)                          # plain decoder weights on the mesh
    state, metrics = learner.imitate(state, tokens)       # one supervised step
    state = learner.anchor(state)                         # the actor is now the reference; its optimiser starts afresh
    batch, metrics = learner.annotate(state, batch)       # old and reference log-probs, values, advantages, returns
    state, metrics = learner.update(state, batch, key)    # epochs x minibatches of PPO
    params = learner.weights(state)                       # plain weights again, for a decoder or an export

A minibatch is computed in micro-batches of rows whose gradients are summed. What each token counts is decided for the
whole minibatch before, so the result does not depend on the cut.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.learners import forward, ppo
from pal_jax.learners.ppo import PPO
from pal_jax.learners.training import (
    MULTIPLE,
    Lora,
    TrainState,
    accumulate,
    any_of,
    apply,
    floats,
    global_norm,
    join,
    merged,
    micro_batches,
    placed,
    skipped,
    take,
    trained_specs,
    zeros,
)
from pal_jax.models import decoder, lora
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives import advantages as adv
from pal_jax.objectives.masked import masked_mean
from pal_jax.runtime import sharding
from pal_jax.types import Metrics, RolloutBatch, TokenBatch


class PolicyState(struct.PyTreeNode):
    """`reference` has a LoRA actor's adapters of `anchor`; it is empty where such an actor's base is the reference or
    none is kept. `critic` is None where none is used."""

    step: Int[Array, '']  # optimiser steps since `anchor`
    actor: TrainState
    critic: TrainState | None
    reference: Params
    kl_coef: Float[Array, '']
    skipped: Int[Array, '']  # the last so many updates were not finite, so they were not made


class Optimizers(NamedTuple):
    """`imitation` differs from `actor` in its schedule alone: the two share one state."""

    actor: optax.GradientTransformation
    critic: optax.GradientTransformation
    imitation: optax.GradientTransformation


def check_samples(ppo: PPO, n: int) -> None:
    """Raises ValueError where an estimator compares the samples of a prompt, and there is one."""
    if ppo.estimator not in adv.UNGROUPED and n < 2:
        raise ValueError(
            f'ppo.estimator={ppo.estimator!r} compares the samples of a prompt, got n_samples_per_prompt={n}; '
            'use 2 or more, or the estimator gae or reinforce'
        )


class PolicyLearner:
    """Functions over `PolicyState`; the object holds only what is static.

    Args:
      n: samples per prompt.
      length: the constant that `loss_agg='constant'` divides by: the largest number of tokens sampled.
      anchored: whether a reference is kept, if `ppo` reads one; without either only supervised steps can be made.
      warmup: whether `anchor` is to come, so that a state has a place for the adapters of then from the start.
      max_z_coef: how much the max-z loss counts in supervised steps.
    Raises:
      ValueError: an estimator that compares samples with `n=1`, a dimension that does not divide over the mesh,
        an unknown `cfg.remat`, or a dropout out of its range.
    """

    def __init__(
        self, cfg: ModelConfig, ppo: PPO, optimizers: Optimizers, mesh: Mesh, *, n: int, length: int,
        adapters: Lora | None = None, anchored: bool = True, warmup: bool = False, max_z_coef: float = 0.0,
        seed: int = 0,
    ):  # fmt: skip
        check_samples(ppo, n)
        self.cfg, self.ppo, self.optimizers, self.mesh = cfg, ppo, optimizers, mesh
        self.n, self.length, self.adapters, self.anchored = n, length, adapters, anchored and ppo.has_reference
        self.warmup, self.max_z_coef, self.seed = warmup, max_z_coef, seed
        if adapters and not 0 <= adapters.dropout < 1:
            raise ValueError(f'policy.lora.dropout={adapters.dropout} must be at least 0 and below 1')
        decoder.saved(cfg.remat)
        specs = model_params.decoder_specs(cfg)
        self.param_shardings = sharding.param_shardings(specs, mesh)
        trained = trained_specs(specs, adapters)
        shapes = jax.eval_shape(self._new_state, model_params.abstract(specs))
        self.abstract: PolicyState = placed(shapes, trained, mesh)
        anchored_state = placed(jax.eval_shape(self._anchor, shapes), trained, mesh)
        first, later = (jax.tree.map(lambda x: x.sharding, state) for state in (self.abstract, anchored_state))
        self.init = jax.jit(self._new_state, out_shardings=first)
        self._merge = jax.jit(merged)
        self._anchored = jax.jit(self._anchor, donate_argnums=0, out_shardings=later)

    # --- states ------------------------------------------------------------------------------------------------------

    def _new_state(self, params: Params) -> PolicyState:
        actor = self._train_state(params, self.optimizers.actor, 0)
        return PolicyState(
            step=jnp.zeros((), jnp.int32),
            actor=actor,
            critic=self._new_critic(params),
            reference=self._new_reference(params, actor.params if self.warmup else {}),
            kl_coef=jnp.asarray(self.ppo.kl_coef, jnp.float32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def _train_state(self, params: Params, optimizer: optax.GradientTransformation, salt: int) -> TrainState:
        frozen: Params = {}
        if self.adapters:
            key = jax.random.key(self.seed + salt)
            params, frozen = lora.split(lora.attach(params, key=key, **self.adapters.shape))
        return TrainState(params, frozen, optimizer.init(params))

    def _new_critic(self, params: Params) -> TrainState | None:
        """The actor's weights under a linear head of its own, drawn from N(0, 1 / (D + 1))."""
        if not self.ppo.has_critic:
            return None
        # A copy: what `jit` hands through unchanged keeps its buffer, and the actor's is donated at every update.
        state = self._train_state(jax.tree.map(jnp.copy, params), self.optimizers.critic, 1)
        width = self.cfg.width
        head = jax.random.normal(jax.random.key(self.seed + 2), (width,)) / (width + 1)
        trainable = {'decoder': state.params, 'head': head}
        return state.replace(params=trainable, opt_state=self.optimizers.critic.init(trainable))

    def _new_reference(self, params: Params, adapters: Params) -> Params:
        """A copy of the whole weights; for a LoRA actor a copy of these adapters, since its base does not move."""
        if not self.anchored:
            return {}
        if self.adapters:
            return jax.tree.map(jnp.copy, adapters)
        # Products round their inputs to `dtype` anyway: nothing is lost by keeping the weights in it.
        dtype = self.cfg.dtype
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype if x.ndim > 2 else x.dtype)), params)

    def _anchor(self, state: PolicyState) -> PolicyState:
        fresh = self._new_state(merged(state.actor))
        if not self.adapters:
            return fresh
        # The adapters learnt so far stay, and go on from there: what is exported stands on the original base.
        learnt = state.actor.params
        actor = state.actor.replace(opt_state=self.optimizers.actor.init(learnt))
        return fresh.replace(actor=actor, reference=self._new_reference({}, learnt))

    def anchor(self, state: PolicyState) -> PolicyState:
        """Makes the actor as it is the reference and the critic's start; optimisers start afresh.

        `state` is used up, as by an update.
        """
        return self._anchored(state)

    def weights(self, state: PolicyState) -> Params:
        """The actor as plain decoder weights."""
        actor = state.actor.replace(opt_state=())  # a state restored for export has none
        return self._merge(actor) if self.adapters else actor.params

    def reference(self, state: PolicyState) -> Params:
        """The reference policy: whole weights, or a LoRA actor's base with the adapters of `anchor`, if any."""
        if not self.adapters:
            return state.reference
        return join(state.reference, state.actor.frozen) if state.reference else state.actor.frozen

    @property
    def abstract_weights(self) -> PolicyState:
        """What `weights` reads of `abstract`; the rest is `...`, which a checkpoint's reader leaves out."""
        nothing: PolicyState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(actor=self.abstract.actor.replace(opt_state=nothing.actor.opt_state))

    # --- supervised --------------------------------------------------------------------------------------------------

    def imitate(self, state: PolicyState, batch: TokenBatch) -> tuple[PolicyState, Metrics]:
        """One supervised step on the mean cross-entropy of the actions of `batch`; without actions there is no step,
        and no figures."""
        if not any_of(batch.acts):
            return state, {}
        state, loss, norm = self.imitate_weighted(state, batch, evenly(batch))
        return state, floats({'loss': loss, 'grad_norm': norm})

    def imitate_weighted(
        self, state: PolicyState, batch: TokenBatch, weight: Float[Array, 'R N A']
    ) -> tuple[PolicyState, Array, Array]:
        """One step on `-sum(weight * log-probs)`, that loss and the norm of its gradient."""
        grads, loss = self._imitation(zeros(state.actor.params), state.actor, batch, weight, state.step)
        actor, norm = apply(self.optimizers.imitation, state.actor, grads)
        state = state.replace(step=state.step + 1, actor=actor, skipped=skipped(state.skipped, norm))
        return state, loss, norm

    def _imitation(
        self, grads: Params, actor: TrainState, batch: TokenBatch, weight: Float[Array, 'R N A'], step: Array
    ) -> tuple[Params, Array]:
        losses = []
        for i, (micro, micro_weight) in enumerate(self._micro_batches((batch, weight))):
            seen = micro, micro_weight, (0, step, i)
            grads, loss = self._imitation_gradients(grads, actor.params, actor.frozen, *seen)
            losses.append(loss)
        return grads, sum(losses, jnp.zeros(()))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _imitation_gradients(self, grads, trainable, frozen, batch, weight, moment):
        def loss(trainable):
            params = self._dropping(join(trainable, frozen), moment)
            return forward.imitation_loss(params, self.cfg, batch, weight, self.max_z_coef)

        with self._on_mesh():
            (value, _), grads = accumulate(loss, trainable, grads)
        return grads, value

    def _dropping(self, params: Params, moment: tuple[int | Array, ...]) -> Params:
        """With the adapters' dropout of this moment, which no two micro-batches share."""
        if not self.adapters or not self.adapters.dropout:
            return params
        key = functools.reduce(jax.random.fold_in, moment, jax.random.key(self.seed + 3))
        return lora.with_dropout(params, self.adapters.dropout, key)

    def logprobs(self, params: Params, batch: TokenBatch) -> Float[Array, 'R N A']:
        """Log-probability of each action under whole parameters, see `actor_params`; not for gradients."""
        return jnp.concatenate([self._logprobs(params, micro) for micro in self._micro_batches(batch)])

    @functools.partial(jax.jit, static_argnums=0)
    def _logprobs(self, params: Params, batch: TokenBatch) -> Array:
        with self._on_mesh():
            return forward.logprobs(params, self.cfg, batch, self.ppo.temperature)[0]

    # --- annotate ----------------------------------------------------------------------------------------------------

    def annotate(self, state: PolicyState, batch: RolloutBatch) -> tuple[RolloutBatch, Metrics]:
        """Fills in what the update takes as given: old and reference log-probs, values, advantages, returns.

        Metrics are of the actions that count; where none do, of the rows alone.
        """
        size, parts = 0, []
        for micro in self._micro_batches(batch.tokens):
            size += micro.tokens.size
            parts.append(self._score(state, micro))
        batch, metrics, share = self._annotated(batch, parts, size, state.kl_coef)
        found = floats(metrics) if any_of(ppo.used(batch)) else {}
        return batch, found | floats({'real_share': share})

    @functools.partial(jax.jit, static_argnums=0)
    def _score(self, state: PolicyState, batch: TokenBatch):
        with self._on_mesh():
            old = entropy = reference = None
            if self.ppo.old_logprobs == 'policy':
                old, entropy = forward.logprobs(actor_params(state), self.cfg, batch, self.ppo.temperature)
            if self.ppo.has_reference:
                reference, _ = forward.logprobs(self.reference(state), self.cfg, batch, self.ppo.temperature)
            values = forward.values(critic_params(state.critic), self.cfg, batch) if state.critic else None
        return old, entropy, reference, values

    @functools.partial(jax.jit, static_argnums=0)
    def _annotated(self, batch: RolloutBatch, parts: list[tuple[Array, ...]], size: int, kl_coef: Array):
        old, entropy, reference, values = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
        old = batch.sampler_logprobs if old is None else old
        batch = batch.replace(logprobs=old, ref_logprobs=reference, values=values)
        batch, metrics = ppo.with_advantages(self.ppo, batch, kl_coef, self.n)
        if entropy is not None:
            metrics['entropy'] = masked_mean(forward.by_sample(entropy), ppo.used(batch))
        return batch, metrics, jnp.sum(batch.tokens.segments != 0) / size

    # --- update ------------------------------------------------------------------------------------------------------

    def update(
        self, state: PolicyState, batch: RolloutBatch, key: Array, ptx: TokenBatch | None = None
    ) -> tuple[PolicyState, Metrics]:
        """PPO on an annotated batch, in shuffled minibatches; `ptx` adds its cross-entropy to each of them.

        With `early_stop_kl` an epoch whose `approx_kl` is far above it is the last. A minibatch in which no action
        counts (it is padding, or its samples failed) is left out, with its share of `ptx`. Metrics are means over the
        others; `first_ratio_deviation` is that of the first, which no update precedes.
        """
        height, parts = batch.reward.shape[0], self.ppo.minibatches
        epochs: list[list[Metrics]] = []
        for epoch in range(self.ppo.epochs):
            if epochs and self.ppo.early_stop_kl and _mean(epochs[-1], 'approx_kl') > 1.5 * self.ppo.early_stop_kl:
                break
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), height))
            epochs.append([])
            for index in np.split(order, parts):
                part = take(batch, index, self.mesh) if parts > 1 else batch
                weight = self._loss_weights(part)
                if any_of(weight):
                    state, metrics = self._minibatch(state, part, weight, ptx)
                    epochs[-1].append(metrics)
        means = {'kl_coef': float(state.kl_coef)}
        if history := [*itertools.chain(*epochs)]:
            means |= {name: _mean(history, name) for name in history[0]}
            means |= {'epochs': float(len(epochs))} if self.ppo.early_stop_kl else {}
            means |= {'first_ratio_deviation': history[0]['ratio_deviation']}
        return state.replace(kl_coef=self._adapted_kl(batch, state.kl_coef)), means

    def _minibatch(
        self, state: PolicyState, batch: RolloutBatch, weight: Float[Array, 'R N A'], ptx: TokenBatch | None
    ) -> tuple[PolicyState, Metrics]:
        grads = zeros(state.actor.params), zeros(critic_trainable(state.critic))
        outs = []
        for i, (micro, micro_weight) in enumerate(self._micro_batches((batch, weight))):
            grads, out = self._gradients(grads, state, micro, micro_weight, i)
            outs.append(out)
        metrics = self._report(batch, outs)
        actor_grads, critic_grads = grads
        if ptx is not None:
            actor_grads, metrics['ptx_loss'] = self._imitation(
                actor_grads, state.actor, ptx, self.ppo.ptx_coef * evenly(ptx), state.step
            )
        state = state.replace(step=state.step + 1)
        if self.ppo.freezing_actor_steps > 0 and int(state.step) <= self.ppo.freezing_actor_steps:
            norm = global_norm(actor_grads)
        else:
            actor, norm = apply(self.optimizers.actor, state.actor, actor_grads)
            state = state.replace(actor=actor)
        metrics['grad_norm'] = norm
        if state.critic:
            critic, metrics['critic_grad_norm'] = apply(self.optimizers.critic, state.critic, critic_grads)
            state, norm = state.replace(critic=critic), norm + metrics['critic_grad_norm']
        return state.replace(skipped=skipped(state.skipped, norm)), floats(metrics)

    @functools.partial(jax.jit, static_argnums=0)
    def _adapted_kl(self, batch: RolloutBatch, kl_coef: Array) -> Array:
        return ppo.adapted_kl(self.ppo, batch, kl_coef)

    @functools.partial(jax.jit, static_argnums=0)
    def _loss_weights(self, batch: RolloutBatch) -> Float[Array, 'R N A']:
        return ppo.loss_weights(self.ppo, batch, self.length)

    @functools.partial(jax.jit, static_argnums=0)
    def _report(self, batch: RolloutBatch, outs: list[dict[str, Array]]) -> dict[str, Array]:
        """The losses of a minibatch's micro-batches together, and how far it found the policy from the sampled one."""
        new = jnp.concatenate([out.pop('logprobs') for out in outs])
        losses = jax.tree.map(lambda *each: sum(each, jnp.zeros(())), *outs)
        return losses | ppo.progress(self.ppo, batch, new)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _gradients(self, grads, state: PolicyState, batch: RolloutBatch, weight: Array, i: int):
        def actor_loss(trainable):
            params = self._dropping(join(trainable, state.actor.frozen), (1, state.step, i))
            return ppo.policy_loss(params, self.cfg, self.ppo, batch, weight, state.kl_coef)

        def critic_loss(trainable):
            assert state.critic is not None
            params = critic_params(state.critic.replace(params=trainable))
            params['decoder'] = self._dropping(params['decoder'], (2, state.step, i))
            return ppo.value_loss(params, self.cfg, self.ppo, batch, weight)

        actor, critic = grads
        with self._on_mesh():
            (loss, logprobs), actor = accumulate(actor_loss, state.actor.params, actor)
            out = {'policy_loss': loss, 'logprobs': logprobs}
            if state.critic:
                # After the actor's, so that one model's activations are in memory at a time.
                actor, trainable = jax.lax.optimization_barrier((actor, state.critic.params))
                (out['value_loss'], _), critic = accumulate(critic_loss, trainable, critic)
        return (actor, critic), out

    def _on_mesh(self) -> AbstractContextManager[Any]:
        """Where `sharding.constrain` finds the mesh."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def _micro_batches(self, tree: Any) -> Iterator[Any]:
        # Rows that prompts share are about as full as each other: they stay as long, so that one program computes them.
        return micro_batches(tree, self.mesh, self.ppo.micro_rows, self.ppo.row_tokens or MULTIPLE)


def _mean(rows: list[Metrics], name: str) -> float:
    """0 of no rows."""
    return float(np.mean([row[name] for row in rows])) if rows else 0.0


@jax.jit
def evenly(batch: TokenBatch) -> Float[Array, 'R N A']:
    """Weights that make a sum over the actions their mean."""
    return batch.acts / jnp.maximum(jnp.sum(batch.acts), 1)


def actor_params(state: PolicyState) -> Params:
    """The whole actor, its adapters beside what they adapt."""
    return join(state.actor.params, state.actor.frozen)


def critic_trainable(critic: TrainState | None) -> Params:
    return critic.params if critic else {}


def critic_params(critic: TrainState | None) -> Params:
    assert critic is not None
    return {'decoder': join(critic.params['decoder'], critic.frozen), 'head': critic.params['head']}
