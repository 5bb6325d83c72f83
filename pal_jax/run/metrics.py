"""The files that a run writes: JSON lines, TensorBoard and, when asked for, Weights & Biases.

A run's folder holds `metrics.jsonl` (one object a step), `rollouts.jsonl` (samples of training steps), `evals.jsonl`
(one an evaluation), `dialogues.jsonl` (sample dialogues of the evaluations), `exhibits.jsonl` with `pictures/` (the
exhibits of the evaluations) and `tensorboard/`. Every object has a `step`: that of the training step, or that of the
first step after an evaluation. A resumed run drops the objects of its first step and later ones and writes them again,
so that an interrupted run leaves the same lines as an unbroken one. Only keys that start with `seconds_` differ.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from pal_jax.run import files
from pal_jax.run.files import write_whole
from pal_jax.types import Exhibit, Metrics

METRICS, EVALS, DIALOGUES, EXHIBITS = 'metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl', 'exhibits.jsonl'
ROLLOUTS = 'rollouts.jsonl'
PICTURES, TENSORBOARD = 'pictures', 'tensorboard'

# Text of models may hold half a surrogate pair, which UTF-8 cannot encode but a JSON escape can.
_TEXT: Any = {'encoding': 'utf-8', 'errors': 'backslashreplace'}


class MetricsWriter:
    """A writer of the files of a run. Each line is on disk when its call returns. Only process 0 writes.

    A step must be written before the checkpoint after it is saved, since a resumed run does not write the step again.

    Args:
      workdir: the run's folder, made if it is missing.
      first_step: the step that the run starts or resumes at; lines of this step and later ones are dropped.
      wandb: project of Weights & Biases to log to as well.

    Raises:
      ValueError: `wandb` names a project and the package is not installed.
    """

    def __init__(self, workdir: str | os.PathLike[str], first_step: int = 0, wandb: str | None = None):
        self._dir = Path(workdir)
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._dir.mkdir(parents=True, exist_ok=True)
        self._wandb = _start_wandb(wandb, self._dir) if wandb else None
        for name in (METRICS, EVALS, DIALOGUES, EXHIBITS, ROLLOUTS):
            _truncate(self._dir / name, first_step)
        self._files = {name: (self._dir / name).open('a', **_TEXT) for name in (METRICS, EVALS, DIALOGUES)}
        # The import takes half a second, which no other process needs.
        from tensorboardX import SummaryWriter

        # TensorBoard drops what it has of these steps, too.
        self._board = SummaryWriter(str(self._dir / TENSORBOARD), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, phase: str, metrics: Metrics) -> None:
        """Write the metrics of one training step. `phase` names the part of the run: `'warm-up'`, `'ppo'`, ..."""
        if self._active:
            self._append(METRICS, {'step': step, 'phase': phase, **metrics})
            # Boards count steps from 1, as the console does, so the last step stands where the last evaluation does.
            self._scalars(step + 1, metrics, 'train')

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Write one evaluation: `step`, `stage` ('base', 'warm-up', 'step' or 'final'), numbers and lists of them."""
        if self._active:
            self._append(EVALS, record)
            self._scalars(record['step'], record, 'eval')

    def dialogues(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write sample dialogues: `step`, `stage`, `person`, `facts` and `turns`, a list of objects."""
        if self._active:
            for record in records:
                self._append(DIALOGUES, record)

    def rollouts(self, step: int, phase: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write samples of a training step: `person`, `facts` and `turns`, and `round`, `judged` and `scores` where the
        method has them."""
        if self._active:
            for record in records:
                self._append(ROLLOUTS, {'step': step, 'phase': phase, **record})

    def exhibits(self, step: int, stage: str, exhibits: Sequence[Exhibit]) -> None:
        """Write the exhibits of an evaluation. Pictures go to `pictures/`, named by their titles."""
        if not self._active:
            return
        taken: list[str] = []
        for exhibit in exhibits:
            record = {'step': step, 'stage': stage, **dataclasses.asdict(exhibit)}
            record['picture'] = self._picture(exhibit, taken) if exhibit.picture else ''
            self._append(EXHIBITS, record)

    def files(self, texts: Mapping[str, str]) -> None:
        """Write the files of an evaluation, by their names in the folder, each in one piece."""
        if self._active:
            for name, text in texts.items():
                write_whole(self._dir / name, text, 'backslashreplace')

    def _picture(self, exhibit: Exhibit, taken: list[str]) -> str:
        ending = '.gif' if exhibit.picture.startswith(b'GIF8') else '.png'
        stem = re.sub(r'\W+', '_', exhibit.title.lower()).strip('_')
        taken.append(stem)
        # Two titles may differ in marks alone, and no picture replaces another of its evaluation.
        name = stem + (f'_{count}' if (count := taken.count(stem)) > 1 else '') + ending
        (self._dir / PICTURES).mkdir(exist_ok=True)
        (self._dir / PICTURES / name).write_bytes(exhibit.picture)
        return name

    def close(self) -> None:
        """Close all files."""
        if not self._active:
            return
        for file in self._files.values():
            file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = (self._dir / name).open('a', **_TEXT)
        file = self._files[name]
        file.write(json.dumps(plain(record), ensure_ascii=False) + '\n')
        file.flush()

    def _scalars(self, step: int, record: Mapping[str, Any], group: str) -> None:
        # TensorBoard and W&B show the names before a slash as groups; times have one of their own.
        numbers = {k: float(v) for k, v in record.items() if k != 'step' and np.ndim(v) == 0 and _is_number(v)}
        scalars = {re.sub('^train/seconds_', 'seconds/', f'{group}/{name}'): value for name, value in numbers.items()}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none where there is no file. A last line that a kill cut short is left out.

    Raises:
      ValueError: another line is not a JSON object with an integer `step`.
    """
    path = Path(path)
    if not path.exists():
        return []
    # A line without its newline was never finished.
    finished, _, _ = files.read_bytes(path).rpartition(b'\n')
    lines = files.decoded(finished, path).split('\n') if finished else []
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def _truncate(path: Path, first_step: int) -> None:
    """Drop the records of `first_step` and later steps."""
    if not path.exists():
        return
    earlier = [record for record in read_records(path) if record['step'] < first_step]
    text = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in earlier)
    # The file is replaced in one piece, or left alone.
    write_whole(path, text, _TEXT['errors'])


def plain(value: Any) -> Any:
    """A value in the types of JSON. Arrays become numbers and lists, and NaN and infinity, which JSON lacks, null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = files.parse(line, path, number, halves=True)
    except ValueError as error:
        raise ValueError(f'{error}, or delete the line') from None
    if not isinstance(record, dict) or not isinstance(record.get('step'), int):
        raise ValueError(
            f'{path}, line {number}: expected an object with an integer "step", got {line[:80]!r}; delete the line'
        )
    return record


def require_wandb(project: str) -> None:
    """Raise ValueError if the package `wandb` is not installed."""
    if importlib.util.find_spec('wandb') is None:
        raise ValueError(f'asked to log to wandb project {project!r}, but wandb is missing: pip install wandb')


def _start_wandb(project: str, workdir: Path) -> Any:
    require_wandb(project)
    # The identity is kept in the folder, so that a resumed run goes on in the same chart.
    identity = workdir / 'wandb_id'
    if not identity.exists():
        identity.write_text(secrets.token_hex(4), encoding='utf-8')
    wandb = importlib.import_module('wandb')
    return wandb.init(project=project, dir=str(workdir), id=identity.read_text(encoding='utf-8'), resume='allow')
