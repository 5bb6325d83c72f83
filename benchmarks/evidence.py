"""The table of claims in docs/evidence.md, made from what runs have left.

  python -m benchmarks.machine > runs/rlpa/machine.json           # the rate of this machine, beside the run
  python -m benchmarks.evidence runs/rlpa runs/rlpa-1             # keeps what runs have come to, and writes the table
  python -m benchmarks.evidence                                   # writes the table anew

docs/evidence/summaries has a small JSON for each run: its command, seed, model, version, day, seconds, machine and
claims. A claim is a figure of the last evaluation of a run and its control (`run/verdict.py`). Runs that differ in
their seeds alone are one group of the table: a figure is their mean with the interval of Student over seeds
(`run/intervals.py`), and a claim holds where the interval of the paired differences to the control says so.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import measure
from pal_jax.run import files, intervals, verdict
from pal_jax.run.checkpoint import flatten
from pal_jax.run.config_files import settings_of
from pal_jax.run.glossary import COMPARED, Words, words_of
from pal_jax.run.intervals import Estimate
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.pages import markdown
from pal_jax.run.settings import to_dict
from pal_jax.run.shipped import config_path
from pal_jax.run.stages import settings_in
from pal_jax.run.summary import SUMMARY, scalars
from pal_jax.run.workdir import read_run, stage_folders

PAGE = Path(__file__).parents[1] / 'docs' / 'evidence.md'
SUMMARIES = PAGE.with_suffix('') / 'summaries'
BEGIN, END = '<!-- the table of python -m benchmarks.evidence -->', '<!-- its end -->'
HEAD = [
    'method', 'claim', 'mean over seeds', 'control', 'difference', 'holds', 'in each run', 'seeds', 'command', 'work',
    'day',
]  # fmt: skip
HOLDS = {1: 'yes', 0: 'not shown', -1: 'no, the reverse', None: 'too few to tell'}
BETTER = {1.0: '↑', -1.0: '↓'}
CONTROL = 'control: '
TERA = 1e3  # GFLOP of a TFLOP

Record = Mapping[str, Any]


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of a finished run, as it is kept in `SUMMARIES`. A run of stages is judged by the last one that makes
    claims.

    Raises:
      ValueError: the folder is no finished run, or its last evaluation makes no claim.
    """
    stages = stage_folders(folder) or [folder]
    if running := [stage for stage in stages if not (stage / SUMMARY).exists()]:
        raise ValueError(f'{running[0]}: the run has not ended; go on with it by its command')
    summaries = [files.read_object(stage / SUMMARY) for stage in stages]
    last, claims = next(((stage, made) for stage in reversed(stages) if (made := claims_of(stage))), (folder, []))
    if not claims:
        raise ValueError(f'{folder}: its last evaluation makes no claim; add levels or changes to figures.py')
    summary, config = files.read_object(last / SUMMARY), read_run(last)
    models = [text for stage in stages if (text := read_run(stage).get('policy', {}).get('source'))]
    machine = folder / 'machine.json'
    return {
        'config': summary['name'],
        'changes': changes(summary['name'], last, config),
        'seed': config['seed'],
        # Self-RedTeam's `seeds` are prompts, and its `repeats` are what others call so.
        'seeds': seeds if isinstance(seeds := config.get('seeds', 1), int) else config['repeats'],
        'model': models[0] if models else '',
        'version': summary['versions']['pal_jax'],
        'day': summary['day'],
        'seconds': round(sum(one['seconds_total'] for one in summaries), 1),
        'machine': files.read_object(machine) if machine.exists() else measure(),
        'claims': claims,
    }


def claims_of(folder: Path) -> list[dict[str, Any]]:
    """The claims of the last evaluation of a run or stage."""
    rows, evals = (read_records(folder / name) for name in (METRICS, EVALS))
    words = words_of(read_run(folder)['recipe'])
    return [claim_record(claim, evals[-1], words) for claim in verdict.claims(rows, evals, words)]


def changes(name: str, folder: Path, config: Record) -> dict[str, Any]:
    """The values by key, the seed aside, that differ from those of the config that a run was started with."""
    settings = settings_in(settings_of(config_path(name), ()), folder)
    # JSON makes lists of tuples.
    before, after = flatten(json.loads(json.dumps(to_dict(settings)))), flatten(dict(config))
    return {key: value for key, value in after.items() if key != 'seed' and before.get(key) != value}


def claim_record(claim: verdict.Claim, after: Record, words: Words) -> dict[str, Any]:
    """A claim of one run: the figure, its control and further ones of the evaluation, and whether it holds by the run's
    own interval, which is over people, prompts or rows."""
    others = {
        words.figures[COMPARED][name].removeprefix(CONTROL): value
        for name, value in scalars(after).items()
        if name.endswith(f'_{claim.key}') or name.startswith(f'{claim.key}_of_')
        if words.figures[COMPARED].get(name, '').startswith(CONTROL)
    }
    return {
        'key': claim.key,
        'said': claim.said.strip(','),
        'better': claim.better,
        'value': claim.value.value,
        'interval': claim.value.interval,
        'control': claim.control.value,
        'against': claim.against,
        'others': others,
        'holds': holds(claim.gap, claim.better),
    }


