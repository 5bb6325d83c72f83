"""Corrections for another sampler, against formulas in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.corrections import CORRECTIONS, SampledToken, drift_figures, sample_means
from pal_jax.objectives.policy import ClippedSurrogate, TokenInputs

# log(exp(o - b)) of .4, 1, 1.9, 3 and 6, so some are outside of each range.
SAMPLED = np.log(np.array([0.5, 0.3, 0.2, 0.1, 0.05]))
OLD = SAMPLED + np.log([0.4, 1.0, 1.9, 3.0, 6.0])
NEW = OLD + np.array([0.1, -0.3, 0.05, 0.0, 0.3])
ADVANTAGE = np.array([1.0, -2.0, 0.5, -1.0, 2.0])


def inputs(sampled, **more) -> TokenInputs:
    arrays = (jnp.asarray(x, jnp.float32) for x in (OLD, ADVANTAGE))
    return TokenInputs(*arrays, None, jnp.zeros(5), sampled=jnp.asarray(sampled, jnp.float32), **more)


def plain() -> np.ndarray:
    ratio = np.exp(NEW - OLD)
    return -np.minimum(ratio * ADVANTAGE, np.clip(ratio, 0.8, 1.2) * ADVANTAGE)


@pytest.mark.parametrize('name', CORRECTIONS)
def test_a_correction_has_the_values_of_its_formula(name):
    weight, mean = np.exp(OLD - SAMPLED), 1e-4
    expected = {
        'tis': plain() * np.minimum(weight, 2.0),
        'icepop': plain() * np.array([0.0, 1.0, 1.9, 3.0, 0.0]),
        'cispo': -np.clip(np.exp(NEW - SAMPLED), 0, 4) * ADVANTAGE * NEW,
        # The ratio 1.0001 lies within the bounds, .9997 to 1.0004.
        'gspo': -np.exp(mean) * ADVANTAGE,
    }[name]
    loss = ClippedSurrogate(correction=CORRECTIONS[name])
    tokens = inputs(SAMPLED, sequence=jnp.full(5, mean))
    np.testing.assert_allclose(loss(jnp.asarray(NEW, jnp.float32), tokens), expected, rtol=2e-6, atol=1e-7)


def test_a_sample_whose_ratio_is_beyond_the_bounds_has_no_gradient_where_it_would_go_on():
    loss = ClippedSurrogate(correction=CORRECTIONS['gspo'])
    slopes = jax.grad(lambda new: loss(new, inputs(SAMPLED, sequence=jnp.full(5, 0.01))).sum())(jnp.asarray(NEW))
    # The ratio is above the bounds: tokens of a positive advantage are cut, those of a negative one pull it back.
    np.testing.assert_allclose(slopes, np.where(ADVANTAGE > 0, 0.0, -ADVANTAGE * np.exp(0.01)), rtol=1e-5)


@pytest.mark.parametrize('name', CORRECTIONS)
def test_with_an_exact_sampler_on_its_own_samples_the_gradient_is_that_of_no_correction(name):
    same = inputs(OLD, sequence=jnp.zeros(5))
    surrogates = ClippedSurrogate(), ClippedSurrogate(correction=CORRECTIONS[name])
    slopes = [jax.grad(lambda new, loss=loss: loss(new, same).sum())(jnp.asarray(OLD)) for loss in surrogates]
    np.testing.assert_allclose(*slopes, rtol=1e-6)


def test_no_gradient_flows_through_what_a_correction_weighs_by():
    token = SampledToken(*(jnp.asarray(x, jnp.float32) for x in (SAMPLED, OLD, ADVANTAGE)))
    correction = CORRECTIONS['cispo']
    slopes = jax.grad(lambda new: correction.loss(new, new, token, correction.bounds).sum())(jnp.asarray(NEW))
    np.testing.assert_allclose(slopes, -np.clip(np.exp(NEW - SAMPLED), 0, 4) * ADVANTAGE, rtol=1e-5)


def test_means_are_of_the_tokens_of_a_sample():
    x, acts = jnp.asarray([[1.0, 3.0, 9.0], [5.0, 7.0, 7.0]]), jnp.asarray([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(sample_means(x, acts), [[2.0] * 3, [0.0] * 3])
    figures = drift_figures(x - jnp.log(2.0), x, acts)
    np.testing.assert_allclose(figures['sampler_drift'], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(figures['sampler_ratio_max'], 2.0, rtol=1e-6)
