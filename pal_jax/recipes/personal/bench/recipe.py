"""The audited bench of personalised rewards: all methods on the same people, splits and pairs, and what could be wrong.

1. A step for each data set audits it by the leakage tests T1 to T12, and tests the shortcuts that anybody could take.
2. A step for each data set trains PAL, the shared model and PAL's other models, as `configs/pal.py` does.
3. A step for each further method of `methods.py` and each of the same splits chooses the method's option on validation
   people and fits it.

Each step writes its records to a file, so a run that was stopped does no finished step again. The report has the audit
at its head, and a data set that fails a test is marked in every table made from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.data.readers import choices, opinions
from pal_jax.recipes.personal import evaluation, mixed_logit, pal, population
from pal_jax.recipes.personal.bench import audit
from pal_jax.recipes.personal.bench import report as bench_report
from pal_jax.recipes.personal.bench.methods import FOR_TABLES, METHODS
from pal_jax.recipes.personal.evaluation import MethodResult, picked
from pal_jax.recipes.personal.interface import Unfit
from pal_jax.recipes.personal.pal import recipe as pal_recipe
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.recipe import PALRecipe
from pal_jax.recipes.personal.panel import newcomers
from pal_jax.recipes.personal.population import States
from pal_jax.run import inputs, piecework, sharding
from pal_jax.run.files import write_whole
from pal_jax.run.piecework import Records
from pal_jax.run.recipe import Context, Evaluation, Host, Recipe, check_at_least
from pal_jax.run.settings import Run
from pal_jax.types import Exhibit, Metrics

# Sources whose prompts are questions; the prompts of others are topics, and T2 warns at most.
PROMPTS_MATTER = (
    'prism', 'tldr', 'choices', 'multipref', 'community', 'tldr_workers', 'personalllm', 'vpl', 'uf_p', 'alignx',
    'rewardbench', 'personamem',
)  # fmt: skip
NEVER_GIVEN = 'texts of your own or of shared sets (--config.texts)'
FIRST = 'audit', 'pal'  # a step of each data set, before the methods
PAL_BASELINES = 'embedding', 'own', 'groups'  # PAL's baselines with a learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. There is a step for each part of the work, so `total_steps` stays 0.

    Splits, numbers of known choices and the vectors of texts are those of PAL's sections, for all methods.
    """

    tables: tuple[str, ...] = ('electricity',)  # tables of choices, as `data` of --config=pal names them
    texts: tuple[str, ...] = ()  # votes or choices between texts, as `data` of --config=pal:text names them
    methods: tuple[str, ...] = ()  # names in `recipes/personal/bench/methods.py`; (): all
    pal: pal.Settings  # the run of PAL on each table
    pal_text: pal.Settings  # the run of PAL on each set of texts


