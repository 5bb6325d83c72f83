"""The module of PAL-Large that its config (`configs/pal.py:text-large`) and its runs name; see
`recipes/personal/pal/large.py`."""

from pal_jax.recipes.personal.pal.large import make
from pal_jax.recipes.personal.pal.scores import open_scorer
from pal_jax.recipes.personal.pal.settings import LargeSettings as Settings

__all__ = ['Settings', 'make', 'open_scorer']
