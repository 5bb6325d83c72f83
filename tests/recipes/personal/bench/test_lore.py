"""LoRe (arXiv 2504.14439) as options of PAL's learner: golden numbers, and a population of rank 3."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner
from pal_jax.recipes.personal.options import Loss, NewUsers, Rates
from tests.recipes.personal import people
from tests.recipes.personal.people import ONE

P = jnp.array([[[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]])  # the bases by row, of one replica
Z = jnp.array([[[0.5, -0.5], [-1.0, 1.0]]])
X = np.array([[[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 1.0, -0.5]]], np.float32)
PAIRS = PairBatch(
    np.array([[0, 0, 1]], np.int32),
    X,
    np.zeros_like(X),
    np.array([[0.5, 0.5, 1.0]], np.float32),  # type: ignore[arg-type]
)


def make_learner(temperature=1.0, **changes):
    pal = PAL(3, 2, rule='dot', point='Pw', temperature=temperature)
    return IdealPointLearner(pal, Loss(**changes), Rates(), ONE, users=2, part=0)


def losses(learner, params, z):
    """The loss of the whole batch, as an update has it."""
    value = learner._losses(params, z[PAIRS.users[0]], jax.tree.map(lambda x: x[0], PAIRS), None)[0]
    batch = jax.tree.map(lambda x: x[0], PAIRS)
    return jnp.sum(learner._weighed(value, batch)) / learner._size(batch)


@pytest.mark.parametrize(
    ('temperature', 'by', 'expected'),
    [(1.0, 'pairs', 0.438519), (1.0, 'people', 0.391229), (100.0, 'pairs', 0.689613), (100.0, 'people', 1.377848 / 2)],
)
def test_margins_and_losses_by_pairs_and_by_people(temperature, by, expected):
    learner = make_learner(temperature, by=by)
    margins = learner.margins({'P': P}, Z, PAIRS)
    np.testing.assert_allclose(margins[0], np.array([0.962117, -0.096588, 1.261594]) / temperature, atol=1e-6)
    np.testing.assert_allclose(losses(learner, {'P': P[0]}, Z[0]), expected, atol=1e-5)


def test_margins_are_those_of_the_formula():
    """`x . V softmax(z_u)`, in numpy."""
    rng = np.random.default_rng(0)
    V, z, x = rng.normal(size=(8, 5)), rng.normal(size=(4, 5)), rng.normal(size=(4, 30, 8)).astype(np.float32)
    w = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    learner = people.make_learner(5)
    margins = learner.margins({'P': jnp.asarray(V.T[None], jnp.float32)}, jnp.asarray(z[None]), people.pairs_of(x))
    np.testing.assert_allclose(margins[0], np.einsum('upd,dk,uk->up', x, V, w).ravel(), atol=2e-6)


def test_gradients_of_the_mean_over_people():
    learner = make_learner(by='people')
    by_P, by_z = jax.grad(lambda P, z: losses(learner, {'P': P}, z), argnums=(0, 1))(P[0], Z[0])
    expected = [[-0.002630, -0.000968], [-0.108946, -0.132436], [-0.018686, 0.039304]]
    np.testing.assert_allclose(by_P.T, expected, atol=2e-6)
    np.testing.assert_allclose(by_z, [[0.011467, -0.011467], [0.023172, -0.023172]], atol=2e-6)


def test_a_mean_over_people_is_that_of_a_batch_in_parts():
    data = jax.tree.map(lambda x: np.concatenate([x, x, x[:, :2]], axis=1)[:, None], PAIRS)
    pal = PAL(3, 2, rule='dot', point='Pw')
    after = []
    for part in (0, 4):
        learner = IdealPointLearner(pal, Loss(by='people', prototype_pull=0.1), Rates(), ONE, users=2, part=part)
        after.append(learner.update(learner.init(jnp.arange(1)), data))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *after)


def test_a_new_person_is_at_the_minimum():
    """Of four margins by two bases, which are coordinates here."""
    x = np.array([[[1, -1], [1, -1], [-1, 1], [0.2, 0.8]]], np.float32)
    pal, pairs, known = PAL(2, 2, rule='dot', point='Pw'), people.pairs_of(x), jnp.ones((1, 4))
    for pull, w, loss in ((0.0, 0.755929, 2.455562), (1.0, 0.568539, 2.526775)):
        learner = IdealPointLearner(pal, Loss(), Rates(), ONE, users=2, new=NewUsers(400, 0.1, pull))
        z = learner.fit({'P': jnp.eye(2)[None]}, pairs, known, jnp.zeros((1, 1, 2)))
        np.testing.assert_allclose(jax.nn.softmax(z[0, 0])[0], w, atol=1e-5)
        margins = np.asarray(learner.margins({'P': jnp.eye(2)[None]}, z, pairs))
        np.testing.assert_allclose(np.logaddexp(0, -margins).sum() + pull / 2 * jnp.sum(z**2), loss, atol=1e-5)
    np.testing.assert_allclose(z[0, 0], [0.137946, -0.137946], atol=1e-5)


def test_a_pull_moves_the_bases_and_nobody():
    """An update with a large pull, beside Adam's: bases shrink, and people move as without it."""
    data, after = jax.tree.map(lambda x: x[:, None], PAIRS), []
    for pull in (0.0, 100.0):
        pal = PAL(3, 2, rule='dot', point='Pw')
        learner = IdealPointLearner(pal, Loss(prototype_pull=pull), Rates(), ONE, users=2, z_std=1.0)
        start = learner.init(jnp.arange(1))
        before = np.abs(np.asarray(start.params['P']))
        after.append(learner.update(start, data)[0])
    assert (np.abs(after[1].params['P']) < before).all()
    np.testing.assert_array_equal(after[1].users.z, after[0].users.z)


