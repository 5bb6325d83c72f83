"""LoRe, PReF, MRM, MaxMin-RLHF's groups, GPO and people as distributions as methods of the bench (`interface.py`).

The first four are options of PAL's learner on the margin `x . V w_u`; docs/methods/personal.md says which. All learn
from the chosen item less the other, and read no prompts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal.bench import groups_em, low_rank, reading
from pal_jax.recipes.personal.bench.in_context import InContextLearner
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer
from pal_jax.recipes.personal.bench.variational import VariationalLearner
from pal_jax.recipes.personal.ideal_point import PAL, Mixture
from pal_jax.recipes.personal.interface import Choices, Fitted, Method, counted
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.losses import Pull
from pal_jax.recipes.personal.meta import Meta
from pal_jax.recipes.personal.options import Bases, Loss, NewUsers, Rates
from pal_jax.run import devices

BATCH = 1024  # pairs of an update; all of them where there are no more
OF_ONE = 32  # the most pairs of a person in a batch of people
PROGRAM = 50  # updates of one compiled program, at most
BYTES = 128e6  # of the items of a program's batches, at most
Z_STD = 0.1  # of people's first logits


class LowRank(NamedTuple):
    """A fitted learner: parameters, the logits `[1, U, K]` of seen people, and the prior `[K]` of new ones."""

    learner: IdealPointLearner
    params: Any
    z: jax.Array
    prior: jax.Array


class Members(NamedTuple):
    """Fitted groups: the learner and parameters of their rewards, seen people's belonging, and the shares."""

    learner: IdealPointLearner
    params: Any
    belonging: np.ndarray
    shares: np.ndarray


# --- the methods ------------------------------------------------------------------------------------------------------


def fit_lore(
    train: Choices, seed: int, *, K: int = 4, pull: float = 2.0, temperature: float = 1.0, bases: float = 0.0,
    form: Pull = 'squared', toward: tuple[float, ...] = (), updates: int = 600, lr: float = 0.05,
) -> Fitted:  # fmt: skip
    """LoRe: K rewards that all share, and a person's point of the simplex; each person's mean loss counts alike.

    Args:
      pull: the precision of the prior on people's logits, of seen and of new ones.
      bases, form, toward: the pull of the rewards to a vector; with `cosine` it grows over the updates.
    """
    steps = updates if form == 'cosine' else 0
    loss = Loss(pull=pull, by='people', bases=Bases(bases, form, steps, toward))
    new = NewUsers(300, 0.05, pull, start='prior')
    learner = make_learner(width_of(train), train.people, K, 'softmax', temperature, loss, new, None, lr)
    state = train_learner(learner, learner.init(jnp.array([seed])), train, seed, updates)
    return low_rank_of(learner, state, train, K)


def fit_pref(
    train: Choices, seed: int, *, K: int = 3, ridge: float = 0.1, updates: int = 600, lr: float = 0.05
) -> Fitted:
    """PReF: K rewards that all share, and a person's weights without bounds.

    Where most pairs were judged by several people, rewards and weights start from a decomposition of the judgements.
    New people's weights are pulled to the mean of seen ones by the ridge.
    """
    new = NewUsers(pull=ridge, optimizer='newton', question='ellipsoid')
    learner = make_learner(width_of(train), train.people, K, 'linear', 1.0, Loss(pull=ridge), new, None, lr)
    state = learner.init(jnp.array([seed]))
    x, users = counted(train)
    if low_rank.can_start(x, users, train.people, K):
        P, z = low_rank.start(*low_rank.judgements(x, users, train.people), rank=K)
        state = low_rank.placed(learner, state, P, z)
    state = train_learner(learner, state, train, seed, updates)
    return low_rank_of(learner, state, train, K)


def fit_mrm(
    train: Choices, seed: int, *, K: int = 3, steps: int = 5, rate: float = 1.0, rho: float = 0.5, gamma: float = 0.5,
    updates: int = 600, lr: float = 0.05,
) -> Fitted:  # fmt: skip
    """MRM: K rewards and one start of all people's logits, from which a few steps of descent fit a person."""
    inner = Meta(steps, rate, rho=rho, gamma=gamma)
    new = NewUsers(steps, rate, 0.0, start='prior', optimizer='sgd', average='mean')
    learner = make_learner(width_of(train), train.people, K, 'softmax', 1.0, Loss(), new, inner, lr)
    state = train_learner(learner, learner.init(jnp.array([seed])), train, seed, updates, whole_people=True)
    start = state.params['z0'][0]
    # Seen people are fitted as new ones are, from all their training choices.
    z = fit_people(learner, state.params, start, train)
    return Fitted(LowRank(learner, state.params, z, start), K * width_of(train) + K, K)


