"""Losses of preferences against the numbers of the specification and against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives import preference as p

pytestmark = pytest.mark.usefixtures('strict_promotion')


def test_bradley_terry_of_two_margins():
    np.testing.assert_allclose(p.logistic(jnp.array([0.8, -0.5])), [0.371101, 0.974077], atol=1e-6)


def test_bradley_terry_with_margin_and_smoothing_is_its_formula():
    m, margin, eps = np.array([-2.0, 0.3, 4.0]), 0.7, 0.1
    probability = 1 / (1 + np.exp(margin - m))
    expected = -(1 - eps) * np.log(probability) - eps * np.log(1 - probability)
    np.testing.assert_allclose(p.logistic(jnp.array(m), margin=margin, label_smoothing=eps), expected, rtol=1e-5)


def test_hinge_and_logistic_of_a_distance_margin():
    m = jnp.array([0.353553 - 1.060660]) * jnp.array([-1.0, 1.0])  # of the left one, and of the right one
    np.testing.assert_allclose(p.hinge(m), [0.292893, 1.707107], atol=2e-6)
    np.testing.assert_allclose(p.logistic(m), [0.400834, 1.107940], atol=2e-6)


@pytest.mark.parametrize(
    ('gamma', 'expected'), [(5.0, [3.5, 2.5, 0.9, 0.1, 0.025, 0.0]), (1.0, [5.5, 4.5, 2.5, 0.5, 0.125, 0.0])]
)
def test_smooth_hinge(gamma, expected):
    m = jnp.array([-5.0, -4.0, -2.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(p.smooth_hinge(m, gamma=gamma), expected, atol=1e-6)


def test_the_logistic_loss_is_the_cross_entropy_of_two_logits():
    margins = jnp.array([13.875610 - 1.401933, 1.401933 - 13.875610, -5.050763 + 15.152288])
    np.testing.assert_allclose(p.logistic(margins), [3.82605e-6, 12.473681, 4.10161e-5], rtol=0, atol=1e-6)


def test_a_loss_goes_by_its_name():
    m = jnp.array([0.25])
    np.testing.assert_array_equal(p.pair_loss(m, 'smooth_hinge', gamma=1.0), p.smooth_hinge(m, gamma=1.0))
    with pytest.raises(ValueError, match='logistic, hinge, smooth_hinge'):
        p.pair_loss(m, 'logistc')


@pytest.mark.parametrize(('mode', 'expected'), [('mean', 1.875), ('cumulative', 2.45), ('only_last', 4.0)])
def test_token_weighting(mode, expected):
    span = jnp.array([[False, False, True, True, True, True, False]])
    losses = jnp.array([[np.nan, np.nan, 0.5, 1.0, 2.0, 4.0, np.nan]])
    weighted = jnp.sum(jnp.where(span, p.token_weights(span, mode) * losses, 0.0))
    np.testing.assert_allclose(weighted, expected, rtol=1e-6)


@pytest.mark.parametrize('mode', ['mean', 'cumulative', 'only_last'])
def test_an_empty_span_weighs_nothing(mode):
    np.testing.assert_array_equal(p.token_weights(jnp.zeros((2, 4), bool), mode), np.zeros((2, 4)))


def test_a_span_starts_where_responses_differ_and_ends_where_the_longer_one_ends():
    left, right = jnp.array([[2, 10, 11, 12, 13, 1, 1, 1]]), jnp.array([[2, 10, 11, 20, 1, 1, 1, 1]])
    exists = (left != 1) | (right != 1)
    np.testing.assert_array_equal(jnp.flatnonzero(p.differing_span(left, right, exists)[0]), [3, 4])


def test_an_identical_pair_is_judged_by_its_last_token():
    same = jnp.arange(8)[None]
    np.testing.assert_array_equal(jnp.flatnonzero(p.differing_span(same, same, jnp.ones((1, 8), bool))[0]), [7])
    np.testing.assert_array_equal(jnp.flatnonzero(p.differing_span(same, same, same < 5)[0]), [4])


def test_the_bound_counts_what_is_too_long():
    np.testing.assert_allclose(jnp.sum(p.bound(jnp.array([[3.0, 4.0], [1.0, 0.0]]), 4.0)), 1.0)


def test_centring_pulls_both_rewards_to_zero():
    gradient = jax.grad(lambda r: p.centring(r[0], r[1]))(jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(gradient, [6.0, 6.0])
