"""Comparison of runs from their files, such as seeds of one config, or a method and its controls.

  pal-jax compare runs/rlpa runs/rlpa-1 runs/rlpa-2 --output=seeds.png
draws their figures into one picture and prints two tables in Markdown: the rise of the reward, or of the figure that
stands for the method, and the evaluations. Of runs that differ in their seeds alone the first table has the means,
too, with standard errors over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pal_jax.run import intervals
from pal_jax.run.curve import HEADLINES, PANELS, STYLE, column, headline_of, logged, running_mean
from pal_jax.run.files import at_home
from pal_jax.run.interrupts import until_closed
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.outputs import check_file, whole_file
from pal_jax.run.progress import print_anything
from pal_jax.run.summary import fifths, main_part
from pal_jax.run.workdir import read_run

COLOURS = ('#2563eb', '#d97706', '#059669', '#9333ea', '#dc2626', '#4b5563')
MOST = 4  # panels of a picture

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # records by the run's name


def draw(runs: Runs, path: str | os.PathLike[str]) -> None:
    """Write a PNG with a colour for each run: steps are dots, running means lines.

    The first panel has the headline of the runs, and others have the first figures of `curve.PANELS` that a run logged.
    """
    parts = {name: main_part(rows) for name, rows in runs.items()}
    others = (key for key in PANELS if any(logged(part, key) for part in parts.values()))
    keys = [headline(runs), *itertools.islice(others, MOST - 1)]
    wide, high = min(len(keys), 2), -(-len(keys) // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5 * max(wide, 1.5), 3 * high), layout='constrained')
        axes = figure.subplots(high, wide, squeeze=False).flat
        for key, ax in itertools.zip_longest(keys, axes):
            if key is None:
                ax.set_axis_off()
                continue
            ax.set_title((HEADLINES | PANELS)[key], fontweight='bold')
            ax.set_xlabel('step')
            for (name, part), colour in zip(parts.items(), itertools.cycle(COLOURS), strict=False):
                steps, values = column(part, 'step'), column(part, key)
                # The running mean is over a fifth of the steps, or over three.
                mean, _ = running_mean(values, values * 0, max(3, len(part) // 5))
                ax.plot(steps, values, 'o', color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
                ax.plot(steps, mean, color=colour, label=name)
        # One legend beside the panels hides no curve.
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside right upper', frameon=False)
        figure.savefig(path, format='png', dpi=160)


def headline(runs: Runs) -> str:
    """The figure that stands for the method of the first run."""
    return headline_of(next(iter(runs.values())))


def rise_table(runs: Runs, *, seeds: bool = False) -> str:
    """A table of the headline's mean over the first and the last fifth of each run's steps.

    Where the runs are `seeds` of one config, the last row has their means with standard errors over seeds, and the 95 %
    interval of the gain.
    """
    key = headline(runs)
    lines = [f'| run | {key}, first fifth | last fifth | gain |', '|---|---|---|---|']
    rises = {name: fifths(main_part(rows), key) for name, rows in runs.items()}
    for name, rise in rises.items():
        lines.append(f'| {name} | {rise["first"]:.3f} | {rise["last"]:.3f} | {rise["gain"]:+.3f} |')
    if seeds:
        columns = ([rise[end] for rise in rises.values()] for end in ('first', 'last', 'gain'))
        first, last, gain = (intervals.mean(np.array(column)) for column in columns)
        row = f'{first.with_error()} | {last.with_error()} | {gain.with_error("+.3f")} ({gain.ends("+.3f")})'
        lines.append(f'| {len(runs)} seeds | {row} |')
    return '\n'.join(lines)


def are_seeds(configs: Sequence[Mapping[str, Any]]) -> bool:
    """True of two or more configs of runs that are the same but for the seed."""
    first, *others = ({**config, 'seed': None} for config in configs)
    return bool(others) and all(config == first for config in others)


def stage_table(evals: Runs) -> str:
    """A table of the evaluations of each run: those of these figures that a run has."""
    figures = ('reward', 'accuracy', 'loss', 'format', 'response', 'strict', 'profile')
    turns = ('f1_by_turn', 'bound_by_turn', 'guesser_by_turn', 'shuffled_by_turn')
    rows: list[tuple[str, str, str, Mapping[str, Any]]] = []
    for run, records in evals.items():
        for record in records:
            # Figures of people with new values have a prefix.
            for people, prefix in (('', ''), ('unseen', 'unseen_')):
                shown = {key: record[prefix + key] for key in (*figures, *turns) if prefix + key in record}
                if shown:
                    rows.append((run, record['stage'], people, shown))
    columns = [key for key in (*figures, *turns) if any(key in shown for *_, shown in rows)]
    names = [key.replace('_by_turn', ' by turn') for key in columns]
    lines = ['| run | stage | people | ' + ' | '.join(names) + ' |', '|---|---|---|' + '---|' * len(names)]
    for *head, shown in rows:
        lines.append(f'| {" | ".join([*head, *(_cell(shown.get(key)) for key in columns)])} |')
    return '\n'.join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ' '.join(f'{number:.2f}' for number in value)
    return '' if value is None else f'{value:.3f}'


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of runs by their own names, or by their whole paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return dict(zip(names if len({*names}) == len(names) else map(str, folders), folders, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, help='folders of runs')
    parser.add_argument('--output', type=Path, default=Path('compared.png'), help='picture to write, a new file')
    print_anything()
    arguments = parser.parse_args(list(map(at_home, sys.argv[1:])))
    try:
        check_file(arguments.output)
    except ValueError as error:
        parser.error(f'--output: {error}')
    names = named(arguments.runs)
    runs = {name: read_records(folder / METRICS) for name, folder in names.items()}
    # A folder without steps would be an empty curve.
    if empty := [name for name, rows in runs.items() if not rows]:
        parser.error(f'no steps in {", ".join(empty)}; name folders of runs')
    with whole_file(arguments.output) as partial:
        draw(runs, partial)
    evals = {name: read_records(folder / EVALS) for name, folder in names.items()}
    seeds = are_seeds([read_run(folder) for folder in arguments.runs])
    print(rise_table(runs, seeds=seeds), stage_table(evals), sep='\n\n')


if __name__ == '__main__':
    with until_closed():
        main()