class BenchPart(NamedTuple):
    """A step: a data set, `audit`, `pal` or the name of a method, and the number of the method's split."""

    data: str
    name: str
    split: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """Makes the parts of a run.

    Attributes:
      of_texts: the data sets that are texts.
    """

    settings: Settings
    ctx: Context
    parts: Sequence[BenchPart]
    of_texts: frozenset[str]

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """The records of part `i`."""
        data, name, split = self.parts[i]
        # Each method and data set has programs of its own, and on a CPU each program holds memory maps, of which Linux
        # lets a process have 65,530. Programs that are needed again come from the cache on disk.
        if not split:
            jax.clear_caches()
        recipe = self.opened(data)
        # 1. The audit, 2. PAL's own run, or 3. one further method; each part needs the data and splits alone.
        with self.ctx.phase(name if name in FIRST else 'fit'):
            if name == 'audit':
                records = self.audited(data, recipe)
            elif name == 'pal':
                records = pal_rows(recipe, train(recipe))
            else:
                try:
                    rows = evaluation.run(METHODS[name], self.tasks(data)[split], self.counts(data), measured=not split)
                except Unfit as reason:  # a method may have no row
                    rows = [{'unfit': str(reason)}]
                records = [{'method': name} | row for row in rows]
        return [{'data': data} | record for record in records], host, {'rows': float(len(records))}

    @functools.lru_cache(maxsize=1)  # noqa: B019, one data set at a time is in memory
    def opened(self, data: str) -> PALRecipe:
        """PAL's recipe on a data set, which reads it and makes the splits of all methods."""
        section = self.settings.pal_text if data in self.of_texts else self.settings.pal
        settings = dataclasses.replace(section, data=data, seed=self.settings.seed)
        return pal.make(settings, self.ctx._replace(kept=None))

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def tasks(self, data: str) -> list[evaluation.SplitTask]:
        """The splits of a data set in the form that methods read."""
        panel = self.opened(data).panel
        return evaluation.make_tasks(panel.data, panel.trials)

    def audited(self, data: str, recipe: PALRecipe) -> Records:
        """The findings on the first split, and the rows of what needs no model of people."""
        panel = recipe.panel
        matter = data.partition(':')[0] in PROMPTS_MATTER
        alone, split = self.alone(data, panel.data), panel.trials[0].split
        findings = audit.audit(panel.data, split, alone=alone, prompts_matter=matter, seed=self.settings.seed)
        records: Records = [{'findings': [finding._asdict() for finding in findings]}]
        for name, margins_of in audit.rules(panel.data).items():
            result = audit.evaluate_rule(panel.data, panel.trials, self.counts(data), margins_of)
            rows = evaluation.rows(panel.trials, result, self.counts(data))
            records += [{'method': name} | row for row in rows]
        return records

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def counts(self, data: str) -> tuple[int, ...]:
        """The numbers of known choices of new people, the last of which is all that anybody has."""
        panel = self.opened(data).panel
        return population.counts_of(panel, newcomers(panel.data, panel.trials).most)

    def alone(self, data: str, items: Comparisons) -> Comparisons | None:
        """The pairs by vectors of replies that were read without their prompts.

        None where nothing could be lost: there are no prompts, all are the same, or replies are read alone anyway.
        """
        model, prompt = self.settings.pal_text.model, items.prompt
        if not isinstance(prompt, Lookup) or model.variant == 'B' or len(np.unique(prompt.numbers)) < 2:
            return None
        # Variant B has vectors of prompts, so its replies are read without them.
        model = dataclasses.replace(model, variant='B')
        section = dataclasses.replace(self.settings.pal_text, data=data, model=model)
        reader = pal_text.open_reader(section.text, self.ctx, self.settings.seed)
        return pal_text.read(section, self.ctx, reader).items

    def finish(self, records: Sequence[Mapping[str, Any]]) -> Evaluation:
        """The report, also as Markdown with its pictures, and the figures as one record."""
        exhibits = bench_report.make_exhibits(records, [] if self.settings.texts else [NEVER_GIVEN])
        if jax.process_index() == 0:
            write_markdown(self.ctx.workdir, exhibits)
        return Evaluation(bench_report.make_record(records), exhibits=exhibits)


# --- PAL and all models that its run trains, as rows ------------------------------------------------------------------


def train(recipe: PALRecipe) -> States:
    """The states after all steps of PAL's run, as `configs/pal.py` has it."""
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, _, _ = recipe.step(state, host, i)
    return state