def test_options_that_do_not_fit_are_refused():
    for changes, match in (
        ({'loss': Loss(prototype_pull=1.0), 'pal': PAL(3, 1, mixture='own')}, 'loss.prototype_pull=1.0'),
        ({'loss': Loss(mix='losses'), 'pal': PAL(3, 2, mixture='linear')}, "loss.mix='losses'"),
    ):
        with pytest.raises(ValueError, match=match):
            IdealPointLearner(changes.get('pal', PAL(3, 2)), changes['loss'], Rates(), ONE, users=9)
    for wrong in ({'temperature': 0.0}, {'temperature': 2.0, 'scaled': True}):
        with pytest.raises(ValueError, match='model.temperature'):
            PAL(3, 2, **wrong)


# --- a population -----------------------------------------------------------------------------------------------------


def test_one_basis_is_everybodys_and_three_are_worth_more():
    """On one seed; the figures of three are below."""
    population = people.draw(2)
    shared, three = people.make_learner(1), people.make_learner(3)
    one, personal = (people.train(learner, population.train, seed=2, updates=300) for learner in (shared, three))
    seen = population.seen[:, 40:]
    moved = shared.margins(one.params, one.users.z + 3.0, people.pairs_of(seen))
    np.testing.assert_array_equal(moved, shared.margins(one.params, one.users.z, people.pairs_of(seen)))
    before = people.accuracy(shared, one, one.users.z, seen)
    assert people.accuracy(three, personal, personal.users.z, seen) > before + 0.1
    assert people.row(three, personal, population, counts=(0, 20))[2] > 0.7


@pytest.mark.slow
def test_a_population_of_rank_three():
    """Means over three seeds, within .03 of figures computed apart."""
    expected = {
        1: [0.667, 0.662, 0.662, 0.662],
        3: [0.746, 0.660, 0.688, 0.731],
        6: [0.719, 0.662, 0.660, 0.699],
    }
    measured, truth = {}, []
    for K in expected:
        learner, rows = people.make_learner(K), []
        for seed in range(3):
            population = people.draw(seed)
            rows.append(people.row(learner, people.train(learner, population.train, seed=seed), population))
            truth.append(float((population.margins[:80, 40:] > 0).mean()))
        measured[K] = np.mean(rows, axis=0)
        np.testing.assert_allclose(measured[K], expected[K], atol=0.03)
        assert measured[K][0] <= np.mean(truth) + 0.01
    assert measured[3][0] >= measured[1][0] + 0.04
    assert measured[6][0] < measured[3][0]


@pytest.mark.slow
def test_shuffled_people_and_answers_by_a_coin_teach_nothing():
    learner, shuffled, coins = people.make_learner(3), [], []
    for seed in range(3):
        population, rng = people.draw(seed), np.random.default_rng([seed, 1])
        flat = population.train.reshape(-1, people.WIDTH)
        mixed = flat[rng.permutation(len(flat))].reshape(population.train.shape)
        signs = np.where(rng.random(population.train.shape[:2]) < 0.5, 1, -1)[..., None].astype(np.float32)
        for training, accuracies in ((mixed, shuffled), (population.train * signs, coins)):
            state = people.train(learner, training, seed=seed)
            accuracies.append(people.accuracy(learner, state, state.users.z, population.seen[:, 40:]))
    assert abs(np.mean(shuffled) - 0.645) < 0.03
    assert abs(np.mean(coins) - 0.510) < 0.03
