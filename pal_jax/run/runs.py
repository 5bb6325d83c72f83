"""Runs that are opened: their method and their settings."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from pal_jax.run import own, stores
from pal_jax.run.settings import Run, parse
from pal_jax.run.workdir import REPORT, read_run


def recipe_module(recipe: str) -> Any:
    """The module `pal_jax.recipes.<recipe>`, such as `rlpa` or `psoups.rl`, or the user's of `my_method.py:make`.

    Raises:
      ValueError: there is no such module, or the user's lacks a part of a method.
    """
    if own.is_own(recipe):
        return own.load_method('recipe', recipe)
    try:
        return importlib.import_module(f'pal_jax.recipes.{recipe}')
    except ModuleNotFoundError as error:
        # A library that the method needs may be what is missing.
        if not f'pal_jax.recipes.{recipe}'.startswith(error.name or ''):
            raise
        raise ValueError(f'recipe={recipe!r} is no method of this package; see pal_jax/recipes') from None


def read_settings(workdir: str | os.PathLike[str]) -> Any:
    """The settings of the run in `workdir`, as its method defines them.

    Raises:
      ValueError: the folder is not that of a run; or as `recipe_module` and `settings.parse`.
    """
    config = json.loads(stores.local(json.dumps(read_run(Path(workdir)))))
    try:
        return parse(recipe_module(config['recipe']).Settings, config)
    except ValueError as error:
        raise ValueError(f'{workdir}: {error}') from None


def is_finished(settings: Run, folder: Path) -> bool:
    """True where the run of these settings is complete, that is, has its report."""
    # A run that goes on deletes its report.
    return (folder / REPORT).exists() and read_run(folder).get('total_steps') == settings.total_steps
