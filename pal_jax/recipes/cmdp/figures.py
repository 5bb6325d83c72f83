"""The words of the figures of the constrained tasks on arrays."""

from __future__ import annotations

from pal_jax.run.glossary import OPTIMISED, Words

HANDLERS = {  # constraint handlers on arrays
    'none': 'no constraint',
    'fixed': 'fixed penalty',
    'linear': 'Lagrangian (PPO-Lag)',
    'log': 'logarithmic Lagrangian',
    'pid': 'PID Lagrangian (CPPO-PID)',
    'ipo': 'barrier (IPO)',
    'crpo': 'CRPO',
    'focops': 'FOCOPS',
    'p3o': 'exact penalty (P3O)',
    'cup': 'CUP',
    'cpo': 'CPO',
    'pcpo': 'PCPO',
}
TASKS = {'bandit': 'the bandit', 'grid': 'the grid', 'point': 'the point among hazards'}
WORDS = Words(
    uses={
        'cmdp': (
            (
                'compare handlers at limits of your own',
                """pal-jax train --config=cmdp --config.handlers="('linear','cpo')" --config.grid.limits="(0.5,)\"""",
                'docs/methods/cmdp.md',
            ),
            (
                'use a handler with a language model',
                'pal-jax train --config=safe_rlhf --config.constraint.handler=linear',
                'docs/howto/constraints.md',
            ),
        )
    },
    figures={
        OPTIMISED: {
            'solved': 'share of handlers and limits with at least 97 % of the exact optimum and a cost near the limit',
            '{task}_{handler}_share': (
                'reward as a share of the exact optimum, at the worst limit: {handler}, on {task}'
            ),
            '{task}_{handler}_over': 'cost less its limit, at the worst limit: {handler}, on {task}',
            '{task}_{handler}_reward': 'discounted reward of an episode: {handler}, on {task}',
            '{task}_{handler}_cost': 'discounted cost of an episode: {handler}, on {task}',
        },
    },
    vocabulary={'task': TASKS, 'handler': HANDLERS},
    steps={'cmdp': 'policies under all constraint handlers learn'},
    changes={'solved': (1.0, 'share of handlers and limits that are solved')},
)
