"""The interface between the training loop and a method: the protocol `Recipe`, and the records that both exchange."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from pal_jax.run.settings import Run
from pal_jax.types import Exhibit, Metrics

Host = dict[str, Any]
KEPT = 'kept'  # the folder of a run in which its recipe's `keep` writes


class Context(NamedTuple):
    """The machine and the folder of a run.

    Attributes:
      phase: `phase('rollout')` times and shows a part of the work.
      show: keeps samples of a step for the run's report.
      workdir: the run's folder; the folders of other stages are beside it.
      kept: the folder with the record that `Recipe.keep` wrote when the run began; None: the run begins now.
      log: writes a line on the console.
    """

    mesh: Mesh
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: contextlib.nullcontext()
    show: Callable[[Iterable[Mapping[str, Any]]], None] = lambda records: None
    workdir: Path = Path()
    kept: Path | None = None
    log: Callable[[str], None] = lambda text: None

    def of(self, workdir: str | Path) -> Context:
        """The context of a run that is opened, on the same machine."""
        return self._replace(workdir=Path(workdir), kept=Path(workdir) / KEPT)


class Evaluation(NamedTuple):
    """One record of numbers and lists of numbers, some dialogues to look at, and further exhibits of a report.

    `files` are texts for other programs, such as tables, by their names in the folder of the run
    (`run.workdir.NAMES`). Those of a later evaluation replace them.
    """

    record: Mapping[str, Any]
    dialogues: Sequence[Mapping[str, Any]] = ()
    exhibits: Sequence[Exhibit] = ()
    files: Mapping[str, str] = {}


class Exportable(Protocol):
    """A model that the training loop writes when a run ends, such as `run.trained.TrainedModel`."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the model for the report of the run."""
        ...

    def write(self, state: Any, workdir: Path) -> None:
        """Write the models of a state below `workdir`; all processes take part."""
        ...


class Plan(NamedTuple):
    """The facts that the training loop needs of a method beside its steps.

    Attributes:
      total_steps: the number of steps of all phases together.
      abstract: the state's shapes and shardings, for a restore.
      stage: the name of the evaluation that is due before step `i` ('base', 'final', ...), or None.
      trained: the model that is written at the end, if there is one.
      shown: figures of an evaluation that the console shows, if it has them.
      pack: makes the host item JSON for a checkpoint.
      resume: the inverse of `pack`, called once, before a run goes on from a checkpoint or evaluates it.
      after: the step that comes after step `i`, by the host item. It is not the next one where steps are skipped; no
        evaluation comes before a skipped step.
      close: ends the work that is under way beside the steps, when the run ends.
      keep: writes into a folder the meaning of the trained parameters, such as the users that their rows belong to.
      phases: the number of steps of each part of the run by the part's name, in their order; none: the run has one
        part.
    """

    total_steps: int
    abstract: Any
    stage: Callable[[int], str | None]
    trained: Exportable | None = None
    shown: Sequence[str] = ('reward', 'loss', 'accuracy')
    pack: Callable[[Host], Host] = lambda host: host
    resume: Callable[[Host], Host] = lambda host: host
    after: Callable[[Host, int], int] = lambda host, i: i + 1
    keep: Callable[[Path], Any] = lambda folder: None
    close: Callable[[], Any] = lambda: None
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
        """The next state, host item, the name of the phase, and figures.

        Randomness is a function of `i` and the seed of the config.
        """
        ...

    def evaluate(self, state: Any, stage: str, /) -> Evaluation:
        """Figures of a state, which stays as it is."""
        ...


def check_recipe(recipe: Any, text: str) -> None:
    """Raises ValueError where `recipe`, which a user's function `make` gave, lacks a part of `Recipe`."""
    missing = [name for name in ('plan', 'init', 'step', 'evaluate') if not hasattr(recipe, name)]
    if missing or not dataclasses.is_dataclass(recipe):
        lacking = f', with {", ".join(missing)}' if missing else ''
        raise ValueError(f'recipe={text!r} must return a dataclass{lacking}; see pal_jax/run/recipe.py, Recipe')


# This number stands in place of a training step's number in seeds.
EVALUATION = 2**31


def stage_before(i: int, *, warmup: int, steps: int, every: int, base: bool = True) -> str | None:
    """The evaluation due before step `i`: of the base model unless it is left out, the warmed-up one, the last one, and
    after every `every` steps in between."""
    if not (i or base):
        return None
    named = {0: 'base', warmup: 'warm-up' if warmup else 'base', steps: 'final'}
    # Evaluations in between are counted from the end of the warm-up.
    return named.get(i) or ('step' if every and i > warmup and (i - warmup) % every == 0 else None)


def check_at_least(settings: Run, least: int, *keys: str) -> None:
    """Raises ValueError where one of the named values of the settings, such as `eval.people`, is below `least`."""
    for key in keys:
        value = attrgetter(key)(settings)
        if value < least:
            raise ValueError(f'{key}={value} must be at least {least}')


def check_divides(settings: Run, key: str, parts: str) -> None:
    """Raises ValueError where the value of `key` does not divide into as many parts as the value of `parts` says."""
    whole, count = attrgetter(key, parts)(settings)
    if whole % count:
        near = [n for n in range(1, whole + 1) if whole % n == 0]
        raise ValueError(
            f'{key}={whole} does not divide into {parts}={count}; give {parts} one of {", ".join(map(str, near))}'
        )


def check_finite(state: Any, advice: str = 'lower optimizer.lr') -> None:
    """Raises RuntimeError after three updates in a row that were left out since they were not finite."""
    if int(state.skipped) >= 3:
        raise RuntimeError(f'three updates in a row were not finite; {advice}')
