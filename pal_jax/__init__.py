"""pal_jax: personalised and pluralistic alignment of language models in JAX. Importing it touches no device."""

import os

__version__ = '0.1.0'

# Only tokenizers of transformers are used; that torch is missing is no news.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
