"""Self-RedTeam: one model attacks and defends, and learns from both."""

from pal_jax.recipes.redteam.recipe import stages
from pal_jax.recipes.redteam.settings import Settings

__all__ = ['Settings', 'stages']
