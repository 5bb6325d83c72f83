"""Personalized Soups: a policy for each preference, merged for people with several wishes."""

from pal_jax.recipes.psoups.recipe import MAY_CHANGE, make, make_trained, planned, stages
from pal_jax.recipes.psoups.settings import STAGES, Settings

__all__ = ['MAY_CHANGE', 'STAGES', 'Settings', 'make', 'make_trained', 'planned', 'stages']
