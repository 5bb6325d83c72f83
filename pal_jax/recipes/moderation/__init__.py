"""Moderation: probabilities of 14 kinds of harm of an answer."""

from pal_jax.recipes.moderation.recipe import Settings, make, make_trained, open_moderator, open_scorer, planned

__all__ = ['Settings', 'make', 'make_trained', 'open_moderator', 'open_scorer', 'planned']