def low_rank_margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
    """The margins of LoRe, PReF and MRM: of seen people, or of new ones who are fitted to their known choices."""
    learner, params, z, prior = fitted.params
    z = z if known is None else fit_people(learner, params, prior, known)
    return np.asarray(learner.margins(params, z, pairs_of(asked)))[0]


def low_rank_ask(fitted: Fitted, pool: Choices, questions: int) -> np.ndarray:
    """The rank at which each pair of new people is asked, by the learner's rule."""
    learner, params, _, prior = fitted.params
    everybody = jnp.broadcast_to(prior, (1, pool.people, prior.shape[0]))
    exists = jnp.asarray(pool.weight > 0)[None]
    return np.asarray(learner.ask(params, pairs_of(pool), exists, everybody, 0, questions=questions))[0]


def fit_maxmin(
    train: Choices, seed: int, *, groups: int = 2, rounds: int = 10, updates: int = 100, lr: float = 0.05
) -> Fitted:
    """MaxMin-RLHF's rewards: people in groups, each with a reward, by EM from a random start."""
    learner = make_learner(
        width_of(train), train.people, groups, 'softmax', 1.0, Loss(mix='losses', bases=Bases(1e-4)), NewUsers(), None,
        lr, 0.0,
    )  # fmt: skip
    # Equal groups would stay equal, so people start in groups at random.
    rng, draw = np.random.default_rng([seed, 6]), ChoiceBatches(train, seed)
    start = np.eye(groups)[rng.integers(0, groups, train.people)]
    belonging, state = groups_em.run(
        learner, learner.init(jnp.array([seed])), lambda i: draw.programs(updates, i * updates), pairs_of(train),
        train.weight, start, rounds=rounds,
    )  # fmt: skip
    there = np.bincount(train.users, train.weight, train.people) > 0
    shares = belonging[there].mean(axis=0)
    return Fitted(Members(learner, state.params, belonging, shares), groups * width_of(train) + groups, groups)


def maxmin_margins(fitted: Fitted, known: Choices | None, asked: Choices) -> np.ndarray:
    """The logit of the mean probability over groups, by the belonging of seen people or by new ones' known choices."""
    learner, params, belonging, shares = fitted.params
    # New people belong where their known choices are likely, and by the shares where there are none.
    if known is not None:
        by_group = np.asarray(learner.by_prototype(params, pairs_of(known)))[0]
        likelihood = groups_em.likelihoods(by_group, known.users, known.people, known.weight)
        belonging = groups_em.weights_of(likelihood, shares)
    margins = np.asarray(learner.by_prototype(params, pairs_of(asked)))[0]
    return groups_em.mixed_margin(margins.astype(np.float64), belonging[asked.users])


def fit_gpo(
    train: Choices, seed: int, *, width: int = 32, layers: int = 2, steps: int = 600, lr: float = 1e-3,
    decay: float = 0.1, people: int = 32, targets: int = 8,
) -> Fitted:  # fmt: skip
    """GPO: a transformer reads a person's choices and foretells others; nothing of a person is fitted."""
    net = SetTransformer(width_of(train) + 1, width=width, maps=2, layers=layers, heads=2, hidden=width)
    learner = InContextLearner(net, people=people, targets=targets, lr=lr, decay=decay, steps=steps)
    return reading.fit(learner, train, reading.rows_with_choices(train), *reading.numbered_keys(seed, steps))


def fit_variational(
    train: Choices, seed: int, *, bases: int = 4, tau: float = 1.0, updates: int = 600, lr: float = 3e-3
) -> Fitted:
    """People as distributions, and bases likewise: this project's own form of VRF, which is no run of VRF."""
    learner = VariationalLearner(width_of(train), bases=bases, tau=tau, lr=lr)
    return reading.fit(learner, train, reading.rows_with_choices(train), *reading.numbered_keys(seed, updates))


