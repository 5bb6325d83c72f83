"""VPL as a method of the bench: a person is a latent vector that one pass of an encoder reads from known choices
(Poddar et al. 2024, arXiv 2408.10075, section 4; `learners/latent.py`), and nothing is fitted to a new person.

Each update reads a random part of the choices of some people, and learns from their other choices. Of a person who made
many choices, an update draws some.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from pal_jax.data.comparisons import PairBatch
from pal_jax.learners import latent
from pal_jax.learners.latent import Latent
from pal_jax.models.params import Params
from pal_jax.recipes.personal.bench import reading
from pal_jax.recipes.personal.interface import Fitted, by_person

SIZES = Latent(dim=16, hidden=64, kl_coef=1e-3)
PEOPLE, UPDATES, RATE = 64, 600, 1e-3  # people of an update, updates, Adam's rate
OF_ONE = 32  # the most choices of a person in an update, so that its cost does not grow with them


@dataclasses.dataclass(frozen=True)
class LatentLearner:
    """VPL's network of `learners/latent.py`; `decay` is AdamW's. A choice is both its sides, the chosen one first."""

    width: int
    decay: float = 0.0
    person: int = SIZES.dim
    most: None = None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adamw(RATE, weight_decay=self.decay)

    def weights(self, key: Array) -> Params:
        return latent.init(key, self.width, SIZES)

    def inputs(self, choices: PairBatch, scale: np.ndarray) -> np.ndarray:
        return np.stack([choices.chosen, choices.rejected], axis=1) / scale

    def loss(
        self, params: Params, key: Array, x: Float[Array, 'n 2 H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, dict[str, Array]]:
        """The negative lower bound of the evidence of a drawn meta-batch."""
        of_people, of_order, of_count, of_loss = jax.random.split(key, 4)
        counts = exists.sum(axis=1)
        # People without choices are drawn never: there is nothing to learn from them.
        people = jax.random.categorical(of_people, jnp.where(counts > 0, 0.0, -jnp.inf), shape=(PEOPLE,))
        # PairBatch stand in random order, those that do not exist last. From none to all but one of them are read.
        drawn = jnp.where(exists[people], jax.random.uniform(of_order, (PEOPLE, exists.shape[1])), 2.0)
        order = jnp.argsort(drawn)[:, :OF_ONE]
        count, place = jnp.minimum(counts[people], OF_ONE)[:, None], jnp.arange(order.shape[1])[None]
        first = jnp.floor(jax.random.uniform(of_count, (PEOPLE, 1)) * count)
        read, asked = place < first, (place >= first) & (place < count)
        sides = x[index[people[:, None], order]]
        # 1. The distribution of each person's vector from the choices that are read.
        mean, log_std = latent.encode(params, sides, read)
        scores = latent.score(params, sides, latent.draw(of_loss, mean, log_std))
        # 2. The fit of the other choices, and the divergence from the prior.
        losses = jax.nn.softplus(scores[..., 1] - scores[..., 0])
        fit = jnp.sum(losses * asked) / jnp.maximum(asked.sum(), 1)
        total = fit + SIZES.kl_coef * latent.divergence(mean, log_std).mean()
        return total, {'loss': total}

    @functools.partial(jax.jit, static_argnums=0)
    def margins(
        self, params: Params, known: Float[Array, 'U N 2 H'], exists: Bool[Array, 'U N'], asked: Float[Array, 'U M 2 H']
    ) -> Float[Array, 'U M']:
        """The margins by the mean of each person's vector; a person without known choices has that of the prior, 0."""
        mean, _ = latent.encode(params, known, exists)
        z = jnp.where(exists.any(axis=1, keepdims=True), mean, 0.0)
        scores = latent.score(params, asked, z)
        return scores[..., 0] - scores[..., 1]


def fit(train: PairBatch, seed: int, *, decay: float = 0.0) -> Fitted:
    """Train encoder and reward on the seen people's choices; `decay` is AdamW's."""
    key, (index, exists) = jax.random.key(seed), by_person(train)
    # The length of rows is a power of two, so that programs stay few.
    short = (1 << max(index.shape[1] - 1, 0).bit_length()) - index.shape[1]
    index, exists = (np.pad(x, [(0, 0), (0, short)]) for x in (index, exists))
    learner = LatentLearner(train.chosen.shape[1], decay)
    return reading.fit(learner, train, (index, exists), key, jax.random.split(jax.random.fold_in(key, 1), UPDATES))
