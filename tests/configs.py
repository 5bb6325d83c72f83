"""Config files as the command line reads them, for tests."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from pal_jax.run import settings
from pal_jax.run.runs import recipe_module

CONFIGS = Path(__file__).parents[1] / 'configs'


def load(name: str, variant: str = 'smoke', **changes: Any) -> Any:
    """The settings of `configs/<name>.py:<variant>` with values changed by their dotted keys."""
    return changed(runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config'](variant), **changes)


def changed(config: Any, **changes: Any) -> Any:
    """Settings with values changed by their dotted keys."""
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        *sections, key = name.split('.')
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return settings.changed(config, **nested)


def make(config: Any, ctx: Any) -> Any:
    """The recipe of a run with these settings."""
    return recipe_module(config.recipe).make(config, ctx)


def other_prompts(path: str) -> str:
    """A file beside `path`, of the same rows with other prompts: these ask with `?`, those with `!`."""
    other = Path(path).with_suffix('.others.jsonl')
    other.write_text(Path(path).read_text().replace('?', '!'))
    return str(other)
