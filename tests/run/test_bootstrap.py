"""Intervals over people, against the textbook and by enumeration."""

from __future__ import annotations

import itertools

import numpy as np

from pal_jax.run.bootstrap import interval, means, resampled_counts, resampled_means


def test_means_leave_out_what_nobody_could_fill():
    cells = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(means(cells), [2.0, 0.0])


def test_the_interval_of_a_mean_is_the_textbooks():
    cells = np.random.default_rng(1).normal(5.0, 2.0, (400, 1))
    low, high = np.ravel(interval(resampled_means(cells, draws=4000), 400))
    half = 1.96 * cells.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], [cells.mean() - half, cells.mean() + half], atol=0.02)


def test_draws_are_those_of_all_ways_to_choose_three_people():
    values = np.array([[0.0], [1.0], [5.0]])
    every = [np.mean(chosen) for chosen in itertools.product(values[:, 0], repeat=3)]
    drawn = resampled_means(values, draws=20_000)
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(every, [0.1, 0.5, 0.9]), atol=1e-9)


def test_a_persons_cells_stay_together_and_order_of_people_does_not_matter_much():
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(resampled_means(rows).sum(axis=1), 1.0)
    np.testing.assert_array_equal(resampled_means(rows), resampled_means(rows))


def test_counts_are_those_of_the_same_draws():
    rows = np.random.default_rng(2).normal(size=(12, 2))
    by_person = rows.reshape(4, 3, 2).sum(axis=1)
    counts = resampled_counts(4, draws=50, seed=3)
    np.testing.assert_array_equal(counts.sum(axis=1), 4)
    np.testing.assert_allclose(counts @ by_person / 4, resampled_means(by_person, draws=50, seed=3))
