"""Role-conditioned advantages against numbers computed elsewhere, and the loss that they go into."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.advantages import EstimatorInputs
from pal_jax.objectives.policy import loss_weights, ppo_token_loss
from pal_jax.objectives.selfplay import RoleWhitening, as_given, role_conditioned

RETURNS = [1, 1, -1, 1, 0.5, -1.5]


def advantages(returns, baseline='role', games=None, moved=None, start=None):
    returns = jnp.asarray(returns, jnp.float32)
    games = jnp.zeros(len(returns), jnp.int32) if games is None else jnp.asarray(games)
    moved = jnp.ones(returns.shape, bool) if moved is None else jnp.asarray(moved)
    start = jnp.zeros((2, 2)) if start is None else start
    got, after = role_conditioned(start, games, returns, moved, baseline=baseline)
    return np.asarray(got), np.asarray(after)


def test_advantages_and_the_last_baseline():  # golden 1.7-1
    got, after = advantages([[x, -x] for x in RETURNS])
    code = np.array([1, 0.95, -1.0975, 0.957375, 0.409506, -1.610969])
    paper = np.array([0.95, 0.9025, -1.042625, 0.909506, 0.389031, -1.530421])
    np.testing.assert_allclose(got, np.stack([code, -code], axis=1), atol=1e-6)
    np.testing.assert_allclose(0.95 * got[:, 0], paper, atol=1e-6)
    np.testing.assert_allclose(after, [[0.030421, -0.030421], [0, 0]], atol=1e-6)


def test_a_seat_that_always_wins_has_no_advantage_only_with_a_baseline_of_its_own():  # golden 1.7-9
    won = [[1.0, -1.0]] * 61
    for baseline, least, most in (('role', 0.0, 0.05), ('shared', 1.0, 1.0), ('none', 1.0, 1.0)):
        got, _ = advantages(won, baseline)
        assert least <= np.abs(got[-1]).min() and np.abs(got[-1]).max() <= most, baseline


def test_games_and_seats_keep_to_their_own_baseline():
    rng = np.random.default_rng(0)
    returns, games, moved = rng.normal(size=(40, 2)), rng.integers(2, size=40), rng.random((40, 2)) < 0.7
    got, after = advantages(returns, games=games, moved=moved)
    for game in range(2):
        for seat in range(2):
            b, mine = 0.0, (games == game) & moved[:, seat]
            for place in np.flatnonzero(mine):
                assert got[place, seat] == pytest.approx(returns[place, seat] - b, abs=1e-5)
                b = 0.95 * b + 0.05 * returns[place, seat]
            assert after[game, seat] == pytest.approx(b, abs=1e-5)
    assert (got[~moved] == 0).all()


def test_a_step_goes_on_from_the_baselines_of_the_step_before():
    returns = [[x, -x] for x in RETURNS]
    whole, last = advantages(returns)
    first, between = advantages(returns[:3])
    rest, after = advantages(returns[3:], start=jnp.asarray(between))
    np.testing.assert_array_equal(whole, np.concatenate([first, rest]))
    np.testing.assert_array_equal(last, after)


def test_the_loss_of_a_response_is_divided_by_a_constant():  # golden 1.7-7
    acts = jnp.array([[True, True, True, False]])
    logprob = jnp.log(jnp.array([[1.349859, 0.818731, 1.0, 5.0]]))
    rollout = EstimatorInputs(
        jnp.ones((1, 1)), jnp.zeros((1, 4)), None, acts, jnp.array([True]), jnp.zeros(1, jnp.int32), 1
    )
    given, _ = as_given(rollout)
    np.testing.assert_array_equal(given, [[1, 1, 1, 0]])
    loss = ppo_token_loss(logprob, jnp.zeros((1, 4)), given, clip=0.2)
    for agg, expected in (('constant', -0.754683), ('token_mean', -1.006244)):
        weights = loss_weights(acts, jnp.array([True]), agg, length=4)
        assert float(jnp.sum(weights * loss)) == pytest.approx(expected, abs=1e-6)


# --- statistics of each role (Self-RedTeam) ---------------------------------------------------------------------------

RED = EstimatorInputs(
    rewards=jnp.array([[2.0], [-1.0], [0.5]]),
    penalty=0.01 * jnp.array([[0.1, 0.2, 0.0], [0.05, 0.0, 0.1], [0.3, 0.0, 0.0]]),
    values=None,
    acts=jnp.array([[True, True, False], [True, True, True], [True, False, False]]),
    ok=jnp.ones(3, bool),
    role=jnp.zeros(3, int),
    n=1,
)


def test_returns_less_their_distance_are_whitened():
    """Golden numbers of REINFORCE++ (computed apart from this code)."""
    advantages, returns = RoleWhitening()(RED)
    wanted = [[1.997, 1.998, 0], [-1.0015, -1.001, -1.001], [0.497, 0, 0]]
    np.testing.assert_allclose(np.where(RED.acts, returns[..., 0], 0), wanted, atol=1e-6)
    wanted = [[1.299675, 1.300418, 0], [-0.928605, -0.928233, -0.928233], [0.184978, 0, 0]]
    np.testing.assert_allclose(advantages, wanted, atol=2e-6)


def test_each_role_has_mean_0_and_deviation_1_and_one_normaliser_for_both_does_not():
    rng = np.random.default_rng(0)
    role = jnp.arange(12) % 2
    rewards = jnp.asarray(np.where(role == 0, 2.0, -2.0) + rng.normal(size=12), jnp.float32)[:, None]
    acts = jnp.arange(5)[None] < jnp.asarray(rng.integers(1, 6, 12))[:, None]
    rollout = RED._replace(rewards=rewards, penalty=jnp.zeros((12, 5)), acts=acts, ok=jnp.ones(12, bool), role=role)
    for roles, apart in ((2, True), (1, False)):
        advantages = np.asarray(RoleWhitening(roles)(rollout)[0])
        for number in (0, 1):
            own = advantages[np.asarray(acts & (role == number)[:, None])]
            assert (abs(own.mean()) < 1e-5 and abs(own.std() - 1) < 1e-5) == apart
