"""A decoder that makes vectors of texts, and learns from the gradient of a loss by these vectors.

    vectors = reader.read(decoder, frozen, texts)                          # [texts, width]
    decoder, metrics = reader.learn(decoder, frozen, texts, gradient)      # of the loss, by these vectors

A loss of pairs needs vectors from all over a batch before any gradient can be made. So texts are read first, each text
once however many pairs it is in. The loss gives a gradient by each vector, and the texts are read again to hand that
gradient on to the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.data import texts as data
from pal_jax.data.texts import Pool, Text
from pal_jax.learners.forward import hidden_states
from pal_jax.learners.scorer import decoder_params
from pal_jax.learners.training import (
    Lora,
    TrainState,
    accumulate,
    apply,
    divided,
    floats,
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
from pal_jax.models.states import Frame
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Metrics, TokenBatch


class ReaderState(struct.PyTreeNode):
    """The trainable part of a decoder with its optimiser's state; `model.frozen` is empty, see `Reader.divide`."""

    model: TrainState
    skipped: Int[Array, '']  # updates in a row, up to the last, that were left out since their gradient was not finite


@dataclasses.dataclass(frozen=True)
class Batching:
    """The shape of a device's micro-batches of texts.

    Attributes:
      micro_rows: the number of rows in a device's memory at once.
      row_tokens: the length of a row in tokens; texts share rows.
      together: the number of texts with one beginning that share a row (0: all); a row costs the square of its length.
    """

    micro_rows: int = 8
    row_tokens: int = 256
    together: int = 0


