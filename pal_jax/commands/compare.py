"""Comparison of runs from their files, such as seeds of one config, or a method and its controls.

  pal-jax compare runs/rlpa runs/rlpa-1 runs/rlpa-2
  pal-jax compare runs/rlpa runs/pal --output=both.png --output=both.csv

prints the verdict on each run, and tables in Markdown: the settings in which the runs differ, what the evaluations say
of learning, and the figure that stands for each method in the first and the last training steps. Of runs that differ in
their seeds alone the last two tables have the means, too, with standard errors over seeds. --output names a new file:
.html (a page with the picture, the tables and the verdicts), .png (the picture) or .csv (every figure of every
evaluation, a row each).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pal_jax.run import inputs, intervals, stores
from pal_jax.run.checkpoint import flatten
from pal_jax.run.curve import (
    HEADLINES,
    PANELS,
    STYLE,
    column,
    counted_steps,
    headline_of,
    logged,
    panels_of,
    png,
    running_mean,
    window_of,
)
from pal_jax.run.files import arguments_at_home
from pal_jax.run.forecast import counted
from pal_jax.run.glossary import OWN, Words, direction, meaning, words_of
from pal_jax.run.interrupts import until_closed
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.outputs import check_file, whole_file
from pal_jax.run.overview import overview, run_row
from pal_jax.run.pages import markdown
from pal_jax.run.progress import print_anything
from pal_jax.run.recipe import KEPT
from pal_jax.run.report import turn_lists
from pal_jax.run.summary import fifths, main_part, scalars
from pal_jax.run.verdict import estimate, known, verdict_line
from pal_jax.run.workdir import read_run
from pal_jax.types import Exhibit

COLOURS = ('#2563eb', '#d97706', '#059669', '#9333ea', '#dc2626', '#4b5563')
# The lines of runs: those after the first six have other dashes.
LINES: list[dict[str, Any]] = [
    {'color': colour, 'linestyle': dashes} for dashes in ('-', '--', ':', '-.') for colour in COLOURS
]
MOST = 4  # panels of a picture
OVER_SEEDS = (
    'The errors of the last row are over seeds alone. The intervals of the single runs say how far a figure may have '
    'moved by the choice of the people, prompts or rows that were tested.'
)
# Where runs differ in a key that begins so, a figure of one name is measured on other things or by another rule.
MEASURES = (
    'recipe', 'reward', 'prompts', 'data', 'eval', 'play', 'dialogue', 'split', 'group', 'oracle', 'evaluate', 'dpo',
    'loss',
)  # fmt: skip
UNLIKE = 'These runs differ in {}: figures of one name may then measure different things.'
LETTERS = 'In a row "content of", runs with the same letter have read the same content.'
UNJUDGED = 'no single figure says whether it has learnt'
ENDINGS = '.html', '.png', '.csv'

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # records by the run's name


def draw(runs: Runs, evals: Runs, words: Mapping[str, Words]) -> bytes:
    """A PNG with a colour for each run: steps are dots, running means lines.

    The first panels have the headlines of the runs' evaluations with intervals and that of their steps, and others have
    own rewards and the first figures of `curve.PANELS` that a run logged. The result is b'' where there are none.
    """
    parts = {name: main_part(rows) for name, rows in runs.items()}
    titles = HEADLINES | {key: title for part in parts.values() for key, title in panels_of(part).items()}
    custom = (key for key in titles if key.startswith(OWN))
    keys = dict.fromkeys([*map(headline_of, runs.values()), *custom, *PANELS])
    keys = [key for key in keys if any(logged(part, key) for part in parts.values())]
    tested = dict.fromkeys(key for name in evals for key in telling_figures(evals[name], words[name])[:1])
    panels = [*((key, True) for key in tested), *((key, False) for key in keys)][:MOST]
    if not panels:
        return b''
    wide, high = min(len(panels), 2), -(-len(panels) // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5 * max(wide, 1.5), 3 * high), layout='constrained')
        axes = figure.subplots(high, wide, squeeze=False).flat
        for panel, ax in itertools.zip_longest(panels, axes):
            if panel is None:
                ax.set_axis_off()
                continue
            key, of_evaluation = panel
            if of_evaluation:
                _draw_evaluations(ax, evals, words, key)
            else:
                _draw_steps(ax, parts, key, titles[key])
        # One legend beside the panels hides no curve.
        handles = [Line2D([], [], **line) for _, line in zip(runs, itertools.cycle(LINES), strict=False)]
        figure.legend(handles, list(runs), loc='outside right upper', frameon=False)
        return png(figure)


def _draw_steps(ax: Axes, parts: Runs, key: str, title: str) -> None:
    ax.set_title(title, fontweight='bold')
    ax.set(xlabel='step', ylabel=key)
    for part, line in zip(parts.values(), itertools.cycle(LINES), strict=False):
        steps, values = counted_steps(part), column(part, key)
        mean, _ = running_mean(values, values * 0, window_of(len(part), 0.2))
        ax.plot(steps, values, 'o', color=line['color'], alpha=0.35, markersize=3, markeredgewidth=0)
        ax.plot(steps, mean, **line)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_evaluations(ax: Axes, evals: Runs, words: Mapping[str, Words], key: str) -> None:
    ax.set_title('Evaluations, with 95 % intervals', fontweight='bold')
    ax.set(xlabel='step', ylabel=key)
    steps = [row['step'] for rows in evals.values() for row in rows]
    # Runs that are evaluated at the same step stand a little apart.
    apart = max(max(steps) - min(steps), 1) / 50
    for number, (name, line) in enumerate(zip(evals, itertools.cycle(LINES), strict=False)):
        rows = [{**row, 'step': row['step'] + number * apart} for row in evals[name] if known(row, key)]
        figures = [(row['step'], estimate(row, key, words[name].shares)) for row in rows]
        ax.plot([step for step, _ in figures], [figure.value for _, figure in figures], marker='o', **line)
        for step, figure in figures:
            if figure.interval:
                ax.plot([step] * 2, figure.interval, color=line['color'], linewidth=1)
    # All panels of evaluations span the same steps, so that one evaluation has an axis, too.
    ax.set_xlim(min(steps) - 3 * apart, max(steps) + (len(evals) + 2) * apart)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def rise_table(runs: Runs, *, seeds: bool = False) -> list[list[str]]:
    """A table of the mean of each run's headline over the first and the last fifth of its steps.

    Where the runs are `seeds` of one config, the last row has their means with standard errors over seeds, and the 95 %
    interval of the change. A run whose steps have no headline has no row.
    """
    table = [['run', 'figure', 'first fifth', 'last fifth', 'change']]
    heads = {name: headline_of(rows) for name, rows in runs.items()}
    rises = {
        name: fifths(part, heads[name]) for name, rows in runs.items() if logged(part := main_part(rows), heads[name])
    }
    for name, rise in rises.items():
        table.append([name, heads[name], f'{rise["first"]:.3f}', f'{rise["last"]:.3f}', f'{rise["gain"]:+.3f}'])
    if seeds and rises:
        columns = ([rise[end] for rise in rises.values()] for end in ('first', 'last', 'gain'))
        first, last, gain = (intervals.mean(np.array(column)) for column in columns)
        gained = f'{gain.with_error("+.3f")} ({gain.ends("+.3f")})'
        table.append([f'{len(runs)} seeds', '', first.with_error(), last.with_error(), gained])
    return table


def are_seeds(configs: Sequence[Mapping[str, Any]]) -> bool:
    """True of two or more configs of runs that are the same but for the seed."""
    first, *others = ({**config, 'seed': None} for config in configs)
    return bool(others) and all(config == first for config in others)


def settings_table(configs: Mapping[str, dict[str, Any]], read: Mapping[str, inputs.Inputs]) -> list[list[str]]:
    """A table of the settings in which runs differ, a row each; of runs of several methods, the settings that all have.

    A file or own function whose content differs between runs has a row, too, in which runs with the same content have
    the same letter.
    """
    values = {name: flatten(config) for name, config in configs.items()}
    every = dict.fromkeys(itertools.chain.from_iterable(values.values()))
    # Runs of one method may be of versions with other keys.
    alike = len({of.get('recipe') for of in values.values()}) == 1
    shared = [key for key in every if alike or all(key in of for of in values.values())]
    table = [['setting', *configs]]
    for key in shared:
        if len({json.dumps(of[key]) if key in of else None for of in values.values()}) > 1:
            table.append([key, *(str(of.get(key, '–')) for of in values.values())])
    for key in dict.fromkeys(itertools.chain.from_iterable(read.values())):
        contents = [(sorted(of[key].files.values()), [*of[key].changes]) if key in of else None for of in read.values()]
        if None not in contents and any(content != contents[0] for content in contents):
            distinct = [content for k, content in enumerate(contents) if contents.index(content) == k]
            table.append([f'content of {key}', *(chr(ord('A') + distinct.index(content)) for content in contents)])
    return table


def describe_settings(table: list[list[str]]) -> Exhibit:
    """The table of settings that differ, with a warning where figures of one name may measure different things."""
    unlike = [key for key, *_ in table[1:] if key.removeprefix('content of ').partition('.')[0] in MEASURES]
    lettered = any(key.startswith('content of ') for key, *_ in table[1:])
    said = [*([UNLIKE.format(', '.join(unlike))] if unlike else []), *([LETTERS] if lettered else [])]
    return Exhibit('Settings that differ', '\n'.join(said), table)


def stage_table(evals: Runs, words: Mapping[str, Words], *, seeds: bool = False) -> list[list[str]]:
    """A table of the evaluations of each run: the figures that tell of its learning, and lists by turn.

    Where the runs are `seeds` of one config, the last row has the means of their last evaluations with standard errors
    over seeds, if all of these are of one stage and step.
    """
    figures = dict.fromkeys(key for name, records in evals.items() for key in telling_figures(records, words[name]))
    # The lists of further splits of people, such as those with new values, would be as many columns again.
    turns = dict.fromkeys(
        f'{key}_by_turn'
        for name, rows in evals.items()
        for key in itertools.chain.from_iterable(map(turn_lists, rows))
        if key.partition('_')[0] not in words[name].splits
    )
    table = [['run', 'stage', *figures, *(key.replace('_by_turn', ' by turn') for key in turns)]]
    for run, records in evals.items():
        for record in records:
            values = (_cell(record, key, words[run]) for key in figures)
            by_turn = (' '.join(f'{value:.2f}' for value in record.get(key) or ()) for key in turns)
            table.append([run, record['stage'], *values, *by_turn])
    last = [record for records in evals.values() for record in records[-1:]]
    alike = len(last) == len(evals) and len({(record['stage'], record['step']) for record in last}) == 1
    if seeds and figures and alike:
        # A figure that one of the runs lacks has no mean.
        columns = [[r[key] for r in last if known(r, key)] for key in figures]
        means = [intervals.mean(np.array(x)).with_error() if len(x) == len(last) else '' for x in columns]
        table.append([f'{len(last)} seeds', last[0]['stage'], *means, *('' for _ in turns)])
    return table


def make_exhibits(runs: Runs, evals: Runs, words: Mapping[str, Words], *, seeds: bool) -> list[Exhibit]:
    """The tables of evaluations and of steps; a method with figures that are `compared` has no steps."""
    stages = stage_table(evals, words, seeds=seeds)
    # Beside the head and the evaluations there may be a row over seeds.
    pooled = len(stages) > 1 + sum(map(len, evals.values()))
    compared = {key: meaning(key, of).words for of in words.values() for key in of.compared if key in stages[0]}
    legend = [f'{key}: {said}.' for key, said in compared.items()]
    said = [*legend, *directions(stages[0], words), *([OVER_SEEDS] if pooled else [])]
    exhibits = [Exhibit('Evaluations', '\n'.join(said), stages)]
    if stepped := {name: rows for name, rows in runs.items() if not words[name].compared or not evals[name]}:
        rises = rise_table(stepped, seeds=seeds)
        said = directions([figure for _, figure, *_ in rises], words)
        exhibits.append(Exhibit('Figures of training steps', '\n'.join(said), rises))
    return exhibits


def directions(figures: Sequence[str], words: Mapping[str, Words]) -> list[str]:
    """Lines that say of which of the figures more is better, and of which less."""
    signs = {key: next(filter(None, (direction(key, of) for of in words.values())), 0.0) for key in figures}
    by_sign = (('Higher', 1.0), ('Lower', -1.0))
    named = ((said, ', '.join(key for key in signs if signs[key] == sign)) for said, sign in by_sign)
    return [f'{said} is better: {keys}.' for said, keys in named if keys]


def telling_figures(records: Sequence[Mapping[str, Any]], words: Words) -> list[str]:
    """The figures of evaluations that tell whether a run has learnt, those that decide first, those that its method
    compares, and own rewards."""
    custom = (key for record in records for key in record if key.startswith(OWN))
    keys = dict.fromkeys((*words.levels, *words.compared, *words.changes, *custom))
    return [key for key in keys if any(known(record, key) for record in records)]


def _cell(record: Mapping[str, Any], key: str, words: Words) -> str:
    if not known(record, key):
        return ''
    figure = estimate(record, key, words.shares)
    return f'{figure.value:.3f}' + (f' ({figure.ends()})' if figure.interval else '')


def write_csv(evals: Runs, path: Path) -> None:
    """Write every figure of every evaluation as a row: run, stage, step, figure, value, standard error, interval."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['run', 'stage', 'step', 'figure', 'value', 'error', 'low', 'high'])
        for run, records in evals.items():
            for record in records:
                for key in (key for key in scalars(record) if not key.endswith('_se')):
                    figure = intervals.from_record(record, key)
                    writer.writerow([run, record['stage'], record['step'], key, *figure])


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of runs by their own names, or by their whole paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return dict(zip(names if len({*names}) == len(names) else map(stores.shown, folders), folders, strict=True))


