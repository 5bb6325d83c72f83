"""The worst group's objectives: golden numbers, and the two objectives' optima found by search."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal.bench import worst_group

R = jnp.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.5]])
LOGITS = jnp.array([0.5, 0.0, 0.0])
UNIFORM = jnp.full(3, 1 / 3)


def close(values, expected, atol=1e-5):
    np.testing.assert_allclose(values, expected, atol=atol)


def test_a_step_up_the_worst_groups_expected_reward():
    def worst(logits):
        return worst_group.objective(R, jax.nn.softmax(logits), 'min_expected')

    pi, gradient = jax.nn.softmax(LOGITS), jax.grad(worst)(LOGITS)
    close(pi, [0.451863, 0.274069, 0.274069])
    close(R @ pi, [0.616304, 0.411103])
    close(gradient, [-0.185762, 0.161398, 0.024364])
    moved = jax.nn.softmax(LOGITS + gradient)
    close(moved, [0.383638, 0.329264, 0.287098])
    close(R @ moved, [0.555897, 0.472813])
    close(worst_group.move_weights(jnp.array([0.5, 0.5]), R @ pi, 1.0), [0.448879, 0.551121])


def test_the_two_objectives_and_what_is_best_by_each():
    pi = jax.nn.softmax(LOGITS)
    close(worst_group.objective(R, pi, 'min_expected'), 0.411103)
    close(worst_group.objective(R, pi, 'expected_min'), 0.137034)
    half = jnp.array([0.5, 0.5, 0.0])
    close(worst_group.objective(R, half, 'min_expected'), 0.5)
    close(worst_group.objective(R, half, 'expected_min'), 0.0)
    # All policies on a grid of elevenths.
    grid = jnp.array([[i, j, 11 - i - j] for i in range(12) for j in range(12 - i)]) / 11.0
    by_name = {name: jax.vmap(lambda pi, name=name: worst_group.objective(R, pi, name))(grid)
               for name in ('min_expected', 'expected_min')}  # fmt: skip
    best = {name: grid[jnp.argmax(values)] for name, values in by_name.items()}
    close(best['min_expected'], [0, 1 / 11, 10 / 11])
    close(by_name['min_expected'].max(), 6 / 11)
    close(best['expected_min'], [0, 0, 1])
    close(by_name['expected_min'].max(), 0.5)
    assert (by_name['expected_min'] <= by_name['min_expected'] + 1e-6).all()
    with pytest.raises(ValueError, match='unknown objective'):
        worst_group.objective(R, pi, 'min')  # type: ignore[arg-type]


def test_rewards_of_replies_by_either_objective():
    close(worst_group.reward_of_replies(R, 'expected_min', jnp.ones(2)), [0, 0, 0.5])
    close(worst_group.reward_of_replies(R, 'min_expected', jnp.array([0.0, 1.0])), R[1])
    with pytest.raises(ValueError, match='unknown objective'):
        worst_group.reward_of_replies(R, 'max', jnp.ones(2))  # type: ignore[arg-type]


def test_the_optimum_under_a_pull_to_a_reference():
    best = worst_group.regularised(R, UNIFORM, 0.5)
    close(best.weights[0], 0.472536)
    close(best.policy, [0.305130, 0.340561, 0.354310])
    close(R @ best.policy, [0.517715, 0.517715])
    close(best.value, 0.516739)


def test_an_optimum_at_a_corner_where_one_group_has_less_of_everything():
    best = worst_group.regularised(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.1, 0.2]]), UNIFORM, 0.5)
    close(best.weights, [0, 1])
    close(best.policy, jax.nn.softmax(jnp.array([0.0, 0.2, 0.4])))


def test_rewards_with_another_zero_are_centred_before_they_are_compared():
    pi = jax.nn.softmax(LOGITS)
    shifted = R + jnp.array([[0.0], [10.0]])
    assert int(jnp.argmin(R @ pi)) == 1 and int(jnp.argmin(shifted @ pi)) == 0
    close(worst_group.centred(shifted, UNIFORM) @ pi, [0.082971, -0.088897], atol=3e-6)
    scaled = worst_group.centred(R * jnp.array([[1.0], [7.0]]), UNIFORM, scaled=True)
    close(jnp.square(scaled) @ UNIFORM, [1, 1])
