"""A reward model: a decoder with a linear head that scores replies, trained on pairs of them (Bradley-Terry).

    state = learner.init(params)                        # plain decoder weights on the mesh, and a new head
    gaps = learner.gaps(state, pairs)                   # how much better the chosen reply of each pair is
    gaps, grads, metrics = learner.read(state, pairs)   # the same, and the gradient of the loss
    state, metrics = learner.apply(state, grads)

A row holds what replies share (the summary of a person and the question) once, then the replies: neighbours are a pair,
the chosen one first. A reply ends with a token that nobody reads; its score is the head's value of the state before it,
the last one that has read the whole reply. So a reward model is a critic that is asked once a reply.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.data.packing import Example, lay_out, pack_groups, shared_prompt
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


class Pairs(NamedTuple):
    """Replies in rows, what each of their pairs counts in the loss, and the row of each text."""

    batch: TokenBatch
    weight: Float[Array, 'R P']
    rows: list[int]


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

    @property
    def abstract_weights(self) -> RewardState:
        """What `gaps` reads of `abstract`; the rest is `...`, which a checkpoint's reader leaves out."""
        nothing: RewardState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(model=self.abstract.model.replace(opt_state=nothing.model.opt_state))

    def gaps(self, state: RewardState, pairs: Pairs) -> np.ndarray:
        """How much better the chosen reply of each pair is: an array [texts, pairs of a text]."""
        parts = micro_batches(pairs.batch, self.mesh, self.micro_rows)
        model = state.model
        found = jnp.concatenate([self._gaps(model.params, model.frozen, micro) for micro in parts])
        return np.asarray(found)[pairs.rows]

    def read(self, state: RewardState, pairs: Pairs) -> tuple[np.ndarray, Params, Metrics]:
        """The gaps of all pairs, the gradient of the loss of each text's last pair, and its figures, in one pass: the
        gaps are of the model as it is, before that gradient is applied."""
        grads, parts, total = zeros(state.model.params), [], jnp.zeros(())
        for micro, weight in micro_batches((pairs.batch, pairs.weight), self.mesh, self.micro_rows):
            (loss, found), grads = self._gradients(grads, state.model, micro, weight)
            total += loss
            parts.append(found)
        gaps = np.asarray(jnp.concatenate(parts))[pairs.rows]
        figures = {'reward_loss': float(total), 'reward_accuracy': float(np.mean(gaps[:, -1] > 0))}
        return gaps, grads, figures

    def apply(self, state: RewardState, grads: Params) -> tuple[RewardState, Metrics]:
        model, norm = apply(self.optimizer, state.model, grads)
        return RewardState(model, skipped(state.skipped, norm)), floats({'reward_grad_norm': norm})

    @functools.partial(jax.jit, static_argnums=0)
    def _gaps(self, trained: Params, frozen: Params, batch: TokenBatch) -> Array:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self._everywhere(gaps(trained, frozen, self.cfg, batch))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _gradients(self, grads: Params, model: TrainState, batch: TokenBatch, weight: Array):
        def loss(trained: Params) -> tuple[Array, Array]:
            found = gaps(trained, model.frozen, self.cfg, batch)
            return jnp.sum(weight * logistic(found)), self._everywhere(found)

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return accumulate(loss, model.params, grads)

    def _everywhere(self, x: Array) -> Array:
        """On every device, so that every process can read it."""
        return jax.lax.with_sharding_constraint(x, sharding.replicated(self.mesh))


def scores(trained: Params, frozen: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R N']:
    """The head's value of the state that has read a whole reply."""
    return passes.values({'decoder': whole(trained['decoder'], frozen), 'head': trained['head']}, cfg, batch)[..., 0]


def gaps(trained: Params, frozen: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R P']:
    found = scores(trained, frozen, cfg, batch)
    return found[:, 0::2] - found[:, 1::2]


def whole(trainable: Params, frozen: Params) -> Params:
    """All parameters of the decoder."""
    return join(trainable, frozen) if 'layers' in frozen else {**frozen, **trainable}


def to_score(prompt: Sequence[int], reply: Sequence[int]) -> Example:
    """A reply to be scored: the one action of it is a token that nobody reads, after its last."""
    return Example(prompt, [*reply, reply[-1]], [*[False] * len(reply), True])


def pack_pairs(texts: Sequence[Sequence[Example]], mesh: Mesh, *, ways: int, micro_rows: int) -> Pairs:
    """A row for the replies of each text, chosen and rejected in turn; the last pair of each is learnt from."""
    groups = [shared_prompt(replies) for replies in texts]
    layout = lay_out([group.length for group in groups], ways=ways, micro_rows=micro_rows)
    packed = pack_groups(groups, layout, n=max(map(len, texts)), actions=1)
    where = {i: r for r, row in enumerate(layout.rows) for i in row}
    rows = [where[i] for i in range(len(groups))]
    weight = np.zeros((packed.acts.shape[0], packed.acts.shape[1] // 2), np.float32)
    weight[rows, -1] = 1.0 / len(rows)
    batch, weight = sharding.put_batch((packed, weight), mesh)
    return Pairs(batch, weight, rows)
