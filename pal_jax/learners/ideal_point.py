"""PAL with its users: the parameters that all users share, a table of users, and the updates of both.

    state = learner.init(seeds)                      # a replica a seed, side by side on the leading axis
    batches = put(batches, mesh)                     # once, for all learners that update on them
    state, metrics = learner.update(state, batches)  # many updates of each replica, one program
    z = learner.fit(state.params, pairs, weight)     # new users: their logits alone, nothing else moves
    rank = learner.ask(state.params, pairs, exists, prior, seed, questions=5)      # the order of questions to new users
    margins = learner.margins(state.params, z, pairs)

A batch moves the users who have a pair in it and no others: their rows are gathered, moved by an Adam of their own (its
moments and its count of updates stand in the table) and put back. So a step costs what its pairs cost, however many
users there are, and a user who is not in it keeps every bit. The table lies over the mesh by users.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pal_jax.data.comparisons import PairBatch
from pal_jax.learners import asking
from pal_jax.models import ideal_point
from pal_jax.models import params as model_params
from pal_jax.models.ideal_point import PAL
from pal_jax.models.params import Params, ParamSpec
from pal_jax.objectives.masked import keep
from pal_jax.objectives.preference import PairLoss, bound, pair_loss
from pal_jax.runtime import sharding

BATCH = (None, None, 'batch')  # replicas, updates, pairs
CPU_PART = 512  # pairs a device: their activations, 512 wide, stay in a processor's cache


@dataclasses.dataclass(frozen=True)
class Rates:
    """Adam's learning rates by group, without a schedule, as PAL has them, and Adam's decay of moments."""

    projector: float = 1e-4  # rate of the map from items to the space of preferences
    projector_decay: float = 0.01  # in its L2 form
    prototypes: float = 5e-3  # rate of the prototypes
    users: float = 5e-3  # rate of users' logits
    log_scale: float = 1e-1  # rate of the logarithm of the rewards' scale
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment


class Loss(NamedTuple):
    """The loss of a pair and its penalties.

    Attributes:
      pull: the precision of users' Gaussian prior; a user of n pairs loses `pull |z|² / 2` beside n pair losses.
      bound: an upper limit on the length of users' points, 0 for none.
      bound_coef: the weight of the length above the bound.
    """

    name: PairLoss = 'logistic'
    options: tuple[tuple[str, float], ...] = ()
    pull: float = 0.0
    bound: float = 0.0
    bound_coef: float = 1.0


class NewUsers(NamedTuple):
    """The fit of a new user's logits: `steps` steps of Adam from z = 0 on all of the user's pairs."""

    steps: int = 300
    lr: float = 5e-2
    pull: float = 1.0


class UserTable(struct.PyTreeNode):
    """Logits, their Adam moments, and how many updates each user has had."""

    z: Float[Array, 'U K']
    m: Float[Array, 'U K']
    v: Float[Array, 'U K']
    updates: Int[Array, ' U']


class PALState(struct.PyTreeNode):
    """A learner's state; a leading axis of replicas stands before every shape."""

    seed: Int[Array, '']
    step: Int[Array, '']
    params: Params
    opt_state: optax.OptState
    users: UserTable


