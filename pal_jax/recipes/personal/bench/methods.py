"""The methods of the bench by name: a line for each. `recipes/personal/interface.py` says what a method has to give.

LoRe, PReF, MRM and MaxMin-RLHF's groups are options of PAL's learner on the margin `x . V w_u`; see
docs/methods/personal.md. GPO, VPL and people as distributions read a person's choices (`reading.py`). All but VPL learn
from the chosen item less the other, and read no prompts. PAL, its baselines with a learner, and the shared model are no
lines here: they are the run that `configs/pal.py` describes, see `recipe.pal_rows`.
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
from pal_jax.recipes.personal import baselines
from pal_jax.recipes.personal.bench import low_rank, reading, vpl
from pal_jax.recipes.personal.bench.in_context import InContextLearner
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer
from pal_jax.recipes.personal.bench.variational import VariationalLearner
from pal_jax.recipes.personal.ideal_point import PAL, Mixture
from pal_jax.recipes.personal.interface import Fitted, Method, counted
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.meta import Meta
from pal_jax.recipes.personal.options import Loss, NewUsers, Rates
from pal_jax.recipes.personal.panel import for_everybody, population
from pal_jax.run import devices

BATCH = 1024  # pairs of an update; all of them where there are no more
OF_ONE = 32  # the most pairs of a person in a batch of people
PROGRAM = 50  # updates of one compiled program, at most
BYTES = 128e6  # of the items of a program's batches, at most
Z_STD = 0.1  # of people's first logits
LR = 0.05
CERTAIN = 20.0  # a logit beside which the other groups have no weight


class LowRank(NamedTuple):
    """A fitted learner: parameters, the logits `[1, U, K]` of seen people, and the prior `[1, K]` of new ones."""

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


# --- LoRe, PReF and MRM -----------------------------------------------------------------------------------------------


def fit_lore(train: PairBatch, seed: int, *, K: int = 4, updates: int = 600) -> Fitted:
    """LoRe: K rewards that all share, and a person's point of the simplex; each person's mean loss counts alike."""
    learner = make_learner(train, K, 'softmax', Loss(pull=2.0, by='people'), NewUsers(300, 0.05, 2.0, start='prior'))
    state = train_learner(learner, learner.init(jnp.array([seed])), train, seed, updates)
    return low_rank_of(learner, state, K)


def fit_pref(train: PairBatch, seed: int, *, K: int = 3, ridge: float = 0.1, updates: int = 600) -> Fitted:
    """PReF: K rewards that all share, and a person's weights without bounds.

    New people's weights are pulled to the mean of seen ones by the ridge.
    """
    new = NewUsers(pull=ridge, optimizer='newton', question='ellipsoid')
    learner = make_learner(train, K, 'linear', Loss(pull=ridge), new)
    state = learner.init(jnp.array([seed]))
    # Where most pairs were judged by several people, rewards and weights start from a decomposition of the judgements.
    if factors := low_rank.start(*counted(train), train.people, K):
        P, z = factors
        state = standing(state, z).replace(
            params={**state.params, 'P': jax.device_put(P[None], state.params['P'].sharding)}
        )
    return low_rank_of(learner, train_learner(learner, state, train, seed, updates), K)


def fit_mrm(train: PairBatch, seed: int, *, K: int = 3, steps: int = 5, updates: int = 600) -> Fitted:
    """MRM: K rewards and one start of all people's logits, from which a few steps of descent fit a person."""
    inner = Meta(steps)
    new = NewUsers(steps, inner.lr, 0.0, start='prior', optimizer='sgd', average='mean')
    learner = make_learner(train, K, 'softmax', Loss(), new, inner)
    state = train_learner(learner, learner.init(jnp.array([seed])), train, seed, updates, whole_people=True)
    # Seen people are fitted as new ones are, from all their training choices.
    z = fit_people(learner, state.params, state.params['z0'], train)
    return Fitted(LowRank(learner, state.params, z, state.params['z0']), K * train.chosen.shape[1] + K, K)


