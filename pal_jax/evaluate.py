"""Evaluates a run on people it was not trained on, before and after training, without training anything.

  python -m pal_jax.evaluate --config=configs/rlpa.py --workdir=runs/rlpa

Options:
  --config=FILE[:VARIANT]   the config of the run, with the same --config.KEY=VALUE changes
  --workdir=FOLDER          the run; default runs/<name of the config>
  --step=N                  which checkpoint; default the last

Prints a table and writes evaluation.json, and evaluation.png of dialogues by turn, to the run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from pal_jax import cli
from pal_jax.runtime.curve import plot_turns
from pal_jax.runtime.metrics import EVALS, plain, read_records
from pal_jax.runtime.summary import by_stage
from pal_jax.train import load_run

STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the last by default.')


def main() -> None:
    workdir = cli.workdir()
    stages = cli.faults(evaluate, workdir)
    if jax.process_index() == 0:
        (workdir / 'evaluation.json').write_text(json.dumps(plain(stages), indent=2) + '\n')
        written = [workdir / 'evaluation.json']
        if any('f1_by_turn' in record for record in stages.values()):
            written.append(workdir / 'evaluation.png')
            plot_turns(stages, written[-1])
        Console().print(as_table(stages))
        print(*written, sep=', ')


def evaluate(workdir: Path) -> dict[str, Any]:
    """The evaluations the run made before this step, and one of this step, by name."""
    recipe, state, step, _ = load_run(cli.config(), workdir, STEP.value)
    earlier = [r for r in read_records(workdir / EVALS) if r['step'] < step and r['stage'] != 'final']
    return {**by_stage(earlier), f'step {step}': {'step': step, **recipe.evaluate(state, 'final').record}}


def as_table(stages: dict[str, dict[str, Any]]) -> Table:
    """A column a stage, a row a figure; lists are figures by turn."""
    table = Table('figure', *stages)
    names = dict.fromkeys(name for record in stages.values() for name in record)
    for name in names:
        if not name.startswith('seconds_') and name != 'stage':
            table.add_row(name, *(cell(record.get(name)) for record in stages.values()))
    return table


def cell(value: Any) -> str:
    if isinstance(value, list):
        return ' '.join(map(cell, value))
    return f'{value:.3f}' if isinstance(value, float) else '' if value is None else str(value)


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
