"""What the training loop asks of a method, and what a method gets from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.types import Metrics

Config = Any  # an ml_collections.ConfigDict: its attributes are the keys of a config file
Host = dict[str, Any]


class Context(NamedTuple):
    """The machine a recipe runs on. `phase('rollout')` times and shows a part of the work."""

    mesh: Mesh
    phase: Callable[[str], AbstractContextManager[None]]


class Evaluation(NamedTuple):
    """One record of numbers and lists of them, and some dialogues to look at."""

    record: Mapping[str, Any]
    dialogues: Sequence[Mapping[str, Any]]


class Export(NamedTuple):
    """A model as Hugging Face has it."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


class Recipe(NamedTuple):
    """A method: functions of a state (a pytree of arrays), a JSON-able `host` item, and the step.

    total_steps: steps of all phases together.
    abstract: the state's shapes and shardings, for a restore.
    init: state and host before step 0.
    step: `(state, host, i) -> (state, host, phase, metrics)`. Randomness is a function of `i` and the config's seed.
    stage: the name of the evaluation that is due before step `i` ('base', 'final', ...), or None.
    evaluate: `(state, stage) -> Evaluation`; changes nothing.
    exports: models by the name of their folder.
    """

    total_steps: int
    abstract: Any
    init: Callable[[], tuple[Any, Host]]
    step: Callable[[Any, Host, int], tuple[Any, Host, str, Metrics]]
    stage: Callable[[int], str | None]
    evaluate: Callable[[Any, str], Evaluation]
    exports: Callable[[Any], dict[str, Export]]