def low_rank_of(learner: IdealPointLearner, state: PALState, K: int) -> Fitted:
    """The fitted method; the prior of new people is the mean of the logits of people who were trained."""
    return Fitted(LowRank(learner, state.params, state.users.z, population(state)), K * learner.pal.width, K)


def low_rank_margins(fitted: Fitted, known: PairBatch | None, asked: PairBatch) -> np.ndarray:
    """The margins of LoRe, PReF and MRM: of seen people, or of new ones who are fitted to their known choices."""
    learner, params, z, prior = fitted.params
    z = z if known is None else fit_people(learner, params, prior, known)
    return np.asarray(learner.margins(params, z, one_replica(asked)))[0]


def low_rank_ask(fitted: Fitted, pool: PairBatch, questions: int) -> np.ndarray:
    """The rank at which each pair of new people is asked, by the learner's rule."""
    learner, params, _, prior = fitted.params
    exists, everybody = jnp.asarray(pool.counts)[None], for_everybody(prior, pool.people)
    return np.asarray(learner.ask(params, one_replica(pool), exists, everybody, 0, questions=questions))[0]


def fit_people(learner: IdealPointLearner, params: Any, prior: jax.Array, known: PairBatch) -> jax.Array:
    """The logits `[1, people, K]` of people by their known choices."""
    weight = jnp.asarray(known.counts, jnp.float32)[None]
    return learner.fit(params, one_replica(known), weight, for_everybody(prior, known.people))


# --- MaxMin-RLHF's groups (arXiv 2402.08925) --------------------------------------------------------------------------


def fit_maxmin(train: PairBatch, seed: int, *, groups: int = 2, rounds: int = 10, updates: int = 100) -> Fitted:
    """MaxMin-RLHF's rewards: people in groups, each with a reward, by EM from a random start."""
    loss = Loss(mix='losses', prototype_pull=1e-4)
    # The rewards are PAL's prototypes, one a group, whose people stand still while they learn.
    learner = make_learner(train, groups, 'softmax', loss, NewUsers(), users_lr=0.0)
    # Equal groups would stay equal, so people start in groups at random.
    belonging = np.eye(groups)[np.random.default_rng([seed, 6]).integers(0, groups, train.people)]
    state, draw = learner.init(jnp.array([seed])), ChoiceBatches(train, seed)
    for i in range(rounds):
        # M: each group's reward learns from its people, who stand at the logarithms of their belonging.
        state = standing(state, np.maximum(np.log(np.maximum(belonging, 1e-30)), -CERTAIN), everywhere=True)
        for batch in draw.programs(updates, i * updates):
            state, _ = learner.update(state, batch)
        # E: a person goes to the group whose reward makes the person's choices likeliest.
        belonging = assign(likelihoods(by_group(learner, state.params, train), train))
    there = np.bincount(train.users[train.counts], minlength=train.people) > 0
    members = Members(learner, state.params, belonging, belonging[there].mean(axis=0))
    return Fitted(members, groups * learner.pal.width + groups, groups)


def maxmin_margins(fitted: Fitted, known: PairBatch | None, asked: PairBatch) -> np.ndarray:
    """The logit of the mean probability over groups, by the belonging of seen people or by new ones' known choices.

    The published code puts held-out people into groups by the pairs that it then scores, by which two coins have .57 on
    ten pairs.
    """
    learner, params, belonging, shares = fitted.params
    # New people belong where their known choices are likely, and by the shares where there are none.
    if known is not None:
        belonging = weights_of(likelihoods(by_group(learner, params, known), known), shares)
    return mixed_margin(by_group(learner, params, asked).astype(np.float64), belonging[asked.users])


def by_group(learner: IdealPointLearner, params: Any, pairs: PairBatch) -> np.ndarray:
    """The margins `[B, G]` of pairs by each group's reward."""
    return np.asarray(learner.by_prototype(params, one_replica(pairs)))[0]


