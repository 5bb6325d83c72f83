"""Judged answers, which reward and cost models of Safe RLHF learn from, and the start policy.

A round writes into a folder `records`, or `records-2` and so on, that all stages share:

judged.jsonl   pairs of answers in the form of PKU-SafeRLHF, of this round and all before, for the cost model
pairs.jsonl    the same as chosen and rejected, by which helps more, for the reward model
sft.jsonl      every answer of the first round, for the start policy

and each with `-test` on prompts that nothing is learnt from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pal_jax.data import chats, holdouts
from pal_jax.data.holdouts import normal
from pal_jax.data.passes import shuffled
from pal_jax.data.readers import safety
from pal_jax.data.readers.safety import JudgedPair
from pal_jax.decode.answers import ModelScores, Sampler, load_base, make_sampler
from pal_jax.judges import dilemmas
from pal_jax.models.params import Params
from pal_jax.recipes.safe_rlhf.prompts import EMBEDDED, Question, read_questions
from pal_jax.recipes.safe_rlhf.settings import AnswerKeys, CollectSettings
from pal_jax.recipes.scorer import reward
from pal_jax.run import piecework
from pal_jax.run.forecast import counted
from pal_jax.run.models import make_policy
from pal_jax.run.moderator import open_moderator
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host
from pal_jax.types import Metrics

JUDGED, PAIRS, SFT = 'judged', 'pairs', 'sft'

# Of prompts and the responses to each: how harmful a response is, which is unsafe above 0, and how helpful.
Judge = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, ' N']]


def records_folder(workdir: Path, number: int) -> Path:
    """The folder of a round's records beside its stages."""
    return workdir / round_name('records', number)


def round_name(name: str, number: int) -> str:
    """The name of a stage or file of a round; the first round's has no number."""
    return name if number == 1 else f'{name}-{number}'


