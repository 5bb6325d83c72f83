"""PPO on arrays: what a rollout records, what updates do, and that a mesh changes nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.learners.array_ppo import ArrayPPO, Mix
from pal_jax.learners.array_updates import ArrayPolicy, ChosenActions, policy_loss, within_trust_region
from pal_jax.objectives import constraints as c
from pal_jax.objectives.advantages import ChannelWeights
from pal_jax.objectives.distributions import Categorical
from pal_jax.objectives.policy import ClippedSurrogate
from pal_jax.recipes.cmdp.finite import Bandit, Grid
from pal_jax.recipes.cmdp.point import PointGoal
from pal_jax.run import devices
from pal_jax.run.optim import Optimizer

ONE = devices.make_mesh(devices=jax.devices()[:1])
ADAM = Optimizer('adam', lr=0.05, warmup_ratio=0.0, b2=0.999, total_steps=1000)


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts the steps of an episode, which never ends by itself; step k pays k and costs 1. Two heads, of which the
    first may not take its last action."""

    width: ClassVar[int] = 1
    channels: ClassVar[int] = 2
    gamma: ClassVar[float] = 0.5
    horizon: ClassVar[int] = 3
    actions: ClassVar[Categorical] = Categorical((3, 2))

    def reset(self, key):
        return jnp.zeros((), jnp.int32)

    def observe(self, state):
        return state.astype(jnp.float32)[None]

    def legal(self, state):
        return jnp.array([True, True, False, True, True])

    def step(self, state, action, key):
        return state + 1, jnp.stack([state.astype(jnp.float32), jnp.ones(())]), jnp.zeros((), bool)


def make(env, handler=None, mesh=ONE, **changes):
    settings = {'environments': 8, 'steps': 5, 'hidden': ()} | changes
    return ArrayPPO(env, handler or c.Unconstrained(), mesh, ADAM, ADAM, **settings)


def mix(replicas, reward=1.0, cost=0.0, divisor=1.0, excess=0.0, projection=0.0):
    weights = Mix(ChannelWeights(reward, cost, divisor), excess, ChannelWeights(0.0, projection))
    return jax.tree.map(lambda x: jnp.full(replicas, x, jnp.float32), weights)


def probabilities(learner, state, observations):
    return np.asarray(jax.nn.softmax(learner.outputs(state, jnp.asarray(observations, jnp.float32)), axis=-1))


def test_a_rollout_cuts_episodes_and_counts_what_would_have_followed():
    learner = make(Counter())
    start = learner.init(jnp.arange(2))
    state, steps, episodes = learner.rollout(start)
    assert steps.actions.shape == (2, 8, 5, 2)
    assert int(jnp.max(steps.actions[..., 0])) == 1  # the last action of the first head is never legal
    np.testing.assert_allclose(steps.weight[0, 0], [1, 0.5, 0.25, 1, 0.5])
    np.testing.assert_allclose(steps.more[0, 0], [0.5, 0.5, 0, 0.5, 0.5])
    value = jax.vmap(learner.critic_net.apply, (0, None))(start.critic, jnp.array([[3.0]]))[:, 0]
    expected = np.array([[0, 1], [1, 1], [2, 1], [0, 1], [1, 1]], np.float32) + np.zeros((2, 1, 1), np.float32)
    expected[:, 2] += 0.5 * np.asarray(value)  # the third step is the last: the critic says what would have followed
    np.testing.assert_allclose(steps.rewards[:, 0], expected, rtol=1e-5)
    assert episodes.ended.tolist() == [8, 8]
    np.testing.assert_allclose(episodes.sums, [[1.0, 1.75]] * 2)  # 0 + .5 * 1 + .25 * 2, and 1 + .5 + .25
    np.testing.assert_allclose(state.means[:, -1], [1.75] * 2)  # the discounted length
    _, steps, _ = learner.rollout(state)
    np.testing.assert_allclose(steps.weight[0, 0], [0.25, 1, 0.5, 0.25, 1])  # the episode under way goes on


def test_rewards_are_scaled_for_learning_and_not_for_handlers():
    _, steps, episodes = (learner := make(Counter(), reward_scale=10.0)).rollout(learner.init(jnp.arange(1)))
    np.testing.assert_allclose(steps.rewards[0, 0, 1], [10.0, 1.0])
    np.testing.assert_allclose(episodes.sums, [[1.0, 1.75]])


def trained(rule, weights, iterations=25, **changes):
    learner = make(Bandit(), rule, environments=32, steps=4, **changes)
    state = learner.init(jnp.arange(2))
    for _ in range(iterations):
        state, steps, _ = learner.rollout(state)
        state, metrics = learner.update(state, steps, weights)
    return probabilities(learner, state, [[1.0]])[:, 0], metrics


@pytest.mark.parametrize('rule', [c.Unconstrained(), c.FOCOPS(eta=0.1), c.P3O()], ids=lambda rule: type(rule).__name__)
def test_the_dearest_arm_is_learnt_without_a_limit_and_the_cheapest_by_costs(rule):
    policy, metrics = trained(rule, mix(2, excess=-100.0))
    assert (policy[:, 0] > 0.6).all(), policy
    assert np.isfinite(metrics['approx_kl']).all()
    if isinstance(rule, c.P3O):
        policy, _ = trained(rule, mix(2, excess=100.0))
    else:
        policy, _ = trained(rule, mix(2, reward=0.0, cost=1.0))
    assert (policy[:, 2] > policy[:, 0] + 0.2).all(), policy


