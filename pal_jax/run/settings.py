"""Settings of a run: frozen dataclasses, and their way from and to the ConfigDict of a config file.

A method's `Settings` is a `Run` with sections of its own. A section is a frozen dataclass that explains each key and
has its default; a config file names the values that differ:

config = to_config(Settings(recipe='sft', total_steps=0, optimizer=Optimizer(lr=5e-5)))    # in configs/sft.py
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

from pal_jax.learners.ppo import PPO
from pal_jax.learners.training import Lora
from pal_jax.models.files.sources import EMBEDDED
from pal_jax.run.optim import Optimizer
from pal_jax.types import DERIVED, Sampling

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


# --- sections of several methods ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A model, its precision and its adapters."""

    source: str = EMBEDDED  # hf:, gguf:, orbax:, peft: or random:tiny, see `models/files/sources.py`
    dtype: str = 'auto'  # the type of matrix products: bfloat16 where the machine has it
    remat: str = 'none'  # 'full' or 'dots' computes layers again in the backward pass, to save memory
    scan_layers: bool = False  # on a CPU too: compiles in a quarter of the time, but steps take up to a third longer
    lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """The decoder that samples."""

    slots: int = 32  # completions sampled at once
    stride: int = 4  # tokens that are made in a round trip between device and host
    driver: str = 'local'  # local, or jetstream: the same tokens through google-jetstream's driver
    address: str = ''  # host:port of a pal_jax.serve --driver=jetstream that samples instead; see docs/serving.md
    reuse: bool = True  # prompts start from the parts of them that caches hold
    int8: bool = False  # sample with weights of eight bits
    shares: int = 0  # the number of decoders side by side, each on its share of devices and prompts; 0: one a process


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A chat model of an OpenAI-compatible server, for a role that is set to `endpoint:<name>`.

    A role that is set to `local:<source>` reads `temperature`, `max_tokens` and `slots`.
    """

    temperature: float  # of its answers; 0: greedy
    max_tokens: int  # of an answer
    address: str = ''  # http://host:port/v1
    model: str = ''  # the name of the model at that address
    key_env: str = ''  # the environment variable that holds the key
    concurrency: int = 64  # requests under way at once
    timeout: float = 60.0  # seconds of an attempt
    retries: int = 5  # further attempts of a request that failed
    prompt_price: float = 0.0  # the price of a million tokens, for the metrics
    completion_price: float = 0.0  # likewise of what it writes
    slots: int = 16  # completions that a `local:` model decodes at once


ANSWERS = '~/.cache/pal_jax/answers.sqlite'  # the answers of endpoints, which are not asked again


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The rows of a supervised method (formats: `data/readers/formats.py`) and their batches."""

    batch_size: int  # the number of rows, pairs or groups of pairs of an update
    train: str = 'oracle'  # oracle, recall (recipes/rlpa/made), or a file: .jsonl, .json, .parquet
    test: str = ''  # a file of prompts that are not learnt; '': rows of some prompts of train, a fifth at most
    test_rows: int = 64  # the largest number of rows of an evaluation
    max_length: int = 1024  # tokens; longer rows are left out
    epochs: float = 1.0  # passes over the rows where total_steps is 0
    micro_rows: int = 2  # rows in a device's memory at once
    row_tokens: int = 1024  # the length in tokens of rows that several share; 0: each has its own


@dataclasses.dataclass(frozen=True)
class OracleSettings:
    """The people, all of RLPA's training, whom the oracle answers where `data.train` is 'oracle'."""

    people: int = 240  # the number of people
    facts: int = 4  # facts of each of them
    rounds: int = 3  # turns of a dialogue
    p_spontaneous: float = 1.0  # the chance that a user tells something unasked


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """The evaluations of a method during training."""

    every: int = 0  # an evaluation every so many steps; 0: none in between
    base: bool = True  # an evaluation before the first step, too


# --- runs of one kind -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromRows(Run):
    """The keys of a run that learns from rows; `total_steps=0` makes `data.epochs` passes over them."""

    policy: ModelSettings = ModelSettings()
    optimizer: Optimizer
    data: RowSettings
    eval: StageSettings = StageSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(FromRows):
    """The keys of a run that may learn from the answers of the oracle."""

    oracle: OracleSettings = OracleSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforced(Run):
    """The keys of a run that improves a policy by PPO on its own samples."""

    policy: ModelSettings = ModelSettings()
    optimizer: Optimizer
    critic: Optimizer  # used by the estimator that has a critic (gae)
    ppo: PPO
    sampling: Sampling
    decode: DecodeSettings = DecodeSettings()


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