class Reader:
    """Functions over `ReaderState`; the object holds only what is static.

    Args:
      cfg: the decoder's shape, cut to the layers that are used.
      frame: fixed coordinates in which vectors are given; None: the states as they are.
    Raises:
      ValueError: a dimension does not divide over the mesh, or adapters have dropout.
    """

    def __init__(
        self, cfg: ModelConfig, optimizer: Optimizer | optax.GradientTransformation, mesh: Mesh, *, pool: Pool = 'last',
        frame: Frame | None = None, adapters: Lora | None = None, batching: Batching | None = None,
    ):  # fmt: skip
        self.cfg, self.optimizer, self.mesh, self.adapters = cfg, optimizer, mesh, adapters
        self.pool: Pool = pool
        self.frame, self.batching = frame, batching or Batching()
        decoder.saved(cfg.remat)
        if adapters and adapters.dropout:
            raise ValueError(f'lora.dropout={adapters.dropout}: texts are read twice a step, alike; set it to 0')
        specs = model_params.decoder_specs(cfg)
        self.param_shardings = sharding.param_shardings(specs, mesh)
        shapes = jax.eval_shape(self._new, model_params.abstract(specs), jax.ShapeDtypeStruct((), jnp.int32))
        abstract: tuple[Params, ReaderState] = placed(shapes, trained_specs(specs, adapters), mesh)
        self.frozen, self.abstract = abstract
        places = jax.tree.map(lambda x: x.sharding, abstract)
        # Frozen parameters (the whole base under adapters, else the embedding) come apart from those that train: many
        # readers share the former.
        self.divide = jax.jit(self._new, out_shardings=places)

    def _new(self, params: Params, seed: Int[Array, '']) -> tuple[Params, ReaderState]:
        """The frozen and the trainable parameters of a decoder, with adapters drawn by `seed`."""
        trained, frozen = divided(params, self.adapters, seed)
        return frozen, ReaderState(TrainState(trained, {}, self.optimizer.init(trained)), jnp.zeros((), jnp.int32))

    def read(self, reading: ReaderState, frozen: Params, texts: Sequence[Text]) -> np.ndarray:
        """The vector of each text."""
        packed = self._packed(texts)
        batch = sharding.put_batch(packed.batch, self.mesh)
        # The memory needed is that of a micro-batch.
        parts = micro_batches(batch, self.mesh, self.batching.micro_rows)
        vectors = [np.asarray(self._read(reading.model.params, frozen, micro)) for micro in parts]
        return np.concatenate(vectors)[packed.rows, packed.places]

    def learn(
        self, reading: ReaderState, frozen: Params, texts: Sequence[Text], gradient: Float[np.ndarray, 'S W']
    ) -> tuple[ReaderState, Metrics]:
        """One step of the optimiser down a loss whose gradient by the vectors of these texts is passed.

        Without texts there is no step, and no figures.
        """
        if not texts:
            return reading, {}
        packed = self._packed(texts)
        # The gradient of each vector stands at the place of its text, so that micro-batches cut both alike.
        by_place = np.zeros((*packed.batch.acts.shape[:2], gradient.shape[1]), np.float32)
        by_place[packed.rows, packed.places] = gradient
        both, grads = sharding.put_batch((packed.batch, by_place), self.mesh), zeros(reading.model.params)
        # Every text is read again: activations of the first reading were not kept.
        for micro in micro_batches(both, self.mesh, self.batching.micro_rows):
            grads = self._gradients(grads, reading.model.params, frozen, *micro)
        model, norm = apply(self.optimizer, reading.model, grads)
        return ReaderState(model, skipped(reading.skipped, norm)), floats({'decoder_grad_norm': norm})

    def weights(self, reading: ReaderState, frozen: Params) -> Params:
        """Plain decoder weights that compute the same as the state's."""
        return lora.merge(decoder_params(reading.model.params, frozen))

    def _packed(self, texts: Sequence[Text]) -> data.PackedTexts:
        shape = dataclasses.asdict(self.batching)
        return data.pack(texts, self.pool, ways=sharding.batch_ways(self.mesh), **shape)

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, trained: Params, frozen: Params, batch: TokenBatch) -> Float[Array, 'R N W']:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            vectors = self.vectors(trained, frozen, batch)
            return jax.lax.with_sharding_constraint(vectors, sharding.replicated(self.mesh))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _gradients(self, grads: Params, trained: Params, frozen: Params, batch: TokenBatch, by_place: Array) -> Params:
        def loss(trained: Params) -> tuple[Array, Any]:
            # The derivative of this sum by the weights is the chain rule: `by_place` is d loss / d vector.
            return jnp.sum(by_place * self.vectors(trained, frozen, batch)), None

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return accumulate(loss, trained, grads)[1]

    def vectors(self, trained: Params, frozen: Params, batch: TokenBatch) -> Float[Array, 'R N W']:
        """The vector of each text, the mean of its states that count, in the frame's coordinates; 0 where no text
        is."""
        states = hidden_states(decoder_params(trained, frozen), self.cfg, batch)
        shape = batch.acts.shape
        # The states of a text are picked out of its row, which other texts may share.
        columns = batch.states.reshape(shape[0], -1)[..., None]
        at = jnp.take_along_axis(states, columns, axis=1).reshape(*shape, -1).astype(jnp.float32)
        counts = batch.acts.astype(jnp.float32)
        number = jnp.sum(counts, axis=-1, keepdims=True)
        mean = jnp.einsum('rna,rnad->rnd', counts, at) / jnp.maximum(number, 1.0)
        if self.frame is None:
            return mean
        origin, basis = (jnp.asarray(array, jnp.float32) for array in self.frame)
        # A place without a text would have the negative origin for a vector.
        return (number > 0) * ((mean - origin[None, None]) @ basis)


def frozen_reader(
    cfg: ModelConfig, weights: Params, mesh: Mesh, pool: Pool, *, frame: Frame | None = None, batching: Batching
) -> Callable[[Sequence[Text]], np.ndarray]:
    """A function that gives the vectors of texts by a decoder of these weights."""
    # Nothing is updated, so the optimiser keeps no moments.
    reader = Reader(cfg, optax.identity(), mesh, pool=pool, frame=frame, batching=batching)
    frozen, reading = reader.divide(weights, 0)
    return lambda texts: reader.read(reading, frozen, texts)
