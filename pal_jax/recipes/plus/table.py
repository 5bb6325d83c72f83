"""PLUS beside its baselines: the same run with another text to read, or with a part that does not learn.

plus                  both learn
untrained             summaries of the frozen model, cooler, more people a step (PLUS-untrained)
context               the whole context (in-context)
nothing               no user (Bradley-Terry)
latent                no words: a vector made of the past choices (VPL, recipes/plus/latent.py)
kind                  the true kind (the oracle)
shuffled              both learn, of somebody else's choices
static-summariser     a run of `plus` in which the summariser is never updated
static-reward-model   the summariser learns from a reward model with a random head

Each method and seed is a run of its own, `<method>-<seed>`, seed by seed. The last stage puts their last evaluations
into one table. The same command with more seeds goes on from the runs that have ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_jax.recipes.plus import methods
from pal_jax.recipes.plus.settings import Settings as Single
from pal_jax.run import files, piecework
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.pages import duration, gigabytes, markdown
from pal_jax.run.recipe import Context, Evaluation, Host, Recipe, check_at_least
from pal_jax.run.settings import Run, changed
from pal_jax.run.stages import Stage, make_stage
from pal_jax.run.summary import SUMMARY
from pal_jax.run.workdir import REPORT
from pal_jax.types import Exhibit, Metrics

TABLE, MARKDOWN = 'table', 'table.md'
RUN_HEAD = ['run', 'steps', 'time', 'peak memory of the process', 'report']
MAY_CHANGE = ('seeds',)  # when a run goes on
METHODS: dict[str, dict[str, Any]] = {
    'plus': {},
    'untrained': {'reads': 'untrained'},
    'context': {'reads': 'context'},
    'nothing': {'reads': 'nothing'},
    'latent': {'reads': 'latent'},
    'kind': {'reads': 'kind'},
    'shuffled': {'shuffled': True},
    'static-summariser': {'summary': {'train': False}},
    'static-reward-model': {'reward_model': {'train': False}, 'hold': {'steps': 0}},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of the stage that puts the runs of several methods into one table, with a step for each run."""

    methods: str
    seeds: int
    data: str
    steps: int  # the `total_steps` of every run


def read_methods(settings: Single | Settings) -> list[str]:
    """The methods that `settings.methods` names. Raises ValueError where a name is unknown, or stands there twice."""
    names = [name.strip() for name in settings.methods.split(',')]
    if wrong := [name for name in names if name not in METHODS or names.count(name) > 1]:
        raise ValueError(f'methods has {wrong[0]!r}; use each once of {", ".join(METHODS)}')
    check_at_least(settings, 1, 'seeds')
    return names


def places_of(settings: Single | Settings) -> list[tuple[str, int]]:
    """Methods and seeds of all runs, seed by seed."""
    # Runs go seed by seed, so that more seeds only add runs behind those that have ended.
    names, first = read_methods(settings), settings.seed
    return [(name, seed) for seed in range(first, first + settings.seeds) for name in names]


def stages(settings: Single, workdir: Path) -> list[Stage]:
    """Every run with its settings and folder, seed by seed, and the table last.

    Raises:
      ValueError: as `read_methods`, or the settings are themselves of another method than `plus`.
    """
    # The methods set these keys themselves, so a value from the command line would be lost.
    plain = settings.summary.train and settings.reward_model.train and not settings.shuffled
    if settings.reads != 'summary' or not plain:
        raise ValueError('methods say themselves what they read and what learns; leave reads, shuffled and train alone')
    runs = [Stage(workdir / f'{name}-{seed}', make_run(settings, name, seed)) for name, seed in places_of(settings)]
    # A step of the last stage reads one run, so it has as many steps as there are runs.
    steps = {'total_steps': len(runs), 'steps': settings.total_steps, 'export': False}
    return [*runs, make_stage(settings, workdir / TABLE, Settings, recipe='plus.table', **steps)]


def make_run(settings: Single, name: str, seed: int) -> Single:
    """The settings of one method's run with one seed."""
    # The table has the results of a run.
    single = changed(settings, methods='', seeds=1, seed=seed, part_of='plus', eval=dict(base=name == 'plus'))
    return changed(single, **METHODS[name])


@dataclasses.dataclass(frozen=True)
class Table:
    """Puts the last evaluations of finished runs into one table; each step reads one run.

    Attributes:
      places: methods and seeds of the runs, in their order.
      runs: the folder that has the runs' folders.
      folder: the folder that the table is written into.
    """

    places: Sequence[tuple[str, int]]
    runs: Path
    folder: Path

    def work(self, host: Host, i: int) -> tuple[list[dict[str, Any]], Host, Metrics]:
        """The last evaluation and the rewards of run `i`. Raises ValueError where the run has no last evaluation."""
        name, seed = self.places[i]
        folder = self.runs / f'{name}-{seed}'
        # A run that was stopped and gone on with may have several last evaluations; the newest counts.
        evaluations = [record for record in read_records(folder / EVALS) if record['stage'] == 'final']
        if not evaluations:
            raise ValueError(f'{folder} has no last evaluation; run it first, by the same command without a stage')
        steps = [{'step': row['step'], 'reward': row['reward']} for row in read_records(folder / METRICS)]
        entry = methods.Entry(name, seed, evaluations[-1], steps)
        return [entry._asdict()], host, {'people': float(entry.record['people'])}

    def finish(self, records: Sequence[dict[str, Any]]) -> Evaluation:
        """Write the table of all runs into the folder, and print it."""
        entries = [methods.Entry(**record) for record in records]
        text = f'{markdown(methods.table(entries))}\n\n{methods.KEY}\n'
        (self.folder / MARKDOWN).write_text(text, encoding='utf-8')
        print(text)
        rows = [tell(self.runs / f'{name}-{seed}') for name, seed in self.places]
        exhibits = [*methods.make_exhibits(entries), Exhibit('Runs', table=[RUN_HEAD, *rows])]
        return Evaluation(methods.figures(entries), exhibits=exhibits)


def make(settings: Settings, ctx: Context) -> Recipe:
    """The recipe of the last stage: a step reads the results of a run."""
    table = Table(places_of(settings), ctx.workdir.parent, ctx.workdir)
    shown = [f'{name}_accuracy' for name in read_methods(settings)]
    return piecework.make(ctx, len(table.places), table.work, TABLE, table.finish, shown)


def tell(folder: Path) -> list[str]:
    """A row of the runs' table: the steps, time and memory of a run, by its summary."""
    facts = files.read_object(folder / SUMMARY)
    took = duration(facts['seconds_total']), gigabytes(facts['peak_memory_bytes']['host'])
    return [folder.name, str(facts['steps']), *took, f'../{folder.name}/{REPORT}']
