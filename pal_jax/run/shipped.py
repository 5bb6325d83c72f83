"""The folders `configs/` and `launch/`: in a checkout they stand beside the package, in a wheel inside it."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """The folder `configs` or `launch` of a wheel, or that of the checkout that the package stands in."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONFIGS, LAUNCH = shipped('configs'), shipped('launch')


def config_names() -> list[str]:
    """The names that `--config=NAME` takes."""
    return sorted(path.stem for path in CONFIGS.glob('[!_]*.py'))


def config_path(text: str) -> str:
    """The file and variant of `NAME[:VARIANT]`, where NAME is a config of the package; any other text as it is."""
    name, colon, variant = text.partition(':')
    if re.fullmatch(r'\w+', name) and name in config_names():
        return f'{CONFIGS / name}.py{colon}{variant}'
    return text


def missing_config(name: str) -> str:
    """A line that says that there is no file of the config `FILE[:VARIANT]`; '' where there is one."""
    file = name.partition(':')[0]
    if Path(file).is_file():
        return ''
    recipes = importlib.import_module('pal_jax.recipes')
    if file in recipes.ELSEWHERE:
        return f'there is no config {file}; what you mean is --config={recipes.ELSEWHERE[file]}'
    if file in recipes.NEAREST:
        return f'there is no config {file}; the nearest method is --config={recipes.NEAREST[file]}'
    near = difflib.get_close_matches(file, config_names(), 1)
    meant = f'; did you mean {near[0]}?' if near else ''
    return f'there is no configuration file {file}{meant}; give one, or a name: {", ".join(config_names())}'


def with_config(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, with the file of its config in the place of a name: --config=NAME or --config NAME."""
    resolved = [re.sub(r'(?<=^--config=).+', lambda match: config_path(match[0]), text) for text in arguments]
    # `--config NAME` has its name in the next argument.
    for place, text in enumerate(arguments[:-1], 1):
        if text == '--config':
            resolved[place] = config_path(arguments[place])
    return resolved
