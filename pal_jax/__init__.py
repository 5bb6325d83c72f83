"""pal_jax: personalised and pluralistic alignment of language models in JAX. Importing it touches no device."""

import importlib
import os
import sys
from typing import Any

from pal_jax.run import interrupts, memory

__version__ = '0.1.0'

# `pal-jax serve` runs commands/serve.py.
__path__.append(f'{__path__[0]}/commands')

# Only tokenizers of transformers are used; that torch is missing is no news.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

# Functions of `commands/library.py`, which is imported at the first use.
LIBRARY = 'train', 'open_run', 'evaluate', 'score', 'personalize'


def __getattr__(name: str) -> Any:
    if name not in LIBRARY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module('pal_jax.commands.library'), name)


def __dir__() -> list[str]:
    return sorted([*LIBRARY, '__version__'])


# A command, such as `pal-jax train`, imports this module first, and what is slow afterwards.
if sys.argv[:1] == ['-m']:
    interrupts.end_plainly()
    memory.keep_freed()
