"""PAL: people's preferences as mixtures of prototypes."""

from pal_jax.recipes.personal.pal.recipe import make
from pal_jax.recipes.personal.pal.scores import open_scorer
from pal_jax.recipes.personal.pal.settings import Settings

__all__ = ['Settings', 'make', 'open_scorer']
