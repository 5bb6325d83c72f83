"""Reinforcement learning on your own prompts and rewards: functions, a scorer, a judge, or a game."""

from pal_jax.recipes.rl.recipe import MAY_CHANGE, make, make_trained, planned
from pal_jax.recipes.rl.settings import Settings

__all__ = ['MAY_CHANGE', 'Settings', 'make', 'make_trained', 'planned']
