"""PAL with its users: the parameters that all users share, a table of users, and the updates of both.

    state = learner.init(seeds)                      # a replica a seed, side by side on the leading axis
    batches = put(batches, mesh)                     # once, for all learners that update on them
    state, metrics = learner.update(state, batches)  # many updates of each replica, one program
    z = learner.fit(state.params, pairs, weight, prior)    # the logits of new users, `[R, U, K]`; nothing else moves
    rank = learner.ask(state.params, pairs, exists, prior, seed, questions=5)      # the order of questions to new users
    margins = learner.margins(state.params, z, pairs)

A batch moves the users who have a pair in it and no others. So a step costs what its pairs cost, however many users
there are, and a user who is not in it keeps every bit. The table lies over the mesh by users.

LoRe, PReF, MRM and the rewards of MaxMin-RLHF have the same margin, so they are options: docs/methods/personal.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pal_jax.data.comparisons import PairBatch
from pal_jax.models import params as model_params
from pal_jax.models.params import Params, ParamSpec
from pal_jax.objectives.masked import keep
from pal_jax.objectives.preference import bound, pair_loss
from pal_jax.recipes.personal import asking, ideal_point, meta
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.meta import Meta
from pal_jax.recipes.personal.options import Loss, NewUsers, Rates, check
from pal_jax.run import sharding

BATCH = (None, None, 'batch')  # replicas, updates, pairs
CPU_PART = 512  # pairs a device: their activations, 512 wide, stay in a processor's cache


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
      inner: the inner steps of MRM. Users then have no rows of their own: an update adapts a shared start, `z0`, to
        each user of the batch anew, and the start and the prototypes learn from that.

    Raises:
      ValueError: there are more prototypes than users, or two options do not fit each other.
    """

    def __init__(
        self, pal: PAL, loss: Loss, rates: Rates, mesh: Mesh, *, users: int, replicas: int = 1, z_std: float = 0.0,
        new: NewUsers | None = None, part: int | None = None, inner: Meta | None = None,
    ):  # fmt: skip
        check(pal, loss, inner)
        if pal.prototypes > users:
            raise ValueError(
                f'{pal.prototypes} prototypes are more than the {users} users; give more people, or fewer prototypes'
            )
        self.pal, self.loss, self.rates, self.new, self.mesh = pal, loss, rates, new or NewUsers(), mesh
        self.inner, self.optimizer = inner, make_optimizer(rates, shared_start=inner is not None)
        on_cpu = mesh.devices.flat[0].platform == 'cpu'
        self.part = part if part is not None else on_cpu * CPU_PART * sharding.batch_ways(mesh)
        # The table has as many rows on every mesh, since a run is opened on others.
        ways = math.lcm(mesh.shape['fsdp'], 128)
        table = ParamSpec((-(-users // ways) * ways, pal.logits_per_user), ('users', None), _first_logits(pal, z_std))
        start = {} if inner is None else {'z0': ParamSpec((pal.logits_per_user,), (None,), _first_logits(pal, z_std))}
        self._specs = {'params': ideal_point.specs(pal) | start, 'z': table}
        shapes = jax.eval_shape(jax.vmap(self._new_state), jax.ShapeDtypeStruct((replicas,), jnp.int32))
        self.abstract: PALState = jax.tree_util.tree_map_with_path(self._with_sharding, shapes)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        self.init = jax.jit(jax.vmap(self._new_state), out_shardings=shardings)
        self._updates = jax.jit(
            side_by_side(self._many, replicas),
            # The state before is given up, so that the table is in memory once.
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(mesh)),
            in_shardings=(shardings, sharding.sharding(mesh, BATCH)),
        )
        self.fit, self.margins, self.by_prototype, self._expect, self._posterior = (
            jax.jit(side_by_side(of_one, replicas), out_shardings=sharding.replicated(mesh))
            for of_one in (self._fit, self._margins, self._each, self._expected, self._mode)
        )
        # The number of questions is static, so each number has a program, which is kept.
        self._ask = functools.lru_cache(
            lambda questions: jax.jit(
                side_by_side(functools.partial(self._order, questions), replicas),
                out_shardings=sharding.replicated(mesh),
            )
        )

    def _with_sharding(self, path, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
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
        # Without a batch there is no mean, and nothing to compile.
        if not batches.users.size:
            return state, {name: jnp.zeros(()) for name in ('loss', 'accuracy')}
        state, (metrics, learnt) = jax.lax.scan(self._one, state, batches)
        return state, jax.tree.map(lambda x: jnp.sum(x) / jnp.maximum(jnp.sum(learnt), 1), metrics)

    def _one(self, state: PALState, batch: PairBatch) -> tuple[PALState, tuple[dict[str, Array], Array]]:
        """The state after an update, its metrics, and whether the batch had a pair to learn from."""
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        table, size, exists = state.users, batch.users.shape[0], real(batch)
        count, learnt, nobody = jnp.maximum(jnp.sum(exists), 1), jnp.any(exists), table.z.shape[0]
        of_all = self._size(batch)
        # 1. The rows of the users in the batch; padding belongs to a user behind the table, whom nothing is written to.
        users = jnp.where(exists, batch.users, nobody)
        rows, place = jnp.unique(users, return_inverse=True, size=size, fill_value=nobody)
        mine = jax.tree.map(lambda x: x.at[rows].get(mode='fill', fill_value=0), table)

        def loss(params: Params, z: Array, place: Array, pairs: PairBatch, key: Array) -> tuple[Array, Array]:
            pair_losses, margin = (keep(x, real(pairs)) for x in self._losses(params, z[place], pairs, key))
            total = jnp.sum(self._weighed(pair_losses, pairs)) / of_all
            return total, jnp.sum(keep(correct(margin), real(pairs))) / count

        # 2. The gradient by the shared parameters and by these rows.
        if self.inner is not None:
            loss = functools.partial(self._outer, self.inner)
        value = functools.partial(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), state.params, mine.z)
        # Pairs of a person stay together where the inner steps adapt to the person.
        part = self.part if self.inner is None else 0
        (total, accuracy), (grads, z_grads) = summed(value, part, place, batch, key)
        if pull := self.loss.prototype_pull:
            pulled, slope = jax.value_and_grad(lambda P: pull * jnp.sum(jnp.square(P)))(state.params['P'])
            total, grads = total + pulled, {**grads, 'P': grads['P'] + slope}
        # 3. Adam on the shared parameters, with a rate for each group.
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        # 4. Adam on the rows, each by its own moments and count of updates, and back into the table.
        if self.inner is None:
            mine = adam_rows(mine, z_grads, self.rates.users, self.rates.b1, self.rates.b2)
            table = jax.tree.map(lambda x, new: x.at[rows].set(new, mode='drop', unique_indices=True), table, mine)
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(step=state.step + 1, params=params, opt_state=opt_state, users=table)
        # A batch of padding alone moves nothing. The table needs no choice: no row of it was written.
        state = jax.tree.map(functools.partial(jnp.where, learnt), moved.replace(users=()), state.replace(users=()))
        return state.replace(users=table), ({'loss': total, 'accuracy': accuracy}, learnt)

    def _weighed(self, losses: Array, pairs: PairBatch) -> Array:
        """Losses by the weight of their pairs in the mean over a batch, whose sum is `_size`."""
        return losses if self.loss.by == 'pairs' else pairs.share * losses

    def _size(self, batch: PairBatch) -> Array:
        if self.loss.by == 'pairs':
            return jnp.maximum(jnp.sum(real(batch)), 1)
        return jnp.maximum(jnp.sum(keep(batch.share, real(batch))), 1e-12)

    def _outer(
        self, inner: Meta, params: Params, z: Array, place: Array, pairs: PairBatch, key: Array
    ) -> tuple[Array, Array]:
        """MRM's loss of a batch, whose pairs are support or query by chance; `z` only says how many people there are.

        The accuracy is that of the query.
        """
        half, noise = jax.random.split(key)
        support = jax.random.bernoulli(half, inner.support, place.shape)
        query = real(pairs) & ~support

        def losses(z: Array) -> Array:
            return keep(self._losses(params, z, pairs, noise)[0], real(pairs))

        start = jnp.broadcast_to(params['z0'], (z.shape[0], *params['z0'].shape))
        total, adapted = meta.outer_loss(losses, start, place, real(pairs) & support, query, inner)
        right = keep(correct(self._losses(params, adapted[place], pairs, None)[1]), query)
        return total, jnp.sum(right) / jnp.maximum(jnp.sum(query), 1)

    def _losses(self, params: Params, z: Array, batch: PairBatch, key: Array | None) -> tuple[Array, Array]:
        """The loss and the margin of each pair, for users' logits by pair."""
        u, margin = self._judge(params, z, batch, training=True, key=key)
        if self.loss.mix == 'losses':
            # Each prototype is a group's own reward; noise of training has no place in it.
            alone = pair_loss(self._each(params, batch), self.loss.name, **dict(self.loss.options))
            w = ideal_point.weights(self.pal, z, training=True)
            losses = jnp.sum(w.reshape(*w.shape, *(1,) * (alone.ndim - 2)) * alone, axis=1)
        else:
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

    @functools.partial(jax.jit, static_argnums=0)
    def item_gradients(self, state: PALState, batch: PairBatch) -> PairBatch:
        """The gradient of the loss by the items and prompts of a batch `[replicas, B]`, for the model that made these
        vectors.

        The state is the one before this batch's update.
        """

        def of_one(state: PALState, batch: PairBatch) -> PairBatch:
            key, z = jax.random.fold_in(jax.random.key(state.seed), state.step), state.users.z[batch.users]

            def loss(sides: dict[str, Array]) -> Array:
                losses = keep(self._losses(state.params, z, batch.replace(**sides), key)[0], real(batch))
                return jnp.sum(self._weighed(losses, batch)) / self._size(batch)

            sides = {side: getattr(batch, side) for side in ('chosen', 'rejected', 'prompt')}
            return batch.replace(**jax.grad(loss)({name: x for name, x in sides.items() if x is not None}))

        return jax.lax.with_sharding_constraint(jax.vmap(of_one)(state, batch), sharding.replicated(self.mesh))

    # --- new users ---------------------------------------------------------------------------------------------------

    def _fit(
        self, params: Params, pairs: PairBatch, weight: Float[Array, ' B'], prior: Float[Array, 'U K']
    ) -> Float[Array, 'U K']:
        """The logits of new users, numbered from 0 in `pairs`; they are pulled to `prior`, see `NewUsers`."""
        new = self.new
        if new.optimizer == 'newton':
            return self._mode(params, pairs, weight, prior)[0]
        rule = optax.adam(new.lr) if new.optimizer == 'adam' else optax.sgd(new.lr)

        def loss(z: Array) -> Array:
            _, margin = self._judge(params, z[pairs.users], pairs, training=True)
            losses = pair_loss(margin, self.loss.name, **dict(self.loss.options))
            if new.average == 'mean':
                fit = jnp.sum(meta.person_means(losses, pairs.users, prior.shape[0], weight)[0])
            else:
                fit = jnp.sum(weight * losses)
            return fit + new.pull / 2 * jnp.sum(jnp.square(z - prior))

        def step(carry, _):
            z, moments = carry
            updates, moments = rule.update(jax.grad(loss)(z), moments)
            return (z + updates, moments), None

        start = prior if new.start == 'prior' else jnp.zeros_like(prior)
        # The loss is a sum over users, and both optimisers move each number by itself: nobody moves another.
        (z, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=new.steps)
        return z

    def ask(
        self,
        params: Params,
        pairs: PairBatch,
        exists: Bool[Array, 'R B'],
        prior: Float[Array, 'R U K'],
        seed: int,
        *,
        questions: int,
    ) -> Int[Array, 'R B']:
        """The rank at which each pair of new users is asked.

        The next question is always the one whose answer is expected to tell most, see `asking`.

        Raises:
          ValueError: new users have no prior, so nobody can say yet who they could be.
        """
        return self._ask(questions)(params, pairs, exists, prior, self._keys(seed, prior))

    def expect(
        self, params: Params, pairs: PairBatch, answered: Bool[Array, 'R B'], prior: Float[Array, 'R U K'], seed: int
    ) -> Float[Array, 'R B']:
        """The information in nats that is expected of each pair's answer, given the answered pairs.

        Raises:
          ValueError: `new.pull` is 0, so new users have no prior.
        """
        return self._expect(params, pairs, answered, prior, self._keys(seed, prior))

    def posterior(
        self, params: Params, pairs: PairBatch, answered: Bool[Array, 'R B'], prior: Float[Array, 'R U K']
    ) -> tuple[Float[Array, 'R U K'], Float[Array, 'R U K K']]:
        """New users' likeliest logits given the answered pairs, and the precision there, under a Bradley-Terry model.

        Raises:
          ValueError: `new.pull` is 0, so new users have no prior.
        """
        self._keys(0, prior)
        return self._posterior(params, pairs, answered, prior)

    def _keys(self, seed: int, prior: Array) -> Array:
        """A key for each replica. Raises ValueError where new users have no prior, which says who they could be."""
        if self.new.pull <= 0:
            raise ValueError(
                f'new.pull={self.new.pull} must be above 0 to choose questions; it says who people could be'
            )
        return jax.random.split(jax.random.key(seed), prior.shape[0])

    def _people(self, params: Params, pairs: PairBatch, prior: Array) -> asking.People:
        def margins(z: Array) -> Array:
            return self._judge(params, z, pairs, training=True)[1]

        return asking.People(margins, pairs.users, prior, self.new.pull)

    def _order(
        self, questions: int, params: Params, pairs: PairBatch, exists: Array, prior: Array, key: Array
    ) -> Array:
        return asking.order(self._people(params, pairs, prior), exists, questions, key, self.new.question)

    def _expected(self, params: Params, pairs: PairBatch, answered: Array, prior: Array, key: Array) -> Array:
        return asking.expect(self._people(params, pairs, prior), answered, key, prior, self.new.question)[1]

    def _mode(self, params: Params, pairs: PairBatch, answered: Array, prior: Array) -> tuple[Array, Array]:
        return asking.mode(self._people(params, pairs, prior), answered, prior)

    def _margins(self, params: Params, z: Float[Array, 'U K'], pairs: PairBatch) -> Float[Array, ' B']:
        return self._judge(params, z[pairs.users], pairs)[1]

    def _each(self, params: Params, pairs: PairBatch) -> Float[Array, 'B K']:
        """The margins of pairs by each prototype alone; those of the pairs' tokens `[B, K, T]` where they have some."""

        def alone(w: Array) -> Array:
            everybody = jnp.broadcast_to(w, (pairs.users.shape[0], w.shape[0]))
            u = ideal_point.user_point(params, self.pal, everybody, pairs.prompt)
            chosen, rejected = (ideal_point.item_reward(params, self.pal, u, x) for x in (pairs.chosen, pairs.rejected))
            return chosen - rejected

        # A prototype alone is a mixture with all weight on it, a row of the identity.
        return jnp.moveaxis(jax.vmap(alone)(jnp.eye(self.pal.prototypes)), 0, 1)


def _first_logits(pal: PAL, std: float) -> Callable[..., Array]:
    """Normal logits; of weights without bounds the first is larger by 1."""
    normal = jax.nn.initializers.normal(std)
    if pal.mixture != 'linear':
        return normal
    # With 1 on the first weight the first prototype begins as everybody's.
    return lambda key, shape, dtype: normal(key, shape, dtype).at[..., 0].add(1.0)


def put(batches: PairBatch, mesh: Mesh) -> PairBatch:
    """Batches `[replicas, updates, B]` of the host or on disk, as arrays on the devices, split by pairs."""
    return sharding.put_batch(batches, mesh, BATCH)


def real(batch: PairBatch) -> Bool[Array, '*S']:
    """True for pairs that are no padding: where tokens are weighed, one of a pair's tokens has a weight."""
    return jnp.ones(batch.users.shape, bool) if batch.weight is None else jnp.any(batch.weight > 0, axis=-1)


def side_by_side(f: Callable[..., Any], replicas: int) -> Callable[..., Any]:
    """`f` over a leading axis of replicas."""
    if replicas > 1:
        return jax.vmap(f)
    # One replica runs without the axis, with which sums by XLA on a CPU take 25 times longer.
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
    # Moments begin at 0, and each row is corrected for it by its own count.
    direction = m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + 1e-8)
    return UserTable(rows.z - lr * direction, m, v, updates)


def make_optimizer(rates: Rates, *, shared_start: bool = False) -> optax.GradientTransformation:
    """The optimiser of the parameters that all users share: Adam with a rate for each group."""
    adam = functools.partial(optax.adam, b1=rates.b1, b2=rates.b2)
    projector = optax.chain(optax.add_decayed_weights(rates.projector_decay), adam(rates.projector))
    groups: dict[Any, Any] = {
        'f': projector,
        'g': projector,
        'P': adam(rates.prototypes),
        'log_scale': adam(rates.log_scale),
    }
    if shared_start:
        # A shared start of users' logits has the rate of users.
        groups['z0'] = adam(rates.users)
    return optax.partition(groups, lambda params: {name: name for name in params})


def correct(margin: Float[Array, '*S']) -> Float[Array, '*S']:
    """1 where the chosen item is worth more, 1/2 where both are worth the same."""
    return (jnp.sign(margin) + 1.0) / 2.0
