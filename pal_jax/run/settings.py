"""Settings of a run: frozen dataclasses, from the config file to the recipe.

A method's `Settings` is a `Run` with sections of its own. A section is a frozen dataclass that explains each key and
has its default. A config file returns settings, in which it names the values that differ, and its variants change some:

    Settings(recipe='X', total_steps=10, optimizer=Optimizer(lr=5e-5))
    changed(settings, total_steps=2, optimizer=dict(lr=1e-3))

`overridden` changes what `--config.KEY=VALUE` names, `to_dict` makes what `config.json` of a run holds, and `parse`
reads that again. The keys of a run stand flat on the command line, so a method's `Settings` inherits the fields of
`Run`: settings inherit fields, and nothing inherits behaviour.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pal_jax.types import DERIVED

S = TypeVar('S')


# --- what every run has ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The sizes of the axes of the device mesh; -1: all devices that are left."""

    data: int = 1  # the number of copies of the parameters
    fsdp: int = -1  # the number of parts that the parameters are split into, by width
    tensor: int = 1  # likewise, by heads, hidden units and vocabulary


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

    wandb: str = ''  # the name of a wandb project; '': none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The keys of every run; each method explains the steps that `total_steps` counts."""

    recipe: str  # the module of `pal_jax/recipes` that makes the run, or FILE.py:make of a method of yours
    total_steps: int  # the number of steps; a larger number goes on from a finished run
    seed: int = 0  # the seed of everything random: the same seed makes the same run
    mesh: MeshSettings = MeshSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricSettings = MetricSettings()
    export: bool = True  # write a Hugging Face folder at the end
    # Not to be set: the method that this run is a stage of (`run/stages.py`).
    part_of: str = ''


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """The evaluations of a method during training."""

    every: int = 0  # an evaluation every so many steps; 0: none in between
    base: bool = True  # an evaluation before the first step, too


# --- changes ---------------------------------------------------------------------------------------------------------


def changed(settings: S, **values: Any) -> S:
    """The settings with other values at some keys. A section takes a mapping of its keys, or a section of its class.

    Raises:
      ValueError: a key is unknown, or its value is wrong; or as the class of a section does.
    """
    return _changed(settings, values, '')


def filled(kind: type[S], settings: Any, **values: Any) -> S:
    """Settings of another kind: the keys that both have as in `settings`, with `values` in place of some."""
    shared = {key: getattr(settings, key) for key in keys_of(kind) if hasattr(settings, key)}
    return kind(**{**shared, **values})


