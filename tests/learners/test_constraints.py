"""Constraint handlers under PPO, on a language model that draws one token.

Tokens below 16 have the reward 1 and the cost 1, the next 16 have the reward 0.6 and no cost, all others nothing. The
mean cost is to stay below a limit.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.learners.ppo import PPO, make_actor_critic
from pal_jax.models import config, decoder, params
from pal_jax.objectives import constraints as c
from pal_jax.objectives.advantages import ConstrainedEstimator, Discounts
from pal_jax.run import devices
from pal_jax.run.optim import Optimizer
from pal_jax.types import Completion, Sample

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
LIMIT, PROMPT, STEPS = 0.2, (1, 2, 3), 80
ESTIMATE = ConstrainedEstimator('dr_grpo', Discounts())
HANDLERS = {
    'linear': c.LinearLagrangian(lam_lr=0.2, optimizer='sgd'),
    'log': c.LogLagrangian(lam_lr=0.3),
    'pid': c.PIDLagrangian(kp=1.0, ki=0.1, kd=0.1, smoothing=0.0, delay=1),
    'crpo': c.CRPO(tolerance=0.0),
}


@pytest.mark.parametrize(
    'name', ['linear', *(pytest.param(name, marks=pytest.mark.slow) for name in ('none', 'log', 'pid', 'crpo'))]
)
def test_a_handler_keeps_the_cost_of_a_language_model_below_its_limit(name):
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    optimizer = Optimizer('adamw', lr=3e-3, total_steps=STEPS, warmup_ratio=0.0, min_ratio=1.0)
    learner = make_actor_critic(CFG, PPO('reinforce', kl_coef=0.0, micro_rows=64), optimizer, mesh, n=64, length=1)
    state = learner.init(params.init(params.decoder_specs(CFG), jax.random.key(0)))
    handler = HANDLERS.get(name, c.Unconstrained())
    handled, costs = handler.init(1), []
    for i in range(STEPS):
        drawn = draw(learner.weights(state), jax.random.key(i)).tolist()
        paid = [(1.0, 1.0) if token < 16 else (0.6, 0.0) if token < 32 else (0.0, 0.0) for token in drawn]
        samples = [
            Sample(PROMPT, Completion('', (token,), (0.0,), 'stop'), rewards=rewards)
            for token, rewards in zip(drawn, paid, strict=True)
        ]
        batch, _ = learner.score(state, pack_rollouts(samples, n=64, actions=8, mesh=mesh))
        costs.append(float(batch.rewards[..., 1].mean()))
        handled = handler.update(handled, np.array(costs[-1:]), np.array([LIMIT]))
        batch, _ = learner.advantages(state, batch, ESTIMATE, handler.weigh(handled))
        state, _ = learner.update(state, batch, jax.random.key(i))
    late = np.mean(costs[-20:])
    assert late > 0.9 if name == 'none' else late < LIMIT + 0.1, (name, late)


@jax.jit
def draw(weights, key):
    """A token after the prompt, 64 times."""
    tokens, ones = jnp.asarray([PROMPT]), jnp.ones((1, 3), jnp.int32)
    hidden = decoder.forward(weights, CFG, tokens, jnp.arange(3)[None], ones, ones)[0, -1]
    return jax.random.categorical(key, decoder.unembed_weight(weights, CFG) @ hidden, shape=(64,))
