"""The keys of a run that compares constraint handlers on arrays; those of every run are in `run/settings.py`."""

from __future__ import annotations

import dataclasses

from pal_jax.objectives.constraints import Handlers
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run

LAGRANGIAN = 'linear', 'log', 'pid'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task, and how large its rollouts and networks are."""

    limits: tuple[float, ...]  # of the discounted cost of an episode; each is a run of its own
    steps: int  # of an environment in a rollout
    environments: int = 64  # episodes side by side
    hidden: tuple[int, ...] = ()  # widths of hidden layers; (): a table where observations are one-hot
    reward_scale: float = 1.0  # rewards count so much in training, so that multipliers are of the size of 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. A step makes `updates` rollouts and updates of every handler, limit and seed."""

    tasks: tuple[str, ...] = ('bandit', 'grid')  # or point
    handlers: tuple[str, ...] = Handlers.names('arrays')  # names of handlers to compare
    seeds: int = 3  # seeds of each handler and limit
    updates: int = 10  # rollouts and updates in a step
    tail: float = 0.25  # the last share of the run, over whose policies results are averaged
    bandit: TaskSettings
    grid: TaskSettings
    point: TaskSettings
    constraint: Handlers = Handlers()
    optimizer: Optimizer
    critic: Optimizer
    epochs: int = 4  # passes over a rollout
    minibatches: int = 1  # updates of a pass
    clip: float = 0.2  # PPO clips the ratio to 1 - clip, 1 + clip
    lam: float = 0.95  # of the advantage estimator
    entropy: float = 0.0  # weight of the policy's entropy
