"""VPL as a method of the bench: a person is a latent vector that one pass of an encoder reads from known choices
(Poddar et al. 2024, arXiv 2408.10075, section 4; `learners/latent.py`), and nothing is fitted to a new person.

Each update reads a random part of the choices of some people, and learns from their other choices. Of a person who made
many choices, an update draws some.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from pal_jax.learners import latent
from pal_jax.learners.latent import Latent
from pal_jax.models.params import Params
from pal_jax.recipes.personal.interface import Choices, Fitted, by_person

SIZES = Latent(dim=16, hidden=64, kl_coef=1e-3)
PEOPLE, UPDATES, RATE = 64, 600, 1e-3  # people of an update, updates, Adam's rate
OF_ONE = 32  # the most choices of a person in an update, so that its cost does not grow with them


class Reader(NamedTuple):
    """The weights, the scale of the items, and the seen people's choices, from which their vectors are read."""

    params: Params
    scale: np.ndarray  # [H]
    seen: Choices


class Rows(NamedTuple):
    """People's choices as rows: both sides, the chosen one first, and the choices that exist."""

    sides: Float[Array, 'P T 2 H']
    exists: Bool[Array, 'P T']


def fit(train: Choices, seed: int, *, decay: float = 0.0) -> Fitted:
    """Train encoder and reward on the seen people's choices; `decay` is AdamW's."""
    scale = np.maximum(np.sqrt(np.mean(train.difference[train.weight > 0] ** 2, axis=0)), 1e-6)
    # Items in units of their differences: raw states of a decoder have a few large coordinates.
    rows, key = to_rows(train, scale), jax.random.key(seed)
    params = latent.init(key, len(scale), SIZES)
    params = _trained(params, rows, jax.random.fold_in(key, 1), decay)
    shared = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Fitted(Reader(params, scale, train), shared, SIZES.dim)


def margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
    """The margins by the mean of each person's vector; a person without known choices has that of the prior, 0."""
    reader: Any = fitted.params
    z = _vectors(reader.params, to_rows(reader.seen if known is None else known, reader.scale))
    chosen, rejected = (side / reader.scale for side in (asked.chosen, asked.rejected))
    return np.asarray(_gaps(reader.params, jnp.stack([chosen, rejected], axis=1), z[asked.users]))


def to_rows(choices: Choices, scale: np.ndarray) -> Rows:
    """The choices that count, by person; the length of rows is a power of two, so that programs stay few."""
    index, exists = by_person(choices)
    wide = 1 << max(index.shape[1] - 1, 0).bit_length()
    index, exists = (np.pad(x, [(0, 0), (0, wide - x.shape[1])]) for x in (index, exists))
    sides = np.stack([choices.chosen[index], choices.rejected[index]], axis=2) / scale
    return Rows(jnp.asarray(sides, jnp.float32), jnp.asarray(exists))


@jax.jit
def _vectors(params: Params, rows: Rows) -> Float[Array, 'P Z']:
    mean, _ = latent.encode(params, rows.sides, rows.exists)
    return jnp.where(rows.exists.any(axis=1, keepdims=True), mean, 0.0)


@jax.jit
def _gaps(params: Params, sides: Float[Array, 'B 2 H'], z: Float[Array, 'B Z']) -> Float[Array, ' B']:
    scores = latent.score(params, sides, z)
    return scores[:, 0] - scores[:, 1]


def loss(params: Params, sides: Array, read: Array, asked: Array, key: Array) -> Float[Array, '']:
    """The negative lower bound of the evidence: `read` and `asked` `[B, T]` are masks of a person's choices."""
    # 1. The distribution of each person's vector from the choices that are read.
    mean, log_std = latent.encode(params, sides, read)
    scores = latent.score(params, sides, latent.draw(key, mean, log_std))
    # 2. The fit of the other choices, and the divergence from the prior.
    losses = jax.nn.softplus(scores[..., 1] - scores[..., 0])
    fit = jnp.sum(losses * asked) / jnp.maximum(asked.sum(), 1)
    return fit + SIZES.kl_coef * latent.divergence(mean, log_std).mean()


@functools.partial(jax.jit, static_argnums=3)
def _trained(params: Params, rows: Rows, key: Array, decay: float) -> Params:
    optimizer = optax.adamw(RATE, weight_decay=decay)
    counts = rows.exists.sum(axis=1)

    def update(carry: tuple[Params, optax.OptState], key: Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, moments = carry
        of_people, of_order, of_count, of_loss = jax.random.split(key, 4)
        # People without choices are drawn never: there is nothing to learn from them.
        people = jax.random.categorical(of_people, jnp.where(counts > 0, 0.0, -jnp.inf), shape=(PEOPLE,))
        # Choices stand in random order, those that do not exist last. From none to all but one of them are read.
        drawn = jnp.where(rows.exists[people], jax.random.uniform(of_order, (PEOPLE, rows.exists.shape[1])), 2.0)
        order = jnp.argsort(drawn)[:, :OF_ONE]
        count, place = jnp.minimum(counts[people], OF_ONE)[:, None], jnp.arange(order.shape[1])[None]
        first = jnp.floor(jax.random.uniform(of_count, (PEOPLE, 1)) * count)
        read, asked = place < first, (place >= first) & (place < count)
        grads = jax.grad(loss)(params, rows.sides[people[:, None], order], read, asked, of_loss)
        moved, moments = optimizer.update(grads, moments, params)
        stepped: Any = optax.apply_updates(params, moved)
        return (stepped, moments), None

    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, UPDATES))
    return params
