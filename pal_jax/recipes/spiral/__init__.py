"""SPIRAL: a language model that learns games of two players against itself."""

from pal_jax.recipes.spiral.recipe import make, make_trained, planned
from pal_jax.recipes.spiral.settings import Settings

__all__ = ['Settings', 'make', 'make_trained', 'planned']
