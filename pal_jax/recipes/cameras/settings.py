"""The keys of a run with flying cameras."""

from __future__ import annotations

import dataclasses

from pal_jax.recipes.cameras.scene import Cameras
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run

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
