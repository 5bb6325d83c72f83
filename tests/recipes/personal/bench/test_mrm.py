"""MRM (arXiv 2601.18731): golden numbers of the inner steps, and what they gain on a population of rank 3."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal import meta
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner
from pal_jax.recipes.personal.meta import Meta
from pal_jax.recipes.personal.options import Loss, NewUsers, Rates
from tests.recipes.personal import people
from tests.recipes.personal.people import ONE

MARGINS = jnp.array([[-1.0, 2.0], [0.5, 1.0], [-0.5, 1.0], [1.0, -0.2], [-1.0, 1.5]])  # of pairs by base
SUPPORT = jnp.array([True, True, False, False, False])
Z0, PLACE = jnp.array([0.3, -0.3]), jnp.zeros(5, jnp.int32)
ONE_STEP = Meta(steps=1, lr=0.5, gamma=0.5)


def losses(z):
    return jax.nn.softplus(-jnp.sum(jax.nn.softmax(z) * MARGINS, axis=1))


def close(values, expected, atol=2e-6):
    np.testing.assert_allclose(values, expected, atol=atol)


def test_an_inner_step_and_the_gradient_through_it():
    def outer(z0, settings):
        return meta.outer_loss(losses, z0[None], PLACE, SUPPORT, ~SUPPORT, settings)

    support = jax.value_and_grad(lambda z: jnp.mean(losses(jnp.broadcast_to(z, (5, 2)))[:2]))(Z0)
    close(support[0], 0.536473)
    close(support[1], [0.185451, -0.185451])
    total, z = outer(Z0, ONE_STEP)
    close(z[0], [0.207274, -0.207274])
    close(jax.nn.softmax(z[0]), [0.602178, 0.397822])
    close(total, 0.602474)
    close(outer(Z0, ONE_STEP._replace(steps=0))[0], 0.625284)
    gradient = jax.grad(lambda z0, settings: outer(z0, settings)[0])
    close(gradient(Z0, ONE_STEP), [0.120654, -0.120654])


def test_people_without_pairs_stay_bit_for_bit_and_count_nowhere():
    place = jnp.array([0, 0, 0, 1, 1])  # the second person has no support, the third no pair
    support, query = SUPPORT, jnp.array([False, False, True, False, False])
    total, z = meta.outer_loss(losses, jnp.tile(Z0, (3, 1)), place, support, query, ONE_STEP)
    assert np.array_equal(z[1], Z0) and np.array_equal(z[2], Z0)
    close(total, losses(z[place])[2])


def test_hard_people_weigh_more_by_weights_that_are_constants():
    losses, everybody = jnp.array([0.4, 0.6, 0.9, 1.3]), jnp.ones(4, bool)
    omega = meta.hard_people(losses, everybody, 0.5, 0.5)
    close(omega, [0.331812, 0.425557, 0.574443, 0.750260])
    close(omega @ losses, 1.880396)
    close(omega @ losses / omega.sum(), 0.903137)
    close(meta.hard_people(losses, everybody, 0.5, 0.0) @ losses, 2.2)
    close(jax.grad(lambda x: meta.hard_people(x, everybody, 0.5, 0.5) @ x)(losses), omega)
    # Who is not there is in no quantile, and what weighs nothing is nobody's.
    some = jnp.array([True, False, True])
    close(meta.hard_people(jnp.array([0.5, 100.0, 0.9]), some, 0.5, 0.5), [0.401312, 0, 0.598688])
    means, there = meta.person_means(jnp.array([1.0, 5.0, 7.0]), jnp.array([0, 0, 1]), 2, jnp.array([1.0, 0.0, 0.0]))
    close(means, [1, 0])
    np.testing.assert_array_equal(there, [True, False])


def test_a_learner_moves_the_start_and_the_bases_and_no_rows():
    population = people.draw(0)
    learner = people.make_learner(3, inner=Meta(steps=2), users=people.SEEN)
    start = learner.init(jnp.zeros(1, jnp.int32))
    before = jax.tree.map(np.asarray, (start.params, start.users))
    state = people.train(learner, population.train, updates=50, state=start)
    jax.tree.map(np.testing.assert_array_equal, state.users, before[1])
    assert all((np.asarray(state.params[name]) != before[0][name]).all() for name in ('P', 'z0'))
    # A batch of padding alone moves nothing.
    pairs = jax.tree.map(lambda x: x[:, None, :8], people.pairs_of(population.train))
    sides = {side: np.repeat(getattr(pairs, side)[..., None, :], 2, axis=-2) for side in ('chosen', 'rejected')}
    kept = jax.tree.map(np.asarray, state)
    after, _ = learner.update(state, pairs.replace(weight=np.zeros((1, 1, 8, 2), np.float32), **sides))
    jax.tree.map(np.testing.assert_array_equal, after, kept)


def test_options_that_do_not_fit_are_refused():
    pal = PAL(3, 2, rule='dot', point='Pw')
    for loss, inner in ((Loss(pull=1.0), Meta()), (Loss(mix='losses'), Meta()), (Loss(), Meta(support=1.0))):
        with pytest.raises(ValueError, match='inner steps'):
            IdealPointLearner(pal, loss, Rates(), ONE, users=4, inner=inner)


def gains(seed, trained, rules, population):
    """Accuracies on new people of whom all pairs are known, by the rule of their fit; without a fit first."""
    learner, state = trained
    prior, tested = people.prior_of(state), population.new[:, people.KNOWN :]
    rows = [people.accuracy(learner, state, prior, tested)]
    for rule in rules:
        fits = people.make_learner(3, new=rule)
        rows.append(people.accuracy(fits, state, people.new_people(fits, state, population.new, 20), tested))
    return rows


FEW = NewUsers(5, 1.0, 0.0, start='prior', optimizer='sgd', average='mean')
SIGN = NewUsers(1, 1e-3, 0.0, start='prior')


@pytest.mark.slow
def test_few_steps_of_descent_gain_and_one_step_of_adam_does_not():
    """Means over three seeds; the bases are LoRe's, and the start the mean of seen people."""
    rules = [FEW._replace(steps=1), FEW, FEW._replace(steps=20), SIGN, SIGN._replace(lr=5e-3)]
    learner, rows = people.make_learner(3), []
    for seed in range(3):
        population = people.draw(seed)
        trained = learner, people.train(learner, population.train, seed=seed)
        rows.append(gains(seed, trained, rules, population))
    before, one, five, twenty, sign, larger = np.mean(rows, axis=0)
    np.testing.assert_allclose(
        [before, one, five, twenty, sign, larger], [0.660, 0.728, 0.732, 0.726, 0.660, 0.662], atol=0.03
    )
    assert five > before + 0.04
    assert abs(sign - before) < 0.005


def test_who_has_no_known_pair_keeps_the_start():
    learner = people.make_learner(3, new=FEW)
    state = learner.init(jnp.zeros(1, jnp.int32))
    prior = jnp.broadcast_to(jnp.array([0.3, -0.1, 0.7]), (1, people.NEW, 3))
    z = people.new_people(learner, state, people.draw(0).new, 0, prior)
    np.testing.assert_array_equal(z, prior)


@pytest.mark.slow
def test_a_start_that_was_learnt_is_as_good_as_the_mean_of_people():
    """Bases and start learn through five inner steps; means over three seeds of new people with 20 known pairs."""
    learner, rows = people.make_learner(3, inner=Meta(), users=128, new=FEW), []
    for seed in range(3):
        population = people.draw(seed)
        state = people.train(learner, population.train, seed=seed)
        prior = jnp.broadcast_to(state.params['z0'][:, None], (1, people.NEW, 3))
        z = people.new_people(learner, state, population.new, 20, prior)
        tested = population.new[:, people.KNOWN :]
        rows.append([people.accuracy(learner, state, values, tested) for values in (prior, z)])
    before, after = np.mean(rows, axis=0)
    assert after > before + 0.04 and after > 0.70
