"""Runs that are opened: their config, their method and their settings."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pal_jax.run.settings import Run, parse
from pal_jax.run.workdir import read_run

STAGE_KEYS = 'stage', 'preference'  # keys that tell the stage of a run in which a config is used


def read_config(workdir: str) -> ConfigDict:
    """The config of the run in `workdir`. Raises ValueError where the folder is not that of a run."""
    return ConfigDict(read_run(Path(workdir)))


def recipe_module(config: ConfigDict | Run) -> Any:
    """The module `pal_jax.recipes.<config.recipe>`. Raises ValueError where there is no such method."""
    try:
        return importlib.import_module(f'pal_jax.recipes.{config.recipe}')
    except ModuleNotFoundError:
        raise ValueError(f'recipe={config.recipe!r} is no method of this package; see pal_jax/recipes') from None


def read_settings(config: ConfigDict) -> Run:
    """The settings of a run, or of a stage of a run, as its method defines them.

    Raises:
      ValueError: as `recipe_module` and `settings.parse`.
    """
    module = recipe_module(config)
    kind = getattr(module, 'STAGES', {}).get(config.get('stage'), module.Settings)
    return parse(kind, config, besides=STAGE_KEYS)
