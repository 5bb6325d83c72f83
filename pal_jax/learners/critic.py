"""A critic: values of the states before actions, one for each of its channels.

A critic is a decoder of its own with a bias-free linear head. It starts from the actor's weights under a new head, or
from a scorer's weights and head (Safe RLHF starts the critics of reward and cost from the reward and the cost model).
Critics of several channels are one tower with as many `heads`, or several critics with one head each.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.learners import forward
from pal_jax.learners.actor import draw_dropout
from pal_jax.learners.training import (
    MULTIPLE,
    Lora,
    TrainState,
    accumulate,
    apply,
    attached,
    jit_to,
    join,
    laid_out,
    micro_batches,
    new_head,
)
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives.masked import keep
from pal_jax.objectives.policy import value_token_loss
from pal_jax.run.optim import Optimizer
from pal_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Critic:
    """Functions over a `TrainState` whose parameters are `decoder` and `head [D heads]`.

    Attributes:
      heads: the number of channels that this tower has values for.
      clip: how far a value may move from the rollout's value before its error stops to matter.
      micro_rows, row_tokens: as an actor's.
    """

    cfg: ModelConfig
    optimizer: Optimizer
    mesh: Mesh
    heads: int = 1
    clip: float = 0.2
    micro_rows: int = 4
    row_tokens: int = 0
    adapters: Lora | None = None
    seed: int = 0

    @functools.cached_property
    def abstract(self) -> TrainState:
        """The shapes and shardings of a state."""
        return laid_out(self.new, self.cfg, self.adapters, self.mesh)

    @functools.cached_property
    def init(self):
        """`init(params, head=None) -> TrainState`: a copy of decoder weights under this head, or under a new one."""
        return jit_to(self.abstract, self.new)

    def new(self, params: Params, head: Float[Array, 'D K'] | None = None) -> TrainState:
        # A copy: what `jit` hands through unchanged keeps its buffer, and the actor's is donated at every update.
        params, frozen = jax.tree.map(jnp.copy, params), {}
        if self.adapters:
            params, frozen = attached(params, self.adapters, self.seed + 1)
        # A new head is small, so that values begin near 0.
        head = new_head(self.cfg.width, self.heads, self.seed + 2) if head is None else head
        trained = {'decoder': params, 'head': head}
        return TrainState(trained, frozen, self.optimizer.init(trained))

    def values(self, state: TrainState, batch: TokenBatch) -> Float[Array, 'R N A K']:
        """Values of the states before each action, by head, as constants without a gradient."""
        return jnp.concatenate([self._values(state, micro) for micro in self._micro_batches(batch)])

    @functools.partial(jax.jit, static_argnums=0)
    def _values(self, state: TrainState, batch: TokenBatch) -> Array:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return forward.values(_whole(state.params, state.frozen), self.cfg, batch)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def gradients(
        self, grads: Params, state: TrainState, batch: TokenBatch, old: Float[Array, 'R N A K'],
        returns: Float[Array, 'R N A K'], weight: Float[Array, 'R N A'], moment: tuple[int | Array, ...],
    ) -> tuple[Params, Float[Array, ' K']]:  # fmt: skip
        """`grads` with the gradient of the clipped squared error of the values added, and that error by head."""

        def loss(trained: Params) -> tuple[Array, Array]:
            params = _whole(trained, state.frozen)
            # The critic's adapters have a dropout of their own: the moment tells it from that of the actor.
            params['decoder'] = draw_dropout(self.adapters, self.seed, params['decoder'], moment)
            counts = (weight > 0)[..., None]
            new = forward.values(params, self.cfg, batch)
            # Values of tokens that do not count are replaced, so that no NaN of a padded state reaches a gradient.
            inputs = (keep(x, counts) for x in (new, old, returns))
            errors = jnp.sum(weight[..., None] * value_token_loss(*inputs, clip=self.clip), axis=(0, 1, 2))
            return jnp.sum(errors), errors

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            (_, errors), grads = accumulate(loss, state.params, grads)
        return grads, errors

    def apply(self, state: TrainState, grads: Params) -> tuple[TrainState, Array]:
        """The state after the optimiser's step, and the norm of the gradient; a norm that is not finite makes no
        step."""
        return apply(self.optimizer, state, grads)

    def _micro_batches(self, batch: TokenBatch) -> Any:
        return micro_batches(batch, self.mesh, self.micro_rows, self.row_tokens or MULTIPLE)


def _whole(trained: Params, frozen: Params) -> Params:
    return {'decoder': join(trained['decoder'], frozen), 'head': trained['head']}
