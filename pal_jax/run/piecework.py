"""Work that trains nothing, as a recipe: a step is a part of the work, written to a file of its own, so that a run that
was stopped goes on with the next part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from pal_jax.run import files, processes, sharding
from pal_jax.run.files import write_whole
from pal_jax.run.recipe import Context, Evaluation, Host, Plan
from pal_jax.run.workdir import PARTS
from pal_jax.types import Metrics

T = TypeVar('T')
Records = list[dict[str, Any]]  # JSON objects, a line each
Work = Callable[[Host, int], tuple[Records, Host, Metrics]]


@dataclasses.dataclass(frozen=True)
class Piecework:
    """A recipe whose step `i` writes the records of part `i` to a file; its state counts the parts."""

    plan: Plan
    # The folder of the files.
    folder: Path
    # The name of the phase that every step reports.
    name: str
    # `work` makes the records of part `i`, the next host item and the step's figures.
    work: Work
    # `finish` makes the last evaluation from the records of all parts, in their order.
    finish: Callable[[Records], Evaluation]

    def init(self) -> tuple[Any, Host]:
        return {'parts': jnp.zeros((), jnp.int32)}, {}

    def step(self, state: Any, host: Host, i: int) -> tuple[Any, Host, str, Metrics]:
        records, host, metrics = self.work(host, i)
        write(self.path(i), records)
        return {'parts': state['parts'] + 1}, host, self.name, metrics

    def evaluate(self, state: Any, stage: str) -> Evaluation:
        return self.finish([record for i in range(self.plan.total_steps) for record in read(self.path(i))])

    def path(self, i: int) -> Path:
        """The file of part `i`."""
        return self.folder / f'{i:05d}.jsonl'


def make(
    ctx: Context,
    steps: int,
    work: Work,
    name: str,
    finish: Callable[[Records], Evaluation],
    shown: Sequence[str] = ('rows',),
    resume: Callable[[Host], Host] = lambda host: host,
    phases: Mapping[str, int] | None = None,
) -> Piecework:
    """A recipe of `steps` parts in the run's folder, whose one evaluation comes after the last part.

    `phases` has the number of parts of each phase by its name, in their order. The parts of a phase take about the same
    time, by which the time left is forecast.
    """
    abstract = {'parts': jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(ctx.mesh))}
    stage = {steps: 'final'}.get
    plan = Plan(steps, abstract, stage, shown=shown, resume=resume, phases=phases or {})
    return Piecework(plan, ctx.workdir / PARTS, name, work, finish)


def in_parts(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Rows in parts of up to `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as lines of JSON, in one piece; the first process writes."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, ''.join(json.dumps(record) + '\n' for record in records))
    processes.exchange(f'written {path.name}')
    processes.share(path)


def read(path: Path) -> Records:
    """The records that `write` wrote. Raises ValueError where the stage that writes the file has not been run."""
    if not path.exists():
        raise ValueError(f'{path} is missing; run the stage that writes it first (stage=all runs all in order)')
    lines = files.read_text(path).split('\n')
    return [files.parse(line, path, number, halves=True) for number, line in enumerate(lines, 1) if line]
