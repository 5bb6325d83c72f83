"""Distributions of actions against scipy, and what masks forbid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from pal_jax.objectives import distributions as d
from pal_jax.objectives.distributions import Categorical, Gaussian

RNG = np.random.default_rng(0)


def test_heads_add_up_and_masked_actions_never_come():
    heads = Categorical((3, 2))
    output = jnp.asarray(RNG.normal(size=(4000, 5)), jnp.float32)
    mask = jnp.asarray(np.tile([True, False, True, True, True], (4000, 1)))
    action = heads.sample(jax.random.key(0), output, mask)
    assert action.shape == (4000, 2)
    assert not np.any(np.asarray(action)[:, 0] == 1)
    logits = np.where(mask, output, -np.inf)
    first = np.exp(logits[:, :3]) / np.exp(logits[:, :3]).sum(axis=1, keepdims=True)
    second = np.exp(logits[:, 3:]) / np.exp(logits[:, 3:]).sum(axis=1, keepdims=True)
    rows = np.arange(4000)
    expected = np.log(first[rows, action[:, 0]]) + np.log(second[rows, action[:, 1]])
    np.testing.assert_allclose(heads.logprob(output, mask, action), expected, atol=1e-5)
    entropy = stats.entropy(first, axis=1) + stats.entropy(second, axis=1)
    np.testing.assert_allclose(heads.entropy(output, mask), entropy, atol=1e-5)
    frequency = np.bincount(np.asarray(action)[:, 0], minlength=3) / 4000
    np.testing.assert_allclose(frequency, first.mean(axis=0), atol=0.03)
    slope = jax.grad(lambda x: jnp.sum(heads.logprob(x, mask, action)))(output)
    assert np.isfinite(slope).all() and not np.any(np.asarray(slope)[:, 1])


def test_kl_is_that_of_scipy_and_of_samples():
    heads, one, other = Categorical((4,)), *(jnp.asarray(RNG.normal(size=4), jnp.float32) for _ in range(2))
    mask = jnp.ones(4, bool)
    expected = stats.entropy(jax.nn.softmax(one), jax.nn.softmax(other))
    np.testing.assert_allclose(heads.kl(one, other, mask), expected, rtol=1e-4)
    assert float(heads.kl(one, one, mask)) == 0.0
    normal = Gaussian(2)
    one, other = jnp.array([0.3, -0.2, -0.5, 0.1]), jnp.array([0.0, 0.4, 0.2, -0.3])
    none = jnp.zeros(0, bool)
    drawn = normal.sample(jax.random.key(1), jnp.broadcast_to(one, (200_000, 4)), none)
    gap = (normal.logprob(jnp.broadcast_to(x, (200_000, 4)), none, drawn) for x in (one, other))
    np.testing.assert_allclose(normal.kl(one, other, none), np.mean(np.subtract(*gap)), atol=0.02)


def test_a_gaussian_is_that_of_scipy():
    normal, none = Gaussian(2), jnp.zeros(0, bool)
    output, action = jnp.array([0.5, -1.0, 0.2, -0.7]), jnp.array([0.1, 0.3])
    expected = stats.norm([0.5, -1.0], np.exp([0.2, -0.7]))
    np.testing.assert_allclose(normal.logprob(output, none, action), expected.logpdf(action).sum(), rtol=1e-5)
    np.testing.assert_allclose(normal.entropy(output, none), expected.entropy().sum(), rtol=1e-5)
    np.testing.assert_array_equal(normal.mode(output, none), [0.5, -1.0])


def test_a_mixture_of_one_standard_normal():
    output = jnp.zeros(5)  # a logit, two means, two logarithms of deviations
    np.testing.assert_allclose(d.mixture_nll(output, jnp.zeros(2)), 1.837877, atol=1e-6)


def test_a_mixture_is_the_sum_of_its_parts():
    rng = np.random.default_rng(0)
    logits, mean, log_std = rng.normal(size=3), rng.normal(size=(3, 2)), 0.3 * rng.normal(size=(3, 2))
    goal = rng.normal(size=2)
    share = np.exp(logits) / np.exp(logits).sum()
    density = share @ stats.norm.pdf(goal, mean, np.exp(log_std)).prod(axis=1)
    output = jnp.concatenate([logits, mean.ravel(), log_std.ravel()])
    np.testing.assert_allclose(d.mixture_nll(output, jnp.array(goal)), -np.log(density), rtol=1e-5)
    np.testing.assert_allclose(d.mixture_mean(output, 2), share @ mean, rtol=1e-5)
