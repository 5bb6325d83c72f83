"""Self-RedTeam: one model attacks and defends, and learns from both."""

from pal_jax.recipes.redteam.pipeline import make, make_trained, stages
from pal_jax.recipes.redteam.settings import STAGES, Settings

__all__ = ['STAGES', 'Settings', 'make', 'make_trained', 'stages']
