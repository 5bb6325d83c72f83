"""Flying cameras that reconstruct a person in a crowd: MAPPO with CTCR (Chen et al. 2023, arXiv 2303.03767).

A step makes `updates` iterations of every method and seed:

1. every camera acts by the shared policy, N scenes for T steps;
2. the target is triangulated by every sub-team of cameras, and a sub-team is worth what its mean error says;
3. a camera is paid its contribution (CTCR), or the value of the whole team (shared reward);
4. advantages by GAE with a critic that sees everything, PPO's update of the policy, and the critic's; with dynamics
   heads the policy learns to predict the next places beside.

Evaluations play whole episodes, beside the fixed formation and the same formation with cameras that turn by rule.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.recipes.cameras import pictures as evals
from pal_jax.recipes.cameras.pictures import TeamResult
from pal_jax.recipes.cameras.scene import FIGURES, Cameras
from pal_jax.recipes.cameras.team import TeamPPO, TeamState
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.run.settings import Run
from pal_jax.types import Metrics

RULES = 'standing', 'tracking'  # baselines: functions of the task
EPISODES = 2**20  # added to the seed for the episodes of evaluations
METHODS = 'ctcr', 'shared', 'ctcr_dynamics', 'shared_dynamics'  # what pays a camera, and whether it predicts


@dataclasses.dataclass(frozen=True)
class TeamEvaluationSettings:
    """The evaluations before, during and after training."""

    episodes: int = 64  # whole episodes of each team
    every: int = 0  # steps between evaluations; 0: before and after training alone
    others: tuple[str, ...] = ('2,6', '3,6', '5,6', '4,1', '4,7')  # cameras and people that nothing was trained on
    frames: int = 50  # of the animation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. A step makes `updates` rollouts and updates of every method and seed."""

    methods: tuple[str, ...] = ('ctcr', 'shared')  # names of `METHODS`
    seeds: int = 3  # seeds of each method
    updates: int = 10  # rollouts and updates in a step
    scene: Cameras = Cameras()
    environments: int = 64  # scenes side by side
    rollout: int = 25  # steps of an environment in a rollout
    hidden: tuple[int, ...] = (128, 128, 128)  # of policy and critic
    memory: int = 0  # units of the policy's LSTM; the paper has 128
    mixtures: int = 16  # Gaussians of each head of the methods with dynamics
    dynamics: float = 5.0  # weight of the heads' loss
    epochs: int = 4  # passes over a rollout
    minibatches: int = 4  # updates of a pass
    clip: float = 0.2  # PPO clips the ratio to 1 - clip, 1 + clip
    lam: float = 0.95  # of the advantage estimator
    entropy: float = 0.003  # weight of the policy's entropy
    reward_scale: float = 0.05  # rewards count so much in training, so that returns are of the size of 1
    optimizer: Optimizer
    critic: Optimizer
    eval: TeamEvaluationSettings = TeamEvaluationSettings()


@dataclasses.dataclass(frozen=True)
class Team:
    """Trains all methods and seeds, one after the other within a step.

    Attributes:
      learners: by method.
    """

    plan: Plan
    ctx: Context
    settings: Settings
    learners: dict[str, TeamPPO]

    def init(self) -> tuple[dict[str, Any], Host]:
        settings = self.settings
        runs = {
            name(method, seed): learner.init(settings.seed + seed)
            for method, learner in self.learners.items()
            for seed in range(settings.seeds)
        }
        # The curve is a part of the state, so that a resumed run draws all of it.
        curve = jnp.full((len(runs), settings.total_steps), jnp.nan)
        return {'runs': runs, 'curve': jax.device_put(curve, sharding.replicated(self.ctx.mesh))}, {}

    def step(self, state: dict[str, Any], host: Host, i: int) -> tuple[dict[str, Any], Host, str, Metrics]:
        runs, figures, metrics = {}, {}, []
        for method, learner in self.learners.items():
            # A camera is paid its contribution with credit 1 and the team's value with credit 0.
            credit = jnp.asarray(float(method.startswith('ctcr')))
            for seed in range(self.settings.seeds):
                run = name(method, seed)
                with self.ctx.phase('update'):
                    # 1. to 4. of a run, `updates` times.
                    runs[run], more, figures[run] = self.iterate(learner, state['runs'][run], credit)
                metrics.append(more)
        keys = dict.fromkeys(key for more in metrics for key in more)
        record = {key: float(np.mean([more[key] for more in metrics if key in more])) for key in keys}
        for method in self.learners:
            rows = np.mean([figures[name(method, seed)] for seed in range(self.settings.seeds)], axis=0)
            record |= {f'{method}_error': float(rows[0]), f'{method}_success': float(rows[1])}
        # A policy that is not a number reconstructs nothing, so its error would look like a number.
        if not all(math.isfinite(value) for value in record.values()):
            raise RuntimeError('an update was not finite; lower optimizer.lr')
        curve = np.array(state['curve'])
        curve[:, i] = [figures[run][0] for run in sorted(runs)]  # a restored tree is sorted, too
        return {'runs': runs, 'curve': jax.device_put(curve, state['curve'].sharding)}, host, 'cameras', record

    def iterate(self, learner: TeamPPO, state: TeamState, credit: Any) -> tuple[TeamState, dict[str, float], Any]:
        """Steps 1 to 4, `updates` times; means of metrics and of figures."""
        rows, seen = [], []
        for _ in range(self.settings.updates):
            state, metrics, figures = learner.iterate(state, credit)
            rows.append(metrics)
            seen.append(figures)
        return state, {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}, np.mean(seen, axis=0)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, state: dict[str, Any], stage: str) -> Evaluation:
        settings = self.settings
        counts = (settings.scene.cameras, settings.scene.people[1])
        results, shown = self.results(state, settings.scene, counts)
        exhibits = []
        if stage == 'final':
            first = name(next(iter(self.learners)), 0)
            # The first policy is a function of the seed, so the scene before training can be played again.
            start, _ = self.init()
            _, before = self.results(start, settings.scene, counts, only=first)
            pairs = {'before training': before[first], 'after training': shown[first]}
            others = [
                result
                for pair in settings.eval.others
                for result in self.results(state, other(settings.scene, pair), counts_of(pair))[0]
            ]
            curve = dict(zip(sorted(state['runs']), np.asarray(state['curve']), strict=True))
            samples = settings.environments * settings.rollout * settings.updates
            exhibits = evals.make_exhibits(results, others, curve, samples, pairs, settings.eval.frames)
        return Evaluation(evals.make_record(results), exhibits=exhibits)

    def results(
        self, state: dict[str, Any], scene: Cameras, counts: tuple[int, int], only: str = ''
    ) -> tuple[list[TeamResult], dict[str, Any]]:
        """The figures of rules, methods and seeds on whole episodes of a scene, and the first episode of each run."""
        episodes, results, shown = self.settings.eval.episodes, [], {}
        # All play the same episodes, so that their differences are the policies'.
        key = jax.random.key(self.settings.seed + EPISODES)
        for method, learner in self.learners.items():
            memory = learner.policy_net.start(episodes * scene.cameras)
            for seed in range(self.settings.seeds):
                run = name(method, seed)
                if only in ('', run):
                    policy = state['runs'][run].policy
                    shown[run], figures = learner.play(policy, memory, key, episodes, scene)
                    results.append(
                        TeamResult(method, seed, *counts, tuple(np.mean(np.asarray(figures), axis=0).tolist()))
                    )
        if not only:
            # A rule reads no policy; the first one stands there.
            method, learner = next(iter(self.learners.items()))
            policy, memory = state['runs'][name(method, 0)].policy, learner.policy_net.start(episodes * scene.cameras)
            for rule in RULES:
                _, figures = learner.play(policy, memory, key, episodes, scene, rule)
                results.append(TeamResult(rule, 0, *counts, tuple(np.mean(np.asarray(figures), axis=0).tolist())))
        return results, shown


