"""The spine is open: constraint handlers as interchangeable values, on a language model that draws one token.

Tokens below 16 have the reward 1 and the cost 1, the next 16 have the reward 0.6 and no cost, all others nothing. The
mean cost is to stay below a limit. Nothing here touches a learner: a handler weighs the advantages of two channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.learners.ppo import PPO, make_learner
from pal_jax.models import config, decoder, params
from pal_jax.objectives import advantages as adv
from pal_jax.runtime import devices
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Completion, Sample

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
LIMIT, PROMPT, STEPS = 0.2, (1, 2, 3), 80


class Constraint(NamedTuple):
    """A handler: its state before the first rollout, after one with this mean cost, and the advantage it makes."""

    init: Any
    update: Callable[[Any, Any], Any]
    weigh: Callable[[Any, Any, Any], Any]


def weighed(multiplier):
    return lambda state, reward, cost: (reward - multiplier(state) * cost) / (1.0 + multiplier(state))


def pid(state, cost):
    integral, before = state[1:]
    integral = jnp.maximum(0.0, integral + 0.1 * (cost - LIMIT))
    return jnp.maximum(0.0, 1.0 * (cost - LIMIT) + integral + 0.1 * jnp.maximum(0.0, cost - before)), integral, cost


HANDLERS = {
    'none': Constraint(0.0, lambda s, cost: s, lambda s, reward, cost: reward),
    'lagrangian': Constraint(0.0, lambda s, c: jnp.maximum(0.0, s + 0.2 * (c - LIMIT)), weighed(lambda s: s)),
    'log': Constraint(0.0, lambda s, cost: s + 0.3 * jnp.exp(s) * (cost - LIMIT), weighed(jnp.exp)),
    'pid': Constraint((0.0, 0.0, 0.0), pid, weighed(lambda s: s[0])),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Rewards and costs less their means, weighed by a handler."""

    handler: str

    def __call__(self, rollout, state):
        apart = adv.less_mean(rollout.rewards, rollout.ok, rollout.n)
        paid = adv.token_rewards(apart, rollout.penalty, rollout.acts, signs=(-1.0, 0.0))
        advantages = HANDLERS[self.handler].weigh(state, paid[..., 0], paid[..., 1])
        return advantages, paid


@pytest.mark.parametrize(
    'handler', ['lagrangian', *(pytest.param(name, marks=pytest.mark.slow) for name in ('none', 'log', 'pid'))]
)
def test_a_handler_keeps_the_cost_of_a_language_model_below_its_limit(handler):
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    optimizer = Optimizer('adamw', lr=3e-3, total_steps=STEPS, warmup_ratio=0.0, min_ratio=1.0)
    learner = make_learner(CFG, PPO('reinforce', kl_coef=0.0, micro_rows=64), optimizer, mesh, n=64, length=1)
    state, constraint = learner.init(params.init(params.decoder_specs(CFG), jax.random.key(0))), HANDLERS[handler]
    handled, costs = constraint.init, []
    for i in range(STEPS):
        drawn = draw(learner.weights(state), jax.random.key(i)).tolist()
        paid = [(1.0, 1.0) if token < 16 else (0.6, 0.0) if token < 32 else (0.0, 0.0) for token in drawn]
        samples = [
            Sample(PROMPT, Completion('', (token,), (0.0,), 'stop'), rewards=rewards)
            for token, rewards in zip(drawn, paid, strict=True)
        ]
        batch, _ = learner.score(state, pack_rollouts(samples, n=64, actions=8, mesh=mesh))
        costs.append(float(batch.rewards[..., 1].mean()))
        handled = constraint.update(handled, costs[-1])
        batch, _ = learner.advantages(state, batch, Estimate(handler), handled)
        state, _ = learner.update(state, batch, jax.random.key(i))
    late = np.mean(costs[-20:])
    assert late > 0.9 if handler == 'none' else late < LIMIT + 0.1, (handler, late)


@jax.jit
def draw(weights, key):
    """A token after the prompt, 64 times."""
    tokens, ones = jnp.asarray([PROMPT]), jnp.ones((1, 3), jnp.int32)
    hidden = decoder.forward(weights, CFG, tokens, jnp.arange(3)[None], ones, ones)[0, -1]
    return jax.random.categorical(key, decoder.unembed_weight(weights, CFG) @ hidden, shape=(64,))