def overridden(settings: S, texts: Mapping[str, str]) -> S:
    """The settings with the values that texts of the command line stand for, by their keys with dots.

    Raises:
      ValueError: as `changed`, or a text is no value of its key.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        *sections, key = name.split('.')
        place, hint = values, type(settings)
        for depth, section in enumerate(sections):
            hint = _hint_of(hint, section, '.'.join((*sections[:depth], '')))
            place = place.setdefault(section, {})
        place[key] = _value_of(_hint_of(hint, key, '.'.join((*sections, ''))), text, name)
    return changed(settings, **values)


def _changed(settings: S, values: Mapping[str, Any], at: str) -> S:
    kind = type(settings)
    _check_keys(keys_of(kind), values, at)
    hints = typing.get_type_hints(kind)
    given = {key: _change(hints[key], getattr(settings, key), value, f'{at}{key}') for key, value in values.items()}
    return _made(lambda: dataclasses.replace(settings, **given), at)  # type: ignore[type-var]


def _change(hint: Any, value: Any, given: Any, key: str) -> Any:
    """The value of a key in place of `value`: `given`, or the section with the keys that `given` has."""
    if dataclasses.is_dataclass(value) and isinstance(given, Mapping):
        return _changed(value, given, f'{key}.')
    if isinstance(value, Mapping) and isinstance(given, Mapping):
        _check_keys(value, given, f'{key}.')
        sections = {name: _change(get_args(hint)[1], value[name], given[name], f'{key}.{name}') for name in given}
        return {**value, **sections}
    return _read(hint, given, key)


def _hint_of(hint: Any, key: str, at: str) -> Any:
    """The type of a key of a section, or of any name in a mapping of sections. Raises ValueError for an unknown key."""
    if dataclasses.is_dataclass(hint):
        _check_keys(keys_of(hint), [key], at)  # type: ignore[arg-type]
        return typing.get_type_hints(hint)[key]
    if isinstance(origin := get_origin(hint), type) and issubclass(origin, Mapping):
        return get_args(hint)[1]
    raise ValueError(f'unknown key {at}{key}; {at[:-1]} is a value, and no section')


def _value_of(hint: Any, text: str, key: str) -> Any:
    """The value that the text of a flag stands for: `3`, `1e-3`, `true`, `('a', 'b')` or the text itself."""
    origin = get_origin(hint) or hint
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        # A section is refused here: its keys are given one by one.
        return _read(hint, text, key)
    if origin is bool and text.lower() in ('true', 'false', '1', '0'):
        return text.lower() in ('true', '1')
    if origin in (int, float):
        try:
            return origin(text)
        except ValueError:
            raise ValueError(f'{key}={text!r} must be of type {origin.__name__}') from None
    if origin is tuple:
        try:
            value = ast.literal_eval(text) if text else ()
        except (SyntaxError, ValueError):
            # A single word stands for itself.
            value = text
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return text


# --- from and to JSON ------------------------------------------------------------------------------------------------


def to_dict(settings: Any) -> Any:
    """The keys and values of settings, as `config.json` of a run holds them: a dict with a dict for each section."""
    if dataclasses.is_dataclass(settings):
        return {key: to_dict(getattr(settings, key)) for key in keys_of(type(settings))}  # type: ignore[arg-type]
    return {key: to_dict(value) for key, value in settings.items()} if isinstance(settings, Mapping) else settings


def parse(kind: type[S], values: Mapping[str, Any], at: str = '') -> S:
    """The settings that a `config.json` holds.

    Args:
      kind: a dataclass of settings.
      at: the keys that lead to this section, such as 'ppo.'.

    Raises:
      ValueError: a key is unknown or missing, or its value is wrong; or as `kind` does.
    """
    hints, fields = typing.get_type_hints(kind), keys_of(kind)
    _check_keys(fields, values, at)
    if missing := [key for key in fields if key not in values]:
        raise ValueError(
            f'the config has no {at}{missing[0]}; the config of a run that lacks it is of an earlier version, which '
            'this one cannot open'
        )
    read = {key: _read(hints[key], value, f'{at}{key}') for key, value in values.items()}
    return _made(lambda: kind(**read), at)


def keys_of(kind: type) -> list[str]:
    """The keys of a dataclass of settings: its fields, except those that a recipe derives from others."""
    return [field.name for field in dataclasses.fields(kind) if not field.metadata.get(DERIVED)]


def _made(make: Callable[[], S], at: str) -> S:
    """The section that `make` makes."""
    try:
        return make()
    except ValueError as error:
        # An error of the section's class, which does not know its place, gets the section's name.
        raise ValueError(f'{error}' if not at or str(error).startswith(at) else f'{at[:-1]}: {error}') from None


def _check_keys(known: Iterable[str], names: Iterable[str], at: str) -> None:
    """Raises ValueError where a name is none of the keys of a section."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f'unknown key {at}{name}' + (f'; did you mean {at}{near[0]}?' if near else ''))


def _read(hint: Any, value: Any, key: str) -> Any:
    """A value of a config in the type of its field: sections as dataclasses, lists of a JSON file as tuples."""
    origin = get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        return _read_section(hint, value, key)  # type: ignore[arg-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f'{key}={value!r} must have a section for each name')
        return {name: _read(get_args(hint)[1], value[name], f'{key}.{name}') for name in value}
    if origin is tuple and isinstance(value, list | tuple):
        return _read_tuple(get_args(hint), value, key)
    if allowed := choices(hint):
        if value not in allowed:
            known = [str(choice) or "''" for choice in allowed]
            raise ValueError(f'{key}={value!r}; use one of {", ".join(known)}')
        return value
    # A whole number stands for a float, as people and JSON write it.
    if origin is float and type(value) is int:
        return float(value)
    # Types are compared exactly, since a bool would pass for an int.
    if isinstance(origin, type) and type(value) is not origin:
        raise ValueError(f'{key}={value!r} must be of type {origin.__name__}')
    return value


def _read_section(kind: type, value: Any, key: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f'{key}={value!r} must be a section; give its keys, such as {key}.{keys_of(kind)[0]}')
    return parse(kind, value, at=f'{key}.')


def _read_tuple(hints: tuple[Any, ...], values: Sequence[Any], key: str) -> tuple[Any, ...]:
    # `...` stands for any number of values of one type.
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
