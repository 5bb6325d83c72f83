"""PReF (arXiv 2503.06358): its start and its questions by golden numbers, and its weights on a population of rank 3."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal import asking
from pal_jax.recipes.personal.bench import low_rank, methods
from tests.recipes.personal import people

A = np.array([[1, 1, 0], [1, np.nan, 0], [0, 0, 1], [np.nan, 0, 1]])  # pairs x people
MISSING = np.isnan(A)


def close(values, expected, atol=2e-6):
    np.testing.assert_allclose(values, expected, atol=atol)


def test_the_centred_start():
    """The missing cells come out as the two camps say."""
    items, of_people = low_rank.refill(np.where(MISSING, 0.0, 2 * A - 1), MISSING, 1)
    sign = np.sign(of_people[0, 0])
    close(sign * items[:, 0], [0.930629, 0.930532, -0.930629, -0.930532])
    close(sign * of_people[:, 0], [1.074514, 1.074514, -1.074598])
    close((items @ of_people.T)[MISSING], [0.999869, -0.999869], atol=1e-3)


def test_the_start_knows_camps_before_an_update():
    """Thirty people of two tastes judge the same pairs."""
    rng = np.random.default_rng(0)
    tastes, x = rng.normal(size=(2, people.WIDTH)), rng.normal(size=(40, people.WIDTH))
    signs = np.sign(x @ tastes[np.arange(30) % 2].T)  # [pairs, people]
    chosen, users = (signs.T[:, :, None] * x[None]).reshape(-1, people.WIDTH), np.repeat(np.arange(30), 40)
    assert low_rank.start(chosen, users, 30, 30) is None
    P, z = low_rank.start(chosen, users, 30, 2)
    learner = people.make_learner(2, 'linear', users=30)
    state = methods.standing(learner.init(jnp.zeros(1, jnp.int32)), z).replace(params={'P': jnp.asarray(P)[None]})
    assert people.accuracy(learner, state, state.users.z, chosen.reshape(30, 40, -1).astype(np.float32)) > 0.9
    assert low_rank.start(rng.normal(size=chosen.shape), users, 30, 2) is None  # no pair has several judges


# --- questions --------------------------------------------------------------------------------------------------------

ASKED = jnp.array([[1.0, 0.0], [1.0, 0.5]])
CANDIDATES = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.9], [0.5, -1.2]])


def test_what_an_answer_takes_from_the_ellipsoid():
    z, zero = jnp.array([[2.0, 0.0]]), jnp.zeros((1, 2))
    new = asking.People(lambda z: jnp.sum(ASKED * z, axis=1), jnp.zeros(2, jnp.int32), zero, 1.0)
    H = asking.posterior(new, z, jnp.ones(2)).precision[0]
    close(H, [[1.209987, 0.052497], [0.052497, 1.026248]], atol=1e-5)
    close(np.linalg.eigvalsh(np.linalg.inv(H))[-1], 0.987843, atol=1e-5)
    inverse = jnp.broadcast_to(jnp.linalg.inv(H), (4, 2, 2))
    close(asking.ellipsoid(CANDIDATES @ z[0], CANDIDATES, inverse), [0.056871, 0.218451, 0.150153, 0.283074])


def test_the_likeliest_weights_under_a_ridge():
    x, labels = np.array([[1, 0], [1, 0.5], [0, 1], [0.5, -1.2]]), np.array([1, 1, 0, 1])
    chosen = jnp.asarray(np.where(labels[:, None], x, -x), jnp.float32)
    users, answered, zero = jnp.zeros(4, jnp.int32), jnp.ones(4, bool), jnp.zeros((1, 2))

    def mode(ridge, steps):
        new = asking.People(lambda z: jnp.sum(chosen * z, axis=1), users, zero, ridge)
        return asking.mode(new, answered, zero, steps)[0][0]

    weights = mode(1.0, 8)
    close(weights, [0.806921, -0.511004], atol=1e-5)
    close(np.logaddexp(0, -np.asarray(chosen @ weights)).sum(), 1.602677, atol=1e-5)
    close(mode(1.0, 1), [0.792058, -0.496382], atol=1e-5)
    close(mode(0.1, 12), [2.493205, -1.536451], atol=1e-4)


# --- a population -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_free_weights_on_a_population_of_rank_three():
    """Means over three seeds: within .03 of figures computed apart; questions by the ellipsoid beat the given order."""
    learner, rows, orders = people.make_learner(3, 'linear'), [], []
    asked = {
        rule: people.make_learner(3, 'linear', new=learner.new._replace(question=rule))
        for rule in ('ellipsoid', 'information')
    }
    for seed in range(3):
        population = people.draw(seed)
        state = people.train(learner, population.train, seed=seed)
        rows.append(people.row(learner, state, population))
        pool, prior = people.pairs_of(population.new[:, : people.KNOWN]), people.prior_of(state)
        everywhere, accuracies = jnp.ones(pool.users.shape, bool), [rows[-1][2]]
        for asking_learner in asked.values():
            rank = asking_learner.ask(state.params, pool, everywhere, prior, seed, questions=5)
            z = learner.fit(state.params, pool, (rank < 5).astype(np.float32), prior)
            accuracies.append(people.accuracy(learner, state, z, population.new[:, people.KNOWN :]))
        orders.append(accuracies)
    np.testing.assert_allclose(np.mean(rows, axis=0), [0.736, 0.658, 0.658, 0.717], atol=0.03)
    given, ellipsoid, information = np.mean(orders, axis=0)
    assert ellipsoid > given and information > given
