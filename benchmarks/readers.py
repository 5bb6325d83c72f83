"""The accuracy that linear rewards of a reader's vectors have on people's choices between texts, and that of methods.

  python -m benchmarks.readers --data=ukp:ukpconvarg1 --readers=encoder:minilm,encoder:mpnet,smollm2:20
  python -m benchmarks.readers --data=vpl:both_test.jsonl --readers=encoder:minilm --methods=lore,gpo --audit

A reader is an encoder of sentences or a decoder's source, with `:<layers>` for the first layers alone. Splits, numbers
of known choices and coordinates are those of `--config=pal:text`; one split is made. `everybody` is one linear reward
for all, `groups known` one for each known group of people, which is the ceiling of methods that find groups, on new
choices of seen people. Methods have the accuracy on seen and on new people by all their known choices. Each person
counts alike, ± standard errors over people. With `--audit` the leakage tests that warn or flag follow.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal import evaluation, judged
from pal_jax.recipes.personal.bench import audit, leakage
from pal_jax.recipes.personal.bench.methods import METHODS
from pal_jax.recipes.personal.logit import logistic
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.panel import Trial, newcomers
from pal_jax.recipes.personal.population import counts_of
from pal_jax.run import devices, intervals
from pal_jax.run.recipe import Context
from pal_jax.run.settings import changed

CONFIG = Path(__file__).parents[1] / 'configs' / 'pal.py'


def settings_of(data: str, reader: str, width: int, folder: str) -> Any:
    """The settings of PAL on a data set, which one reader reads and whose people are split once."""
    name, _, layers = reader.rpartition(':')
    source, first = (name, int(layers)) if layers.isdecimal() else (reader, 0)
    return changed(
        runpy.run_path(str(CONFIG))['get_config']('text'),
        data=data,
        text=dict(source=source, layers=first, width=width, pairs=40, folder=folder),
        split=dict(seeds=1, control=False),
    )


def linear(data: Comparisons, trial: Trial, groups: np.ndarray) -> str:
    """The accuracy on new choices of seen people of one linear reward for each group of people, with its error."""
    margins, index = np.zeros(len(trial.split.test)), trial.split.test
    for group in np.unique(groups):
        train = trial.split.train[groups[data.users[trial.split.train]] == group]
        tested = groups[data.users[index]] == group
        if len(train):
            x = audit.differences(data, train)
            scale = leakage.sizes(x)
            margins[tested] = audit.differences(data, index[tested]) / scale @ logistic(x / scale)
    return shown(judged.by_person(judged.judge(margins, data.users[index])))


def shown(by_person: np.ndarray) -> str:
    return intervals.mean(by_person).with_error()


def row_of(panel: Any, methods: Sequence[str]) -> list[str]:
    """The cells of a reader: linear rewards, then seen and new people by each method."""
    data, trial = panel.data, panel.trials[0]
    groups = data.groups if data.groups is not None and len(np.unique(data.groups)) > 1 else None
    cells = [linear(data, trial, np.zeros(len(data.names), int)), '' if groups is None else linear(data, trial, groups)]
    counts = counts_of(panel, newcomers(data, panel.trials).most)
    task = evaluation.make_tasks(data, panel.trials)[0]
    for name in methods:
        method = METHODS[name]
        fitted = method.fit(task.train, trial.seed, **evaluation.choose(method, task))
        result = evaluation.evaluate(method, fitted, task, counts[-1:])
        cells += [shown(judged.by_person(result.seen[0])), shown(judged.by_person(result.new[0][0]))]
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='as `data` of --config=pal:text names it')
    parser.add_argument('--readers', default='smollm2:20,encoder:minilm,encoder:mpnet', help='by commas')
    parser.add_argument('--methods', default='', help='names of the bench, by commas')
    parser.add_argument('--width', type=int, default=32, help='principal coordinates; 0: the vectors as they are')
    parser.add_argument('--folder', default='runs/states', help='keeps the vectors')
    parser.add_argument('--audit', action='store_true')
    args = parser.parse_args(argv)
    methods = args.methods.split(',') if args.methods else []
    head = ['reader', 'everybody', 'groups known', *(f'{name}: {part}' for name in methods for part in ('seen', 'new'))]
    print(f'| {" | ".join(head)} |\n{"|---" * len(head)}|')
    ctx = Context(devices.make_mesh(devices=jax.local_devices()[:1]), log=lambda line: print(line, flush=True))
    for reader in args.readers.split(','):
        panel = pal.make_parts(settings_of(args.data, reader, args.width, args.folder), ctx).panel
        cells = [reader, *row_of(panel, methods)]
        print(f'| {" | ".join(cells)} |', flush=True)
        if args.audit:
            findings = audit.audit(panel.data, panel.trials[0].split, alone=None, prompts_matter=False, seed=0)
            for finding in findings:
                if finding.verdict in ('warn', 'flag'):
                    print(f'{finding.test} {finding.verdict}: {finding.words}')


if __name__ == '__main__':
    main()
