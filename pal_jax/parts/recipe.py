"""What the training loop asks of a method, and what a method gets from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import ActorState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.parts.settings import Run
from pal_jax.runtime.checkpoint import KEPT
from pal_jax.types import Exhibit, Metrics

Host = dict[str, Any]


class Context(NamedTuple):
    """The machine a recipe runs on. `phase('rollout')` times and shows a part of the work; `show` keeps samples of a
    step for whoever reads the run's report. `workdir` is the run's folder; those of other stages are beside it. A run
    that goes on or is opened finds in `kept` what `Recipe.keep` wrote when it began; None: it begins. `log` writes a
    line on the console."""

    mesh: Mesh
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: contextlib.nullcontext()
    show: Callable[[Iterable[Mapping[str, Any]]], None] = lambda records: None
    workdir: Path = Path()
    kept: Path | None = None
    log: Callable[[str], None] = lambda text: None

    def of(self, workdir: str | Path) -> Context:
        """The same machine, for a run that is opened."""
        return self._replace(workdir=Path(workdir), kept=Path(workdir) / KEPT)


class Evaluation(NamedTuple):
    """One record of numbers and lists of them, some dialogues to look at, and what else a report shows."""

    record: Mapping[str, Any]
    dialogues: Sequence[Mapping[str, Any]] = ()
    exhibits: Sequence[Exhibit] = ()


class Adapters(NamedTuple):
    """What was trained of an adapted model: the trainable tree (see `models.lora.split`) and its base's source."""

    params: Params
    base: str
    dropout: float


class Export(NamedTuple):
    """A model as Hugging Face has it, with its adapters merged, and these by themselves if it has any. `head` is that
    of a scorer, which has it in place of the unembedding; `labels` are the names of its outputs, and `more` further
    keys of its config.json."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    adapters: Adapters | None = None
    head: jax.Array | None = None
    labels: Sequence[str] = ('reward',)
    more: Mapping[str, Any] = MappingProxyType({})


class Trained(NamedTuple):
    """The language model that a method trains: all that it takes to open, export or merge a run. A recipe's
    `make_trained(settings, ctx)` makes it without people, judges or rows, which may be gone or elsewhere.

    exports: models by the name of their folder.
    exported: shapes and shardings of the part of the state that `exports` reads; the rest is `...`.
    model, tokenizer: of the first of them.
    actor: the part of a state that is an actor's, where there is one.
    """

    exports: Callable[[Any], dict[str, Export]]
    exported: Any
    model: ModelConfig
    tokenizer: Tokenizer
    actor: Callable[[Any], ActorState] = lambda state: state


class Plan(NamedTuple):
    """What the training loop knows of a method beside its steps.

    total_steps: steps of all phases together.
    abstract: the state's shapes and shardings, for a restore.
    stage: the name of the evaluation that is due before step `i` ('base', 'final', ...), or None.
    trained: the language model that is trained, if one is.
    phases: the steps of each part of the run by the part's name, in their order; none: the run is of one kind.
    shown: figures of an evaluation that the console shows, if it has them.
    pack: the host item as a checkpoint keeps it, which is JSON-able.
    resume: the inverse of `pack`, called once, before a run goes on from a checkpoint or evaluates it.
    after: the step that comes after step `i`, by the host item: another than the next where some are skipped, before
      which nothing is evaluated.
    keep: writes into a folder what gives the trained parameters their meaning, such as whose rows they are.
    """

    total_steps: int
    abstract: Any
    stage: Callable[[int], str | None]
    trained: Trained | None = None
    shown: Sequence[str] = ('reward', 'loss', 'accuracy')
    pack: Callable[[Host], Host] = lambda host: host
    resume: Callable[[Host], Host] = lambda host: host
    after: Callable[[Host, int], int] = lambda host, i: i + 1
    keep: Callable[[Path], Any] = lambda folder: None
    phases: Mapping[str, int] = {}

    @property
    def evaluations(self) -> list[int]:
        """The steps before which the run is evaluated."""
        return [i for i in range(self.total_steps + 1) if self.stage(i)]


class Recipe(Protocol):
    """A method: a frozen dataclass of its parts. Its state is a pytree of arrays.

    Its `host` item holds records on the host, which `plan.pack` makes JSON-able.
    """

    @property
    def plan(self) -> Plan: ...

    def init(self) -> tuple[Any, Host]:
        """The state and the host item before step 0."""
        ...

    def step(self, state: Any, host: Host, i: int, /) -> tuple[Any, Host, str, Metrics]:
        """The next state, host item, the name of the phase, and figures. Randomness is a function of `i` and the seed
        of the config."""
        ...

    def evaluate(self, state: Any, stage: str, /) -> Evaluation:
        """Figures of a state; changes nothing."""
        ...


EVALUATION = 2**31  # stands where a training step has its number in seeds


def stage_before(i: int, *, warmup: int, steps: int, every: int, base: bool = True) -> str | None:
    """The evaluation due before step `i`: the base model unless it is left out, the warmed-up one, the last, and every
    so many in between."""
    if not (i or base):
        return None
    named = {0: 'base', warmup: 'warm-up' if warmup else 'base', steps: 'final'}
    return named.get(i) or ('step' if every and i > warmup and (i - warmup) % every == 0 else None)


def check_at_least(settings: Run, least: int, *keys: str) -> None:
    """Raises ValueError where a value of the settings, such as that of `eval.people`, is less."""
    for key in keys:
        value = attrgetter(key)(settings)
        if value < least:
            raise ValueError(f'{key}={value} must be at least {least}')


def check_finite(state: Any, advice: str = '') -> None:
    """Raises RuntimeError after three updates in a row that were not finite, and so were not made."""
    if int(state.skipped) >= 3:
        raise RuntimeError(f'three updates in a row were not finite; lower optimizer.lr{advice}')