def name(method: str, seed: int) -> str:
    """The name of a run in the state."""
    return f'{method}-{seed}'


def counts_of(pair: str) -> tuple[int, int]:
    """Cameras and people from `cameras,people`. Raises ValueError where these are not two numbers."""
    try:
        cameras, people = (int(part) for part in pair.split(','))
    except ValueError:
        raise ValueError(f"eval.others has {pair!r}; use cameras and people, such as '3,6'") from None
    return cameras, people


def other(scene: Cameras, pair: str) -> Cameras:
    """The scene with another number of cameras and people."""
    cameras, people = counts_of(pair)
    return dataclasses.replace(scene, cameras=cameras, people=(people, people))


def make(settings: Settings, ctx: Context) -> Team:
    """Checks the settings and makes a learner for each method.

    Raises:
      ValueError: a value is wrong or a method unknown.
    """
    check_at_least(
        settings, 1, 'total_steps', 'seeds', 'updates', 'environments', 'rollout', 'epochs', 'minibatches',
        'eval.episodes', 'eval.frames', 'checkpoint.every',
    )  # fmt: skip
    check_at_least(settings, 0, 'memory', 'eval.every')
    for method in settings.methods:
        if method not in METHODS or settings.methods.count(method) > 1:
            raise ValueError(f'methods has {method!r}; use each once of {", ".join(METHODS)}')
    if not settings.methods:
        raise ValueError(f'methods is empty; use some of {", ".join(METHODS)}')
    if any(method.endswith('dynamics') for method in settings.methods):
        check_at_least(settings, 1, 'mixtures')
    for pair in settings.eval.others:
        other(settings.scene, pair)
    learners = {method: make_team_learner(settings, ctx, method) for method in settings.methods}
    runs = {name(method, seed): learners[method].abstract() for method in learners for seed in range(settings.seeds)}
    curve = jax.ShapeDtypeStruct((len(runs), settings.total_steps), jnp.float32, sharding=sharding.replicated(ctx.mesh))
    shown = tuple(f'{method}_error' for method in (*settings.methods, *RULES))
    stage = functools.partial(stage_before, warmup=0, steps=settings.total_steps, every=settings.eval.every)
    plan = Plan(settings.total_steps, {'runs': runs, 'curve': curve}, stage, shown=shown)
    return Team(plan, ctx, settings, learners)


def make_team_learner(settings: Settings, ctx: Context, method: str) -> TeamPPO:
    """The learner of a method. Only whether it has dynamics heads makes another program."""
    # The schedules of the rates last for every minibatch of every pass.
    updates = settings.total_steps * settings.updates * settings.epochs * settings.minibatches
    optimizers = settings.optimizer.over(updates), settings.critic.over(updates)
    sizes = {key: getattr(settings, key) for key in ('environments', 'hidden', 'memory', 'epochs', 'minibatches')}
    ppo = {key: getattr(settings, key) for key in ('dynamics', 'clip', 'lam', 'entropy', 'reward_scale')}
    mixtures = settings.mixtures if method.endswith('dynamics') else 0
    return TeamPPO(settings.scene, ctx.mesh, *optimizers, steps=settings.rollout, mixtures=mixtures, **sizes, **ppo)


assert FIGURES[:2] == ('error', 'success')  # the places that `step` reads
