"""Cost models: a number for an answer, above 0 where it is unsafe."""

from pal_jax.recipes.cost.recipe import Settings, make, make_trained, open_scorer, planned

__all__ = ['Settings', 'make', 'make_trained', 'open_scorer', 'planned']
