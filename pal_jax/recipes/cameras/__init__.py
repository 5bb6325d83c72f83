"""Flying cameras around a person in a crowd: multi-agent PPO with contributions of members (CTCR)."""

from pal_jax.recipes.cameras.recipe import Settings, make

__all__ = ['Settings', 'make']
