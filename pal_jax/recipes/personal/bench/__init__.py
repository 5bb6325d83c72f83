"""The audited bench of personalised rewards."""

from pal_jax.recipes.personal.bench.recipe import Settings, make

__all__ = ['Settings', 'make']
