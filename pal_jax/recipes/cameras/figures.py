"""The words of the figures of the camera teams."""

from __future__ import annotations

from pal_jax.run.glossary import MACHINE, OPTIMISED, Question, Words

TEAMS = {  # who flies the cameras, and what pays them
    'standing': 'fixed formation',
    'tracking': 'fixed formation that turns to the target',
    'shared': 'MAPPO, shared reward',
    'ctcr': 'MAPPO, contributions (CTCR)',
    'shared_dynamics': 'MAPPO, shared reward, with dynamics',
    'ctcr_dynamics': 'MAPPO, contributions (CTCR), with dynamics',
}
WORDS = Words(
    uses={
        'cameras': (
            (
                'fly another team in another crowd',
                'pal-jax train --config=cameras --config.scene.cameras=5 --config.scene.people="(1,7)"',
                'docs/methods/cameras.md',
            ),
            (
                'let cameras predict the next places, too',
                'pal-jax train --config=cameras:dynamics',
                'docs/methods/cameras.md',
            ),
        )
    },
    figures={
        OPTIMISED: {
            '{team}_error': 'mean error of a joint in cm: {team}',
            '{team}_success': 'share of moments with a mean error below 15 cm: {team}',
            'error_to_tracking': 'error with contributions over that of a fixed formation that turns to the target',
            'error_to_shared': 'error with contributions over that with a shared reward',
        },
        MACHINE: {'dynamics_nll': 'how unlikely what came next was to the dynamics heads (nats)'},
    },
    vocabulary={'team': TEAMS},
    steps={'cameras': 'cameras fly, and their policy learns'},
    levels={
        'error_to_tracking': ('the error with contributions over that of cameras that turn to the target', 1.0),
        'error_to_shared': ('the error with contributions over that with a shared reward', 1.0),
    },
    less=('error_to_tracking', 'error_to_shared'),
    questions={'error_to_tracking': Question('Are its cameras better than fixed ones?', worse='No')},
)
