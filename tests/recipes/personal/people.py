"""A population of rank 3 with 80 seen people and 40 new ones, and learners of its margins.

Everything is drawn from `default_rng(seed)`. A seen person has 40 pairs to learn from and 20 of the test; of a new one
up to 20 may be known, and 40 are tested. The rates and pulls are those that the expected figures were computed with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from pal_jax.data.comparisons import PairBatch, shares
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.logit import ChoiceSets, choice_sets
from pal_jax.recipes.personal.options import Loss, NewUsers, Rates
from pal_jax.run import devices

SEEN, NEW, WIDTH, KNOWN = 80, 40, 8, 20
ONE = devices.make_mesh(devices=jax.devices()[:1])
PULL = 1e-3 / SEEN / 2  # beside a mean over pairs, on |V|² and |z|²


class Population(NamedTuple):
    """Differences of items `[people, pairs, H]`, the chosen less the other, and the true margins."""

    seen: np.ndarray
    new: np.ndarray
    margins: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """The pairs of seen people to learn from."""
        return self.seen[:, :40]


def draw(seed: int) -> Population:
    """The population of a seed."""
    rng = np.random.default_rng(seed)
    V, W, D = rng.normal(size=(8, 3)), rng.dirichlet([0.3] * 3, 120), rng.normal(size=(120, 60, 8))
    m = 3 * np.einsum('upd,dk,uk->up', D, V, W) / np.sqrt(8)
    won = rng.random(m.shape) < 1 / (1 + np.exp(-m))
    x = np.where(won[..., None], D, -D).astype(np.float32)
    return Population(x[:SEEN], x[SEEN:], np.where(won, m, -m))


def pairs_of(x: np.ndarray) -> PairBatch:
    """The pairs of one replica, `[1, people * pairs]`, from differences by person."""
    people, count, width = x.shape
    users = np.repeat(np.arange(people, dtype=np.int32), count)[None]
    chosen = x.reshape(1, people * count, width)
    share = np.full(users.shape, 1 / count, np.float32)
    return PairBatch(users, chosen, np.zeros_like(chosen), share)  # type: ignore[arg-type]


def of_people(users: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, people: int) -> PairBatch:
    """Choices of people as methods of the bench read them."""
    users = users.astype(np.int32)
    return PairBatch(users, chosen, rejected, shares(users), people=people)  # type: ignore[arg-type]


def make_learner(K: int, mixture: Any = 'softmax', **changes: Any) -> IdealPointLearner:
    """A learner of `x . V w_u`; `new` and `inner` may be changed."""
    pal = PAL(WIDTH, K, rule='dot', point='Pw', mixture=mixture, prototype_init='expected')
    loss = Loss(pull=0.0 if 'inner' in changes else 2 * PULL * SEEN * 40, prototype_pull=PULL)
    new = NewUsers(300, 0.05, 0.1, start='prior')
    options = {'users': SEEN, 'z_std': 0.1, 'new': new, 'part': 0} | changes
    return IdealPointLearner(pal, loss, Rates(prototypes=0.05, users=0.05), ONE, **options)


def train(
    learner: IdealPointLearner, x: np.ndarray, seed: int = 0, updates: int = 600, state: PALState | None = None
) -> PALState:
    """The state after so many updates on all pairs at once."""
    state = learner.init(jnp.array([seed])) if state is None else state
    batches = jax.device_put(jax.tree.map(lambda a: np.broadcast_to(a[:, None], (1, 50, *a.shape[1:])), pairs_of(x)))
    for _ in range(updates // 50):
        state, _ = learner.update(state, batches)
    return state


def accuracy(learner: IdealPointLearner, state: PALState, z: Any, x: np.ndarray) -> float:
    """The share of pairs with a margin above 0."""
    return float((np.asarray(learner.margins(state.params, z, pairs_of(x))) > 0).mean())


def prior_of(state: PALState) -> jax.Array:
    """The mean of seen people's logits, for each of the new ones."""
    mean = state.users.z[:, :SEEN].mean(axis=1, keepdims=True)
    return jnp.broadcast_to(mean, (1, NEW, mean.shape[-1]))


def new_people(learner: IdealPointLearner, state: PALState, x: np.ndarray, known: int, prior: Any = None) -> jax.Array:
    """The logits of new people of whom the first `known` pairs are known."""
    weight = np.tile(np.arange(KNOWN) < known, NEW).astype(np.float32)[None]
    return learner.fit(state.params, pairs_of(x[:, :KNOWN]), weight, prior_of(state) if prior is None else prior)


def row(learner: IdealPointLearner, state: PALState, population: Population, counts=(0, 5, 20)) -> list[float]:
    """Accuracies on seen people's new pairs, and on new people's by the number of known ones."""
    seen = accuracy(learner, state, state.users.z, population.seen[:, 40:])
    new = [
        accuracy(learner, state, new_people(learner, state, population.new, n), population.new[:, KNOWN:])
        for n in counts
    ]
    return [seen, *new]


def choices_among(rng: np.random.Generator, taste: np.ndarray, options: ArrayLike, situations: int) -> ChoiceSets:
    """Choices of people of these tastes `[P, H]` in situations of `options` (a number, or one for each situation)."""
    person = np.repeat(np.arange(len(taste)), situations)
    counts = np.broadcast_to(options, len(person))
    items = rng.normal(size=(len(person), counts.max(), taste.shape[1]))
    utility = np.einsum('njh,nh->nj', items, taste[person]) + rng.gumbel(size=items.shape[:2])
    utility[np.arange(counts.max()) >= counts[:, None]] = -np.inf
    best = utility.argmax(axis=1)
    others = np.isfinite(utility) & (np.arange(counts.max()) != best[:, None])
    number = np.nonzero(others)[0]
    return choice_sets(items[number, best[number]], items[others], person[number], number)


def apart(difference: np.ndarray, users: np.ndarray) -> ChoiceSets:
    """Choices between two options, from differences chosen - rejected `[n, H]`."""
    return choice_sets(difference, np.zeros_like(difference), users)
