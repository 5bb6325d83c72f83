from __future__ import annotations

import json

import numpy as np
import pytest

from pal_jax.recipes.psoups.moments import Moments, add_scores, standardised


def test_scores_are_scaled_by_all_that_were_seen():  # psoups I.7-4
    moments = add_scores(Moments(), np.array([1.0, 2, 4]))
    assert (moments.mean, moments.std) == pytest.approx((2.333333, 1.527525), abs=1e-6)
    np.testing.assert_allclose(
        standardised(moments, np.array([1.0, 2, 4])), [-0.872872, -0.218218, 1.091089], atol=1e-6
    )
    moments = add_scores(moments, np.array([0.0, 3]))
    assert (moments.mean, moments.std) == pytest.approx((2, 1.581139), abs=1e-6)
    np.testing.assert_allclose(standardised(moments, np.array([0.0, 3])), [-1.264911, 0.632456], atol=1e-6)


def test_any_cut_into_batches_gives_the_moments_of_all():
    scores = np.random.default_rng(0).normal(3, 2, size=50)
    moments = Moments()
    for part in np.split(scores, [1, 7, 7, 30]):
        moments = add_scores(moments, part)
    assert (moments.mean, moments.std) == pytest.approx((scores.mean(), scores.std(ddof=1)))
    assert Moments(*json.loads(json.dumps(moments))) == moments


def test_scores_without_spread_are_only_centred():
    assert standardised(add_scores(Moments(), np.array([5.0])), np.array([5.0])) == [0]
    np.testing.assert_allclose(standardised(add_scores(Moments(), np.full(3, 0.1)), np.full(3, 0.1)), 0, atol=1e-6)
