"""The finite tasks: their exact optima, and that what is simulated is what the tables say."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.cmdp import optimum as cmdp
from pal_jax.recipes.cmdp.finite import Bandit, Grid
from pal_jax.recipes.cmdp.point import PointGoal


@pytest.mark.parametrize(
    ('limit', 'reward', 'multiplier'),
    [
        (math.inf, 0.83547, 0.0), (2.0, 0.79367, 0.0443), (1.5, 0.77153, 0.0443), (1.0, 0.74764, 0.0801),
        (0.5, 0.70759, 0.0801), (0.2, 0.68356, 0.0801), (0.1, 0.67542, 0.0876),
    ],
)  # fmt: skip
def test_the_optimum_of_the_grid_is_the_golden_one(limit, reward, multiplier):
    best = cmdp.optimum(Grid().tables(), limit)
    assert best.reward == pytest.approx(reward, abs=5e-6)
    assert best.multiplier == pytest.approx(multiplier, abs=5e-5)
    assert best.cost == pytest.approx(min(limit, 2.94441), abs=1e-5)


@pytest.mark.parametrize(('limit', 'reward', 'multiplier'), [(0.7, 0.8, 2 / 3), (0.4, 0.6, None), (0.2, 0.4, 1.0)])
def test_the_optimum_of_the_bandit_is_the_golden_one(limit, reward, multiplier):
    best = cmdp.optimum(Bandit().tables(), limit)
    assert best.reward == pytest.approx(reward)
    if multiplier is not None:  # at .4 an arm is the optimum by itself, and the multiplier not one number
        assert best.multiplier == pytest.approx(multiplier)


def test_a_limit_that_no_policy_keeps_is_refused():
    with pytest.raises(ValueError, match='-0.5'):
        cmdp.optimum(Bandit().tables(), -0.5)


@pytest.mark.parametrize('env', [Bandit(), Grid()], ids=lambda env: type(env).__name__)
def test_steps_come_as_the_tables_say(env):
    tables, draws = env.tables(), 4000
    states = range(1 if isinstance(env, Bandit) else env.width)
    for state in states:
        if isinstance(env, Grid) and state == env.goal:
            continue  # an episode is over there
        for action in range(tables.transition.shape[1]):
            keys = jax.random.split(jax.random.key(31 * state + action), draws)
            after, rewards, ended = _stepped(env, jnp.int32(state), jnp.array([action]), keys)
            np.testing.assert_allclose(rewards.mean(axis=0), tables.rewards[state, action], atol=0.03)
            if isinstance(env, Grid):
                frequency = np.bincount(after, minlength=env.width) / draws
                np.testing.assert_allclose(frequency, tables.transition[state, action], atol=0.03)
                np.testing.assert_array_equal(ended, np.asarray(after) == env.goal)


def _stepped(env, state, action, keys):
    stepped = jax.jit(jax.vmap(env.step, (None, None, 0)))
    return jax.tree.map(np.asarray, stepped(state, action, keys))


def test_values_are_those_of_a_long_simulation():
    tables, rng = Grid().tables(), np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(4), size=15)
    expected, reach, discount = np.zeros(2), tables.start.copy(), 1.0
    for _ in range(600):
        expected += discount * np.einsum('s,sa,sac->c', reach, policy, tables.rewards)
        reach, discount = np.einsum('s,sa,sat->t', reach, policy, tables.transition), discount * tables.gamma
    np.testing.assert_allclose(cmdp.values(tables, jnp.asarray(policy[None]))[0], expected, rtol=1e-4)


def test_the_point_reaches_goals_and_pays_for_hazards():
    env = PointGoal()
    state = env.reset(jax.random.key(0))
    far = state._replace(position=jnp.array([-0.9, -0.9]), goal=jnp.array([0.9, -0.9]), hazards=jnp.full((4, 2), 5.0))
    total = 0.0
    for _ in range(60):
        far, rewards, ended = env.step(far, jnp.array([1.0, 0.0]), jax.random.key(1))
        assert not ended
        assert float(rewards[1]) == 0.0
        total += float(rewards[0])
        if not np.allclose(far.goal, [0.9, -0.9]):
            break
    assert total == pytest.approx(1.8 - env.goal_radius + 1.0, abs=0.12)  # the way, and the goal itself
    inside = state._replace(hazards=jnp.broadcast_to(state.position, (4, 2)))
    assert float(env.step(inside, jnp.zeros(2), jax.random.key(2))[1][1]) == 1.0
    seen = env.observe(state)
    assert seen.shape == (env.width,)
    ways = np.asarray(seen[6:]).reshape(-1, 2)
    assert (np.diff(np.linalg.norm(ways, axis=1)) >= 0).all()
