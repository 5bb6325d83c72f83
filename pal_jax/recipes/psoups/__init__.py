"""Personalized Soups: a policy for each preference, merged for people with several wishes."""

from pal_jax.recipes.psoups.recipe import planned, stages
from pal_jax.recipes.psoups.settings import Settings

__all__ = ['Settings', 'planned', 'stages']
