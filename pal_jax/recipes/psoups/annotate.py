"""Stage annotate of Personalized Soups: a judge says which of two answers to a prompt suits the preference better.

It writes into the folder that all stages share:

annotations.jsonl      rows with two outputs, annotator and preference: 1 or 2; 0: neither; null: no verdict
pairs/<name>.jsonl     the pairs that reward models learn from, and pairs/<name>-test.jsonl, on other prompts, to test
                       them; <name> is `best` for the best answer to each prompt under each pole, for multitask
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.data import chats
from pal_jax.data.holdouts import normal
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.recipes.psoups import annotators
from pal_jax.recipes.psoups.annotators import Annotator, Row
from pal_jax.recipes.psoups.judges import open_annotators, read_annotators
from pal_jax.recipes.psoups.preferences import BEST, JOINT, Preference
from pal_jax.recipes.psoups.prompts import Prompt, everyone
from pal_jax.recipes.psoups.rollout import ROLLOUTS
from pal_jax.recipes.psoups.settings import AnnotationSettings, AnnotatorKeys
from pal_jax.run import piecework, processes
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host
from pal_jax.types import Metrics

ANNOTATIONS, PAIRS = 'annotations.jsonl', 'pairs'
MAY_CHANGE = ('annotate.max_failed',)  # keys that may change when a run goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(AnnotatorKeys):
    """The keys of stage annotate."""

    annotate: AnnotationSettings = AnnotationSettings()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Verdicts on which of two answers suits the preference better, and the pairs that reward models learn from."""

    ctx: Context
    # Preferences by their ids.
    poles: Mapping[str, Preference]
    # The annotator and, where one is named, the second; each gives a preference's annotator by its id.
    judges: Sequence[Callable[[str], Annotator]]
    # The chat models that annotate, whose usage is counted.
    models: ChatModels
    # The rows of every part.
    parts: Sequence[Sequence[Row]]
    # The annotator's name, which is written into rows.
    annotator: str
    # The share of rows without a verdict above which the stage stops.
    max_failed: float
    # The share of prompts that test reward models.
    test_share: float
    seed: int

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Judge the rows of part `i`. Raises RuntimeError where too many rows so far have no verdict."""
        part = self.parts[i]
        with self.ctx.phase('annotate'):
            # One process asks the judge, and all are told its verdicts: asking twice could give two answers.
            here = [self.verdicts(judge, part) for judge in self.judges] if jax.process_index() == 0 else []
            first, *others = verdicts = processes.exchange('verdicts', here)[0]
        unread = [by_judge.count(None) for by_judge in verdicts]
        judged, failed = host.get('asked', 0) + len(part), np.add(host.get('failed', 0), unread).tolist()
        for key, count in zip(('annotator', 'second'), failed, strict=False):
            whom, why = f'annotate.{key}', self.models.last_error
            check_failed(count, judged, 'rows have no verdict', whom, self.max_failed, why, section='annotate')
        extra = [{'second': verdict} for verdict in others[0]] if others else [{}] * len(part)
        records = [
            {**row, 'preference': verdict, 'annotator': self.annotator, **more}
            for row, verdict, more in zip(part, first, extra, strict=True)
        ]
        host = {'asked': judged, 'failed': failed, 'usage': self.models.usage}
        return records, host, {'failed': float(sum(unread)), **host['usage']}

    def verdicts(self, judge: Callable[[str], Annotator], part: Sequence[Row]) -> list[int | None]:
        """A judge's verdicts on rows, asked for preference by preference."""
        verdicts: list[int | None] = [None] * len(part)
        for name in dict.fromkeys(row['preference_id'] for row in part):
            where = [k for k, row in enumerate(part) if row['preference_id'] == name]
            by_row = judge(name)(self.poles[name], [part[k] for k in where], self.seed)
            for k, verdict in zip(where, by_row, strict=True):
                verdicts[k] = verdict
        return verdicts

    def finish(self, records: Records) -> Evaluation:
        """Write all rows into one file, and the pairs of each preference into files of their own."""
        folder = self.ctx.workdir.parent
        piecework.write(folder / ANNOTATIONS, records)
        write_pairs(folder / PAIRS, records, [*self.poles], self.test_share)
        record: dict[str, float] = {
            f'{name}_{key}': value for name in self.poles for key, value in count_verdicts(records, name).items()
        }
        if len(self.judges) > 1:
            record['kappa'] = annotators.cohen_kappa(*([r[key] for r in records] for key in ('preference', 'second')))
        return Evaluation({'rows': len(records), **record})


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage. Raises ValueError where stage rollout has not been run, or an annotator is unknown."""
    poles = {pole.id: pole for pole in everyone(settings)}
    annotate, models = settings.annotate, ChatModels(settings.endpoints, settings.answers, settings.seed)
    named = [annotate.annotator, *([annotate.second] if annotate.second else [])]
    specs = [read_annotators(name, settings.preferences) for name in named]
    judges = [open_annotators(models, by_preference) for by_preference in specs]
    rows = [pair for row in piecework.read(ctx.workdir.parent / ROLLOUTS) for pair in pairs_of(row)]
    parts = piecework.in_parts(rows, annotate.batch_size)
    stage = Annotations(
        ctx, poles, judges, models, parts, annotate.annotator, annotate.max_failed, annotate.test_share, settings.seed
    )
    return piecework.make(ctx, len(parts), stage.work, 'annotate', stage.finish, resume=models.count_on)


def pairs_of(row: Row) -> list[Row]:
    """Pair the answers of a row of rollouts two by two; equal answers count as one."""
    # Equal answers would make a pair that teaches nothing.
    answers = {row[key]: key.removeprefix('output_') for key in row if key.startswith('output_')}
    common = {key: value for key, value in row.items() if not key.startswith('output_')}
    return [
        {**common, 'id': f'{row["id"]}-{i}-{j}', 'output_1': first, 'output_2': second}
        for (first, i), (second, j) in itertools.combinations(answers.items(), 2)
    ]


def count_verdicts(records: Sequence[Row], name: str) -> dict[str, int]:
    """The numbers of rows of a preference that are pairs, that are ties, and that have no verdict."""
    verdicts = [row['preference'] for row in records if row['preference_id'] == name]
    return {'pairs': sum(v in (1, 2) for v in verdicts), 'ties': verdicts.count(0), 'failed': verdicts.count(None)}


def write_pairs(folder: Path, records: Sequence[Row], names: Sequence[str], test_share: float) -> None:
    """Write the pairs of each preference into files, and those of all preferences but the general one, with the best
    answers of these, into files of their own.

    Raises:
      RuntimeError: a preference has fewer than two pairs to learn from, or none to test on.
    """
    # Prompts are split, not pairs: a model must not be tested on a prompt whose answers it has learnt.
    prompts = list(dict.fromkeys(map(asked, records)))
    tested = set(prompts[len(prompts) - max(round(test_share * len(prompts)), 1) :])
    judged = [row for row in records if row['preference'] in (1, 2)]
    for name in (*names, JOINT):
        rows = [r for r in judged if r['preference_id'] == name or (name == JOINT and r['preference_prompt'])]
        test = [row for row in rows if asked(row) in tested]
        train = [row for row in rows if asked(row) not in tested]
        if len(train) < 2 or not test:
            raise RuntimeError(
                f'{name}: {len(train)} pairs to learn from and {len(test)} to test on, the others are ties; raise '
                'rollout.prompts or annotate.test_share in another --workdir, or give its preference another judge'
            )
        for part, rows in (('', train), ('-test', test)):
            piecework.write(folder / f'{name}{part}.jsonl', list(map(as_pair, rows)))
            if name == JOINT:
                piecework.write(folder / f'{BEST}{part}.jsonl', best(rows))


def asked(row: Row) -> str:
    """The question of a row, in the form in which equal questions are equal texts."""
    return normal(Prompt('', row['instruction'], row['input']).question)


def best(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The examples that multitask learning imitates: for each prompt under each preference the answer preferred most
    often."""
    by_prompt: dict[tuple[str, ...], tuple[Any, collections.Counter[str]]] = {}
    for row, pair in zip(rows, map(as_pair, rows), strict=True):
        _, wins = by_prompt.setdefault(
            (row['preference_id'], row['instruction'], row['input']), (pair['prompt'], collections.Counter())
        )
        wins[pair['chosen'][0]['content']] += 1
    return [
        # Of answers preferred equally often the first wins, since a counter keeps the order of arrival.
        {'prompt': prompt, 'completion': [{'role': 'assistant', 'content': wins.most_common(1)[0][0]}]}
        for prompt, wins in by_prompt.values()
    ]


def as_pair(row: Row) -> dict[str, Any]:
    """A row as messages, for reward models."""
    question = Prompt('', row['instruction'], row['input']).question
    better, worse = row[f'output_{row["preference"]}'], row[f'output_{3 - row["preference"]}']
    chosen, rejected = ([{'role': 'assistant', 'content': text}] for text in (better, worse))
    prompt = chats.as_chat(f'{question} {row["preference_prompt"]}'.strip())
    return {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}
