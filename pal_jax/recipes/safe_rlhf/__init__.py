"""Safe RLHF: helpful answers under a limit on their harm."""

from pal_jax.recipes.safe_rlhf.pipeline import make, make_trained, planned, stages
from pal_jax.recipes.safe_rlhf.settings import STAGES, Settings

__all__ = ['STAGES', 'Settings', 'make', 'make_trained', 'planned', 'stages']
