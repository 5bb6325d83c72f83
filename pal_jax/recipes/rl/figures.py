"""The words of the figures of plain reinforcement learning."""

from __future__ import annotations

from pal_jax.run.glossary import MACHINE, Words

WORDS = Words(
    figures={
        MACHINE: {
            'alike': 'share of prompts, or games, whose samples were all paid the same and so teach nothing',
        },
    },
    steps={'rl': 'reinforcement learning'},
)
