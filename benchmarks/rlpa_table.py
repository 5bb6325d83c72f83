"""RLPA beside what it is compared with: baselines, ablations and controls, several seeds of each, on held-out people.

  python -m benchmarks.rlpa_table --folder=runs/table
  python -m benchmarks.rlpa_table --folder=runs/table --seeds=1 --methods=warm-up,rlpa,shuffled

Runs are those of pal_jax.train and pal_jax.evaluate, one after the other on each of `--jobs` shares of the cores (of
Linux). What is finished is not made again, so a second call goes on; checkpoints are deleted when their policy has been
evaluated, but for those of warm-ups. Writes table.md, table.json and table.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from benchmarks import shapes
from pal_jax.run.outputs import whole_file
from pal_jax.run.pages import markdown

ROOT = Path(__file__).parents[1]
START = 'warm-up'

# What a method changes of an RLPA run that begins with the warmed-up policy of its seed.
CHANGES = {
    'rlpa': [],
    'profile reward only': ['--config.reward.response_weight=0'],
    'reply reward only': ['--config.reward.profile_weight=0'],
    # A gain has several nats, a reply's score is at most 1.
    'gain of belief': ['--config.reward.profile=belief', '--config.reward.profile_weight=0.1'],
    'shuffled': ['--config.reward.shuffled=True'],
    # Two thirds of the steps, with 48 samples in place of 32.
    'credit across turns': ['--config.dialogue.turn_gamma=0.9', '--config.dialogue.rollout_batch_size=4'],
}
UNTRAINED = ('base', 'reminder', 'oracle')
WARMED = ('dpo', *CHANGES)
METHODS = (*UNTRAINED, START, 'sft', *WARMED)
FIGURES = ('reward', 'response', 'strict', 'profile')


class Run(NamedTuple):
    """Commands that end in a record of `method`, and the folder they write to."""

    method: str
    seed: int
    folder: Path

    @property
    def workdir(self) -> Path:
        return self.folder / f'{self.method.replace(" ", "-")}-{self.seed}'

    @property
    def record(self) -> Path:
        return self.workdir / 'comparison.json'

    def start(self) -> str:
        return f'orbax:{Run(START, self.seed, self.folder).workdir}'

    def source(self) -> str:
        return self.method if self.method in UNTRAINED else f'orbax:{self.workdir}'


def commands(run: Run, steps: int, variant: str = '') -> list[list[str]]:
    """The commands that make the run, in order."""
    rlpa, sft, dpo = (f'--config=configs/{name}.py{variant and f":{variant}"}' for name in ('rlpa', 'sft', 'dpo'))
    seed, quiet = f'--config.seed={run.seed}', ['--config.export=False', '--config.eval.people=2']
    place = [f'--workdir={run.workdir}', seed]
    evaluated = ['pal_jax.evaluate', rlpa, seed, f'--sources={run.source()}', f'--workdir={run.workdir}']
    if run.method in UNTRAINED:
        return [evaluated]
    if run.method == START:
        return [['pal_jax.train', rlpa, *place, '--config.total_steps=0', *quiet], evaluated]
    if run.method == 'sft':
        return [['pal_jax.train', sft, *place, '--config.export=False'], evaluated]
    if run.method == 'dpo':
        pairs = run.workdir.with_suffix('.jsonl')
        prompts = f'--prompts={8 * steps}'  # as many samples as RLPA has
        collected = ['pal_jax.collect', rlpa, seed, f'--source={run.start()}', f'--output={pairs}', prompts]
        changed = [f'--config.policy.source={run.start()}', f'--config.data.train={pairs}', '--config.export=False']
        return [*([] if pairs.exists() else [collected]), ['pal_jax.train', dpo, *place, *changed], evaluated]
    rows = 1.5 if run.method == 'credit across turns' else 1
    changed = [f'--config.policy.source={run.start()}', '--config.warmup.steps=0', *CHANGES[run.method], *quiet]
    return [['pal_jax.train', rlpa, *place, f'--config.total_steps={round(steps / rows)}', *changed], evaluated]


def make(run: Run, calls: list[list[str]], cores: SimpleQueue[list[int]]) -> None:
    """Raises RuntimeError where a command fails; what it said is in the run's log."""
    if run.record.exists():
        return
    run.workdir.mkdir(parents=True, exist_ok=True)
    ours = cores.get()
    os.sched_setaffinity(0, ours)  # of this thread, and of what it starts
    try:
        with run.workdir.with_suffix('.log').open('a') as log:
            for command in calls:
                done = subprocess.run(
                    [sys.executable, '-m', *command],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(run.folder / 'compiled')},
                )
                if done.returncode:
                    raise RuntimeError(f'{" ".join(command)} failed; see {log.name}')
        if run.method != START:
            shutil.rmtree(run.workdir / 'checkpoints', ignore_errors=True)  # gigabytes a run
    finally:
        cores.put(ours)
    print(f'{run.method}, seed {run.seed}: done', file=sys.stderr)


