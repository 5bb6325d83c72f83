"""The audited bench of personalised rewards."""

from pal_jax.recipes.personal.bench.recipe import make
from pal_jax.recipes.personal.bench.settings import Settings

__all__ = ['Settings', 'make']
