"""Linear Bradley-Terry models at their optimum, where Newton's method without a damping leads away from it."""

from __future__ import annotations

import numpy as np

from pal_jax.recipes.personal import bradley_terry


def test_the_gradient_is_0_and_the_hessian_is_that_of_the_optimum():
    """Two people of strong tastes, one of whom has fewer pairs and starts at the opposite of what they chose."""
    rng = np.random.default_rng(0)
    x, weight, ridge = 8 * rng.normal(size=(2, 12, 3)), np.ones((2, 12)), np.array([0.1, 0.2, 0.1])
    x *= np.sign(x @ [1.0, -2.0, 0.5])[..., None]
    weight[1, 7:] = 0.0
    toward = np.array([-3.0, 6.0, -1.5])
    weights, hessian = bradley_terry.fit(x, weight, ridge, toward)
    for user in range(2):
        p = 1 / (1 + np.exp(x[user] @ weights[user]))
        gradient = ridge * (weights[user] - toward) - (weight[user] * p) @ x[user]
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
        curved = (x[user] * (weight[user] * p * (1 - p))[:, None]).T @ x[user]
        np.testing.assert_allclose(hessian[user], curved + np.diag(ridge), rtol=1e-5, atol=1e-6)


def test_nobody_without_pairs_moves():
    weights, hessian = bradley_terry.fit(np.zeros((1, 0, 2)), np.zeros((1, 0)), 0.5, np.array([1.0, 2.0]))
    np.testing.assert_array_equal(weights, [[1.0, 2.0]])
    np.testing.assert_array_equal(hessian, [np.diag([0.5, 0.5])])
