"""PAL's learner: who moves and who does not, on one device and on eight, and new users beside a frozen model."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, NewUsers, Rates, UserTable, adam_rows
from pal_jax.run import devices

USERS, WIDTH, B = 40, 6, 16
RATES = Rates(projector=1e-2, projector_decay=0.0, prototypes=1e-2, users=1e-2)
ONE = devices.make_mesh(devices=jax.devices()[:1])


def make_learner(mesh=ONE, pal=PAL(WIDTH, 3), loss=Loss('hinge', pull=0.1), **changes):  # noqa: B008
    return IdealPointLearner(pal, loss, RATES, mesh, **{'users': USERS, 'replicas': 2, 'z_std': 1.0, **changes})


def batches(updates=3, users=None, seed=0, prompt=False):
    rng = np.random.default_rng(seed)
    form = (2, updates, B)
    users = rng.integers(0, USERS, form).astype(np.int32) if users is None else np.broadcast_to(users, form)
    chosen, rejected, c = (rng.standard_normal((*form, WIDTH)).astype(np.float32) for _ in range(3))
    return PairBatch(users, chosen, rejected, np.full(form, 0.5, np.float32), c if prompt else None)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_users_without_a_pair_keep_every_bit():
    learner = make_learner()
    state = learner.init(jnp.arange(2))
    before = jax.tree.map(np.asarray, state.users)
    there = np.array([3, 7, 7, 21] * 4, np.int32)
    after, _ = learner.update(state, batches(users=there))
    others = np.setdiff1d(np.arange(USERS), there)
    same(jax.tree.map(lambda x: x[:, others], before), jax.tree.map(lambda x: x[:, others], after.users))
    assert (np.asarray(after.users.z)[:, [3, 7, 21]] != before.z[:, [3, 7, 21]]).any(axis=-1).all()
    np.testing.assert_array_equal(after.users.updates[:, [3, 7, 21, 0]], [[3, 3, 3, 0]] * 2)


def test_an_update_is_adam_on_the_loss_of_the_batch():
    """Against optax on the whole table, which for one batch is the same for the users in it."""
    learner = make_learner(replicas=1)
    state = learner.init(jnp.arange(1))
    batch = jax.tree.map(lambda x: x[:1, :1], batches())
    params, z = jax.tree.map(lambda x: jnp.array(x[0]), (state.params, state.users.z))

    def loss(params, z):
        w = jax.nn.softmax(z[batch.users[0, 0]])
        u = w @ params['P']
        far, near = (jnp.linalg.norm(x[0, 0] - u, axis=1) for x in (batch.rejected, batch.chosen))
        pulled = 0.1 / 2 * 0.5 * jnp.sum(z[batch.users[0, 0]] ** 2, axis=1)
        return jnp.mean(jnp.maximum(1 - (far - near), 0) + pulled)

    adam, value = optax.adam(1e-2), jax.value_and_grad(loss, argnums=(0, 1))
    expected, gradient = value(params, z)
    updates, _ = adam.update(gradient, adam.init((params, z)))
    new_params, new_z = optax.apply_updates((params, z), updates)
    after, metrics = learner.update(state, batch)
    np.testing.assert_allclose(metrics['loss'][0], expected, rtol=1e-6)
    np.testing.assert_allclose(after.params['P'][0], new_params['P'], atol=1e-6)
    np.testing.assert_allclose(after.users.z[0], new_z, atol=1e-6)


def test_pairs_that_weigh_nothing_are_not_there():
    learner, real = make_learner(), batches(updates=2)

    def by_token(batch, weight):
        wide = {side: np.repeat(getattr(batch, side)[..., None, :], 3, axis=-2) for side in ('chosen', 'rejected')}
        return batch.replace(weight=np.broadcast_to(weight, (*batch.users.shape, 3)).astype(np.float32), **wide)

    half = np.arange(B)[:, None] < B // 2
    whole = by_token(jax.tree.map(lambda x: x[:, :, : B // 2], real), 1 / 3)
    padded = by_token(real, half / 3)
    empty = by_token(jax.tree.map(lambda x: x[:, :1], real), 0.0)
    padded = jax.tree.map(lambda *x: np.concatenate(x, axis=1), empty, padded, empty)
    start = learner.update(learner.init(jnp.arange(2)), whole)[0]  # with moments that would go on
    kept = jax.tree.map(np.asarray, start)
    (alone, metrics), (found, others) = (learner.update(jax.tree.map(jnp.array, kept), b) for b in (whole, padded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), (alone, metrics), (found, others))
    same(learner.update(jax.tree.map(jnp.array, kept), empty)[0], kept)
    nothing = jax.tree.map(lambda x: x[:, :, :0], real)
    same(learner.update(jax.tree.map(jnp.array, kept), nothing)[0], kept)
    gradient = learner.item_gradients(kept, jax.tree.map(lambda x: x[:, 1], padded))
    expected = learner.item_gradients(kept, jax.tree.map(lambda x: x[:, 0], whole))
    np.testing.assert_allclose(gradient.chosen[:, : B // 2], expected.chosen, atol=1e-7)
    assert not np.any(gradient.chosen[:, B // 2 :])


def test_rows_are_corrected_for_their_own_number_of_updates():
    grads = np.random.default_rng(0).standard_normal((5, 1, 3)).astype(np.float32)
    rows = UserTable(jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32))
    adam, z = optax.adam(0.1), jnp.zeros((1, 3))
    moments = adam.init(z)
    for gradient in grads:
        rows = adam_rows(rows, jnp.asarray(gradient), 0.1, 0.9, 0.999)
        step, moments = adam.update(jnp.asarray(gradient), moments)
        z = optax.apply_updates(z, step)
    np.testing.assert_allclose(rows.z, z, rtol=1e-5)


@pytest.mark.parametrize(
    'pal',
    [
        PAL(WIDTH, 3, projector='mlp1-gelu-dropout5', rule='angle', scaled=True, mixture='gumbel'),
        PAL(WIDTH, 3, variant='B', projector='mlp1-gelu', rule='dist'),
    ],
    ids=['A', 'B'],
)
@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 4, 1), (1, 8, 1)])
def test_eight_devices_compute_what_one_does(pal, sizes):
    data = batches(prompt=pal.variant == 'B')
    alone, meshed = (make_learner(mesh, pal) for mesh in (ONE, devices.make_mesh(*sizes)))
    one, metrics = alone.update(alone.init(jnp.arange(2)), data)
    eight, others = meshed.update(meshed.init(jnp.arange(2)), data)
    assert eight.users.z.addressable_shards[0].data.shape[1] == one.users.z.shape[1] // sizes[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), (one, metrics), (eight, others))


def test_no_device_gathers_the_table_of_users():
    mesh = devices.make_mesh(1, 8, 1)
    learner = make_learner(mesh, users=80_000)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches())
    program = learner._updates.lower(learner.abstract, shapes).compile().as_text()
    shapes = set(re.findall(r'[a-z]+\d+\[[\d,]*\]', program))
    assert any('10000' in shape for shape in shapes)  # its share
    assert not any('80000' in shape for shape in shapes)


def test_a_seed_gives_the_same_state_and_another_one_another():
    learner = make_learner()
    state, again = (learner.update(learner.init(jnp.array([5, 6])), batches())[0] for _ in range(2))
    same(state, again)
    assert (np.asarray(state.users.z[0]) != np.asarray(state.users.z[1])).any()


def test_updates_in_one_program_are_the_updates_one_by_one():
    learner, data = make_learner(), batches(updates=4)
    together, _ = learner.update(learner.init(jnp.arange(2)), data)
    state = learner.init(jnp.arange(2))
    for i in range(4):
        state, _ = learner.update(state, jax.tree.map(lambda x, i=i: x[:, i : i + 1], data))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together, state)


def test_new_users_are_fitted_beside_a_model_that_stays():
    learner = make_learner(
        pal=PAL(WIDTH, 3, rule='dot', point='Pw'), loss=Loss('logistic'), new=NewUsers(400, 0.05, 0.5)
    )
    state = learner.init(jnp.arange(2))
    before = jax.tree.map(np.asarray, state)
    pairs = jax.tree.map(lambda x: x[:, 0], batches())
    pairs = pairs.replace(users=pairs.users % 3)
    known = (np.asarray(pairs.users) < 2).astype(np.float32)  # nothing is known of the third
    prior = np.broadcast_to(np.float32([1.0, -1.0, 0.5]), (2, 3, 3))
    z = learner.fit(state.params, pairs, known, prior)
    same(before, jax.tree.map(np.asarray, state))
    np.testing.assert_allclose(z[:, 2], prior[:, 2], atol=1e-2)  # of whom nothing is known, the prior is believed
    P, d = np.asarray(state.params['P'][0]), np.asarray(pairs.chosen[0] - pairs.rejected[0])
    mine = np.asarray(pairs.users[0]) == 0

    def loss(z):
        margin = d[mine] @ (np.exp(z) / np.exp(z).sum() @ P)
        return np.logaddexp(0, -margin).sum() + 0.25 * np.sum((z - prior[0, 0]) ** 2)

    best, steps = np.asarray(z[0, 0], float), 1e-2 * np.concatenate([np.eye(3), -np.eye(3)])
    assert all(loss(best) <= loss(best + step) + 1e-5 for step in steps)  # a minimum of the posterior


def test_more_prototypes_than_users_are_refused():
    with pytest.raises(ValueError, match='3 prototypes .* 2 users'):
        make_learner(users=2)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['A', 'B'])
def test_a_batch_in_parts_moves_as_the_batch_at_once(variant):
    """Distances of many pairs summed otherwise, so not bit by bit; a part that does not divide is no part."""
    pal = PAL(WIDTH, 3, variant=variant, projector='mlp1-gelu', rule='angle', scaled=True)
    data = batches(prompt=variant == 'B')
    whole, parts, odd = (make_learner(pal=pal, part=part) for part in (0, 4, 5))
    state, metrics = whole.update(whole.init(jnp.arange(2)), data)
    again, others = parts.update(parts.init(jnp.arange(2)), data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), (state, metrics), (again, others))
    same(state, odd.update(odd.init(jnp.arange(2)), data)[0])


def test_one_replica_is_the_first_of_two():
    alone, two = make_learner(replicas=1), make_learner()
    one, _ = alone.update(alone.init(jnp.arange(1)), jax.tree.map(lambda x: x[:1], batches()))
    both, _ = two.update(two.init(jnp.arange(2)), batches())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:1], rtol=1e-5, atol=1e-6), one, both)


@pytest.mark.slow
def test_narrow_products_learn_what_wide_ones_learn():
    """Against the same updates in float32: bfloat16 has eight bits, so losses agree to a percent."""
    losses = []
    for dtype in ('float32', 'bfloat16'):
        pal = PAL(WIDTH, 3, variant='B', projector='mlp1-gelu', rule='angle', scaled=True, dtype=dtype)
        learner = make_learner(pal=pal, loss=Loss())
        state, data = learner.init(jnp.arange(2)), batches(updates=1, prompt=True)
        for _ in range(60):
            state, metrics = learner.update(state, data)
        losses.append(np.asarray(metrics['loss']))
        assert state.params['f'][0]['weight'].dtype == jnp.float32  # what is learnt stays wide
    assert (losses[0] < 0.3).all()
    np.testing.assert_allclose(losses[1], losses[0], atol=0.02)


CONVERTED = [
    PAL(WIDTH, 3, projector='mlp1-relu-dropout5-residual'),
    PAL(WIDTH, 3, variant='B', projector='mlp1-gelu', rule='angle', scaled=True),
]


def many(pal, seed=0):
    learner = make_learner(pal=pal, replicas=1)
    state, rng = learner.init(jnp.arange(1)), np.random.default_rng(seed)
    chosen, rejected, c = rng.standard_normal((3, 1, 1000, WIDTH)).astype(np.float32)
    users = rng.integers(0, USERS, (1, 1000)).astype(np.int32)
    return learner, state, PairBatch(users, chosen, rejected, np.ones(users.shape, np.float32), c)


@pytest.mark.parametrize('pal', CONVERTED, ids=['A', 'B'])
def test_a_pair_turned_around_has_the_margin_turned_around(pal):  # II.9, check 11
    learner, state, pairs = many(pal)
    turned = pairs.replace(chosen=pairs.rejected, rejected=pairs.chosen)
    margins, others = (learner.margins(state.params, state.users.z, each) for each in (pairs, turned))
    np.testing.assert_allclose(margins, -others, atol=1e-6)


@pytest.mark.parametrize('pal', CONVERTED, ids=['A', 'B'])
def test_rewards_of_single_responses_order_them_as_pairs_do(pal):  # II.9, check 12
    learner, state, pairs = many(pal)
    margins = np.asarray(learner.margins(state.params, state.users.z, pairs)[0])
    params, z = jax.tree.map(lambda x: x[0], (state.params, state.users.z))
    w = ideal_point.weights(pal, z)[pairs.users[0]]  # a carried mixture: no softmax after this
    u = ideal_point.user_point(params, pal, w, pairs.prompt[0] if pal.variant == 'B' else None)
    near, far = (ideal_point.item_reward(params, pal, u, x[0]) for x in (pairs.chosen, pairs.rejected))
    assert np.array_equal(np.sign(near - far), np.sign(margins))
    assert (np.abs(margins) > 0).all()


def test_an_evaluation_of_a_model_with_dropout_gives_the_same_twice():  # II.9, check 14
    learner, state, pairs = many(CONVERTED[0])
    first, second = (learner.margins(state.params, state.users.z, pairs) for _ in range(2))
    np.testing.assert_array_equal(first, second)