def make_all(runs: dict[Run, list[list[str]]], jobs: int) -> None:
    """Every run by its commands, those that begin with a warm-up after it."""
    everywhere, shares = sorted(os.sched_getaffinity(0)), SimpleQueue()
    for job in range(jobs):
        shares.put(everywhere[job::jobs] or everywhere)
    warmed: dict[int, Future[None]] = {}

    def after(run: Run) -> None:
        if run.method in WARMED:
            warmed[run.seed].result()
        make(run, runs[run], shares)

    with ThreadPoolExecutor(jobs) as pool:
        first = [run for run in runs if run.method == START]
        warmed |= {run.seed: pool.submit(make, run, runs[run], shares) for run in first}
        others = [pool.submit(after, run) for run in runs if run.method != START]
        for future in [*warmed.values(), *others]:
            future.result()


# --- the table ------------------------------------------------------------------------------------------------------


def row(records: Sequence[dict[str, Any]], split: str) -> dict[str, tuple[float, float]]:
    """Mean over seeds of each figure and its standard error: over seeds, or with one seed over people."""
    values = {name: [record[split + name] for record in records] for name in FIGURES}
    ranges = {name: [record[f'{split}intervals'][name] for record in records] for name in FIGURES}
    values['F1, last turn'] = [record[f'{split}f1_by_turn'][-1] for record in records]
    ranges['F1, last turn'] = [np.asarray(record[f'{split}intervals']['f1_by_turn'])[..., -1] for record in records]
    return {name: (float(np.mean(by_seed)), standard_error(by_seed, ranges[name])) for name, by_seed in values.items()}


def standard_error(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> float:
    """The error of the mean of runs: the spread of the runs, or what people make of it, whichever is the larger."""
    people = np.sqrt(np.sum([((high - low) / 3.92) ** 2 for low, high in intervals])) / len(values)
    runs = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(max(people, runs))


def as_markdown(rows: dict[str, dict[str, tuple[float, float]]]) -> str:
    head = ['', *next(iter(rows.values()))]
    cells = [[method, *(f'{mean:.3f} ± {se:.3f}' for mean, se in row.values())] for method, row in rows.items()]
    return markdown([head, *cells])


def plot(records: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """F1 and graded reply score by turn, means over seeds."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for ax, key, title in zip(axes, ('f1_by_turn', 'response_by_turn'), ('profile F1', 'reply, graded'), strict=True):
        for number, (method, of_method) in enumerate(records.items()):
            curve = np.mean([record[key] for record in of_method], axis=0)
            style = ('--' if method in UNTRAINED else '-', f'C{number % 10}', 3 if method == 'rlpa' else 1.3)
            ax.plot(range(1, len(curve) + 1), curve, style[0], color=style[1], lw=style[2], label=method)
        ax.set(title=title, xlabel='turn', ylim=(0, None), xticks=range(1, len(curve) + 1))
    bound = next(iter(records.values()))[0]['bound_by_turn']
    axes[0].plot(range(1, len(bound) + 1), bound, ':', color='grey', label='bound')
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, format='png', dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, required=True)
    named = shapes.listed(str, METHODS)
    parser.add_argument('--methods', type=named, default=list(METHODS), help=f'of {", ".join(METHODS)}')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=24, help='of PPO')
    parser.add_argument('--variant', default='', help="of the configs; 'smoke' is a tiny model, which learns nothing")
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time; each needs about 9 GB')
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    check_folder(folder, {'steps': args.steps, 'variant': args.variant})
    runs = [Run(method, seed, folder) for seed in range(args.seeds) for method in args.methods]
    starts = [Run(START, run.seed, folder) for run in runs if run.method in WARMED]
    make_all({run: commands(run, args.steps, args.variant) for run in [*starts, *runs]}, args.jobs)
    records = {method: [read(run) for run in runs if run.method == method] for method in args.methods}
    splits = {
        split: {method: row(of_method, split) for method, of_method in records.items()} for split in ('', 'unseen_')
    }
    texts = {'json': json.dumps(splits, indent=2), 'md': (table := '\n\n'.join(map(as_markdown, splits.values())))}
    for suffix, text in texts.items():
        with whole_file(folder / f'table.{suffix}', named_here=True) as partial:
            partial.write_text(text + '\n', encoding='utf-8')
    with whole_file(folder / 'table.png', named_here=True) as partial:
        plot(records, partial)
    print(table)


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Ends the program where the folder's runs were made with other settings."""
    path = folder / 'settings.json'
    if path.exists() and json.loads(path.read_text(encoding='utf-8')) != settings:
        sys.exit(f'error: {folder} was made with {path.read_text(encoding="utf-8").strip()}; take another --folder')
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings) + '\n', encoding='utf-8')


def read(run: Run) -> dict[str, Any]:
    return next(iter(json.loads(run.record.read_text(encoding='utf-8')).values()))


if __name__ == '__main__':
    main()
