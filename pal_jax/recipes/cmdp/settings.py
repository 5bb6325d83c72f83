"""The keys of a run that compares constraint handlers on arrays; those of every run are in `run/settings.py`."""

from __future__ import annotations

import dataclasses

from pal_jax.objectives import constraints as c
from pal_jax.objectives.trust_region import TrustRegion
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run

HANDLERS = (
    'none', 'fixed', 'linear', 'log', 'pid', 'ipo', 'crpo', 'focops', 'p3o', 'cup', 'cpo', 'pcpo',
)  # fmt: skip
LAGRANGIAN = 'linear', 'log', 'pid'
WITHOUT_LIMIT = 'none', 'fixed'
REFUSED = {  # handlers of language models that have no place here, and why
    'repo': 'it rectifies the cost of a whole answer, and the excess of an episode is no sum over its steps',
    'saute': 'it bounds the cost of every episode and not the mean, so it has another optimum',
    'early': 'it ends every episode at the limit and bounds no mean, so it has another optimum',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task, and how large its rollouts and networks are."""

    limits: tuple[float, ...]  # of the discounted cost of an episode; each is a run of its own
    steps: int  # of an environment in a rollout
    environments: int = 64  # episodes side by side
    hidden: tuple[int, ...] = ()  # widths of hidden layers; (): a table where observations are one-hot
    reward_scale: float = 1.0  # rewards count so much in training, so that multipliers are of the size of 1


@dataclasses.dataclass(frozen=True)
class HandlerSettings:
    """The handlers' hyper-parameters (`objectives/constraints.py`, `objectives/trust_region.py`)."""

    fixed: c.FixedPenalty = c.FixedPenalty()
    linear: c.LinearLagrangian = c.LinearLagrangian()
    log: c.LogLagrangian = c.LogLagrangian()
    pid: c.PIDLagrangian = c.PIDLagrangian()
    ipo: c.IPO = c.IPO()
    crpo: c.CRPO = c.CRPO()
    focops: c.FOCOPS = c.FOCOPS()
    p3o: c.P3O = c.P3O()
    cup: c.CUP = c.CUP()
    cpo: TrustRegion = TrustRegion('cpo')
    pcpo: TrustRegion = TrustRegion('pcpo')

    def named(self, name: str) -> c.Handler | TrustRegion:
        """The handler of a name of `HANDLERS`."""
        return c.Unconstrained() if name == 'none' else getattr(self, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. A step makes `updates` rollouts and updates of every handler, limit and seed."""

    tasks: tuple[str, ...] = ('bandit', 'grid')  # or point
    handlers: tuple[str, ...] = HANDLERS  # names of handlers to compare
    seeds: int = 3  # seeds of each handler and limit
    updates: int = 10  # rollouts and updates in a step
    tail: float = 0.25  # the last share of the run, over whose policies results are averaged
    bandit: TaskSettings
    grid: TaskSettings
    point: TaskSettings
    constraint: HandlerSettings = HandlerSettings()
    optimizer: Optimizer
    critic: Optimizer
    epochs: int = 4  # passes over a rollout
    minibatches: int = 1  # updates of a pass
    clip: float = 0.2  # PPO clips the ratio to 1 - clip, 1 + clip
    lam: float = 0.95  # of the advantage estimator
    entropy: float = 0.0  # weight of the policy's entropy
