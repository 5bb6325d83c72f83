"""Conditional logits at their optimum, where Newton's method without a damping leads away from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from pal_jax.recipes.personal import logit
from tests.recipes.personal.people import apart, choices_among


def test_the_gradient_is_0_and_the_hessian_is_that_of_the_optimum():
    """Two people of strong tastes, one of whom has fewer pairs and starts at the opposite of what they chose."""
    rng = np.random.default_rng(0)
    x, weight, ridge = 8 * rng.normal(size=(2, 12, 3)), np.ones((2, 12)), np.array([0.1, 0.2, 0.1])
    x *= np.sign(x @ [1.0, -2.0, 0.5])[..., None]
    weight[1, 7:] = 0.0
    toward = np.array([-3.0, 6.0, -1.5])
    weights, hessian = logit.fit(x[:, :, None], weight, ridge, toward)
    for user in range(2):
        p = 1 / (1 + np.exp(x[user] @ weights[user]))
        gradient = ridge * (weights[user] - toward) - (weight[user] * p) @ x[user]
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
        curved = (x[user] * (weight[user] * p * (1 - p))[:, None]).T @ x[user]
        np.testing.assert_allclose(hessian[user], curved + np.diag(ridge), rtol=1e-5, atol=1e-6)


def test_nobody_without_pairs_moves():
    weights, hessian = logit.fit(np.zeros((1, 0, 1, 2)), np.zeros((1, 0)), 0.5, np.array([1.0, 2.0]))
    np.testing.assert_array_equal(weights, [[1.0, 2.0]])
    np.testing.assert_array_equal(hessian, [np.diag([0.5, 0.5])])


def choices_of_people(rng, people, count):
    """Choices between two options, of people who want the first attribute or its opposite."""
    taste = np.stack([rng.choice([2.0, -0.5], people), rng.normal(0.5, 0.5, people)], axis=1)
    person = np.repeat(np.arange(people), count)
    x = rng.normal(size=(len(person), 2))
    chosen = rng.random(len(x)) < 1 / (1 + np.exp(-np.sum(x * taste[person], axis=1)))
    return apart(np.where(chosen[:, None], x, -x), person)


def test_choices_among_several_options_are_a_multinomial_logit():
    """Against a general optimiser, with two to four options; its Hessian is that of finite differences."""
    rng = np.random.default_rng(3)
    choices = choices_among(rng, np.tile([1.0, -0.5], (30, 1)), rng.integers(2, 5, 300), 10)
    assert choices.x.shape == (300, 3, 2) and set(choices.exists.sum(axis=1)) == {1, 2, 3}

    def loss(w):
        return np.log1p(np.where(choices.exists, np.exp(-choices.x @ w), 0.0).sum(axis=1)).sum()

    w = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    everybody = logit.of_all(choices)
    np.testing.assert_allclose(everybody.weights, w, atol=1e-4)
    assert logit.log_likelihood(choices, everybody.weights) == pytest.approx(-loss(w))
    np.testing.assert_allclose(logit.scores(choices).sum(axis=0), 0.0, atol=1e-4)
    hessian = logit.fit(choices.x[None], np.ones((1, 300)), 1e-6, np.zeros(2), choices.exists[None]).hessian[0]
    numeric = optimize.approx_fprime(w, lambda v: optimize.approx_fprime(v, loss, 1e-5), 1e-4)
    np.testing.assert_allclose(hessian, numeric, rtol=0.01, atol=0.1)


def test_intervals_of_choices_among_four_options_cover():
    rng, inside, truth = np.random.default_rng(4), [], np.array([1.0, -0.5])
    for _ in range(200):
        estimates = logit.of_all(choices_among(rng, np.tile(truth, (40, 1)), 4, 8)).estimates
        inside.append([figure.low <= true <= figure.high for figure, true in zip(estimates, truth, strict=True)])
    assert 0.9 <= np.mean(inside) <= 0.99


def truth_of(rng):
    """The weights of one model for all of very many people."""
    return logit.of_all(choices_of_people(rng, 20_000, 10)).weights


def test_one_model_for_all_is_a_logit_with_the_errors_of_a_general_optimiser_and_the_sandwich():
    choices = choices_of_people(np.random.default_rng(0), 30, 10)
    estimates, x, person = logit.of_all(choices).estimates, choices.x[:, 0], choices.users
    w = optimize.minimize(lambda w: np.logaddexp(0, -x @ w).sum(), np.zeros(2), tol=1e-12).x
    np.testing.assert_allclose([figure.value for figure in estimates], w, atol=1e-4)
    p = 1 / (1 + np.exp(x @ w))
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    meat = sum(np.outer(g, g) for g in (x[person == one].T @ p[person == one] for one in range(30)))
    errors = np.sqrt(np.maximum(np.diag(bread @ meat @ bread) * 30 / 29, np.diag(bread)))
    np.testing.assert_allclose([figure.error for figure in estimates], errors, rtol=1e-3)


def test_intervals_of_one_model_for_all_cover_and_what_nobody_contradicts_is_open():
    rng, inside = np.random.default_rng(1), []
    truth = truth_of(rng)
    for _ in range(200):
        estimates = logit.of_all(choices_of_people(rng, 40, 12)).estimates
        inside.append([figure.low <= true <= figure.high for figure, true in zip(estimates, truth, strict=True)])
    assert 0.9 <= np.mean(inside) <= 0.99
    always = np.abs(rng.normal(size=(60, 1)))
    (figure,) = logit.of_all(apart(always, np.repeat(np.arange(6), 10))).estimates
    assert figure.low < 0 < figure.value


def test_intervals_of_worth_cover_and_are_open_where_the_price_may_not_matter():
    rng, inside = np.random.default_rng(2), []
    wants = truth_of(rng)
    for _ in range(200):
        worth = logit.of_all(choices_of_people(rng, 40, 12)).worth(0, 1)
        inside.append(worth.low is None or worth.low <= -wants[0] / wants[1] <= worth.high)
    assert 0.9 <= np.mean(inside) <= 0.99
    model = logit.Common(np.array([1.0, -2.0]), np.zeros((2, 2)), 50)
    assert model.worth(0, 1) == (0.5, None, 0.5, 0.5)
    assert model._replace(covariance=np.diag([0.0, 2.0])).worth(0, 1) == (0.5, None, None, None)
