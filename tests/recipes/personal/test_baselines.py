"""The majority and the mixed logit: votes by hand, quadrature, and people made up of twelve strong tastes."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal import baselines
from pal_jax.recipes.personal.baselines import MixedLogit
from pal_jax.recipes.personal.interface import Unfit


def test_the_vote_is_about_the_same_two_items_in_either_order():
    a, b, c = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([2.0, 2.0])
    known = np.array([a - b, a - b, b - a, c - a])
    asked = np.array([b - a, a - b, a - c, b - c])
    np.testing.assert_array_equal(baselines.majority(known, asked), [-1.0, 1.0, -1.0, 0.0])


def test_one_attribute_is_as_quadrature_has_it():
    model, known, asked = (
        MixedLogit(np.array([0.5]), np.array([2.0])),
        np.array([[1.5], [2.0], [-0.3]]),
        np.array([[0.7]]),
    )
    z = np.linspace(-15, 15, 20001)
    weight = np.exp(-(((z - 0.5) / 2) ** 2) / 2) / np.prod(1 + np.exp(-known * z), axis=0)
    expected = np.sum(weight / (1 + np.exp(-0.7 * z))) / weight.sum()
    nobody = np.zeros(3, int), np.zeros(1, int)
    margin = baselines.posterior_margins(model, known, nobody[0], asked, nobody[1])
    np.testing.assert_allclose(1 / (1 + np.exp(-margin)), expected, atol=0.01)


@pytest.mark.slow
def test_no_draw_has_all_weight_on_twelve_attributes():
    """Of 1,000 draws of everybody's distribution one had weight: accuracy .754 and log loss .744, for .843 and .323."""
    rng = np.random.default_rng(0)
    model, people = MixedLogit(rng.normal(size=12), np.full(12, 2.0)), np.repeat(np.arange(20), 36)
    tastes, x = model.mean + 2 * rng.normal(size=(20, 12)), 1.2 * rng.normal(size=(2, 720, 12))
    m = np.sum(x * tastes[people], axis=2)
    known, asked = np.where((rng.random(m.shape) < 1 / (1 + np.exp(-m)))[..., None], x, -x)
    for user in range(20):
        _, weight = baselines.posterior(model, known[people == user])
        assert 1 / np.sum(weight**2) > 150
    margins = baselines.posterior_margins(model, known, people, asked, people)
    # A forecast that is right of itself loses its own entropy.
    p = 1 / (1 + np.exp(-margins))
    entropy = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert abs(np.mean(-np.log(p)) - entropy) < 0.05
    assert np.mean(margins > 0) > 0.8


@pytest.mark.slow
def test_xlogit_finds_the_distribution_that_made_the_choices():
    pytest.importorskip('xlogit', reason="pip install 'pal_jax[choice]'")
    rng, users = np.random.default_rng(0), np.repeat(np.arange(300), 10)
    beta = rng.normal([1.0, -2.0], [1.0, 0.5], (300, 2))
    difference = rng.normal(size=(3000, 2))
    chosen = rng.random(3000) < 1 / (1 + np.exp(-np.sum(difference * beta[users], axis=1)))
    model = baselines.fit_xlogit(np.where(chosen[:, None], difference, -difference), users, seed=0, errors=True)
    np.testing.assert_allclose(model.mean, [1.0, -2.0], atol=0.25)
    np.testing.assert_allclose(model.deviation, [1.0, 0.5], atol=0.35)
    assert (np.abs(model.mean - [1.0, -2.0]) < 3 * model.errors[0]).all() and (model.errors < 0.25).all()
    assert (np.abs(model.deviation - [1.0, 0.5]) < 3 * model.errors[1]).all()


def test_a_mixed_logit_that_diverges_has_no_fit(monkeypatch):
    xlogit = pytest.importorskip('xlogit')

    def diverge(*args, **options):
        raise np.linalg.LinAlgError('SVD did not converge')

    monkeypatch.setattr(xlogit.MixedLogit, 'fit', diverge)
    with pytest.raises(Unfit, match=r'diverges.*SVD'):
        baselines.fit_xlogit(np.ones((4, 2)), np.arange(4), 0)


def test_log_odds_of_a_mixed_logit_stay_finite_and_odd():
    model = MixedLogit(np.array([1e4]), np.array([1.0]))
    x, users = np.array([[3.0], [-3.0]]), np.zeros(2, int)
    margins = baselines.posterior_margins(model, x[:0], users[:0], x, users)
    assert margins[0] > 20
    assert margins[1] == pytest.approx(-margins[0], rel=1e-4)