def holds(gap: Estimate, better: float) -> str:
    """A word on whether a figure is beyond its control by the interval of their difference."""
    place = gap.place(0.0)
    return HOLDS[None if place is None else int(place * better)]


# --- the table ------------------------------------------------------------------------------------------------------


def rows_of(runs: Sequence[Record]) -> Iterator[list[str]]:
    """The rows of runs that differ in their seeds alone: one for each claim.

    Raises:
      ValueError: two of them share a seed, or their claims are not of the same figures.
    """
    first, seeds = runs[0], [run['seed'] for run in runs]
    if any(after - seed < first['seeds'] for seed, after in itertools.pairwise(seeds)):
        raise ValueError(f'{command(first)}: seeds {seeds}, {first["seeds"]} in a run, are not different ones')
    if len({tuple(claim['key'] for claim in run['claims']) for run in runs}) > 1:
        raise ValueError(f'{command(first)}: its runs make different claims; run all seeds with the same code')
    more = f', each with the next {first["seeds"] - 1}' if first['seeds'] > 1 else ''
    work = max(run['seconds'] * run['machine']['float32_gflops'] / TERA for run in runs)
    method = first['config'].partition(':')[0]
    made = [', '.join(map(str, seeds)) + more, f'`{command(first)}`', f'{work:,.0f} TFLOP']
    made.append(max(run['day'] for run in runs))
    for claims in zip(*(run['claims'] for run in runs), strict=True):
        yield [f'[{method}](methods/{method}.md)', *claim_cells(claims), *made]


def claim_cells(claims: Sequence[Record]) -> list[str]:
    """The cells of a claim of several seeds: words, mean, controls, difference to the first control, answers."""
    values, control = (np.array([claim[key] for claim in claims]) for key in ('value', 'control'))
    gap, against = intervals.mean(values - control), ' or '.join(dict.fromkeys(claim['against'] for claim in claims))
    others = {said: np.array([claim['others'][said] for claim in claims]) for said in claims[0]['others']}
    cells = [f'{said}: {shown(intervals.mean(column))}' for said, column in {against: control, **others}.items()]
    alone = collections.Counter(claim['holds'] for claim in claims)
    counts = '; '.join(f'{count} {words}' for words, count in alone.items())
    said, better = claims[0]['said'], claims[0]['better']
    figures = shown(intervals.mean(values)), '; '.join(cells), shown(gap, '+.3f')
    return [f'{said} {BETTER[better]}', *figures, holds(gap, better), counts]


def shown(figure: Estimate, form: str = '.3f') -> str:
    """A mean over seeds with its standard error and interval."""
    ends = f' ({figure.ends(form)})' if figure.interval else ''
    return f'{figure.with_error(form)}{ends}'


def command(run: Record) -> str:
    """The command of a run without its seed."""
    given = (f' --config.{key}={flag(value)}' for key, value in run['changes'].items())
    return f'pal-jax train --config={run["config"]}{"".join(given)}'


def identity(run: Record) -> tuple[str, int]:
    """The command of a run and its seed, which no other run has."""
    return command(run), run['seed']


def flag(value: Any) -> str:
    """A value as the command line takes it."""
    return f'"{tuple(value)}"' if isinstance(value, list) else str(value)


def table(runs: Iterable[Record]) -> str:
    """The table of runs; groups stand in the order of their commands."""
    groups = itertools.groupby(sorted(runs, key=identity), key=command)
    return markdown([HEAD, *(row for _, group in groups for row in rows_of(list(group)))])


def kept() -> dict[str, Record]:
    """The summaries in `SUMMARIES`, by their names."""
    return {path.stem: files.read_object(path) for path in sorted(SUMMARIES.glob('*.json'))}


def page(text: str, runs: Iterable[Record]) -> str:
    """The text of the page with the table of runs in its place."""
    before, _, rest = text.partition(BEGIN)
    return f'{before}{BEGIN}\n\n{table(runs)}\n\n{END}{rest.partition(END)[2]}'


def write(folders: Sequence[Path]) -> None:
    """Keep what the runs in folders have come to, and write the page with it.

    Raises:
      ValueError: as `summary_of` and `rows_of`; or a summary of this name is of another run.
    """
    before, runs = kept(), {folder.resolve().name: summary_of(folder) for folder in folders}
    for name in before.keys() & runs.keys():
        if identity(before[name]) != identity(runs[name]):
            raise ValueError(f'{SUMMARIES / name}.json is of another command or seed; rename the folder {name}')
    text = page(PAGE.read_text(encoding='utf-8'), {**before, **runs}.values())
    SUMMARIES.mkdir(exist_ok=True)
    for name, run in runs.items():
        files.write_whole(SUMMARIES / f'{name}.json', json.dumps(run, indent=1) + '\n')
    files.write_whole(PAGE, text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='*', type=Path, help='folders of finished runs')
    try:
        write(parser.parse_args(argv).runs)
    except ValueError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