METHODS: dict[str, Method] = {
    'lore': Method(fit_lore, low_rank_margins, ({'K': 2}, {'K': 4}, {'K': 8}), low_rank_ask),
    'pref': Method(
        fit_pref, low_rank_margins, ({'K': 3}, {'K': 3, 'ridge': 1.0}, {'K': 5, 'ridge': 1.0}), low_rank_ask
    ),
    'mrm': Method(fit_mrm, low_rank_margins, ({'K': 3}, {'K': 6}, {'K': 3, 'steps': 10})),
    'maxmin': Method(fit_maxmin, maxmin_margins, ({'groups': 2}, {'groups': 3}, {'groups': 4})),
    'gpo': Method(fit_gpo, reading.margins, ({'steps': 200}, {'steps': 600})),
    'variational': Method(fit_variational, reading.margins, ({'bases': 4}, {'bases': 8}, {'bases': 4, 'tau': 0.3})),
}


# --- their parts ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)  # equal learners share compiled programs
def make_learner(
    width: int, people: int, K: int, mixture: Mixture, temperature: float, loss: Loss, new: NewUsers,
    inner: Meta | None, lr: float, users_lr: float | None = None,
) -> IdealPointLearner:  # fmt: skip
    """PAL's learner of the margin `x . V w_u` on one device."""
    pal = PAL(width, K, rule='dot', point='Pw', mixture=mixture, temperature=temperature, prototype_init='expected')
    rates = Rates(prototypes=lr, users=lr if users_lr is None else users_lr)
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    return IdealPointLearner(pal, loss, rates, mesh, users=max(people, K), z_std=Z_STD, new=new, inner=inner)


def train_learner(
    learner: IdealPointLearner, state: PALState, train: Choices, seed: int, updates: int, *, whole_people: bool = False
) -> PALState:
    """The state after so many updates, rounded up to whole programs."""
    for batches in ChoiceBatches(train, seed, whole_people).programs(updates):
        state, _ = learner.update(state, batches)
    return state


def low_rank_of(learner: IdealPointLearner, state: PALState, train: Choices, K: int) -> Fitted:
    """The fitted method; the prior of new people is the mean of the logits of people who were trained."""
    there = (state.users.updates[0] > 0).astype(jnp.float32)
    prior = there @ state.users.z[0] / jnp.maximum(there.sum(), 1.0)
    return Fitted(LowRank(learner, state.params, state.users.z, prior), K * width_of(train), K)


def fit_people(learner: IdealPointLearner, params: Any, prior: jax.Array, known: Choices) -> jax.Array:
    """The logits `[1, people, K]` of people by their known choices."""
    everybody = jnp.broadcast_to(prior, (1, known.people, prior.shape[0]))
    return learner.fit(params, pairs_of(known), jnp.asarray(known.weight)[None], everybody)


@dataclasses.dataclass(frozen=True)
class ChoiceBatches:
    """Batches of the choices that count.

    All choices stand in each batch where they are no more than `BATCH`. With `whole_people` a batch has people at
    random, with up to `OF_ONE` of each one's choices.
    """

    train: Choices
    seed: int
    whole_people: bool = False

    def programs(self, updates: int, first: int = 0) -> Iterator[PairBatch]:
        """Draw `updates` batches or more from number `first` on, some `[1, n, B]` at a time, as memory has room for."""
        pairs, of_one = pairs_of(self.train), min(BATCH, len(self.train.users)) * 8 * width_of(self.train)
        many = int(np.clip(BYTES // of_one, 1, min(PROGRAM, updates)))
        for start in range(first, first + updates, many):
            index = np.stack([self._one(np.random.default_rng([self.seed, 7, start + i])) for i in range(many)])
            yield jax.tree.map(lambda x, index=index: x[0][index][None], pairs)

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        there = np.flatnonzero(self.train.weight > 0)
        if not self.whole_people:
            return there if len(there) <= BATCH else rng.choice(there, BATCH, replace=False)
        # A random order of people, and of the choices of each; the first of a person's choices are kept.
        users = self.train.users[there]
        order = np.lexsort((rng.random(len(there)), rng.permutation(self.train.people)[users]))
        first = np.flatnonzero(np.diff(users[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        kept = np.minimum(np.bincount(users), OF_ONE).sum()
        return there[order[rank < OF_ONE][: min(BATCH, kept)]]


def width_of(choices: Choices) -> int:
    """The width of an item's vector."""
    return choices.chosen.shape[1]


def pairs_of(choices: Choices) -> PairBatch:
    """The choices as a batch `[1, B]`, with the share of each among those of its person that count."""
    counts = np.bincount(choices.users, choices.weight, choices.people)
    share = (1.0 / np.maximum(counts, 1.0))[choices.users].astype(np.float32)
    columns = choices.users.astype(np.int32), choices.chosen, choices.rejected, share
    return PairBatch(*(column[None] for column in columns))  # type: ignore[arg-type]
