from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_jax.objectives.masked import keep, masked_mean, masked_sum, masked_var, whiten

JUNK = [np.nan, np.inf, -np.inf, 1e38]


def ragged(seed: int, rows: int = 3, columns: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < 0.6
    mask[0, 0] = True
    return rng.normal(2.0, 3.0, (rows, columns)).astype(np.float32), mask


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), junk=st.sampled_from(JUNK))
def test_reductions_equal_numpy_on_the_kept_entries(seed, junk):
    x, mask = ragged(seed)
    kept = x[mask].astype(np.float64)
    dirty = jnp.asarray(np.where(mask, x, junk).astype(np.float32))
    np.testing.assert_allclose(masked_sum(dirty, mask), kept.sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masked_mean(dirty, mask), kept.mean(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masked_var(dirty, mask), kept.var(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('axis', [0, 1])
def test_mean_over_an_axis(axis):
    x, mask = ragged(1)
    sums, counts = np.where(mask, x, 0).sum(axis), mask.sum(axis)
    expected = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    np.testing.assert_allclose(masked_mean(jnp.asarray(x), mask, axis), expected, rtol=1e-5)


def test_whitened_entries_have_mean_0_and_variance_1_and_the_rest_are_0():
    x, mask = ragged(2)
    white = np.asarray(whiten(jnp.asarray(np.where(mask, x, np.nan)), mask))
    assert white[mask].mean() == pytest.approx(0, abs=1e-6)
    assert white[mask].var() == pytest.approx(1, abs=1e-5)
    assert not white[~mask].any()


def test_whitening_does_not_blow_up_a_constant():
    np.testing.assert_allclose(whiten(jnp.full((4, 4), 0.1), jnp.ones((4, 4), bool)), 0, atol=1e-3)


def test_nothing_kept_gives_zeros():
    x, none = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    assert masked_sum(x, none) == masked_mean(x, none) == masked_var(x, none) == 0
    np.testing.assert_array_equal(masked_mean(x, none, axis=1), [0, 0])
    np.testing.assert_array_equal(whiten(x, none), np.zeros((2, 3)))


def test_gradient_ignores_masked_entries():
    x, mask = jnp.array([4.0, jnp.nan, 9.0]), jnp.array([True, False, True])
    gradient = jax.grad(lambda x: masked_sum(jnp.sqrt(keep(x, mask) + 1.0), mask))(x)
    np.testing.assert_allclose(gradient, [0.5 / np.sqrt(5), 0, 0.5 / np.sqrt(10)], rtol=1e-6)
