"""PAL: people's preferences as mixtures of prototypes."""

import importlib
from typing import Any

from pal_jax.recipes.personal.pal.settings import Settings

__all__ = ['Settings']
# Names of modules below, which are imported at the first use: a wrong key of a config is told before.
LATE = {'make': 'recipe', 'open_scorer': 'scores'}


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{LATE[name]}'), name)
