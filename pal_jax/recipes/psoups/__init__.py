"""Personalized Soups: a policy for each preference, merged for whoever wants several."""

from pal_jax.recipes.psoups.recipe import MAY_CHANGE, make, make_trained, stages

__all__ = ['MAY_CHANGE', 'make', 'make_trained', 'stages']
