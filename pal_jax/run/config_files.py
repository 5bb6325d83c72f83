"""The settings of a config file, with values changed by the texts of flags or of a Python program."""

from __future__ import annotations

import dataclasses
import functools
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.run import habits, keys
from pal_jax.run.faults import Fault, faults, one_line
from pal_jax.run.files import at_home
from pal_jax.run.settings import Run, keys_of, overridden
from pal_jax.run.shipped import missing_config


@functools.cache
def settings_of(name: str, changes: Sequence[str]) -> Run:
    """The settings of a config file `FILE[:VARIANT]`, with the values that `KEY=VALUE` changes.

    Raises:
      Fault: the file cannot be had, or a value is wrong.
    """
    file, colon, variant = name.partition(':')
    if line := missing_config(name):
        raise Fault(line)
    config = _config_of(Path(file), *([variant] if colon else []))
    if not isinstance(config, Run):
        raise Fault(f'{file}: get_config() must return the Settings of a method; see configs/')
    texts = dict(change.split('=', 1) for change in changes)
    for key in texts.keys() & {'recipe', 'part_of'}:
        raise Fault(f'config.{key} is no choice: the config file names the method; give another --config')
    try:
        return faults(lambda: homed(overridden(config, texts)))
    except Fault as fault:
        known = [key.name for section in keys.sections(config) for key in section.keys]
        meant = {key: habits.hint(key, known) for key in texts if key not in known}
        if any(meant.values()):
            raise Fault('; '.join(f'unknown key {key}{hint}' for key, hint in meant.items())) from None
        for text in texts.values():
            if (same := habits.VALUES.get(text)) and same in str(fault):
                raise Fault(f'{fault}; {text} is {same} here') from None
        raise


def _config_of(file: Path, *variant: str) -> Any:
    """The result of `get_config` of a file. Raises Fault where the file fails, with its line."""
    try:
        return runpy.run_path(str(file))['get_config'](*variant)
    # A config file is a program, which may raise anything.
    except Exception as error:
        if isinstance(error, KeyError) and error.args == ('get_config',):
            raise Fault(f'{file} must define get_config() in Python, as configs/rlpa.py does') from None
        frames = traceback.extract_tb(error.__traceback__)
        # The last line of the file itself in the traceback is the one to mend.
        lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == file.absolute()]
        if isinstance(error, SyntaxError) and Path(error.filename or file).absolute() == file.absolute():
            lines = [error.lineno or 1]
        # A config file raises ValueError for a wrong variant, and settings do for a wrong value.
        if not lines or isinstance(error, ValueError):
            raise Fault(one_line(error)) from None
        raise Fault(
            f'{file}, line {lines[-1]}: {type(error).__name__}, {one_line(error)}; mend the config file'
        ) from None


def homed(value: Any) -> Any:
    """Settings with the home folder in place of the `~` at the start of a path, in all sections and lists."""
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{key: homed(getattr(value, key)) for key in keys_of(type(value))})  # type: ignore
    if isinstance(value, Mapping):
        return {key: homed(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(homed(item) for item in value)
    return at_home(value) if isinstance(value, str) else value
