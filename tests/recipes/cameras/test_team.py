"""PPO for a team: what a rollout leaves, what is learnt of which reward, and that a mesh changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.distributions import Categorical
from pal_jax.recipes.cameras.team import TeamPPO
from pal_jax.run import devices
from pal_jax.run.optim import Optimizer

ONE = devices.make_mesh(devices=jax.devices()[:1])
ADAM = Optimizer('adam', lr=0.02, warmup_ratio=0.0, b2=0.999, total_steps=1000)


class Paid(NamedTuple):
    contributions: Any
    shared: Any
    figures: Any


@dataclasses.dataclass(frozen=True)
class Signals:
    """Two members see a bit each. A member's own reward is for showing its bit; the team's is for showing the other."""

    cameras: ClassVar[int] = 2
    width: ClassVar[int] = 2
    central: ClassVar[int] = 2
    gamma: ClassVar[float] = 0.5
    horizon: ClassVar[int] = 4
    actions: ClassVar[Categorical] = Categorical((2,))

    def reset(self, key):
        return jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32)

    def observe(self, scene):
        return jax.nn.one_hot(scene, 2)

    oversee = observe

    def step(self, scene, action, key):
        right = (action[:, 0] == scene).astype(jnp.float32)
        return self.reset(key), Paid(right, jnp.mean(1.0 - right), jnp.mean(right)[None])

    def outlook(self, before, after):
        here = before.astype(jnp.float32)
        return {'target': (jnp.broadcast_to(here[:, None, None], (2, 1, 3)), jnp.ones((2, 1))),
                'own': (jnp.broadcast_to(here[:, None, None], (2, 1, 2)), jnp.ones((2, 1)))}  # fmt: skip


def make(mesh=ONE, **changes):
    settings = {'environments': 32, 'steps': 4, 'hidden': (8,), 'minibatches': 2, 'reward_scale': 1.0} | changes
    return TeamPPO(Signals(), mesh, ADAM, ADAM, **settings)


def trained(learner, credit, iterations):
    state = learner.init(0)
    for _ in range(iterations):
        state, metrics, figures = learner.iterate(state, jnp.asarray(credit))
    return state, metrics, float(figures[0])


def test_members_learn_by_what_they_are_paid_for():
    learner = make()
    assert trained(learner, 1.0, 15)[2] > 0.9  # contributions
    assert trained(learner, 0.0, 15)[2] < 0.1  # the team's reward


@pytest.mark.slow
def test_memory_and_dynamics_heads_learn_to_predict():
    learner = make(memory=4, mixtures=2, dynamics=1.0)
    state, first, _ = trained(learner, 1.0, 1)
    state, metrics, _ = trained(learner, 1.0, 10)
    assert metrics['dynamics_nll'] < first['dynamics_nll'] - 1.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.policy))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), learner.abstract())
    # The mean that is merged back has no gradient from the policy's loss, so only `dynamics` moves its head.
    still = make(memory=4, mixtures=2, dynamics=0.0)
    before = still.init(0)
    after, *_ = still.iterate(before, jnp.ones(()))
    jax.tree.map(
        np.testing.assert_array_equal,
        before.policy['policy']['params']['target'],
        after.policy['policy']['params']['target'],
    )


def test_episodes_begin_with_rollouts_in_turn():
    learner = make(environments=4, steps=2, minibatches=1)
    state = learner.init(0)
    before = np.asarray(state.running)
    state, *_ = learner._rollout(state)
    assert int(state.rollouts) == 1 and before.shape == state.running.shape


def test_sizes_that_do_not_divide_are_refused():
    for changes in ({'minibatches': 3}, {'steps': 3}):
        with pytest.raises(ValueError, match='='.join(map(str, *changes.items()))):
            make(**changes)


@pytest.mark.slow
def test_eight_devices_are_one():
    results = []
    for mesh in (ONE, devices.make_mesh(data=2, fsdp=4)):
        learner = make(mesh, memory=4, mixtures=2)
        # The rounding of sums over devices grows a hundredfold an iteration at this rate: 2e-7, 2e-5, 4e-3.
        state, _, figure = trained(learner, 0.5, 2)
        assert state.running.sharding.num_devices == mesh.size
        results.append((jax.tree.map(np.asarray, (state.policy, state.critic, state.running)), figure))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4), *results)
    with pytest.raises(ValueError, match='8 devices'):
        make(devices.make_mesh(data=2, fsdp=4), environments=12)