def as_text(folders: Mapping[str, Path], exhibits: Sequence[Exhibit]) -> str:
    """The verdict on each run, and the tables, for a terminal."""
    lines = (f'{name}: {verdict_line(folder) or UNJUDGED}'.rstrip() for name, folder in folders.items())
    parts = ((exhibit.title, exhibit.text, markdown(exhibit.table)) for exhibit in exhibits)
    return '\n\n'.join(['\n'.join(lines), *filter(None, itertools.chain.from_iterable(parts))])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='pal-jax compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', type=Path, help='folders of runs')
    parser.add_argument('--output', type=Path, action='append', help='a new file: .html, .png or .csv')
    print_anything()
    arguments = arguments_at_home(parser)
    outputs = arguments.output or []
    for path in outputs:
        if path.suffix not in ENDINGS:
            parser.error(f'--output={path}: its ending is none of {", ".join(ENDINGS)}')
        try:
            check_file(path)
        except ValueError as error:
            parser.error(f'--output: {error}')
    folders = named(arguments.runs)
    runs, evals = ({name: read_records(folder / file) for name, folder in folders.items()} for file in (METRICS, EVALS))
    # A folder without steps would be an empty curve.
    if empty := [name for name, rows in runs.items() if not rows]:
        parser.error(f'no steps in {", ".join(empty)}; name folders of runs')
    try:
        configs = [read_run(folder) for folder in folders.values()]
        began = {name: inputs.load(folder / KEPT) or {} for name, folder in folders.items()}
    except ValueError as error:
        parser.error(stores.shown(error))
    words = {name: words_of(config['recipe']) for name, config in zip(folders, configs, strict=True)}
    differing = settings_table(dict(zip(folders, configs, strict=True)), began)
    # Runs that read other contents under the same names are no seeds of one run.
    by_seed = {key for key, *_ in differing[1:]} <= {'seed'}
    exhibits = make_exhibits(runs, evals, words, seeds=by_seed and are_seeds(configs))
    exhibits = exhibits if by_seed else [describe_settings(differing), *exhibits]
    picture = draw(runs, evals, words)
    if not picture and any(path.suffix == '.png' for path in outputs):
        parser.error('these runs have no figure to draw; give --output=compared.html or .csv')
    for path in outputs:
        with whole_file(path) as partial:
            if path.suffix == '.csv':
                write_csv(evals, partial)
            elif path.suffix == '.png':
                partial.write_bytes(picture)
            else:
                pictures = [Exhibit('Side by side', picture=picture)] if picture else []
                rows = [run_row(name, folder, path) for name, folder in folders.items()]
                page = stores.shown(overview([counted(len(runs), 'run')], rows, [*pictures, *exhibits]))
                partial.write_text(page, 'utf-8', 'xmlcharrefreplace')
    print(as_text(folders, exhibits))
    written = ', '.join(map(str, outputs))
    print(f'\nwritten: {written}' if outputs else '\n--output=compared.html writes a page with the curves')


if __name__ == '__main__':
    with until_closed():
        main()