class IdealPointLearner:
    """Functions over `PALState`; the object holds only what is static.

    Args:
      users: the number of users; the table is rounded up to a number that divides over the mesh.
      z_std: the standard deviation of users' first logits; 0 starts all users in the middle.
      part: the number of pairs whose gradients are made at once, the rest of a batch after them; 0: all pairs, None: as
        suits the platform.
    Raises:
      ValueError: there are more prototypes than users.
    """

    def __init__(
        self, pal: PAL, loss: Loss, rates: Rates, mesh: Mesh, *, users: int, replicas: int = 1, z_std: float = 0.0,
        new: NewUsers | None = None, part: int | None = None,
    ):  # fmt: skip
        if pal.prototypes > users:
            raise ValueError(f'model.prototypes={pal.prototypes} is more than the {users} users; use fewer')
        self.pal, self.loss, self.rates, self.new, self.mesh = pal, loss, rates, new or NewUsers(), mesh
        self.optimizer = make_optimizer(rates)
        on_cpu = mesh.devices.flat[0].platform == 'cpu'
        self.part = part if part is not None else on_cpu * CPU_PART * sharding.batch_ways(mesh)
        ways = math.lcm(mesh.shape['fsdp'], 128)  # as many rows on every mesh: a run is opened on others
        table = ParamSpec((-(-users // ways) * ways, pal.logits), ('users', None), jax.nn.initializers.normal(z_std))
        self._specs = {'params': ideal_point.specs(pal), 'z': table}
        shapes = jax.eval_shape(jax.vmap(self._new_state), jax.ShapeDtypeStruct((replicas,), jnp.int32))
        self.abstract: PALState = jax.tree_util.tree_map_with_path(self._place, shapes)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        self.init = jax.jit(jax.vmap(self._new_state), out_shardings=shardings)
        self._updates = jax.jit(
            side_by_side(self._many, replicas), donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)),
            in_shardings=(shardings, sharding.sharding(mesh, BATCH)),
        )  # fmt: skip
        self.fit = jax.jit(side_by_side(self._fit, replicas), out_shardings=sharding.replicated(mesh))
        self._ask = functools.lru_cache(lambda questions: self._compiled_ask(questions, replicas))
        self._expect = jax.jit(side_by_side(self._expected, replicas), out_shardings=sharding.replicated(mesh))
        self.margins = jax.jit(side_by_side(self._margins, replicas), out_shardings=sharding.replicated(mesh))

    def _place(self, path, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        of_users = any(getattr(key, 'name', None) == 'users' for key in path)
        axes = (None, 'users', None)[: leaf.ndim] if of_users else ()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.sharding(self.mesh, axes))

    def _new_state(self, seed: Int[Array, '']) -> PALState:
        drawn = model_params.init(self._specs, jax.random.key(seed))
        params, z = drawn['params'], drawn['z']
        users = UserTable(z, jnp.zeros_like(z), jnp.zeros_like(z), jnp.zeros(z.shape[:1], jnp.int32))
        return PALState(seed, jnp.zeros((), jnp.int32), params, self.optimizer.init(params), users)

    # --- training ----------------------------------------------------------------------------------------------------

    def update(self, state: PALState, batches: PairBatch) -> tuple[PALState, dict[str, Array]]:
        """One update for each of the batches `[replicas, updates, B]`; metrics are means over the updates, by replica.

        `put` lays batches over the devices of all processes; a single process may pass host arrays.

        A pair whose tokens all weigh nothing is padding: it counts nowhere, and its user is not in the batch. A batch
        of padding alone changes nothing and is in no mean.
        """
        return self._updates(state, batches)

    def _many(self, state: PALState, batches: PairBatch) -> tuple[PALState, dict[str, Array]]:
        if not batches.users.size:
            return state, {name: jnp.zeros(()) for name in ('loss', 'accuracy')}
        state, (metrics, learnt) = jax.lax.scan(self._one, state, batches)
        return state, jax.tree.map(lambda x: jnp.sum(x) / jnp.maximum(jnp.sum(learnt), 1), metrics)

    def _one(self, state: PALState, batch: PairBatch) -> tuple[PALState, tuple[dict[str, Array], Array]]:
        """The state after an update, its metrics, and whether the batch had a pair to learn from."""
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        table, size, exists = state.users, batch.users.shape[0], real(batch)
        count, learnt, nobody = jnp.maximum(jnp.sum(exists), 1), jnp.any(exists), table.z.shape[0]
        # 1. The rows of the users in the batch; padding belongs to a user behind the table, whom nothing is written to.
        users = jnp.where(exists, batch.users, nobody)
        rows, place = jnp.unique(users, return_inverse=True, size=size, fill_value=nobody)
        mine = jax.tree.map(lambda x: x.at[rows].get(mode='fill', fill_value=0), table)

        def loss(params: Params, z: Array, place: Array, pairs: PairBatch, key: Array) -> tuple[Array, Array]:
            pair_losses, margin = (keep(x, real(pairs)) for x in self._losses(params, z[place], pairs, key))
            return jnp.sum(pair_losses) / count, jnp.sum(keep(correct(margin), real(pairs))) / count

        # 2. The gradient by the shared parameters and by these rows.
        value = functools.partial(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), state.params, mine.z)
        (total, accuracy), (grads, z_grads) = summed(value, self.part, place, batch, key)
        # 3. Adam on the shared parameters, with a rate for each group.
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        # 4. Adam on the rows, each by its own count of updates, and back into the table.
        mine = adam_rows(mine, z_grads, self.rates.users, self.rates.b1, self.rates.b2)
        table = jax.tree.map(lambda x, new: x.at[rows].set(new, mode='drop', unique_indices=True), table, mine)
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(step=state.step + 1, params=params, opt_state=opt_state, users=table)
        # A batch of padding alone moves nothing. The table needs no choice: no row of it was written.
        state = jax.tree.map(functools.partial(jnp.where, learnt), moved.replace(users=()), state.replace(users=()))
        return state.replace(users=table), ({'loss': total, 'accuracy': accuracy}, learnt)

    def _losses(self, params: Params, z: Array, batch: PairBatch, key: Array | None) -> tuple[Array, Array]:
        """The loss and the margin of each pair, for users' logits by pair."""
        u, margin = self._judge(params, z, batch, training=True, key=key)
        losses = pair_loss(margin, self.loss.name, **dict(self.loss.options))
        if batch.weight is not None:  # tokens have losses; the last one has read both replies
            losses, margin = jnp.sum(batch.weight * losses, axis=-1), margin[..., -1]
        if self.loss.pull:
            losses = losses + self.loss.pull / 2 * batch.share * jnp.sum(jnp.square(z), axis=-1)
        if self.loss.bound:
            losses = losses + self.loss.bound_coef * bound(u, self.loss.bound)
        return losses, margin

    def _judge(
        self, params: Params, z: Array, batch: PairBatch, *, training: bool = False, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Users' points, and the worth of chosen items above that of rejected ones; a key brings training's noise."""
        mix, point, *items = [None] * 4 if key is None else jax.random.split(key, 4)
        w = ideal_point.weights(self.pal, z, training=training, key=mix)
        u = ideal_point.user_point(params, self.pal, w, batch.prompt, point)
        chosen, rejected = (
            ideal_point.item_reward(params, self.pal, u, x, k)
            for x, k in zip((batch.chosen, batch.rejected), items, strict=True)
        )
        return u, chosen - rejected

    def item_gradients(self, state: PALState, batch: PairBatch) -> PairBatch:
        """The gradient of the loss by the items and prompts of a batch `[replicas, B]`, for the model that made these
        vectors.

        The state is the one before this batch's update.
        """
        return self._item_gradients(state, batch)

    @functools.partial(jax.jit, static_argnums=0)
    def _item_gradients(self, state: PALState, batch: PairBatch) -> PairBatch:
        def of_one(state: PALState, batch: PairBatch) -> PairBatch:
            key, z = jax.random.fold_in(jax.random.key(state.seed), state.step), state.users.z[batch.users]

            def loss(sides: dict[str, Array]) -> Array:
                losses = keep(self._losses(state.params, z, batch.replace(**sides), key)[0], real(batch))
                return jnp.sum(losses) / jnp.maximum(jnp.sum(real(batch)), 1)

            sides = {side: getattr(batch, side) for side in ('chosen', 'rejected', 'prompt')}
            return batch.replace(**jax.grad(loss)({name: x for name, x in sides.items() if x is not None}))

        return jax.lax.with_sharding_constraint(jax.vmap(of_one)(state, batch), sharding.replicated(self.mesh))

    # --- new users ---------------------------------------------------------------------------------------------------

    def _fit(
        self, params: Params, pairs: PairBatch, weight: Float[Array, ' B'], prior: Float[Array, 'U K']
    ) -> Float[Array, 'U K']:
        """The logits of new users, numbered from 0 in `pairs`; they start at 0 and are pulled to `prior`."""
        adam = optax.adam(self.new.lr)

        def loss(z: Array) -> Array:
            _, margin = self._judge(params, z[pairs.users], pairs, training=True)
            losses = pair_loss(margin, self.loss.name, **dict(self.loss.options))
            return jnp.sum(weight * losses) + self.new.pull / 2 * jnp.sum(jnp.square(z - prior))

        def step(carry, _):
            z, moments = carry
            updates, moments = adam.update(jax.grad(loss)(z), moments)
            return (z + updates, moments), None

        start = jnp.zeros_like(prior)
        (z, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=self.new.steps)
        return z

    def ask(
        self, params: Params, pairs: PairBatch, exists: Bool[Array, 'R B'], prior: Float[Array, 'R U K'], seed: int,
        *, questions: int,
    ) -> Int[Array, 'R B']:  # fmt: skip
        """The rank at which each pair of new users is asked.

        The next question is always the one whose answer is expected to tell most, see `asking`.

        Raises:
          ValueError: new users have no prior, so nobody can say yet who they could be.
        """
        keys = jax.random.split(self._key_of_questions(seed), prior.shape[0])
        return self._ask(questions)(params, pairs, exists, prior, keys)

    def _key_of_questions(self, seed: int) -> Array:
        if self.new.pull <= 0:
            raise ValueError(
                f'new.pull={self.new.pull} must be above 0 to choose questions; it says who people could be'
            )
        return jax.random.key(seed)

    def _compiled_ask(self, questions: int, replicas: int) -> Callable[..., Array]:
        def ask(params: Params, pairs: PairBatch, exists: Array, prior: Array, key: Array) -> Array:
            def margins(z: Array) -> Array:
                return self._judge(params, z, pairs, training=True)[1]

            return asking.order(
                margins, pairs.users, exists, prior, pull=self.new.pull, questions=questions, key=key
            )  # fmt: skip

        return jax.jit(side_by_side(ask, replicas), out_shardings=sharding.replicated(self.mesh))

    def expect(
        self, params: Params, pairs: PairBatch, answered: Bool[Array, 'R B'], prior: Float[Array, 'R U K'], seed: int
    ) -> Float[Array, 'R B']:  # fmt: skip
        """The information in nats that is expected of each pair's answer, given the answered pairs.

        Raises:
          ValueError: `new.pull` is 0, so new users have no prior.
        """
        keys = jax.random.split(self._key_of_questions(seed), prior.shape[0])
        return self._expect(params, pairs, answered, prior, keys)

    def _expected(self, params: Params, pairs: PairBatch, answered: Array, prior: Array, key: Array) -> Array:
        return asking.expect(
            lambda z: self._judge(params, z, pairs, training=True)[1], pairs.users, answered, prior,
            pull=self.new.pull, key=key, start=prior,
        )[1]  # fmt: skip

    def _margins(self, params: Params, z: Float[Array, 'U K'], pairs: PairBatch) -> Float[Array, ' B']:
        return self._judge(params, z[pairs.users], pairs)[1]


def put(batches: PairBatch, mesh: Mesh) -> PairBatch:
    """Batches `[replicas, updates, B]` of the host or on disk, as arrays on the devices, split by pairs."""
    return sharding.put_batch(batches, mesh, BATCH)


def real(batch: PairBatch) -> Bool[Array, '*S']:
    """True for pairs that are no padding: where tokens are weighed, one of a pair's tokens has a weight."""
    return jnp.ones(batch.users.shape, bool) if batch.weight is None else jnp.any(batch.weight > 0, axis=-1)


def side_by_side(f: Callable[..., Any], replicas: int) -> Callable[..., Any]:
    """`f` over a leading axis of replicas.

    One replica runs without that axis, for which sums by XLA on a CPU take 25 times longer.
    """
    if replicas > 1:
        return jax.vmap(f)
    return lambda *args: jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))


