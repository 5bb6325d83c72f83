"""PAL: people's preferences as mixtures of prototypes."""

from pal_jax.recipes.pal.recipe import make
from pal_jax.recipes.pal.settings import Settings

__all__ = ['Settings', 'make']
