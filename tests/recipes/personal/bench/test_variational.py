"""People as distributions, in this project's own form of VRF: golden numbers, and what a person's spread depends on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.learners import latent
from pal_jax.recipes.personal.bench import reading, variational
from pal_jax.recipes.personal.bench.variational import VariationalLearner
from tests.recipes.personal import people

MEAN, STD = jnp.array([0.2, -0.1]), jnp.array([0.5, 0.4])
BASES = {
    'M': jnp.array([[1.0, 0.0], [0.0, 1.0], [0.2, -0.1]]),
    'log_S': jnp.log(jnp.array([[0.5, 0.4], [0.2, 0.2], [1.0, 1.0]])),
}


def close(values, expected):
    np.testing.assert_allclose(values, expected, atol=2e-6)


def test_distances_and_weights():
    M, S = BASES['M'], jnp.exp(BASES['log_S'])
    close(variational.w2_squared(MEAN[None], STD[None], M, S), [0.65, 1.38, 0.61])
    close(variational.w2_squared(M, S, MEAN[None], STD[None]), [0.65, 1.38, 0.61])
    close(variational.w2_squared(MEAN[None], STD[None], MEAN[None], STD[None]), 0)
    close(variational.weights(BASES, MEAN, STD, 1.0), [0.396398, 0.191028, 0.412575])
    close(variational.weights(BASES, MEAN[None], STD[None], 0.5), [[0.431868, 0.100295, 0.467837]])
    close(latent.divergence(MEAN, jnp.log(STD)), 0.839438)


def test_uncertain_margins_count_less():
    m, v = jnp.array([1.2, -0.4, 0.3]), jnp.array([0.1, 2.0, 0.5])
    close(jax.nn.softplus(-variational.probit(m, v)), [0.268628, 0.853987, 0.565382])
    close(jax.nn.sigmoid(variational.probit(m, v)), [0.764428, 0.425714, 0.568143])


def test_told_pairs_have_no_order_and_padding_is_nothing():
    learner, rng = VariationalLearner(5), np.random.default_rng(0)
    params = learner.weights(jax.random.key(0))
    known, asked = (rng.normal(size=(2, n, 5)).astype(np.float32) for n in (4, 3))
    exists = np.array([[True] * 4, [True, True, False, False]])
    m, v = learner.predict(params, known, exists, asked)
    assert (v > 0).all()
    close(learner.predict(params, known[:, ::-1], exists[:, ::-1], asked)[0], m)
    changed = np.where(exists[..., None], known, 9.0)
    close(learner.predict(params, changed, exists, asked)[0], m)
    np.testing.assert_array_equal(learner.predict(params, known, exists, -asked)[0], -m)
    assert np.isfinite(learner.predict(params, known, np.zeros_like(exists), asked)[0]).all()


@pytest.mark.slow
def test_a_population_of_rank_three():
    """On one seed: the more pairs are told, the better and the surer."""
    population = people.draw(1)
    learner = VariationalLearner(people.WIDTH)
    x = population.train.reshape(-1, people.WIDTH)
    index, exists = np.arange(len(x)).reshape(people.SEEN, -1), np.ones((people.SEEN, 40), bool)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), np.arange(800))
    state, _ = reading.update(learner, reading.begin(learner, jax.random.key(0)), x, index, exists, keys)
    known, asked = population.new[:, : people.KNOWN], population.new[:, people.KNOWN :]
    right, spread = [], []
    for count in (0, 1, 5, 20):
        there = np.broadcast_to(np.arange(people.KNOWN) < count, known.shape[:2])
        m, v = learner.predict(state.params, known, there, asked)
        right.append(float((np.asarray(m) > 0).mean()))
        spread.append(float(np.mean(v)))
    print(np.round(right, 3), np.round(spread, 4))
