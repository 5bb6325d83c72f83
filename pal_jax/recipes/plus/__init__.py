"""PLUS: what a person likes as a summary in words, learnt together with the reward model that reads it."""

from pal_jax.recipes.plus.recipe import MAY_CHANGE, make, make_trained, stages

__all__ = ['MAY_CHANGE', 'make', 'make_trained', 'stages']
