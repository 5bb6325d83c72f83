r"""Constraint handlers on small constrained MDPs, beside the exact optimum by linear programme.

  pal-jax train --config=cmdp                                 # all handlers on a bandit and a grid: under five minutes
  pal-jax train --config=cmdp:point                           # some of them on a continuous task, with small networks
  pal-jax train --config=cmdp:smoke                           # a few updates, nothing learnt
  pal-jax train --config=cmdp --config.handlers="('linear','pid')" --config.grid.limits="(1.0,)"

Handlers: none, fixed, linear, log, pid, ipo, crpo, focops, p3o, cup, cpo, pcpo. --help lists all keys.
"""

from pal_jax.objectives import constraints as c
from pal_jax.recipes.cmdp.settings import Settings, TaskSettings
from pal_jax.run import presets as p
from pal_jax.run.optim import Optimizer


def get_config(variant: str = '') -> Settings:
    variant = p.parse_variant(variant, 'smoke', 'point')
    settings = Settings(
        recipe='cmdp',
        total_steps=25,
        bandit=TaskSettings(limits=(0.7, 0.4, 0.2), steps=4, reward_scale=0.5),
        grid=TaskSettings(limits=(1.0, 0.2), steps=32, reward_scale=10.0),  # multipliers are 10 times those of 5.4
        point=TaskSettings(limits=(3.0,), steps=64, hidden=(64, 64)),
        constraint=c.Handlers(
            linear=c.LinearLagrangian(lam_init=0.5, lam_lr=0.03, optimizer='sgd'),
            log=c.LogLagrangian(lam_init=0.5, lam_lr=0.05),
            pid=c.PIDLagrangian(kp=0.3, ki=0.02, kd=0.3, lam_init=0.5, smoothing=0.9),
            ipo=c.IPO(kappa=0.03, penalty_max=2.0),
            focops=c.FOCOPS(lam_init=0.5),
            p3o=c.P3O(kappa=3.0),
            cup=c.CUP(lam_init=0.5),
            cpo=c.TrustRegion('cpo', damping=1e-3),
            pcpo=c.TrustRegion('pcpo', damping=1e-3),
        ),
        optimizer=Optimizer('adam', lr=0.03, warmup_ratio=0.0, b2=0.999),
        critic=Optimizer('adam', lr=0.05, warmup_ratio=0.0, b2=0.999),
        entropy=0.01,
    )
    return {'smoke': smoke, 'point': point}[variant](settings) if variant else settings


def smoke(settings: Settings) -> Settings:
    task = dict(environments=8, steps=4)
    return p.changed(
        settings, total_steps=4, updates=2, seeds=2, bandit=dict(limits=(0.7,), **task),
        grid=dict(limits=(1.0,), **task), point=task, checkpoint=dict(every=2),
    )  # fmt: skip


def point(settings: Settings) -> Settings:
    """A point among hazards, whose optimum nobody knows."""
    return p.changed(
        settings, tasks=('point',), handlers=('none', 'linear', 'pid', 'focops', 'cpo'), optimizer=dict(lr=1e-3),
        critic=dict(lr=1e-3), entropy=0.0, minibatches=4,
    )  # fmt: skip
