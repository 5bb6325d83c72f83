"""Networks that read a person's known choices in one pass, and predict others: GPO, VPL and people as distributions.

    fitted = fit(learner, train, rows, start, keys)       # nothing of a person is fitted
    m = margins(fitted, known, asked)                     # as `interface.Margins`

What they differ in is a `ChoiceLearner`; draws of an update follow from its key alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from pal_jax.data.comparisons import PairBatch
from pal_jax.learners.latent import LatentState
from pal_jax.models.params import Params
from pal_jax.recipes.personal.interface import Fitted, by_person, counted

PROGRAM = 50  # updates of one compiled program, at most
ROWS = 32  # numbers of choices of a person are rounded up to these, so that few programs are compiled

Rows = tuple[np.ndarray, np.ndarray]  # numbers of each person's choices `[people, T]`, and which of them exist


class ChoiceLearner(Protocol):
    """A network that reads choices, its loss, and its optimiser. It is static under jit.

    Attributes:
      person: the number of parameters of a person.
      most: the most known choices that are read of a person; None: all.
    """

    @property
    def optimizer(self) -> optax.GradientTransformation: ...

    @property
    def person(self) -> int: ...

    @property
    def most(self) -> int | None: ...

    def weights(self, key: Array) -> Params:
        """The weights before the first update."""
        ...

    def inputs(self, choices: PairBatch, scale: np.ndarray) -> np.ndarray:
        """The network's inputs by choice, `[B, ...]`, with items in units of `scale` `[H]`."""
        ...

    def loss(
        self, params: Params, key: Array, x: Float[Array, 'n *S'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of a drawn meta-batch of people, of whose choices `index` has the places in `x`, with metrics."""
        ...

    def margins(
        self, params: Params, known: Float[Array, 'U N *S'], exists: Bool[Array, 'U N'], asked: Float[Array, 'U M *S']
    ) -> Float[Array, 'U M']:
        """The margins of questions given known choices."""
        ...


class ChoiceReader(NamedTuple):
    """A fitted network that reads choices, the scale of its inputs, and seen people's choices."""

    learner: ChoiceLearner
    params: Params
    scale: np.ndarray
    seen: PairBatch


def fit(learner: ChoiceLearner, train: PairBatch, rows: Rows, start: Array, keys: Sequence[Any] | Array) -> Fitted:
    """Train a network on the seen people's choices, of which `rows` has those of the people who are drawn.

    Args:
      start: the key of the first weights; keys: those of the updates.
    """
    # Items in units of their differences: raw states of a decoder have a few large coordinates.
    scale = np.sqrt(np.maximum(np.mean(np.square(counted(train)[0]), axis=0), 1e-12)).astype(np.float32)
    state, x = begin(learner, start), learner.inputs(train, scale)
    for first in range(0, len(keys), PROGRAM):
        state, _ = update(learner, state, x, *rows, keys[first : first + PROGRAM])
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Fitted(ChoiceReader(learner, state.params, scale, train), size, learner.person)


def margins(fitted: Fitted, known: PairBatch | None, asked: PairBatch) -> np.ndarray:
    """The margins given the known choices of each person; those of seen people are their training choices."""
    learner, params, scale, seen = fitted.params
    read: PairBatch = seen if known is None else known
    index, exists = wide(*(rows[:, : learner.most] for rows in by_person(read)))
    places, there = wide(*by_person(asked))
    context, questions = (learner.inputs(*side) for side in ((read, scale), (asked, scale)))
    rows = np.asarray(learner.margins(params, context[index], exists, questions[places]))
    values = np.zeros(len(asked.users), np.float32)
    # Rows of people become one column again, in the order of the questions.
    values[places[there]] = rows[there]
    return values


def begin(learner: ChoiceLearner, key: Array) -> LatentState:
    """The state before the first update."""
    params = learner.weights(key)
    return LatentState(params, learner.optimizer.init(params))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def update(
    learner: ChoiceLearner,
    state: LatentState,
    x: Float[Array, 'n *S'],
    index: Int[Array, 'U T'],
    exists: Bool[Array, 'U T'],
    keys: Array,
) -> tuple[LatentState, dict[str, Array]]:
    """An update for each key; metrics are means over the updates."""

    def one(state: LatentState, key: Array) -> tuple[LatentState, dict[str, Array]]:
        grads, metrics = jax.grad(learner.loss, has_aux=True)(state.params, key, x, index, exists)
        moved, opt_state = learner.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, moved)
        return LatentState(params, opt_state), metrics

    state, metrics = jax.lax.scan(one, state, keys)
    return state, jax.tree.map(jnp.mean, metrics)


def numbered_keys(seed: int, updates: int) -> tuple[Array, Array]:
    """The key of the first weights and those of the updates, which follow from the seed and their numbers."""
    key, start = jax.random.split(jax.random.key(seed))
    return start, jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(updates))


def rows_with_choices(train: PairBatch) -> Rows:
    """The rows of the people who have choices: only they are drawn."""
    index, exists = by_person(train)
    there = exists.any(axis=1)
    return wide(index[there], exists[there])


def wide(index: np.ndarray, exists: np.ndarray) -> Rows:
    """Rows of choices by person, filled up to a multiple of `ROWS`."""
    # With few lengths of rows few programs are compiled. People without any choice still need a row.
    short = -index.shape[1] % ROWS or ROWS * (not index.shape[1])
    return tuple(np.pad(rows, ((0, 0), (0, short))) for rows in (index, exists))  # type: ignore[return-value]


def draw_choices(
    key: Array, index: Int[Array, 'U T'], exists: Bool[Array, 'U T'], people: int, context: int, targets: int
) -> tuple[Int[Array, 'B N'], Bool[Array, 'B N'], Int[Array, 'B M'], Bool[Array, 'B M']]:
    """A meta-batch: the numbers of known choices and which of these exist, the same of questions."""
    who, order, number = jax.random.split(key, 3)
    # 1. People, each with as good a chance, and a random order of their choices.
    drawn = jax.random.randint(who, (people,), 0, index.shape[0])
    counts = jnp.sum(exists[drawn], axis=1)
    ranks = jnp.where(exists[drawn], jax.random.uniform(order, (people, index.shape[1])), 2.0)
    shuffled = jnp.take_along_axis(index[drawn], jnp.argsort(ranks, axis=1), axis=1)
    # 2. From none to `context` of them are known; at least one is asked.
    most = jnp.clip(counts - 1, 0, context)
    known = jnp.floor(jax.random.uniform(number, most.shape) * (most + 1)).astype(jnp.int32)
    # Questions are the choices behind the known ones in the random order.
    places = known[:, None] + jnp.arange(targets)[None]
    asked = jnp.take_along_axis(shuffled, jnp.minimum(places, index.shape[1] - 1), axis=1)
    shown = shuffled[:, :context]
    return shown, jnp.arange(shown.shape[1])[None] < known[:, None], asked, places < counts[:, None]
