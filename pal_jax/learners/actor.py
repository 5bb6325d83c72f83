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
from pal_jax.objectives.policy import TokenLoss, Tokens
from pal_jax.runtime import sharding
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Metrics, TokenBatch


class ActorState(struct.PyTreeNode):
    """`reference` has a LoRA actor's adapters of `anchor`; it is empty where such an actor's base is the reference or
    none is kept."""

    step: Int[Array, '']  # optimiser steps since `anchor`
    model: TrainState
    reference: Params
    skipped: Int[Array, '']  # the last so many updates were not finite, so they were not made

    @property
    def whole(self) -> Params:
        """All parameters, adapters beside what they adapt."""
        return join(self.model.params, self.model.frozen)


class Scores(NamedTuple):
    """Log-probabilities and entropies of the actions of a batch, in nats. None where nobody asked."""

    logprobs: Float[Array, 'R N A'] | None
    entropy: Float[Array, 'R N A'] | None
    reference: Float[Array, 'R N A'] | None


@dataclasses.dataclass(frozen=True)
class Actor:
    """Functions over `ActorState`.

    Attributes:
      imitation: the optimiser of supervised steps, which shares its state with `optimizer`; None: the same.
      micro_rows: rows in a device's memory at once.
      row_tokens: length of rows that prompts share; 0: a row a prompt.
      anchored: whether a reference is kept.
      warmup: whether `anchor` is to come, so that a state has a place for the adapters of then from the start.
      temperature: at which samples are drawn and log-probabilities taken.
      max_z_coef: how much the max-z loss counts in supervised steps.
    Raises:
      ValueError: a dimension that does not divide over the mesh, an unknown `cfg.remat`, or a dropout out of its range.
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
        """Where plain decoder weights lie."""
        return sharding.param_shardings(self._specs, self.mesh)

    @functools.cached_property
    def abstract(self) -> ActorState:
        """A state's shapes and shardings."""
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
        return jit_to(later, self.anchored_state, donate_argnums=0)

    def new(self, params: Params) -> ActorState:
        frozen: Params = {}
        reference = params
        if self.adapters:
            params, frozen = attached(params, self.adapters, self.seed)
            reference = params if self.warmup else {}
        nothing = jnp.zeros((), jnp.int32)
        model = TrainState(params, frozen, self.optimizer.init(params))
        return ActorState(nothing, model, self._copied(reference), nothing)

    def _copied(self, reference: Params) -> Params:
        """A copy of the whole weights; for a LoRA actor a copy of adapters, since its base does not move."""
        if not self.anchored:
            return {}
        if self.adapters:
            return jax.tree.map(jnp.copy, reference)
        # Products round their inputs to `dtype` anyway: nothing is lost by keeping the weights in it.
        dtype = self.cfg.dtype
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype if x.ndim > 2 else x.dtype)), reference)

    def anchored_state(self, state: ActorState) -> ActorState:
        if not self.adapters:
            return self.new(state.model.params)
        # The adapters learnt so far stay, and go on from there: what is exported stands on the original base.
        model = state.model.replace(opt_state=self.optimizer.init(state.model.params))
        nothing = jnp.zeros((), jnp.int32)
        return ActorState(nothing, model, self._copied(state.model.params), nothing)

    def weights(self, state: ActorState) -> Params:
        """The actor as plain decoder weights."""
        model = state.model.replace(opt_state=())  # a state restored for export has none
        return _merge(model) if self.adapters else model.params

    def reference(self, state: ActorState) -> Params:
        """The reference policy: whole weights, or a LoRA actor's base with the adapters of `anchor`, if any."""
        if not self.adapters:
            return state.reference
        return join(state.reference, state.model.frozen) if state.reference else state.model.frozen

    @property
    def abstract_weights(self) -> ActorState:
        """What `weights` reads of `abstract`; the rest is `...`, which a checkpoint's reader leaves out."""
        nothing: ActorState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(model=self.abstract.model.replace(opt_state=nothing.model.opt_state))

    # --- scores ------------------------------------------------------------------------------------------------------

    def score(self, state: ActorState, batch: TokenBatch, *, own: bool = True) -> Scores:
        """Log-probabilities of the actions under the actor, unless `own` is False, and under the reference, if one is
        kept; not for gradients."""
        parts = [self._score(state, micro, own) for micro in self.micro_batches(batch)]
        return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def _score(self, state: ActorState, batch: TokenBatch, own: bool) -> Scores:
        logprobs = entropy = reference = None
        with self.on_mesh():
            if own:
                logprobs, entropy = forward.logprobs(state.whole, self.cfg, batch, self.temperature)
            if self.anchored:
                reference, _ = forward.logprobs(self.reference(state), self.cfg, batch, self.temperature)
        return Scores(logprobs, entropy, reference)

    def logprobs(self, params: Params, batch: TokenBatch) -> Float[Array, 'R N A']:
        """Log-probability of each action under whole parameters; not for gradients."""
        return jnp.concatenate([self._logprobs(params, micro) for micro in self.micro_batches(batch)])

    @functools.partial(jax.jit, static_argnums=0)
    def _logprobs(self, params: Params, batch: TokenBatch) -> Array:
        with self.on_mesh():
            return forward.logprobs(params, self.cfg, batch, self.temperature)[0]

    # --- supervised --------------------------------------------------------------------------------------------------

    def imitate(self, state: ActorState, batch: TokenBatch) -> tuple[ActorState, Metrics]:
        """One supervised step on the mean cross-entropy of the actions of `batch`; without actions there is no step,
        and no figures."""
        if not any_of(batch.acts):
            return state, {}
        state, loss, norm = self.imitate_weighted(state, batch, evenly(batch))
        return state, floats({'loss': loss, 'grad_norm': norm})

    def imitate_weighted(
        self, state: ActorState, batch: TokenBatch, weight: Float[Array, 'R N A']
    ) -> tuple[ActorState, Array, Array]:
        """One step on `-sum(weight * log-probs)`; returns also that loss and the norm of its gradient."""
        grads, loss = self.imitation_gradients(zeros(state.model.params), state, batch, weight)
        model, norm = apply(self.imitation or self.optimizer, state.model, grads)
        state = state.replace(step=state.step + 1, model=model, skipped=skipped(state.skipped, norm))
        return state, loss, norm

    def imitation_gradients(
        self, grads: Params, state: ActorState, batch: TokenBatch, weight: Float[Array, 'R N A']
    ) -> tuple[Params, Array]:
        """`grads` with the gradient of `-sum(weight * log-probs)` added, and that loss."""
        losses = []
        for i, (micro, micro_weight) in enumerate(self.micro_batches((batch, weight))):
            moment = 0, state.step, i
            grads, loss = self._imitation(grads, state.model.params, state.model.frozen, micro, micro_weight, moment)
            losses.append(loss)
        return grads, sum(losses, jnp.zeros(()))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _imitation(self, grads, trainable, frozen, batch, weight, moment):
        def loss(trainable):
            params = dropping(self.adapters, self.seed, join(trainable, frozen), moment)
            return forward.imitation_loss(params, self.cfg, batch, weight, self.max_z_coef)

        with self.on_mesh():
            (value, _), grads = accumulate(loss, trainable, grads)
        return grads, value

    # --- reinforcement -----------------------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=1)
    def gradients(
        self, grads: Params, state: ActorState, batch: TokenBatch, tokens: Tokens, weight: Float[Array, 'R N A'],
        token_loss: TokenLoss, i: int,
    ) -> tuple[Params, Float[Array, ''], Float[Array, 'R N A']]:  # fmt: skip
        """`grads` with the gradient of micro-batch `i` added, its loss `sum(weight * token_loss)`, and the log-probs of
        the actor as it is."""

        def per_token(logprob: Array, aux: dict[str, Any]) -> Array:
            tokens, weight = aux['tokens'], aux['weight']
            logprob, tokens = jax.tree.map(lambda x: keep(x, weight > 0), (logprob, tokens))
            return weight * token_loss(logprob, tokens)

        def loss(trainable: Params) -> tuple[Array, Array]:
            whole = join(trainable, state.model.frozen)
            params = dropping(self.adapters, self.seed, whole, (1, state.step, i))
            aux = {'tokens': tokens, 'weight': weight}
            return forward.token_loss(params, self.cfg, batch, aux, per_token, temperature=self.temperature)

        with self.on_mesh():
            (value, logprobs), grads = accumulate(loss, state.model.params, grads)
        return grads, value, logprobs

    def apply(self, state: ActorState, grads: Params) -> tuple[ActorState, Array]:
        """The optimiser's step, and the norm of the gradient; where that is not finite, no step."""
        model, norm = apply(self.optimizer, state.model, grads)
        return state.replace(model=model), norm

    # --- micro-batches -----------------------------------------------------------------------------------------------

    def on_mesh(self) -> AbstractContextManager[Any]:
        """Where `sharding.constrain` finds the mesh."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def computed(self, batch: TokenBatch) -> int:
        """How many tokens and columns of padding the micro-batches of a batch have."""
        cuts = cuts_of(batch, self.mesh, self.micro_rows, self.row_tokens or MULTIPLE)
        return sum(len(rows) * length for rows, length in cuts)

    def micro_batches(self, tree: Any) -> Iterator[Any]:
        """Cut a tree with one `TokenBatch` into micro-batches of rows."""
        # Rows that prompts share are about as full as each other: they stay as long, so that one program computes them.
        return micro_batches(tree, self.mesh, self.micro_rows, self.row_tokens or MULTIPLE)


_merge = jax.jit(merged)


@jax.jit
def evenly(batch: TokenBatch) -> Float[Array, 'R N A']:
    """Weights that make a sum over the actions their mean."""
    return batch.acts / jnp.maximum(jnp.sum(batch.acts), 1)


def dropping(adapters: Lora | None, seed: int, params: Params, moment: tuple[int | Array, ...]) -> Params:
    """Parameters with the adapters' dropout of this moment, which no two micro-batches share."""
    if not adapters or not adapters.dropout:
        return params
    key = functools.reduce(jax.random.fold_in, moment, jax.random.key(seed + 3))
    return lora.with_dropout(params, adapters.dropout, key)
