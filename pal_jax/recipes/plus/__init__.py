"""PLUS: summaries of the preferences of people in words, learnt together with the reward model that reads them."""

from pal_jax.recipes.plus.recipe import MAY_CHANGE, make, make_trained, planned, stages
from pal_jax.recipes.plus.scoring import open_scorer
from pal_jax.recipes.plus.settings import Settings

MADE = ('pets',)  # data that the method makes up

__all__ = ['MADE', 'MAY_CHANGE', 'Settings', 'make', 'make_trained', 'open_scorer', 'planned', 'stages']
