"""Constrained MDPs on arrays: constraint handlers against exact optima."""

from pal_jax.recipes.cmdp.recipe import make
from pal_jax.recipes.cmdp.settings import Settings

__all__ = ['Settings', 'make']
