"""AllReduce on given networks: short schedules, planned or learned."""

from pal_jax.recipes.allreduce.recipe import Settings, make

__all__ = ['Settings', 'make']
