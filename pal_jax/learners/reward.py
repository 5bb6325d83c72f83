"""A reward model: a decoder with a linear head that scores replies, trained on pairs of them (Bradley-Terry).

    state = learner.init(params)                       # plain decoder weights on the mesh, and a new head
    scores = learner.score(state, batch)               # [R, N]: of each reply
    scores, grads, metrics = learner.read(state, batch, weight)   # the same, and the gradient of the pairs that count
    state = learner.apply(state, grads)

A row holds what replies share (the summary of a person and the question) once, then the replies: neighbours are a pair,
the chosen one first. A reply ends with a token that nobody reads; its score is the head's value of the state before it,
the last one that has read the whole reply. So a reward model is a critic that is asked once a reply.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.data.packing import Branch, Group, lay_out, pack_groups
from pal_jax.learners import ppo as passes
from pal_jax.learners.training import (
    Lora,
    TrainState,
    accumulate,
    apply,
    floats,
    join,
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
from pal_jax.objectives.preference import logistic
from pal_jax.runtime import sharding
from pal_jax.types import Metrics, TokenBatch


class RewardState(struct.PyTreeNode):
    """`model.params` is what trains: `decoder`, without its embedding or its adapters alone, and `head`."""

    model: TrainState
    skipped: Int[Array, '']  # the last so many updates were not finite, so they were not made


class RewardLearner:
    """Functions over `RewardState`; the object holds only what is static. Embeddings are frozen: few of their rows are
    in a batch, and the moments of all would be a third of the memory of a small model.

    Raises:
      ValueError: a dimension that does not divide over the mesh.
    """

    def __init__(
        self, cfg: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, *, micro_rows: int = 4,
        adapters: Lora | None = None, seed: int = 0,
    ):  # fmt: skip
        self.cfg, self.optimizer, self.mesh, self.micro_rows = cfg, optimizer, mesh, micro_rows
        self.adapters, self.seed = adapters, seed
        decoder.saved(cfg.remat)
        specs = model_params.decoder_specs(cfg)
        self.param_shardings = sharding.param_shardings(specs, mesh)
        shapes = jax.eval_shape(self._new_state, model_params.abstract(specs))
        self.abstract: RewardState = placed(shapes, trained_specs(specs, adapters), mesh)
        self.init = jax.jit(self._new_state, out_shardings=jax.tree.map(lambda x: x.sharding, self.abstract))

    def _new_state(self, params: Params) -> RewardState:
        """A head drawn from N(0, 1 / (D + 1)), as its authors' code has it (rlpa_plus III.3)."""
        if self.adapters:
            key = jax.random.key(self.seed)
            trainable, frozen = lora.split(lora.attach(params, key=key, **self.adapters.shape))
        else:
            frozen = {name: params[name] for name in ('embed', 'unembed') if name in params}
            trainable = {name: x for name, x in params.items() if name not in frozen}
        width = self.cfg.width
        head = jax.random.normal(jax.random.key(self.seed + 1), (width,)) / (width + 1)
        trained = {'decoder': trainable, 'head': head}
        return RewardState(TrainState(trained, frozen, self.optimizer.init(trained)), jnp.zeros((), jnp.int32))

    def score(self, state: RewardState, batch: TokenBatch) -> Float[Array, 'R N']:
        """The score of each reply."""
        parts = micro_batches(batch, self.mesh, self.micro_rows)
        return jnp.concatenate([self._scores(state.model, micro) for micro in parts])

    def read(
        self, state: RewardState, batch: TokenBatch, weight: Float[Array, 'R P']
    ) -> tuple[Float[Array, 'R N'], Params, Metrics]:
        """Scores of all replies, the gradient of `sum(weight * -log sigmoid(gap))` over the pairs, and its figures, in
        one pass: what is scored is the model as it is, before that gradient is applied."""
        grads, scores, total = zeros(state.model.params), [], jnp.zeros(())
        for micro, micro_weight in micro_batches((batch, weight), self.mesh, self.micro_rows):
            (loss, part), grads = self._gradients(grads, state.model, micro, micro_weight)
            total += loss
            scores.append(part)
        scores = jnp.concatenate(scores)
        counts = weight > 0
        right = jnp.sum((gaps(scores) > 0) & counts) / jnp.maximum(jnp.sum(counts), 1)
        return scores, grads, floats({'reward_loss': total, 'reward_accuracy': right})

    def apply(self, state: RewardState, grads: Params) -> tuple[RewardState, Metrics]:
        model, norm = apply(self.optimizer, state.model, grads)
        return RewardState(model, skipped(state.skipped, norm)), floats({'reward_grad_norm': norm})

    @functools.partial(jax.jit, static_argnums=0)
    def _scores(self, model: TrainState, batch: TokenBatch) -> Array:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return scores(model.params, model.frozen, self.cfg, batch)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _gradients(self, grads: Params, model: TrainState, batch: TokenBatch, weight: Array):
        def loss(trained: Params) -> tuple[Array, Array]:
            found = scores(trained, model.frozen, self.cfg, batch)
            return jnp.sum(weight * logistic(gaps(found))), found

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return accumulate(loss, model.params, grads)


def scores(trained: Params, frozen: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R N']:
    """The head's value of the state that has read a whole reply."""
    return passes.values({'decoder': whole(trained['decoder'], frozen), 'head': trained['head']}, cfg, batch)[..., 0]


def whole(trainable: Params, frozen: Params) -> Params:
    """All parameters of the decoder."""
    return join(trainable, frozen) if 'layers' in frozen else {**frozen, **trainable}


def gaps(scores: Float[Array, 'R N']) -> Float[Array, 'R P']:
    """How much better the chosen reply of each pair is."""
    return scores[:, 0::2] - scores[:, 1::2]


def pack_pairs(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[Sequence[int]]], *, n: int, ways: int = 1,
    micro_rows: int = 1,
) -> tuple[TokenBatch, list[int]]:  # fmt: skip
    """Rows of a prompt and its `n` replies (or as many as it has), and the row of each prompt."""
    groups = [
        Group(prompt, [Branch([*reply, reply[-1]], acted=len(reply)) for reply in each])
        for prompt, each in zip(prompts, replies, strict=True)
    ]
    layout = lay_out([group.length for group in groups], ways=ways, micro_rows=micro_rows)
    rows = {i: r for r, row in enumerate(layout.rows) for i in row}
    return pack_groups(groups, layout, n=n, actions=1), [rows[i] for i in range(len(groups))]
