"""PLUS: what a person likes as a summary in words, learnt together with the reward model that reads it."""

from pal_jax.recipes.plus.recipe import make, make_trained, stages

__all__ = ['make', 'make_trained', 'stages']
