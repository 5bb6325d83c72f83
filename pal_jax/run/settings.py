"""Settings of a run: frozen dataclasses, and their way from and to the ConfigDict of a config file.

A method's `Settings` is a `Run` with sections of its own. A section is a frozen dataclass that explains each key and
has its default; a config file names the values that differ:

config = to_config(Settings(recipe='X', total_steps=10, optimizer=Optimizer(lr=5e-5)))    # in configs/X.py
settings = parse(Settings, config)                                                         # before `make`

The keys of a run stand flat on the command line, so a method's `Settings` inherits the fields of `Run`: settings
inherit fields, and nothing inherits behaviour.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ml_collections import ConfigDict

from pal_jax.types import DERIVED

S = TypeVar('S')


# --- what every run has ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The sizes of the axes of the device mesh; -1: all devices that are left."""

    data: int = 1  # copies of the parameters
    fsdp: int = -1  # parts of the parameters by width
    tensor: int = 1  # parts by heads, hidden units and vocabulary


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """A checkpoint is saved after every `every` steps, and after every `minutes` minutes; the last `keep` of them are
    kept."""

    every: int = 10  # steps between checkpoints
    minutes: float = 15.0  # minutes between checkpoints
    keep: int = 2  # the number of last checkpoints that are kept


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """The places that metrics go to beside the files of the run."""

    wandb: str = ''  # the name of a wandb project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The keys of every run; each method explains the steps that `total_steps` counts."""

    recipe: str  # the module of `pal_jax/recipes` that makes the run
    total_steps: int  # the number of steps; a larger number goes on from a finished run
    seed: int = 0  # of everything random: the same seed makes the same run
    mesh: MeshSettings = MeshSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricSettings = MetricSettings()
    export: bool = True  # write a Hugging Face folder at the end


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """The evaluations of a method during training."""

    every: int = 0  # an evaluation every so many steps; 0: none in between
    base: bool = True  # an evaluation before the first step, too


# --- from and to a ConfigDict ---------------------------------------------------------------------------------------


def to_config(settings: Any) -> ConfigDict:
    """The keys and values of settings, in the form that a config file gives to the command line."""
    return ConfigDict(_plain(settings))


def parse(kind: type[S], config: ConfigDict | Mapping[str, Any], *, besides: tuple[str, ...] = (), at: str = '') -> S:
    """The settings that a config holds.

    Args:
      kind: a dataclass of settings.
      besides: keys of the config that are no settings and are left out, such as the name of a stage.
      at: the keys that lead to this section, such as 'ppo.'.

    Raises:
      ValueError: a key is unknown or missing, or its value is wrong; or as `kind` does.
    """
    if not isinstance(config, Mapping | ConfigDict):
        raise ValueError(f'{at[:-1]}={config!r} must be a section; make it with to_config({kind.__name__}(...))')
    hints, fields = typing.get_type_hints(kind), keys_of(kind)
    values_by_key = {key: config[key] for key in config if key not in besides or key in fields}
    for key in values_by_key:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f'; did you mean {at}{near[0]}?' if near else ''
            raise ValueError(f'unknown key {at}{key}{hint}')
    if missing := [key for key in fields if key not in values_by_key]:
        raise ValueError(
            f'the config has no {at}{missing[0]}; make the section with to_config({kind.__name__}(...)); the config '
            'of a run that lacks it is of an earlier version, which this one cannot open'
        )
    values = {key: _read(hints[key], value, f'{at}{key}') for key, value in values_by_key.items()}
    try:
        return kind(**values)
    except ValueError as error:  # values do not fit together; the class does not know its section
        raise ValueError(f'{error}' if not at or str(error).startswith(at) else f'{at[:-1]}: {error}') from None


def keys_of(kind: type) -> list[str]:
    """The keys of a dataclass of settings: its fields, except those that a recipe derives from others."""
    return [field.name for field in dataclasses.fields(kind) if not field.metadata.get(DERIVED)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {key: _plain(getattr(value, key)) for key in keys_of(type(value))}  # type: ignore[arg-type]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _read(hint: Any, value: Any, key: str) -> Any:
    """A value of a config in the type of its field: sections as dataclasses, lists of a JSON file as tuples."""
    origin = get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, at=f'{key}.')  # type: ignore[arg-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping | ConfigDict):
            raise ValueError(f'{key}={value!r} must have a section for each name')
        return {name: _read(get_args(hint)[1], value[name], f'{key}.{name}') for name in value}
    if origin is tuple and isinstance(value, list | tuple):
        return _read_tuple(get_args(hint), value, key)
    if allowed := choices(hint):
        if value not in allowed:
            known = [str(choice) or "''" for choice in allowed]
            raise ValueError(f'{key}={value!r}; use one of {", ".join(known)}')
        return value
    if origin is float and type(value) is int:
        return float(value)
    if isinstance(origin, type) and type(value) is not origin:
        raise ValueError(f'{key}={value!r} must be of type {origin.__name__}')
    return value


def _read_tuple(hints: tuple[Any, ...], values: Sequence[Any], key: str) -> tuple[Any, ...]:
    element_hints = [hints[0]] * len(values) if hints[-1] is ... else hints
    kinds = ', '.join('...' if hint is ... else getattr(hint, '__name__', str(hint)) for hint in hints)
    try:
        return tuple(_read(hint, value, key) for hint, value in zip(element_hints, values, strict=True))
    except ValueError:
        raise ValueError(f'{key}={tuple(values)} must be a tuple of ({kinds})') from None


def choices(hint: Any) -> list[Any]:
    """The values of a Literal, or of a union of them; none for any other hint."""
    if get_origin(hint) is Literal:
        return [*get_args(hint)]
    return [choice for part in get_args(hint) for choice in choices(part)] if get_origin(hint) is Union else []