def pal_rows(recipe: PALRecipe, state: States) -> Records:
    """The rows of the shared model, of PAL with the K that the validation part chose on each split, and of the
    baselines.

    PAL's row is the one of `make pal`: the same functions evaluate it.
    """
    panel, trials = recipe.panel, recipe.panel.trials
    results = population.measure(panel, state, calibrated=True)
    # The models of each method, by split.
    names = {'shared': ['K=1'] * len(trials), 'pal': [f'K={K}' for K in results.chosen]}
    # Baselines have no questions and no strangers, which only models that some split chose have.
    names |= {name: [name] * len(trials) for name in PAL_BASELINES if name in panel.learners}
    true, records = [r for r, trial in enumerate(trials) if not trial.shuffled], []
    for method, by_split in names.items():
        models: list[MethodResult] = [results.models[name] for name in by_split]
        # The shared model is the same for everybody, so neither questions nor strangers change it.
        if method == 'shared':
            models = [model._replace(asked=(), strangers=()) for model in models]
        rows = evaluation.rows(trials, picked(models, range(len(trials))), results.counts)
        sizes = picked([models[r] for r in true], true)
        about = {'shared_parameters': sizes.shared, 'parameters_a_person': sizes.person, 'looks': len(rows)}
        about['seconds_a_person'] = population.seconds_a_person(panel, state, by_split[true[0]], results.new)
        about['options'] = [{'model': name} for name in by_split]
        records += [{'method': method} | row for row in ({'about': about}, *rows)]
    return records


# --- from settings ----------------------------------------------------------------------------------------------------


def make(settings: Settings, ctx: Context) -> Recipe:
    """Checks the settings and the names of data; each data set is read in its own steps.

    Raises:
      ValueError: a value is wrong, a method is unknown, or a file is missing.
    """
    check_at_least(settings, 1, 'checkpoint.every')
    if settings.total_steps:
        raise ValueError(f'total_steps={settings.total_steps} must be 0: there is a step for each part of the work')
    # Names and files are looked up here, so that a wrong one ends the run before anything is trained.
    names = settings.methods or tuple(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(
            f'methods has {unknown[0]!r}, which is unknown; use some of {", ".join(METHODS)}, or () for all'
        )
    data = (*settings.tables, *settings.texts)
    if not data or len(set(data)) != len(data):
        raise ValueError(f'tables={settings.tables} and texts={settings.texts} must name data, each once')
    check_data(settings)
    if settings.tables and 'mixed_logit' in names:
        mixed_logit.require_xlogit()
    for section in (settings.pal, settings.pal_text):
        pal_recipe.check(section, sharding.batch_ways(ctx.mesh))
    parts = [BenchPart(data_name, name) for name in FIRST for data_name in data]
    for data_name in data:
        is_table = data_name in settings.tables
        section = (settings.pal if is_table else settings.pal_text).split
        parts += [
            BenchPart(data_name, name, split)
            for name in names
            if is_table or name not in FOR_TABLES
            for split in range(section.seeds * (1 + section.control))
        ]
    work = Bench(settings, ctx, parts, frozenset(settings.texts))
    phases = {'audits': len(data), 'PAL': len(data), 'further methods': len(parts) - 2 * len(data)}
    shown = 'failed_data_sets', 'new_gain_pal'
    return piecework.make(ctx, len(parts), work.work, 'bench', work.finish, shown, phases=phases)


def check_data(settings: Settings) -> None:
    """Raises ValueError where a data set has no file, or is of the other kind."""
    for name in settings.tables:
        if opinions.is_source(name):
            raise ValueError(f'tables has {name!r}, which are texts; put it into texts')
        if name not in choices.TABLES and inputs.path_of(name) is None:
            raise ValueError(
                f'tables has {name!r}, and there is no such file; give one, or {", ".join(choices.TABLES)}'
            )
    for name in settings.texts:
        if inputs.path_of(name) is None and '://' not in name and 'hf:' not in name and 'tfds:' not in name:
            raise ValueError(
                f'texts has {name!r}, and there is nothing at this path; give what `data` of --config=pal names'
            )
        if name in choices.TABLES:
            raise ValueError(f'texts has {name!r}, which is a table; put it into tables')


def write_markdown(workdir: Path, exhibits: Sequence[Exhibit]) -> None:
    """Write report.md and its pictures into the run's folder."""
    pictures = [exhibit.picture for exhibit in exhibits if exhibit.picture]
    names = [f'report_{number}.png' for number in range(1, len(pictures) + 1)]
    workdir.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        (workdir / name).write_bytes(picture)
    write_whole(workdir / 'report.md', bench_report.markdown(exhibits, 'Bench of personalised rewards', names))
