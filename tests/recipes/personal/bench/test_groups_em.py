"""MaxMin-RLHF's groups (arXiv 2402.08925): golden numbers of the E step, and two camps found."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal.bench import groups_em
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner
from pal_jax.recipes.personal.options import Loss, Rates
from tests.recipes.personal import people
from tests.recipes.personal.people import ONE

MARGINS = np.array([[1, -0.2], [0.5, 0.1], [-0.3, 0.6], [0.4, 0.2], [0.1, 0.1], [0.1, 0.1]])  # by pair and group
USERS = np.array([0, 0, 1, 1, 2, 2])


def camps(seed):
    """Twelve people of one taste and eight of its opposite: differences by person, and the camp of each."""
    rng = np.random.default_rng(seed)
    theta, x = rng.normal(size=8), rng.normal(size=(20, 20, 8))
    camp = np.where(np.arange(20) < 12, 1, -1)
    m = 3 * x @ theta / np.sqrt(8) * camp[:, None]
    signs = np.where(rng.random(m.shape) < 1 / (1 + np.exp(-m)), 1, -1)
    return signs[..., None] * x, camp > 0, np.eye(2)[rng.integers(0, 2, 20)]


def agreement(belonging, camp):
    same = np.mean((belonging[:, 0] > 0.5) == camp)
    return max(same, 1 - same)


def test_people_go_where_their_choices_are_likely():
    likelihood = groups_em.likelihoods(MARGINS, USERS, 3)
    expected = [[-0.787339, -1.442536], [-1.367370, -1.035627], [-1.288793, -1.288793]]
    np.testing.assert_allclose(likelihood, expected, atol=2e-6)
    np.testing.assert_array_equal(groups_em.assign(likelihood).argmax(axis=1), [0, 1, 0])
    soft = groups_em.weights_of(likelihood, np.array([0.7, 0.3]))
    np.testing.assert_allclose(soft[:, 0], [0.817946, 0.626108, 0.7], atol=2e-6)
    np.testing.assert_allclose(soft[:, 0].mean(), 0.714685, atol=2e-6)
    nobody = groups_em.likelihoods(MARGINS, USERS, 4, np.zeros(6))
    np.testing.assert_allclose(groups_em.weights_of(nobody, np.array([0.7, 0.3])), [[0.7, 0.3]] * 4)


def test_no_group_is_empty():
    likelihood = np.array([[-1.0, -2.0, -9.0], [-3.0, -4.0, -9.0], [-1.5, -1.0, -9.0]])
    np.testing.assert_array_equal(groups_em.assign(likelihood).argmax(axis=1), [0, 2, 1])


def test_probabilities_are_mixed_and_swapped_sides_are_the_negative():
    weights = np.array([[0.25, 0.75]])
    margin = groups_em.mixed_margin(np.array([[2.0, -1.0]]), weights)
    probability = 0.25 / (1 + np.exp(-2)) + 0.75 / (1 + np.exp(1))
    np.testing.assert_allclose(1 / (1 + np.exp(-margin)), [probability])
    np.testing.assert_allclose(groups_em.mixed_margin(np.array([[-2.0, 1.0]]), weights), -margin)


@pytest.mark.parametrize('belonging', ['hard', 'soft'])
def test_prototypes_find_two_camps(belonging):
    x, camp, start = camps(0)
    pal = PAL(8, 2, rule='dot', point='Pw', prototype_init='expected')
    learner = IdealPointLearner(pal, Loss(mix='losses'), Rates(prototypes=0.05, users=0.0), ONE, users=20)
    pairs = people.pairs_of(x.astype(np.float32))
    batches = jax.tree.map(lambda a: np.broadcast_to(a[:, None], (1, 40, *a.shape[1:])), pairs)
    weight = np.ones(pairs.users.shape[1])
    belongings, state = groups_em.run(
        learner, learner.init(jnp.arange(1)), lambda _: [batches], pairs, weight, start, rounds=6, belonging=belonging
    )
    assert agreement(belongings, camp) >= 0.95
    hard = belongings[np.repeat(np.arange(20), 20)]
    margins = np.asarray(learner.by_prototype(state.params, pairs))[0]
    assert np.mean(groups_em.mixed_margin(margins, hard) > 0) > 0.75
    moving = IdealPointLearner(pal, Loss(mix='losses'), dataclasses.replace(Rates(), users=0.1), ONE, users=20)
    with pytest.raises(ValueError, match='rates.users=0'):
        groups_em.run(moving, state, lambda _: [batches], pairs, weight, start, rounds=1)
    with pytest.raises(ValueError, match="belonging='half'"):
        groups_em.run(learner, state, lambda _: [batches], pairs, weight, start, rounds=1, belonging='half')  # type: ignore[arg-type]
