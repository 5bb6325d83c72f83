"""The stages of Personalized Soups that make data: rollouts of the base policy, and what a judge makes of them."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.data.holdouts import normal
from pal_jax.data.passes import shuffled
from pal_jax.feedback import annotators, preferences
from pal_jax.feedback.annotators import Annotator, Row
from pal_jax.feedback.preferences import BEST, JOINT, Preference
from pal_jax.parts import piecework
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.recipe import Config, Context, Evaluation, Host, Recipe, make_policy
from pal_jax.recipes.psoups import parts
from pal_jax.recipes.psoups.parts import Prompt
from pal_jax.runtime import processes
from pal_jax.types import Metrics


def make_rollouts(config: Config, ctx: Context) -> Recipe:
    """Stage 1: answers of the base policy under every preference and under none, to prompts drawn for each."""
    policy = make_policy(config, ctx)
    size, n = config.rollout.batch_size, config.rollout.answers
    sample = parts.make_sampler(config, policy, ctx, at_once=n * size)
    prompts, moved = parts.read_prompts(config, 'train', policy.tokenizer), parts.prompts_moved(config)
    ctx.log(f'{len(prompts)} prompts to learn from; {moved} left out that prompts.test has')
    asked = draw(everyone(config), prompts, config.rollout.prompts, config.seed)
    base = functools.cache(lambda: parts.load_base(policy, ctx))

    def work(host: Host, i: int) -> tuple[list[dict[str, Any]], Host, Metrics]:
        part = asked[i * size : (i + 1) * size]
        with ctx.phase('rollout'):
            texts = [preferences.ask(prompt.question, [pole]) for pole, prompt in part]
            samples = sample(base(), texts, n, (config.seed, i))
        answers = [each.completion.text.strip() for each in samples]  # as chat templates have a turn
        records = [
            {
                'id': f'{pole.id}-{prompt.id}', 'preference_id': pole.id, 'instruction': prompt.instruction,
                'input': prompt.input, 'preference_prompt': pole.text,
                **{f'output_{j + 1}': answer for j, answer in enumerate(answers[k * n : (k + 1) * n])},
            }
            for k, (pole, prompt) in enumerate(part)
        ]  # fmt: skip
        length = float(np.mean([len(each.completion.token_ids) for each in samples]))
        return records, host, {'prompts': float(len(part)), 'length': length}

    def finish(records: list[dict[str, Any]]) -> Evaluation:
        piecework.write(ctx.workdir.parent / parts.ROLLOUTS, records)
        return Evaluation({'rows': len(records), 'prompts_moved': moved})

    return piecework.make(ctx, -(-len(asked) // size), work, 'rollout', finish)


def draw(
    poles: Sequence[Preference], prompts: Sequence[Prompt], count: int, seed: int
) -> list[tuple[Preference, Prompt]]:
    """For each preference `count` of the prompts, of its own; 0: all. What is asked is in the order of prompts."""
    total, count = len(prompts), min(count or len(prompts), len(prompts))
    own = [{*shuffled(total, start=i * total, size=count, seed=seed)} for i in range(len(poles))]
    return [
        (pole, prompt) for k, prompt in enumerate(prompts) for pole, mine in zip(poles, own, strict=True) if k in mine
    ]


def make_annotations(config: Config, ctx: Context) -> Recipe:
    """Stage 2: which of two answers suits the preference better, and the pairs that reward models learn from."""
    poles = {each.id: each for each in everyone(config)}
    settings = config.annotate
    named = [settings.annotator, *([settings.second] if settings.second else [])]
    specs = [parts.read_annotators(each, config) for each in named]
    models = ChatModels(config)
    judges = [parts.open_annotators(models, each) for each in specs]
    rows = [pair for row in piecework.read(ctx.workdir.parent / parts.ROLLOUTS) for pair in pairs_of(row)]
    size = settings.batch_size

    def verdicts(judge: Callable[[str], Annotator], part: Sequence[Row]) -> list[int | None]:
        found: list[int | None] = [None] * len(part)
        for name in dict.fromkeys(row['preference_id'] for row in part):
            where = [k for k, row in enumerate(part) if row['preference_id'] == name]
            told = judge(name)(poles[name], [part[k] for k in where], config.seed)
            for k, verdict in zip(where, told, strict=True):
                found[k] = verdict
        return found

    def work(host: Host, i: int) -> tuple[list[dict[str, Any]], Host, Metrics]:
        part = rows[i * size : (i + 1) * size]
        with ctx.phase('annotate'):
            own = [verdicts(each, part) for each in judges] if jax.process_index() == 0 else []
            first, *others = found = processes.exchange('verdicts', own)[0]
        unread = [each.count(None) for each in found]
        asked, failed = host.get('asked', 0) + len(part), np.add(host.get('failed', 0), unread).tolist()
        for key, count in zip(('annotator', 'second'), failed, strict=False):
            parts.check_verdicts(count, asked, settings, f'annotate.{key}', models.last_error)
        extra = [{'second': verdict} for verdict in others[0]] if others else [{}] * len(part)
        records = [
            {**row, 'preference': verdict, 'annotator': settings.annotator, **more}
            for row, verdict, more in zip(part, first, extra, strict=True)
        ]
        host = {'asked': asked, 'failed': failed, 'usage': models.usage}
        return records, host, {'failed': float(sum(unread)), **host['usage']}

    def finish(records: list[dict[str, Any]]) -> Evaluation:
        folder = ctx.workdir.parent
        piecework.write(folder / parts.ANNOTATIONS, records)
        write_pairs(folder / parts.PAIRS, records, [*poles], settings.test_share)
        told: dict[str, float] = {
            f'{name}_{key}': value for name in poles for key, value in tell(records, name).items()
        }
        if settings.second:
            told['kappa'] = annotators.cohen_kappa(*([r[key] for r in records] for key in ('preference', 'second')))
        return Evaluation({'rows': len(records), **told})

    return piecework.make(ctx, -(-len(rows) // size), work, 'annotate', finish, resume=models.count_on)


def everyone(config: Config) -> tuple[Preference, ...]:
    """The general preference, then those that `preferences` and `poles` name."""
    return preferences.general(), *parts.read_preferences(config)


def pairs_of(row: Row) -> list[Row]:
    """The answers of a row of rollouts, two by two; equal ones count as one."""
    answers = {row[key]: key.removeprefix('output_') for key in row if key.startswith('output_')}
    rest = {key: value for key, value in row.items() if not key.startswith('output_')}
    return [
        {**rest, 'id': f'{row["id"]}-{i}-{j}', 'output_1': first, 'output_2': second}
        for (first, i), (second, j) in itertools.combinations(answers.items(), 2)
    ]


def tell(records: Sequence[Row], name: str) -> dict[str, int]:
    verdicts = [row['preference'] for row in records if row['preference_id'] == name]
    return {'pairs': sum(v in (1, 2) for v in verdicts), 'ties': verdicts.count(0), 'failed': verdicts.count(None)}


def write_pairs(folder: Path, records: Sequence[Row], names: Sequence[str], test_share: float) -> None:
    """Files of pairs by preference, and of all preferences but the general one together, with the best answers of
    these; prompts that test a model teach none.

    Raises:
      RuntimeError: a preference has fewer than two pairs to learn from, or none to test on.
    """

    def asked(row: Row) -> str:
        return normal(Prompt('', row['instruction'], row['input']).question)

    prompts = list(dict.fromkeys(map(asked, records)))
    tested = set(prompts[len(prompts) - max(round(test_share * len(prompts)), 1) :])
    judged = [row for row in records if row['preference'] in (1, 2)]
    for name in (*names, JOINT):
        own = [r for r in judged if r['preference_id'] == name or (name == JOINT and r['preference_prompt'])]
        test = [row for row in own if asked(row) in tested]
        train = [row for row in own if asked(row) not in tested]
        if len(train) < 2 or not test:
            raise RuntimeError(
                f'{name}: {len(train)} pairs to learn from and {len(test)} to test on, the others are ties; raise '
                'rollout.prompts or annotate.test_share in another --workdir, or give its preference another judge'
            )
        for part, found in (('', train), ('-test', test)):
            piecework.write(folder / f'{name}{part}.jsonl', list(map(as_pair, found)))
            if name == JOINT:
                piecework.write(folder / f'{BEST}{part}.jsonl', best(found))


def best(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What multitask learning imitates: of each prompt under each preference the answer that was preferred most often,
    of several such the first to be."""
    found: dict[tuple[str, ...], tuple[Any, collections.Counter[str]]] = {}
    for row, pair in zip(rows, map(as_pair, rows), strict=True):
        _, wins = found.setdefault(
            (row['preference_id'], row['instruction'], row['input']), (pair['prompt'], collections.Counter())
        )
        wins[pair['chosen'][0]['content']] += 1
    return [
        {'prompt': prompt, 'completion': [{'role': 'assistant', 'content': wins.most_common(1)[0][0]}]}
        for prompt, wins in found.values()
    ]


def as_pair(row: Row) -> dict[str, Any]:
    """A row as messages, for reward models."""
    question = Prompt('', row['instruction'], row['input']).question
    better, worse = row[f'output_{row["preference"]}'], row[f'output_{3 - row["preference"]}']
    said = [[{'role': 'assistant', 'content': text}] for text in (better, worse)]
    prompt = parts.as_chat(f'{question} {row["preference_prompt"]}'.strip())
    return {'prompt': prompt, 'chosen': said[0], 'rejected': said[1]}
