"""Safe RLHF: helpful answers under a limit on their harm."""

from pal_jax.recipes.safe_rlhf.recipe import planned, stage_ended, stages
from pal_jax.recipes.safe_rlhf.settings import Settings

__all__ = ['Settings', 'planned', 'stage_ended', 'stages']
