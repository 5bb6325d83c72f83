"""VPL: golden numbers, and two kinds of people told apart by their past choices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.learners import latent
from pal_jax.learners.latent import Latent, LatentState

SMALL = Latent(dim=3, hidden=16, kl_coef=0.01)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_divergence_from_the_prior():
    assert float(latent.divergence(jnp.zeros(4), jnp.zeros(4))) == 0
    mean, log_std = jnp.array([[1.0, -2.0]]), jnp.log(jnp.array([[0.5, 2.0]]))
    # 1/2 (1 + .25 - 1 - ln .25) + 1/2 (4 + 4 - 1 - ln 4)
    np.testing.assert_allclose(
        latent.divergence(mean, log_std), [0.5 * (0.25 - np.log(0.25) + 7 - np.log(4))], rtol=1e-6
    )


@pytest.mark.slow
def test_a_new_model_knows_nothing():
    params = latent.init(jax.random.key(0), 5, SMALL)
    batch = random(4, 2, 2, 5), random(4, 3, 2, 5, seed=1), jax.random.key(1), SMALL.kl_coef
    (loss, metrics), grads = jax.value_and_grad(latent.loss, has_aux=True)(params, *batch)
    assert float(metrics['reward']) == pytest.approx(-np.log(2)) and float(metrics['accuracy']) == 0
    assert float(loss) == pytest.approx(np.log(2) + 0.01 * float(metrics['kl']), rel=1e-6)
    assert not grads['reply']['w'].any() and grads['score']['w'].any()


def test_past_choices_have_no_order_and_their_sides_do():
    params = latent.init(jax.random.key(0), 5, SMALL)
    told = random(2, 4, 2, 5)
    for here, there in zip(latent.encode(params, told), latent.encode(params, told[:, ::-1]), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6)
    assert not np.allclose(latent.encode(params, told)[0], latent.encode(params, told[:, :, ::-1])[0], atol=1e-3)


@pytest.mark.parametrize(('people', 'choices'), [(0, 3), (4, 0)])
def test_nobody_and_no_choices_teach_nothing(people, choices):
    params, optimizer = latent.init(jax.random.key(0), 5, SMALL), optax.adam(1e-2)
    state, update = LatentState(params, optimizer.init(params)), latent.make_update(optimizer, SMALL)
    same, metrics = update(state, random(people, 2, 2, 5), random(people, choices, 2, 5), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert metrics == {}


def test_two_kinds_of_new_people_are_told_apart_and_nobody_is_not():
    """Half of the people want the first coordinate large, half small."""
    rng, direction = np.random.default_rng(0), np.eye(1, 5)[0]

    def choices(people, count):
        replies = rng.standard_normal((people, count, 2, 5)).astype(np.float32)
        kind = np.where(np.arange(people) % 2, 1.0, -1.0)
        better = np.argmax(kind[:, None, None] * (replies @ direction), axis=-1)
        return np.stack([np.take_along_axis(replies, k[..., None, None], 2)[:, :, 0] for k in (better, 1 - better)], 2)

    params, optimizer = latent.init(jax.random.key(0), 5, SMALL), optax.adam(1e-2)
    state, update = LatentState(params, optimizer.init(params)), latent.make_update(optimizer, SMALL)
    for i in range(150):
        state, _ = update(state, choices(64, 4), choices(64, 2), jax.random.fold_in(jax.random.key(1), i))
    told, held = choices(200, 4), choices(200, 4)
    z = latent.encode(state.params, told)[0]

    def accuracy(z):
        scores = latent.score(state.params, jnp.asarray(held), z)
        return float((scores[..., 0] > scores[..., 1]).mean())

    assert accuracy(z) > 0.9
    assert accuracy(jnp.roll(z, 1, axis=0)) < 0.15  # everybody's neighbour is of the other kind
    assert 0.35 < accuracy(jnp.zeros_like(z)) < 0.65
