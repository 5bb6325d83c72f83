"""The audited bench of personalised rewards."""

from pal_jax.recipes.bench.recipe import make
from pal_jax.recipes.bench.settings import Settings

__all__ = ['Settings', 'make']
