"""Our PPO with a Lagrangian beside CRAX's (crax-bench 0.1.0, arXiv 2606.20376) on one of CRAX's tasks.

  PYTHONPATH=. <an environment with crax-bench and requirements.txt>/bin/python -m benchmarks.crax [--quick]

The task is `safe_velocity_hopper` on spring physics, which never ends early: speed and standing upright are paid, and
a step above the task's speed limit costs 1. The limit is on the mean cost of a step times the length of an episode, as
CRAX has it. Both have the same starts of episodes, steps, networks, rates and discount. CRAX whitens the advantages of
reward and cost each, squashes actions by tanh and learns a deviation for every state. Ours does none of this, cuts
actions to [-1, 1], and counts step t of an episode gamma^t times. So the multipliers are not of one unit.

Prints a line when the task is ready, progress on stderr, and one JSON object; `pal_jax_free` is ours without a limit.
`return` and `cost` are undiscounted, of the training's own episodes, a number for each quarter of a run. `steps_per_s`
are for a second of the processor, since machines are shared, without the updates that compile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from time import process_time as clock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pal_jax.learners.array_ppo import ArrayPPO, Mix
from pal_jax.objectives import constraints as c
from pal_jax.objectives.advantages import ChannelWeights
from pal_jax.objectives.distributions import Gaussian
from pal_jax.run.devices import make_mesh
from pal_jax.run.optim import Optimizer

TASK, HORIZON, LIMIT = 'safe_velocity_hopper', 200, 20.0  # steps of an episode, and its limit of cost
ENVIRONMENTS, STEPS, EPOCHS, MINIBATCHES = 64, 50, 4, 4
HIDDEN, RATE, GAMMA, LAM, CLIP, REWARD_SCALE = (64, 64), 1e-3, 0.99, 0.95, 0.2, 100.0
MULTIPLIER_RATE = 1.0  # the rise of the multiplier for a mean cost of 1 a step above the limit


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, so a task is equal to itself alone
class Task:
    """A task of CRAX as an `ArrayEnv`. `starts` are the states that episodes start in, `[S, ...]`."""

    env: Any
    starts: Any
    width: int
    actions: Gaussian

    channels, gamma, horizon = 2, GAMMA, HORIZON

    def reset(self, key: Array) -> Any:
        at = jax.random.randint(key, (), 0, len(self.starts.obs))
        return jax.tree.map(lambda x: jnp.asarray(x)[at], self.starts)

    def observe(self, state: Any) -> Array:
        return state.obs

    def legal(self, state: Any) -> Array:
        return jnp.zeros(0, bool)

    def step(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array]:
        after = self.env.step(state, jnp.clip(action, -1.0, 1.0))
        return after, jnp.stack([after.reward, after.info['cost']]), jnp.asarray(after.done) > 0.5


def train_ours(task: Task, seeds: Sequence[int], handler: Any, updates: int) -> dict[str, Any]:
    rate = Optimizer('adam', lr=RATE, warmup_ratio=0.0, min_ratio=1.0, b2=0.999, max_norm=float('inf'))
    rate, mesh = rate.over(updates * EPOCHS * MINIBATCHES), make_mesh(devices=jax.devices()[:1])
    learner = ArrayPPO(
        task, c.Unconstrained(), mesh, rate, rate, ENVIRONMENTS, STEPS, HIDDEN, EPOCHS, MINIBATCHES, CLIP, LAM,
        reward_scale=REWARD_SCALE,
    )  # fmt: skip
    state, states, paid, times = learner.init(jnp.array(seeds)), [handler.init(1) for _ in seeds], [], []
    for i in range(updates):
        state, steps, _ = learner.rollout(state)
        # The step at which an episode is cut has the critic's values in its rewards, so it is left out of the mean.
        within = steps.more[..., None] > 0
        mean = HORIZON * np.asarray(jnp.sum(steps.rewards * within, (1, 2)) / jnp.sum(within, (1, 2)), float)
        states = [handler.update(s, row[1:], np.array([LIMIT])) for s, row in zip(states, mean, strict=True)]
        lam = np.array([s['lambda'][0] for s in states], np.float32)
        zeros: Any = np.zeros_like(lam)
        mix = Mix(ChannelWeights(np.ones_like(lam), lam, 1 + lam), zeros, ChannelWeights(zeros, zeros, 1 + zeros))
        state, _ = jax.block_until_ready(learner.update(state, steps, jax.tree.map(jnp.asarray, mix)))
        paid.append(mean / [REWARD_SCALE, 1.0])
        times.append(clock())
        print(i, paid[-1].round(2).tolist(), lam.round(2).tolist(), file=sys.stderr, flush=True)
    speed = len(seeds) * (updates - 1) * ENVIRONMENTS * STEPS / (times[-1] - times[0])
    return report(np.stack(paid, 1), lam, speed)


def train_theirs(task: Task, seeds: Sequence[int], updates: int) -> dict[str, Any]:
    from crax.envs.base import Wrapper
    from crax.training.agents.ppo.networks import make_ppo_networks
    from crax.training.agents.ppo_lag.train import train
    from flax import linen

    class SameStarts(Wrapper):
        observation_size, action_size = task.width, task.actions.dimensions

        def reset(self, rng: Array) -> Any:
            return task.reset(rng)

    widths = {f'{name}_hidden_layer_sizes': HIDDEN for name in ('policy', 'value', 'cost_value')}
    episodes, rows, lam, speeds = updates * STEPS // HORIZON, [], [], []
    for seed in seeds:
        seen: list[Any] = []
        with contextlib.redirect_stdout(sys.stderr):
            train(
                SameStarts(task.env), updates * ENVIRONMENTS * STEPS, HORIZON, num_envs=ENVIRONMENTS, seed=seed,
                unroll_length=STEPS, batch_size=ENVIRONMENTS // MINIBATCHES, num_minibatches=MINIBATCHES,
                num_updates_per_batch=EPOCHS, num_resets_per_eval=episodes, learning_rate=RATE, entropy_cost=0.0,
                discounting=GAMMA, gae_lambda=LAM, clipping_epsilon=CLIP, reward_scaling=REWARD_SCALE,
                safety_bound=LIMIT, lagrangian_coef_rate=MULTIPLIER_RATE, log_training_metrics=False,
                network_factory=functools.partial(make_ppo_networks, activation=linen.tanh, **widths),
                training_metrics_steps=HORIZON * ENVIRONMENTS, progress_fn=lambda _, x: seen.append((clock(), x)),  # noqa: B023
            )  # fmt: skip
        rows.append([(x['episodic/sum_reward'], x['episodic/cost']) for _, x in seen if 'episodic/cost' in x])
        trained = [(at, x['training/lambda_lagr']) for at, x in seen if 'training/lambda_lagr' in x]
        lam.append(np.ravel(trained[-1][1])[-1])
        speeds.append((episodes - 1) * HORIZON * ENVIRONMENTS / (trained[-1][0] - trained[0][0]))
        print(seed, np.round(rows[-1], 2).tolist(), lam[-1], speeds[-1], file=sys.stderr, flush=True)
    return report(np.array(rows), np.array(lam), float(np.mean(speeds)))


def report(paid: np.ndarray, lam: np.ndarray, speed: float) -> dict[str, Any]:
    """Figures of a run, of which `paid` are rewards and costs of an episode: `[seeds, moments, 2]`."""
    quarters = np.stack([part.mean(1) for part in np.array_split(paid, 4, 1)], 1).round(2)
    figures = {'return': quarters[..., 0], 'cost': quarters[..., 1], 'lambda': lam.round(2)}
    return {name: row.tolist() for name, row in figures.items()} | {'steps_per_s': round(speed)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='one seed, not three, and nothing without a limit')
    parser.add_argument('--updates', type=int, default=64, help='rollouts and updates of a run, a multiple of 16')
    args = parser.parse_args(argv)
    try:
        from crax import envs
    except ImportError as error:
        raise SystemExit(f'benchmarks.crax: {error}; run it in an environment that has crax-bench==0.1.0') from None
    seeds, updates = range(1 if args.quick else 3), args.updates
    env = envs.get_environment(TASK, backend='spring', terminate_when_unhealthy=False)
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), ENVIRONMENTS))
    task = Task(env, jax.tree.map(np.asarray, starts), starts.obs.shape[-1], Gaussian(env.action_size))
    print(f'{TASK}: cost at most {LIMIT} in {HORIZON} steps; seeds {list(seeds)}, {updates} updates', flush=True)
    figures = {'limit': LIMIT, 'crax': train_theirs(task, seeds, updates)}
    lagrangian = c.LinearLagrangian(0.0, MULTIPLIER_RATE / HORIZON, optimizer='sgd')
    figures['pal_jax'] = train_ours(task, seeds, lagrangian, updates)
    if not args.quick:
        figures['pal_jax_free'] = train_ours(task, seeds, c.Unconstrained(), updates)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
