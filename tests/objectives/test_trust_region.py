"""CPO and PCPO: golden numbers, agreement with a general solver, and the search along a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from pal_jax.objectives import trust_region as t

G, B, DELTA = np.array([1.0, 0.0]), np.array([0.5, 0.5]), 0.01
cpo, pcpo = (
    jax.jit(
        lambda g, b, c, natural_g, natural_b, delta, rule=rule: rule(t.Gradients(g, b, natural_g, natural_b), c, delta)
    )
    for rule in (t.cpo, t.pcpo)
)


@pytest.mark.parametrize(
    ('c', 'step', 'lam', 'nu'),
    [
        (-1.0, (0.141421, 0.0), None, 0.0),
        (-0.05, (0.136603, -0.036603), 5.773503, 0.42265),
        (0.05, (0.036603, -0.136603), None, 1.57735),
        (0.2, (-0.1, -0.1), None, None),
    ],
)
def test_cpo_steps_are_the_golden_ones(c, step, lam, nu):
    solved = cpo(G, B, c, G, B, DELTA)
    np.testing.assert_allclose(solved.x, step, atol=1e-6)
    if lam is not None:
        assert float(solved.lam) == pytest.approx(lam, abs=1e-5)
    if nu is not None:
        assert float(solved.nu) == pytest.approx(nu, abs=1e-5)
    assert bool(solved.feasible) == (c < 0.2)


@pytest.mark.parametrize(('c', 'step'), [(-0.05, (0.120711, -0.020711)), (0.05, (0.020711, -0.120711))])
def test_pcpo_steps_are_the_golden_ones(c, step):
    solved = pcpo(G, B, c, G, B, DELTA)
    np.testing.assert_allclose(solved.x, step, atol=1e-6)
    assert float(B @ solved.x + c) == pytest.approx(0.0, abs=1e-6)


def test_cpo_agrees_with_a_general_solver():
    rng, kept = np.random.default_rng(0), 0
    for _ in range(60):
        root = rng.normal(size=(3, 3))
        h = root @ root.T + 0.3 * np.eye(3)
        g, b, c, delta = rng.normal(size=3), rng.normal(size=3), rng.normal() * 0.2, 0.02
        solved = cpo(*map(jnp.asarray, (g, b, c, np.linalg.solve(h, g), np.linalg.solve(h, b))), delta)
        x = np.asarray(solved.x, float)
        assert 0.5 * x @ h @ x <= delta * 1.001
        if not solved.feasible:
            lowest = c - np.sqrt(2 * delta * b @ np.linalg.solve(h, b))
            assert float(b @ x + c) == pytest.approx(lowest, abs=1e-4)
            assert lowest >= -1e-6
            continue
        kept += 1
        assert b @ x + c <= 1e-4
        region = {'type': 'ineq', 'fun': lambda x, h=h, delta=delta: delta - 0.5 * x @ h @ x}
        limit = {'type': 'ineq', 'fun': lambda x, b=b, c=c: -(b @ x + c)}
        best = minimize(lambda x, g=g: -g @ x, np.zeros(3), constraints=[region, limit], method='SLSQP')
        assert float(g @ x) == pytest.approx(-best.fun, abs=2e-3)
    assert kept > 20


def test_cpo_goes_straight_to_the_limit_where_the_gradients_are_parallel():
    rng = np.random.default_rng(0)
    for _ in range(100):
        b, scale = rng.normal(size=20), rng.uniform(0.1, 3)
        reach = np.sqrt(2 * DELTA * b @ b)  # by which a step within the region changes the cost at most
        c = rng.choice([-1, 1]) * rng.uniform(0.1, 0.9) * reach
        # A reward that grows with the cost stops at the limit; one that falls with it goes as far as the region does.
        for g, change in ((scale * b, -c), (-scale * b, -reach)):
            x = cpo(*(np.float32(array) for array in (g, b, c, g, b)), DELTA).x
            np.testing.assert_allclose(x, change * b / (b @ b), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ('c', 'g', 'b'), [(0.0, G, B), (0.0, G, -B), (-0.1, G, 0 * B), (0.1, G, 0 * B), (-0.1, 0 * G, B)]
)
def test_steps_at_the_border_and_without_gradients_are_finite(c, g, b):
    for rule in (cpo, pcpo):
        x = np.asarray(rule(g, b, c, g, b, DELTA).x)
        assert np.isfinite(x).all()
        assert b @ x + c <= 1e-5 or not b.any()
        assert g @ x >= -1e-6 or c > 0


def test_the_conjugate_gradient_solves():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(12, 12))
    h, right = jnp.asarray(root @ root.T + np.eye(12)), jnp.asarray(rng.normal(size=12))
    x = jax.jit(lambda b: t.conjugate_gradient(lambda v: h @ v, b, 30))(right)
    np.testing.assert_allclose(x, np.linalg.solve(h, right), rtol=1e-3, atol=1e-4)
    small = t.conjugate_gradient(lambda v: h @ v, 1e-6 * right, 30)  # as exact as the large one
    np.testing.assert_allclose(1e6 * small, x, rtol=1e-3, atol=1e-3)
    assert not np.any(t.conjugate_gradient(lambda v: h @ v, 0.0 * right, 30))


def test_the_line_search_takes_the_first_scale_that_passes():
    scale, taken = t.line_search(lambda scale: scale < 0.6, 0.8, 15)
    assert (float(scale), float(taken)) == (pytest.approx(0.8**3), 1.0)
    scale, taken = t.line_search(lambda scale: jnp.isfinite(jnp.where(scale > 0.9, jnp.nan, 0.0)), 0.8, 15)
    assert float(scale) == pytest.approx(0.8)
    assert [float(x) for x in t.line_search(lambda scale: scale < 0.0, 0.8, 15)] == [0.0, 0.0]
