"""Personalized Soups: a policy for each preference, merged for whoever wants several."""

from pal_jax.recipes.psoups.recipe import make, make_trained, stages

__all__ = ['make', 'make_trained', 'stages']
