"""pal_jax: personalised and pluralistic alignment of language models in JAX. Importing it touches no device."""

import os
import sys

from pal_jax.run import interrupts, memory

__version__ = '0.1.0'

__path__.append(f'{__path__[0]}/commands')  # `python -m pal_jax.serve` runs commands/serve.py

# Only tokenizers of transformers are used; that torch is missing is no news.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

if sys.argv[:1] == ['-m']:  # a command: `python -m pal_jax.train` imports this first, and what is slow afterwards
    interrupts.end_plainly()
    memory.keep_freed()
