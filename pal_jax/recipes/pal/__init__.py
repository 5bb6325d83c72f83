"""PAL: people's preferences as mixtures of prototypes."""

from pal_jax.recipes.pal.recipe import make

__all__ = ['make']