def summed(value: Callable[..., Any], part: int, place: Int[Array, ' B'], batch: PairBatch, key: Array) -> Any:
    """The sum of `value(place, batch, key)` over parts of `part` pairs, or over all pairs at once if parts do not
    divide."""
    size = place.shape[0]
    if not part or size <= part or size % part:
        return value(place, batch, key)
    parts = (
        *jax.tree.map(lambda x: x.reshape(-1, part, *x.shape[1:]), (place, batch)),
        jax.random.split(key, size // part),
    )
    shapes = jax.eval_shape(value, *jax.tree.map(lambda x: x[0], parts))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, inputs: (jax.tree.map(jnp.add, total, value(*inputs)), None), start, parts)[0]


def adam_rows(rows: UserTable, grads: Float[Array, 'B K'], lr: float, b1: float, b2: float) -> UserTable:
    """Adam (Kingma & Ba 2015) on the rows at hand, each row by its own count of updates."""
    updates = rows.updates + 1
    m, v = b1 * rows.m + (1 - b1) * grads, b2 * rows.v + (1 - b2) * jnp.square(grads)
    t = updates[:, None].astype(jnp.float32)
    direction = m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + 1e-8)
    return UserTable(rows.z - lr * direction, m, v, updates)


def make_optimizer(rates: Rates) -> optax.GradientTransformation:
    """The optimiser of the parameters that all users share: Adam with a rate for each group."""
    adam = functools.partial(optax.adam, b1=rates.b1, b2=rates.b2)
    projector = optax.chain(optax.add_decayed_weights(rates.projector_decay), adam(rates.projector))
    groups: dict[Any, Any] = {
        'f': projector,
        'g': projector,
        'P': adam(rates.prototypes),
        'log_scale': adam(rates.log_scale),
    }
    return optax.partition(groups, lambda params: {name: name for name in params})


def correct(margin: Float[Array, '*S']) -> Float[Array, '*S']:
    """1 where the chosen item is worth more, 1/2 where both are worth the same."""
    return (jnp.sign(margin) + 1.0) / 2.0
