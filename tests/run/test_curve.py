"""The learning curve of a run: running means, and pictures that change with what was measured."""

from __future__ import annotations

import math

import numpy as np

from pal_jax.run.curve import learning_curve, plot_turns, running_mean, window_of


def test_running_mean_against_numpy_and_over_gaps():
    values, errors = np.array([1.0, 2.0, np.nan, 6.0]), np.array([0.3, 0.4, np.nan, 1.2])
    mean, error = running_mean(values, errors, window=3)
    np.testing.assert_allclose(mean, [1.5, 1.5, 4.0, 6.0])
    np.testing.assert_allclose(error, [0.25, 0.25, math.sqrt(1.6) / 2, 1.2])
    # The mean of a straight line does not lag behind it, and the line of a few steps joins them.
    np.testing.assert_allclose(running_mean(line := np.arange(9.0), 0 * line, window=5)[0][2:-2], line[2:-2])
    assert [window_of(count, 0.1) for count in (6, 19, 20, 100)] == [1, 1, 3, 11]


def test_the_curve_is_a_picture_that_changes_with_the_reward():
    rows = [{'step': i, 'phase': 'rlpa', 'reward': float(i)} for i in range(6)]
    picture = learning_curve(rows)
    assert picture.startswith(b'\x89PNG')
    assert picture == learning_curve(rows)
    assert picture != learning_curve(rows[:-1])
    evaluation = {'step': 6, 'stage': 'final', 'reward': 5.0, 'reward_interval': [4.5, 5.5]}
    assert learning_curve(rows, [evaluation]) != picture == learning_curve(rows, [{'step': 6, 'other': 1.0}])


def test_a_step_of_which_no_sample_was_judged_has_no_error():
    rows = [{'step': i, 'phase': 'rlpa', 'reward': 0.0, 'reward_std': 0.0, 'samples': float(i)} for i in range(4)]
    assert learning_curve(rows).startswith(b'\x89PNG')


def test_turns_are_drawn_for_every_stage_and_control(tmp_path):
    stages = {'base': {'f1_by_turn': [0.0, 0.1]}, 'trained': {'f1_by_turn': [0.0, 0.3], 'bound_by_turn': [0.0, 0.4]}}
    pictures = []
    for shown in ({}, {'base': stages['base']}, stages):
        plot_turns(shown, tmp_path / 'turns.png')
        pictures.append((tmp_path / 'turns.png').read_bytes())
    assert all(picture.startswith(b'\x89PNG') for picture in pictures)
    assert len(set(pictures)) == 3