def test_cup_takes_back_what_costs():
    free, _ = trained(c.CUP(), mix(2))
    held, _ = trained(c.CUP(), mix(2, projection=2.0))
    assert (free[:, 0] > 0.5).all()
    assert (held[:, 0] < free[:, 0] - 0.2).all()


@pytest.mark.parametrize('rule', ['cpo', 'pcpo'])
def test_a_trust_region_is_kept_and_a_passed_limit_lowers_costs(rule):
    region = c.TrustRegion(rule, delta=0.02, damping=1e-3)
    policy, metrics = trained(region, mix(2, excess=-100.0), iterations=12)
    assert (policy[:, 0] > 0.5).all(), policy
    assert (np.asarray(metrics['approx_kl']) <= 0.0201).all()
    policy, metrics = trained(region, mix(2, excess=100.0), iterations=12)
    assert (policy[:, 2] > 0.5).all(), policy
    assert (np.asarray(metrics['approx_kl']) <= 0.0201).all()


def test_the_gate_of_p3o_follows_the_limit_in_a_part_of_the_rollout_too():
    model = ArrayPolicy(lambda params, seen: jnp.broadcast_to(params, (*seen.shape[:-1], 3)), Categorical((3,)))
    old, ones = np.full((4, 1), -np.log(3.0), np.float32), np.ones((4, 1), np.float32)
    # Advantages of the cost that are centred over the rollout, of which this part happens to have the dear actions.
    actions = np.ones((4, 1, 1)), np.ones((4, 1, 3), bool), np.zeros((4, 1, 1), int)
    part = ChosenActions(*actions, old, ones / 8, 0 * ones, 5 * ones, old)
    handler = c.P3O(kappa=20.0)

    @jax.jit
    def loss(excess):
        before = functools.partial(handler.before, excess=excess)
        return policy_loss(model, handler.token_loss(ClippedSurrogate()), 0.0, before, jnp.zeros(3), part)

    below, above = float(loss(-0.1)), float(loss(0.1))
    assert (below, above) == (0.0, pytest.approx(100.0))


def test_cpo_comes_back_from_slightly_above_its_limit():
    # A bandit in exact expectation. At a limit of .7 half of each of the dearer arms is best (an LP), and pays .8.
    pays, costs, limit = np.array([1.0, 0.6, 0.2]), np.array([1.0, 0.4, 0.0]), 0.7
    model = ArrayPolicy(lambda params, seen: jnp.broadcast_to(params, (*seen.shape[:-1], 3)), Categorical((3,)))
    update = jax.jit(functools.partial(within_trust_region, model, c.TrustRegion(damping=1e-3)))
    params = np.log([0.58, 0.40, 0.02]).astype(np.float32)
    for _ in range(10):
        policy = np.exp(params) / np.exp(params).sum()
        shares, rewards, dearer = (
            x[None].astype(np.float32) for x in (policy, pays - policy @ pays, costs - policy @ costs)
        )
        chosen = ChosenActions(
            np.ones((1, 3, 1)), np.ones((1, 3, 3), bool), np.arange(3)[None, :, None], np.log(shares), shares, rewards,
            dearer, np.log(shares),
        )  # fmt: skip
        params, _ = update(params, chosen, np.float32(policy @ costs - limit))
        params = np.asarray(params)
    policy = np.exp(params) / np.exp(params).sum()
    assert (policy @ costs, policy @ pays) == (pytest.approx(limit, abs=0.003), pytest.approx(0.8, abs=0.003))


def test_continuous_actions_and_minibatches_run():
    learner = make(PointGoal(), hidden=(16,), minibatches=4, epochs=2)
    state = learner.init(jnp.arange(2))
    for _ in range(2):
        state, steps, _ = learner.rollout(state)
        state, metrics = learner.update(state, steps, mix(2, cost=0.5, divisor=1.5))
    assert steps.actions.shape == (2, 8, 5, 2)
    assert steps.legal.shape == (2, 8, 5, 0)
    assert all(np.isfinite(value).all() for value in metrics.values())


def test_environments_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='minibatches=3'):
        make(Bandit(), minibatches=3)


@pytest.mark.slow
@pytest.mark.parametrize('rule', [c.Unconstrained(), c.TrustRegion(damping=1e-2)], ids=lambda rule: type(rule).__name__)
def test_eight_devices_are_one(rule):
    results = []
    for mesh in (ONE, devices.make_mesh(data=2, fsdp=4)):
        learner = make(Grid(), rule, mesh, environments=16, steps=8, minibatches=2, epochs=2)
        state = learner.init(jnp.arange(2))
        for _ in range(3):
            state, steps, episodes = learner.rollout(state)
            state, _ = learner.update(state, steps, mix(2, cost=0.3, divisor=1.3, excess=0.1))
        assert state.running.age.sharding.num_devices == mesh.size
        results.append(jax.tree.map(np.asarray, (state.policy, state.critic, steps.actions, episodes.sums)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5), *results)
    with pytest.raises(ValueError, match='8 devices'):
        make(Grid(), rule, devices.make_mesh(data=2, fsdp=4), environments=12)
