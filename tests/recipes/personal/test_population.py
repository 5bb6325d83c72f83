"""Figures of choices against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal import baselines, judged, mixed_logit, population
from pal_jax.recipes.personal import pictures as people
from pal_jax.recipes.personal.figures import MODELS
from pal_jax.run import intervals


def test_accuracy_by_pair_and_by_person():
    margins = np.array([1.0, 2.0, -1.0, 0.0, -3.0, 0.5])
    found = judged.judge(margins, np.array([4, 4, 4, 9, 9, 7]))
    shares = judged.by_person(found)
    assert (found.accuracy, shares.mean()) == (3.5 / 6, pytest.approx((2 / 3 + 1 / 4 + 1) / 3))
    assert judged.worst_tenth(shares) == 0.25


def test_the_vote_is_about_the_same_two_items_in_either_order():
    a, b, c = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([2.0, 2.0])
    known = np.array([a - b, a - b, b - a, c - a])
    asked = np.array([b - a, a - b, a - c, b - c])
    np.testing.assert_array_equal(baselines.majority(known, asked), [-1.0, 1.0, -1.0, 0.0])


def test_k_is_chosen_by_split_and_the_smallest_of_equals():
    assert population.choose({1: [0.5, 0.7], 4: [0.6, 0.7], 2: [0.6, 0.65]}) == [2, 1]


def test_effects_of_a_linear_reward_are_its_coefficients():
    items = np.random.default_rng(0).normal(3.0, 1.0, (50, 3))
    coefficients = np.array([[1.0, -2.0, 0.0], [0.5, 0.0, 4.0]])
    effects = people.linear_effects(coefficients @ items.T + 7.0, items)
    np.testing.assert_allclose(effects, coefficients, atol=1e-9)
    assert people.in_words(effects[0].round(9), ('price', 'time', 'comfort')) == ('price +1.00', 'time -2.00')


@pytest.mark.parametrize('K', [1, 2, 3, 5])
def test_a_picture_of_the_people_for_any_number_of_prototypes(K):
    mixtures = np.random.default_rng(0).dirichlet(np.ones(K), 30)
    assert people.plot_simplex(mixtures).startswith(b'\x89PNG')


def test_the_mixed_logits_posterior_is_bayes_rule_over_draws():
    """Against the closed form of one attribute, integrated on a grid."""
    model = mixed_logit.MixedLogit(np.array([0.5]), np.array([1.5]))
    known, asked = np.array([[1.0], [2.0], [-0.5]]), np.array([[1.0]])
    zeros = np.zeros(3, int)
    found = mixed_logit.margins(model, known, zeros, asked, zeros[:1])
    beta = np.linspace(-8, 9, 20001)
    weight = np.exp(-(((beta - 0.5) / 1.5) ** 2) / 2 - np.logaddexp(0, -known * beta).sum(axis=0))
    probability = np.sum(weight / (1 + np.exp(-beta))) / weight.sum()
    np.testing.assert_allclose(1 / (1 + np.exp(-found[0])), probability, atol=0.03)


@pytest.mark.slow
def test_xlogit_finds_the_distribution_that_made_the_choices():
    pytest.importorskip('xlogit', reason="pip install 'pal_jax[choice]'")
    rng, users = np.random.default_rng(0), np.repeat(np.arange(300), 10)
    beta = rng.normal([1.0, -2.0], [1.0, 0.5], (300, 2))
    difference = rng.normal(size=(3000, 2))
    chosen = rng.random(3000) < 1 / (1 + np.exp(-np.sum(difference * beta[users], axis=1)))
    model = mixed_logit.fit(np.where(chosen[:, None], difference, -difference), users, seed=0)
    np.testing.assert_allclose(model.mean, [1.0, -2.0], atol=0.25)
    np.testing.assert_allclose(model.deviation, [1.0, 0.5], atol=0.35)


def test_every_method_has_a_line_of_its_own(monkeypatch):
    drawn, draw = {}, people._draw

    def noted(ax, places, curve, name, colour):
        drawn[name] = colour
        draw(ax, places, curve, name, colour)

    monkeypatch.setattr(people, '_draw', noted)
    people.plot_by_comparisons({name: [intervals.of_mean(0.5, 0.1, 3)] for name in MODELS.values()}, [0])
    assert list(drawn) == list(MODELS.values())
    assert len(set(drawn.values())) == len(drawn)
