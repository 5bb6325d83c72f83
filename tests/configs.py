"""Config files as the command line reads them, for tests."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pal_jax.run.runs import read_settings, recipe_module
from pal_jax.run.settings import parse

CONFIGS = Path(__file__).parents[1] / 'configs'


def load(name: str, variant: str = 'smoke', **changes: Any) -> Any:
    """`configs/<name>.py:<variant>` with values changed by their dotted keys."""
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config'](variant)
    config.update_from_flattened_dict(changes)
    return config


def parsed(config: ConfigDict) -> Any:
    """The settings that a config has, as its recipe takes them."""
    return read_settings(config)


def settings(name: str, variant: str = 'smoke', **changes: Any) -> Any:
    """The settings of `load`, of all stages where a method has several."""
    config = load(name, variant, **changes)
    return parse(recipe_module(config).Settings, config)


def other_prompts(path: str) -> str:
    """A file beside `path`, of the same rows with other prompts: these ask with `?`, those with `!`."""
    other = Path(path).with_suffix('.others.jsonl')
    other.write_text(Path(path).read_text().replace('?', '!'))
    return str(other)
