"""PAL-Large by the name that its config (`configs/pal.py:text-large`) and its runs have: `recipes/pal/large.py`."""

from pal_jax.recipes.pal.large import make
from pal_jax.recipes.pal.settings import LargeSettings as Settings

__all__ = ['Settings', 'make']