def likelihoods(margins: np.ndarray, pairs: PairBatch) -> np.ndarray:
    """The log likelihood `[U, G]` of each person's choices that count by each group's margins `[B, G]`."""
    values = -np.logaddexp(0.0, -np.asarray(margins, np.float64))
    total = np.zeros((pairs.people, values.shape[1]))
    np.add.at(total, np.asarray(pairs.users), values * np.asarray(pairs.counts)[:, None])
    return total


def weights_of(likelihood: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """People's belonging `[U, G]` to groups: `softmax(log likelihood + log share)`; without choices, the shares."""
    logits = likelihood + np.log(np.maximum(shares, 1e-12))
    logits -= logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def assign(likelihood: np.ndarray) -> np.ndarray:
    """One group for each person, as rows of zeros and a one; the first of equals."""
    group, best = np.argmax(likelihood, axis=1), np.max(likelihood, axis=1)
    for empty in range(likelihood.shape[1]):
        # A group that nobody would join gets the person whom all groups explain worst, for its reward would stay as it
        # was for ever.
        counts = np.bincount(group, minlength=likelihood.shape[1])
        if not counts[empty] and (counts[group] > 1).any():
            # Nobody is taken who is alone in a group.
            group[np.argmin(np.where(counts[group] > 1, best, np.inf))] = empty
    return np.eye(likelihood.shape[1])[group]


def mixed_margin(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The logit `[n]` of the mean over groups of the probability of a choice, from margins and weights `[n, G]`.

    It is the negative one where sides are swapped.
    """
    # Probabilities are mixed, for a mean of margins is no mean of groups.
    log_weights = np.log(np.maximum(weights, 1e-30))
    yes, no = (np.logaddexp.reduce(log_weights - np.logaddexp(0.0, -m), axis=1) for m in (margins, -margins))
    return yes - no


# --- methods that read choices ----------------------------------------------------------------------------------------


def fit_gpo(
    train: PairBatch, seed: int, *, width: int = 32, layers: int = 2, steps: int = 600, people: int = 32
) -> Fitted:
    """GPO: a transformer reads a person's choices and predicts others; nothing of a person is fitted."""
    net = SetTransformer(train.chosen.shape[1] + 1, width=width, maps=2, layers=layers, heads=2, hidden=width)
    learner = InContextLearner(net, people=people, targets=8, lr=1e-3, decay=0.1, steps=steps)
    return reading.fit(learner, train, reading.rows_with_choices(train), *reading.numbered_keys(seed, steps))


def fit_variational(train: PairBatch, seed: int, *, bases: int = 4, tau: float = 1.0, updates: int = 600) -> Fitted:
    """People as distributions, and bases likewise: this project's own form of VRF, which is no run of VRF."""
    learner = VariationalLearner(train.chosen.shape[1], bases=bases, tau=tau)
    return reading.fit(learner, train, reading.rows_with_choices(train), *reading.numbered_keys(seed, updates))


# --- the table --------------------------------------------------------------------------------------------------------

FOR_TABLES = tuple(baselines.METHODS)  # methods whose attributes need a meaning; texts have none
PREF_OPTIONS = {'K': 3}, {'K': 3, 'ridge': 1.0}, {'K': 5, 'ridge': 1.0}
METHODS: dict[str, Method] = {
    **baselines.METHODS,
    'vpl': Method(vpl.fit, reading.margins, ({'decay': 1e-2}, {'decay': 1.0})),
    'lore': Method(fit_lore, low_rank_margins, ({'K': 2}, {'K': 4}, {'K': 8}), low_rank_ask),
    'pref': Method(fit_pref, low_rank_margins, PREF_OPTIONS, low_rank_ask),
    'mrm': Method(fit_mrm, low_rank_margins, ({'K': 3}, {'K': 6}, {'K': 3, 'steps': 10})),
    'maxmin': Method(fit_maxmin, maxmin_margins, ({'groups': 2}, {'groups': 3}, {'groups': 4})),
    'gpo': Method(fit_gpo, reading.margins, ({'steps': 200}, {'steps': 600})),
    'variational': Method(fit_variational, reading.margins, ({'bases': 4}, {'bases': 8}, {'bases': 4, 'tau': 0.3})),
}


# --- PAL's learner on one replica -------------------------------------------------------------------------------------


def make_learner(
    train: PairBatch, K: int, mixture: Mixture, loss: Loss, new: NewUsers, inner: Meta | None = None, *,
    users_lr: float = LR,
) -> IdealPointLearner:  # fmt: skip
    """PAL's learner of the margin `x . V w_u` on one device."""
    pal = PAL(train.chosen.shape[1], K, rule='dot', point='Pw', mixture=mixture, prototype_init='expected')
    return _learner(pal, loss, Rates(prototypes=LR, users=users_lr), max(train.people, K), new, inner)


@functools.lru_cache(maxsize=32)  # equal learners share compiled programs
def _learner(pal: PAL, loss: Loss, rates: Rates, users: int, new: NewUsers, inner: Meta | None) -> IdealPointLearner:
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    return IdealPointLearner(pal, loss, rates, mesh, users=users, z_std=Z_STD, new=new, inner=inner)


def one_replica(choices: PairBatch) -> PairBatch:
    """The choices as a batch `[1, B]`, without the prompts."""
    return jax.tree.map(lambda x: x[None], choices.replace(prompt=None))


def standing(state: PALState, z: np.ndarray, *, everywhere: bool = False) -> PALState:
    """The state of one replica with these logits of people; the table's further rows stay, or are 0 `everywhere`."""
    table = state.users.z
    rows = np.zeros(table.shape, np.float32) if everywhere else np.array(table)
    rows[0, : len(z)] = z
    return state.replace(users=state.users.replace(z=jax.device_put(rows, table.sharding)))


def train_learner(
    learner: IdealPointLearner,
    state: PALState,
    train: PairBatch,
    seed: int,
    updates: int,
    *,
    whole_people: bool = False,
) -> PALState:
    """The state after so many updates, rounded up to whole programs."""
    for batches in ChoiceBatches(train, seed, whole_people).programs(updates):
        state, _ = learner.update(state, batches)
    return state


@dataclasses.dataclass(frozen=True)
class ChoiceBatches:
    """Batches of the choices that count.

    All choices stand in each batch where they are no more than `BATCH`. With `whole_people` a batch has people at
    random, with up to `OF_ONE` of each one's choices.
    """

    train: PairBatch
    seed: int
    whole_people: bool = False

    def programs(self, updates: int, first: int = 0) -> Iterator[PairBatch]:
        """Draw `updates` batches or more from number `first` on, some `[1, n, B]` at a time, as memory has room for."""
        pairs, of_one = one_replica(self.train), min(BATCH, len(self.train.users)) * 8 * self.train.chosen.shape[1]
        many = int(np.clip(BYTES // of_one, 1, min(PROGRAM, updates)))
        for start in range(first, first + updates, many):
            index = np.stack([self._one(np.random.default_rng([self.seed, 7, start + i])) for i in range(many)])
            yield jax.tree.map(lambda x, index=index: x[:, index], pairs)

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        there = np.flatnonzero(self.train.counts)
        if not self.whole_people:
            return there if len(there) <= BATCH else rng.choice(there, BATCH, replace=False)
        # A random order of people, and of the choices of each; the first of a person's choices are kept.
        users = self.train.users[there]
        order = np.lexsort((rng.random(len(there)), rng.permutation(self.train.people)[users]))
        first = np.flatnonzero(np.diff(users[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        kept = np.minimum(np.bincount(users), OF_ONE).sum()
        return there[order[rank < OF_ONE][: min(BATCH, kept)]]
