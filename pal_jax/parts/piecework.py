"""Work that trains nothing, as a recipe: a step is a part of it, written to a file of its own, so that a run that was
stopped goes on with the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pal_jax.parts.recipe import Closures, Context, Evaluation, Host, Plan, Recipe
from pal_jax.runtime import files, processes, sharding
from pal_jax.runtime.files import write_whole
from pal_jax.types import Metrics


def make(
    ctx: Context, steps: int, work: Callable[[Host, int], tuple[Any, Host, Metrics]], name: str,
    finish: Callable[[list[dict[str, Any]]], Evaluation], shown: Sequence[str] = ('rows',),
    resume: Callable[[Host], None] = lambda host: None,
) -> Recipe:  # fmt: skip
    """A recipe whose step `i` writes what `work(host, i)` makes to a file; `finish(parts)` is its last evaluation."""

    def path(i: int) -> Path:
        return ctx.workdir / 'parts' / f'{i:05d}.jsonl'

    def step(state: Any, host: Host, i: int) -> tuple[Any, Host, str, Metrics]:
        records, host, metrics = work(host, i)
        write(path(i), records)
        return {'parts': state['parts'] + 1}, host, name, metrics

    def evaluate(state: Any, stage: str) -> Evaluation:
        return finish([record for i in range(steps) for record in read(path(i))])

    abstract = {'parts': jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(ctx.mesh))}
    plan = Plan(steps, abstract, lambda i: 'final' if i == steps else None, shown=shown, resume=resume)
    return Closures(plan, lambda: ({'parts': jnp.zeros((), jnp.int32)}, {}), step, evaluate)


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, in one piece; the first process writes."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, ''.join(json.dumps(record) + '\n' for record in records))
    processes.exchange(f'written {path.name}')


def read(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError where the stage that writes it has not been run."""
    if not path.exists():
        raise ValueError(f'{path} is missing; run the stage that writes it first (stage=all runs all in order)')
    lines = files.read_text(path).split('\n')
    return [files.parse(line, path, number, halves=True) for number, line in enumerate(lines, 1) if line]
