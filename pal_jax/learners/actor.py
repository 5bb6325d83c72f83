"""An actor and its reference: scores of actions, supervised steps, and the gradient of a loss of tokens.

    state = actor.init(params)                             # plain decoder weights on the mesh
    state, metrics = actor.imitate(state, tokens)          # one supervised step
    state = actor.anchor(state)                            # the actor is now the reference; its optimiser starts afresh
    scores = actor.score(state, tokens)                    # log-probs of actor and reference, entropy
    state, norm = actor.apply(state, gradient)
    params = actor.weights(state)                          # plain weights again, for a decoder or an export

An `Actor` is frozen and compares by value: two that are equal share their compiled programs. A batch is computed in
micro-batches of rows whose gradients are summed. What each token counts is decided for the whole batch before, so the
result does not depend on the cut.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.learners import forward
from pal_jax.learners.training import (
    MULTIPLE,
    Lora,
    TrainState,
    accumulate,
    any_of,
    apply,
    attached,
    cuts_of,
    floats,
    jit_to,
    join,
    laid_out,
    merged,
    micro_batches,
    placed,
    skipped,
    trained_specs,
    zeros,
)
from pal_jax.models import decoder, lora
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives.masked import keep
from pal_jax.objectives.policy import Inputs, TokenLoss
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Metrics, TokenBatch


class ActorState(struct.PyTreeNode):
    """An actor, its reference policy and the count of its steps.

    `reference` holds a copy of the whole weights, or for a LoRA actor a copy of the adapters at the time of `anchor`.
    It is empty where no reference is kept, and where the base of a LoRA actor is the reference.
    """

    # The number of optimiser steps since `anchor`.
    step: Int[Array, '']
    model: TrainState
    reference: Params
    skipped: Int[Array, '']  # updates in a row, up to the last, that were left out since their gradient was not finite

    @property
    def whole(self) -> Params:
        """All parameters, adapters beside the weights that they adapt."""
        return join(self.model.params, self.model.frozen)


class ActionScores(NamedTuple):
    """Log-probabilities and entropies of the actions of a batch, in nats; None where they were not asked for."""

    logprobs: Float[Array, 'R N A'] | None
    entropy: Float[Array, 'R N A'] | None
    reference: Float[Array, 'R N A'] | None


@dataclasses.dataclass(frozen=True)
class Actor:
    """Functions over `ActorState`.

    Attributes:
      imitation: the optimiser of supervised steps, which shares its state with `optimizer`; None: `optimizer` itself.
      micro_rows: the number of rows in a device's memory at once.
      row_tokens: the length in tokens of rows that several prompts share; 0: every prompt has a row of its own.
      anchored: whether a reference is kept.
      warmup: whether `anchor` will be called later, so that a state has a place for the reference's adapters from the
        start.
      temperature: the temperature at which samples are drawn and log-probabilities are taken.
      max_z_coef: the weight of the max-z loss in supervised steps.
    Raises:
      ValueError: a dimension does not divide over the mesh, `cfg.remat` is unknown, or a dropout is out of its range.
    """

    cfg: ModelConfig
    optimizer: Optimizer
    mesh: Mesh
    imitation: Optimizer | None = None
    micro_rows: int = 4
    row_tokens: int = 0
    adapters: Lora | None = None
    anchored: bool = True
    warmup: bool = False
    temperature: float = 1.0
    max_z_coef: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.adapters and not 0 <= self.adapters.dropout < 1:
            raise ValueError(f'policy.lora.dropout={self.adapters.dropout} must be at least 0 and below 1')
        decoder.saved(self.cfg.remat)
        _ = self.param_shardings

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def _specs(self) -> Params:
        return model_params.decoder_specs(self.cfg)

    @functools.cached_property
    def param_shardings(self) -> Params:
        """The shardings of plain decoder weights on the mesh."""
        return sharding.param_shardings(self._specs, self.mesh)

    @functools.cached_property
    def abstract(self) -> ActorState:
        """The shapes and shardings of a state."""
        return laid_out(self.new, self.cfg, self.adapters, self.mesh)

    @functools.cached_property
    def init(self):
        """`init(params) -> ActorState`; the weights are used up."""
        return jit_to(self.abstract, self.new)

    @functools.cached_property
    def anchor(self):
        """`anchor(state) -> ActorState`, whose reference is the actor as it is and whose optimiser starts afresh.

        The state is used up, as by an update.
        """
        shapes = jax.eval_shape(self.anchored_state, self.abstract)
        later = placed(shapes, trained_specs(self._specs, self.adapters), self.mesh)
        # The state is donated: the actor and its old reference are never in memory together with the new one.
        return jit_to(later, self.anchored_state, donate_argnums=0)

    def new(self, params: Params) -> ActorState:
        frozen: Params = {}
        reference = params
        if self.adapters:
            params, frozen = attached(params, self.adapters, self.seed)
            # Without a warm-up the reference is the base itself, at no memory of its own.
            reference = params if self.warmup else {}
        nothing = jnp.zeros((), jnp.int32)
        model = TrainState(params, frozen, self.optimizer.init(params))
        return ActorState(nothing, model, self._copied(reference), nothing)

    def _copied(self, reference: Params) -> Params:
        """A copy of the whole weights, or for a LoRA actor of its adapters alone, since its base does not move."""
        if not self.anchored:
            return {}
        if self.adapters:
            return jax.tree.map(jnp.copy, reference)
        # Products round their inputs to `dtype` anyway, so nothing is lost by keeping the reference's weights in it.
        dtype = self.cfg.dtype
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype if x.ndim > 2 else x.dtype)), reference)

    def anchored_state(self, state: ActorState) -> ActorState:
        if not self.adapters:
            return self.new(state.model.params)
        # The adapters learnt so far stay and go on from there: an exported adapter stands on the original base.
        model = state.model.replace(opt_state=self.optimizer.init(state.model.params))
        nothing = jnp.zeros((), jnp.int32)
        return ActorState(nothing, model, self._copied(state.model.params), nothing)

    def weights(self, state: ActorState) -> Params:
        """The actor as plain decoder weights."""
        # A state restored for export has no moments.
        model = state.model.replace(opt_state=())
        return _merge(model) if self.adapters else model.params

    def reference(self, state: ActorState) -> Params:
        """The reference policy: whole weights, or a LoRA actor's base with the adapters of `anchor`, if any."""
        if not self.adapters:
            return state.reference
        return join(state.reference, state.model.frozen) if state.reference else state.model.frozen

    @property
    def abstract_weights(self) -> ActorState:
        """A state for a checkpoint's reader: shapes and shardings of the parts that `weights` reads, and `...` for
        parts to be left out."""
        nothing: ActorState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(model=self.abstract.model.replace(opt_state=nothing.model.opt_state))

    # --- scores ------------------------------------------------------------------------------------------------------

    def score(self, state: ActorState, batch: TokenBatch, *, with_actor: bool = True) -> ActionScores:
        """Log-probabilities of the actions under the actor, unless `with_actor` is False, and under the reference, if
        one is kept.

        The result is a constant: no gradient flows through it.
        """
        parts = [self._score(state, micro, with_actor) for micro in self.micro_batches(batch)]
        return jax.tree.map(lambda *micros: jnp.concatenate(micros), *parts)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def _score(self, state: ActorState, batch: TokenBatch, with_actor: bool) -> ActionScores:
        logprobs = entropy = reference = None
        with self.on_mesh():
            if with_actor:
                logprobs, entropy = forward.logprobs(state.whole, self.cfg, batch, self.temperature)
            if self.anchored:
                reference, _ = forward.logprobs(self.reference(state), self.cfg, batch, self.temperature)
        return ActionScores(logprobs, entropy, reference)

    def logprobs(self, params: Params, batch: TokenBatch) -> Float[Array, 'R N A']:
        """The log-probability of each action under whole parameters, as a constant without a gradient."""
        return jnp.concatenate([self._logprobs(params, micro) for micro in self.micro_batches(batch)])

    @functools.partial(jax.jit, static_argnums=0)
    def _logprobs(self, params: Params, batch: TokenBatch) -> Array:
        with self.on_mesh():
            return forward.logprobs(params, self.cfg, batch, self.temperature)[0]

    # --- supervised --------------------------------------------------------------------------------------------------

    def imitate(self, state: ActorState, batch: TokenBatch) -> tuple[ActorState, Metrics]:
        """One supervised step on the mean cross-entropy of the actions of `batch`.

        A batch without actions makes no step and has no figures.
        """
        if not any_of(batch.acts):
            return state, {}
        state, loss, norm = self.imitate_weighted(state, batch, mean_weights(batch))
        return state, floats({'loss': loss, 'grad_norm': norm}) | {'lr': self.rate(state, self.imitation)}

    def rate(self, state: ActorState, optimizer: Optimizer | None = None, frozen: int = 0) -> float:
        """The learning rate of the last update, by `optimizer` in place of the actor's own; 0 in the first `frozen`
        updates, which the actor has waited for."""
        updates = int(state.step) - frozen
        return (optimizer or self.optimizer).rate(updates - 1) if updates > 0 else 0.0

    def imitate_weighted(
        self, state: ActorState, batch: TokenBatch, weight: Float[Array, 'R N A']
    ) -> tuple[ActorState, Array, Array]:
        """One step on `-sum(weight * log-probs)`; the loss and the norm of its gradient are returned beside the
        state."""
        # The gradients of all micro-batches are summed first: the optimiser makes one step for the whole batch.
        grads, loss = self.imitation_gradients(zeros(state.model.params), state, batch, weight)
        model, norm = apply(self.imitation or self.optimizer, state.model, grads)
        state = state.replace(step=state.step + 1, model=model, skipped=skipped(state.skipped, norm))
        return state, loss, norm

    def imitation_gradients(
        self, grads: Params, state: ActorState, batch: TokenBatch, weight: Float[Array, 'R N A']
    ) -> tuple[Params, Array]:
        """`grads` with the gradient of `-sum(weight * log-probs)` added, and the value of that loss."""
        losses = []
        for i, (micro, micro_weight) in enumerate(self.micro_batches((batch, weight))):
            # The dropout's key: 0 for supervised steps (1 for reinforcement), the step and the micro-batch.
            moment = 0, state.step, i
            grads, loss = self._imitation(grads, state.model.params, state.model.frozen, micro, micro_weight, moment)
            losses.append(loss)
        return grads, sum(losses, jnp.zeros(()))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _imitation(self, grads, trainable, frozen, batch, weight, moment):
        def loss(trainable):
            params = draw_dropout(self.adapters, self.seed, join(trainable, frozen), moment)
            return forward.imitation_loss(params, self.cfg, batch, weight, self.max_z_coef)

        with self.on_mesh():
            (value, _), grads = accumulate(loss, trainable, grads)
        return grads, value

    # --- reinforcement -----------------------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=1)
    def gradients(
        self, grads: Params, state: ActorState, batch: TokenBatch, tokens: Inputs, weight: Float[Array, 'R N A'],
        token_loss: TokenLoss[Inputs], i: int,
    ) -> tuple[Params, Float[Array, ''], Float[Array, 'R N A']]:  # fmt: skip
        """`grads` with the gradient of micro-batch `i` added, its loss `sum(weight * token_loss)`, and its
        log-probabilities.

        The log-probabilities are those of the actor before the step. `tokens` is a tree of arrays `[R, N, A]`.
        """

        def per_token(logprob: Array, aux: dict[str, Any]) -> Array:
            tokens, weight = aux['tokens'], aux['weight']
            # Tokens without weight may hold anything, even infinities, whose gradient would be NaN times 0.
            logprob, tokens = jax.tree.map(lambda x: keep(x, weight > 0), (logprob, tokens))
            return weight * token_loss(logprob, tokens)

        def loss(trainable: Params) -> tuple[Array, Array]:
            whole = join(trainable, state.model.frozen)
            params = draw_dropout(self.adapters, self.seed, whole, (1, state.step, i))
            aux = {'tokens': tokens, 'weight': weight}
            return forward.token_loss(params, self.cfg, batch, aux, per_token, temperature=self.temperature)

        with self.on_mesh():
            (value, logprobs), grads = accumulate(loss, state.model.params, grads)
        return grads, value, logprobs

    def apply(self, state: ActorState, grads: Params) -> tuple[ActorState, Array]:
        """The state after the optimiser's step, and the norm of the gradient; a norm that is not finite makes no
        step."""
        model, norm = apply(self.optimizer, state.model, grads)
        return state.replace(model=model), norm

    # --- micro-batches -----------------------------------------------------------------------------------------------

    def on_mesh(self) -> AbstractContextManager[Any]:
        """A context in which `sharding.constrain` finds the mesh."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def computed(self, batch: TokenBatch) -> int:
        """The number of tokens, padding included, that the micro-batches of a batch have."""
        cuts = cuts_of(batch, self.mesh, self.micro_rows, self.row_tokens or MULTIPLE)
        return sum(len(rows) * length for rows, length in cuts)

    def micro_batches(self, tree: Any) -> Iterator[Any]:
        """Cut a tree with one `TokenBatch` into micro-batches of rows."""
        # Rows that prompts share are about equally full, so all are cut to one length: one program computes them all.
        return micro_batches(tree, self.mesh, self.micro_rows, self.row_tokens or MULTIPLE)


_merge = jax.jit(merged)


@jax.jit
def mean_weights(batch: TokenBatch) -> Float[Array, 'R N A']:
    """Weights that turn a sum over the actions into their mean."""
    return batch.acts / jnp.maximum(jnp.sum(batch.acts), 1)


def draw_dropout(adapters: Lora | None, seed: int, params: Params, moment: tuple[int | Array, ...]) -> Params:
    """Parameters with the adapters' dropout drawn for this moment; no two micro-batches share a draw."""
    if not adapters or not adapters.dropout:
        return params
    key = functools.reduce(jax.random.fold_in, moment, jax.random.key(seed + 3))
    return lora.with_dropout(params, adapters.dropout, key)