def rl_name(number: int, variant: str) -> str:
    """The name of a stage of PPO."""
    return f'rl-{variant}' if variant else round_name('rl', number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(AnswerKeys):
    """The keys of stage collect."""

    round: int = 1  # the round whose records are collected
    collect: CollectSettings = CollectSettings()


@dataclasses.dataclass(frozen=True)
class FirstRound:
    """The first round: pairs of answers that come with their judgements."""

    folder: Path
    rows: Sequence[JudgedPair]
    test_share: float
    seed: int

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """The records of all rows; the first round has one part."""
        return list(map(safety.judged_record, self.rows)), host, {'pairs': float(len(self.rows))}

    def finish(self, records: Records) -> Evaluation:
        return write_records(self.folder, None, records, self.test_share, self.seed)


@dataclasses.dataclass(frozen=True)
class LaterRound:
    """A later round: answers of the policy of the round before, as `harm` and `help` judge them."""

    ctx: Context
    folder: Path
    # The folder with the records of the round before.
    before: Path
    sample: Sampler
    # `load` loads the policy's weights.
    load: Callable[[], Params]
    # The questions of each part.
    parts: Sequence[Sequence[Question]]
    # The number of answers to a question.
    n: int
    # The judges of harm and of helpfulness.
    harm: Judge
    help: Judge
    test_share: float
    seed: int

    @functools.cached_property
    def policy(self) -> Params:
        """The policy's weights, which are loaded once."""
        return self.load()

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Sample answers to the questions of part `i`, and judge all pairs of different ones."""
        with self.ctx.phase('rollout'):
            texts = [question.text for question in self.parts[i]]
            samples = self.sample(self.policy, texts, self.n, (self.seed, i))
        answers = [sample.completion.text.strip() for sample in samples]
        # Judges take a prompt for each answer, so every prompt stands there `n` times.
        questions = [text for text in texts for _ in range(self.n)]
        with self.ctx.phase('annotate'):
            harm, help = self.harm(questions, answers), self.help(questions, answers)
        # Scores of a reward model have no zero that prompts share, so only answers to one prompt are compared.
        rows = [
            row
            for k in range(0, len(answers), self.n)
            for one, other in itertools.combinations(range(k, k + self.n), 2)
            if (row := to_judged(questions[k], answers, harm, help, one, other))
        ]
        figures = {'pairs': float(len(rows)), 'unsafe_share': float(np.mean(harm > 0))}
        return list(map(safety.judged_record, rows)), host, figures

    def finish(self, records: Records) -> Evaluation:
        return write_records(self.folder, self.before, records, self.test_share, self.seed)


def to_judged(
    prompt: str, answers: Sequence[str], harm: np.ndarray, help: np.ndarray, one: int, other: int
) -> JudgedPair | None:
    """Two answers as a row; None where one is empty, both are the same, or both help as much."""
    first, second = answers[one], answers[other]
    # Equal answers and ties have no order that could be learnt, and an empty answer says nothing.
    if not first or not second or first == second or help[one] == help[other]:
        return None
    better = int(help[other] > help[one])
    # Of equally harmful answers the less helpful one is safer, as in the embedded corpus.
    safer = int(harm[other] < harm[one]) if harm[one] != harm[other] else 1 - better
    return JudgedPair(prompt, (first, second), (bool(harm[one] > 0), bool(harm[other] > 0)), better, safer)


def write_records(folder: Path, before: Path | None, records: Records, test_share: float, seed: int) -> Evaluation:
    """Write all files of a round. A prompt that an earlier round has tested on is tested on again.

    Raises:
      ValueError: all prompts are the same, or no prompt is left to learn from.
    """
    # Prompts are compared in normal form, or one in other spelling would be learnt and tested on.
    earlier = [piecework.read(before / f'{JUDGED}{part}.jsonl') for part in ('', '-test')] if before else [[], []]
    tested = {normal(record['prompt']) for record in earlier[1]}
    known = tested | {normal(record['prompt']) for record in earlier[0]}
    # A prompt that an earlier round has learnt is no fair test, so only new prompts are split.
    new = [normal(record['prompt']) for record in records if normal(record['prompt']) not in known]
    held = holdouts.held_out(new, max(round(test_share * len(new)), 1), seed=seed) if len({*new}) > 1 else []
    tested |= {content for content, is_held in zip(new, held, strict=False) if is_held}
    everything = [*earlier[0], *earlier[1], *records]
    split = {
        '': [r for r in everything if normal(r['prompt']) not in tested],
        '-test': [r for r in everything if normal(r['prompt']) in tested],
    }
    if not split[''] or not split['-test']:
        counts = f'{len(split[""])} pairs to learn from and {len(split["-test"])} to test on'
        raise ValueError(f'{counts}; give records of more prompts')
    for part, rows in split.items():
        piecework.write(folder / f'{JUDGED}{part}.jsonl', rows)
        piecework.write(folder / f'{PAIRS}{part}.jsonl', list(map(as_pair, rows)))
        # The start policy is trained once, before all later rounds, so they have no answers to imitate.
        if before is None:
            piecework.write(folder / f'{SFT}{part}.jsonl', as_answers(rows))
    unsafe = [not record[f'is_response_{k}_safe'] for record in records for k in (0, 1)]
    return Evaluation({'rows': len(records), 'unsafe_share': float(np.mean(unsafe)), 'tested': len(split['-test'])})


def as_pair(record: dict[str, Any]) -> dict[str, Any]:
    """A row as messages for reward models: the answer that helps more is chosen, whether it is safe or not."""
    better = record['better_response_id']
    chosen, rejected = ([{'role': 'assistant', 'content': record[f'response_{k}']}] for k in (better, 1 - better))
    return {'prompt': chats.as_chat(record['prompt']), 'chosen': chosen, 'rejected': rejected}


def as_answers(rows: Records) -> Records:
    """Every answer once, as messages to imitate."""
    answers = dict.fromkeys((row['prompt'], row[f'response_{k}']) for row in rows for k in (0, 1))
    return [
        {'prompt': chats.as_chat(prompt), 'completion': [{'role': 'assistant', 'content': answer}]}
        for prompt, answer in answers
    ]


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage.

    Raises:
      ValueError: a source or a record is wrong, or the round before has not been run.
    """
    given, seed = settings.collect, settings.seed
    folder = records_folder(ctx.workdir.parent, settings.round)
    # The first round samples nothing, so it needs no policy: its answers have been judged already.
    if settings.round == 1:
        embedded = given.records == EMBEDDED
        rows = embedded_rows(given.dilemmas, seed) if embedded else safety.read_judged(given.records)
        first = FirstRound(folder, rows, given.test_share, seed)
        return piecework.make(ctx, 1, first.work, 'collect', first.finish)
    policy = make_policy(settings.policy, ctx, seed)
    train, _ = read_questions(settings.prompts, seed, policy.tokenizer)
    count = min(given.prompts, len(train))
    why = f'prompts.train={settings.prompts.train} has no more'
    ctx.log(f'{counted(count, "prompt")} to answer{holdouts.fewer("collect.prompts", given.prompts, count, why)}')
    # A round goes on in the passes where the last one stopped, so prompts repeat only after a whole pass.
    drawn = [train[k] for k in shuffled(len(train), start=settings.round * count, size=count, seed=seed)]
    parts = [drawn[k : k + given.batch_size] for k in range(0, count, given.batch_size)]
    sample = make_sampler(settings.decode, settings.sampling, policy, ctx, given.answers * given.batch_size)
    harm = by_rule if given.safety == 'rule' else by_moderation(Path(given.safety.removeprefix('orbax:')), ctx)
    helps = helps_by_rule if given.helpfulness == 'rule' else helps_by(given.helpfulness, ctx)
    before, load = records_folder(ctx.workdir.parent, settings.round - 1), functools.partial(load_base, policy, ctx)
    later = LaterRound(ctx, folder, before, sample, load, parts, given.answers, harm, helps, given.test_share, seed)
    return piecework.make(ctx, len(parts), later.work, 'collect', later.finish)


def embedded_rows(count: int, seed: int) -> list[JudgedPair]:
    """The pairs of the embedded corpus."""
    return dilemmas.judged(dilemmas.make_dilemmas(count, split='train', seed=seed), seed)


def by_rule(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The number of the 14 categories that the rule finds in each response, `[N]`."""
    return np.array([sum(dilemmas.hazards(response)) for response in responses], float)


def helps_by_rule(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The rule's helpfulness of each response."""
    return np.array([dilemmas.helpfulness(p, r) for p, r in zip(prompts, responses, strict=True)])


def by_moderation(folder: Path, ctx: Context) -> Judge:
    """A judge of harm: the largest excess of a moderator's probability over the threshold, over all categories."""

    def judge(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        # One category above its threshold makes a response unsafe, so the largest excess counts.
        return np.max(moderator(prompts, responses) - moderator.thresholds, axis=1)

    moderator = open_moderator(folder, ctx)
    return judge


def helps_by(named: str, ctx: Context) -> Judge:
    """A judge of helpfulness: the scores of a reward model."""
    scores = ModelScores(Path(named.removeprefix('orbax:')), ctx, reward.open_scores)
    return lambda prompts, responses: scores(prompts, [[response] for response in responses])[:, 0]
