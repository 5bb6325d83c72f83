"""pal_jax: personalised and pluralistic alignment of language models in JAX. Importing it touches no device."""

__version__ = '0.1.0'
