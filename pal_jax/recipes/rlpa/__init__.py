"""RLPA: a policy learns its user's profile while it talks with the user."""

from pal_jax.recipes.rlpa.recipe import MAY_CHANGE, Settings, make, make_trained, planned

__all__ = ['MAY_CHANGE', 'Settings', 'make', 'make_trained', 'planned']
