"""The last stage of Personalized Soups: every system answers the same prompts, and judges compare what they wrote.

A step has one system answer all test prompts under one combination of preferences, and keeps it in a file:
`generations/<system>-<combination>.jsonl` with id, prompt and output. Systems:

base       the base policy, told what is preferred
rlhf       PPO on the general reward, told nothing; its answers stand for all combinations
multitask  supervised on the best answers of all preferences, told what is preferred
morl       P-MORL, told what is preferred
psoups     for each combination the merged policies of its poles, told what is preferred

Beside them each policy of one pole against the base under that pole alone, by `evaluate.draws` answers, and of each
dimension soups of two conflicting poles by weights from one to the other, told nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.evals import winrates
from pal_jax.feedback.annotators import COMPARING, Annotator
from pal_jax.feedback.preferences import Combination, Preference, ask, by_dimension, combinations, name_of
from pal_jax.models import merging
from pal_jax.models.params import Params
from pal_jax.parts import piecework
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.recipe import EVALUATION, Config, Context, Evaluation, Host, Recipe, make_policy
from pal_jax.recipes.psoups import merge, parts
from pal_jax.recipes.psoups.parts import Prompt
from pal_jax.runtime import processes
from pal_jax.types import Metrics

SYSTEMS: tuple[str, ...] = ('base', 'rlhf', 'multitask', 'morl', 'psoups')
GENERATIONS = 'generations'


class Job(NamedTuple):
    """Whose answers under which preferences, so many to each prompt; `sources` are stages whose adapters are merged by
    `weights`."""

    system: str
    preferences: tuple[Preference, ...]
    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    draws: int = 1
    prompts: int | None = None  # the first so many; None: all

    @property
    def name(self) -> str:
        return f'{self.system}-{name_of(self.preferences)}' if self.preferences else self.system

    @property
    def names(self) -> list[str]:
        """Of each draw's answers."""
        return [self.name, *(f'{self.name}.{k}' for k in range(2, self.draws + 1))]


def make_jobs(config: Config, poles: Sequence[Preference]) -> list[Job]:
    """Everything that is generated, in its order."""
    combos = combinations(poles)
    weights = merge.soup_weights(config, len(combos[0]))
    jobs = [Job('rlhf', (), ('rlhf',), (1.0,))]
    for combo in combos:
        jobs += [Job('base', combo), *(Job(name, combo, (name,), (1.0,)) for name in ('multitask', 'morl'))]
        jobs.append(Job('psoups', combo, tuple(f'policy-{each.id}' for each in combo), weights))
    jobs += [job for pole in poles for job in pole_jobs(pole, config.evaluate.draws)]
    jobs += [job for front in make_fronts(config, poles).values() for job in front]
    return list({job.name: job for job in jobs}.values())  # of one dimension a combination is a pole


def pole_jobs(pole: Preference, draws: int) -> tuple[Job, Job]:
    """Answers under one pole, of its policy and of the base."""
    return Job('policy', (pole,), (f'policy-{pole.id}',), (1.0,), draws), Job('base', (pole,), draws=draws)


def make_fronts(config: Config, poles: Sequence[Preference]) -> dict[tuple[Preference, Preference], list[Job]]:
    """Soups between the two poles of `evaluate.front`, or else between the first two of each dimension.

    Raises:
      ValueError: `evaluate.front` are not two poles of one dimension, or its weights are none.
    """
    weights = config.evaluate.front_weights
    if not weights or not all(isinstance(w, int | float) and 0 <= w <= 1 for w in weights):
        raise ValueError(f'evaluate.front_weights={weights} must be numbers from 0 to 1, as (0.0,0.5,1.0)')
    named = [name.strip() for name in config.evaluate.front.split(',') if name.strip()]
    found = [each for name in named for each in poles if each.id == name]
    if named and not (len({*named}) == len(found) == 2 and found[0].dimension == found[1].dimension):
        raise ValueError(f'evaluate.front={config.evaluate.front!r} must be two poles of one dimension, as P2A,P2B')
    pairs = [found] if named else [each[:2] for each in by_dimension(poles).values() if len(each) > 1]
    return {
        (a, b): [
            Job(
                f'front-{a.id}-{b.id}-{w:g}',
                (),
                (f'policy-{a.id}', f'policy-{b.id}'),
                (1.0 - w, w),
                prompts=config.evaluate.front_prompts,
            )
            for w in weights
        ]
        for a, b in pairs
    }


def make_evaluation(config: Config, ctx: Context) -> Recipe:
    """Stage 6. Raises ValueError where a value is wrong, or a stage has not been run."""
    policy, poles, folder = make_policy(config, ctx), parts.read_preferences(config), ctx.workdir.parent
    specs = parts.read_annotators(config.evaluate.judge, config, COMPARING)
    judge = parts.open_annotators(models := ChatModels(config), specs, 'evaluator')
    prompts = parts.read_prompts(config, 'test', policy.tokenizer)
    sampler = functools.cache(lambda at_once: parts.make_sampler(config, policy, ctx, at_once))
    jobs, both = make_jobs(config, poles), config.evaluate.judge != 'rule'
    for stage in dict.fromkeys(source for job in jobs for source in job.sources):
        parts.check_trained(folder / stage, config)
    base = functools.cache(lambda: parts.load_base(policy, ctx))
    trained = functools.cache(lambda stage: parts.open_adapters(folder / stage, ctx))

    def weights(job: Job) -> Params:
        if not job.sources:
            return base()
        return merge.whole(merging.linear([trained(each) for each in job.sources], job.weights), base())

    def work(host: Host, i: int) -> tuple[list[dict[str, Any]], Host, Metrics]:
        job = jobs[i]
        asked = prompts[: job.prompts]
        texts = [ask(prompt.question, job.preferences) for prompt in asked]
        with ctx.phase('rollout'):
            samples = sampler(len(texts))(weights(job), texts, job.draws, (config.seed, EVALUATION + 1))
        outputs = [each.completion.text.strip() for each in samples]
        written = {name: outputs[k :: job.draws] for k, name in enumerate(job.names)}
        for name, each in written.items():
            records = [
                {'id': prompt.id, 'prompt': text, 'output': output}
                for prompt, text, output in zip(asked, texts, each, strict=True)
            ]
            piecework.write(folder / GENERATIONS / f'{name}.jsonl', records)
        words = float(np.mean([len(output.split()) for output in outputs]))
        told = [{'job': name, 'outputs': each} for name, each in written.items()]
        return told, host, {'answers': float(len(outputs)), 'words': words}

    def finish(records: list[dict[str, Any]]) -> Evaluation:
        written = {record['job']: record['outputs'] for record in records}
        with ctx.phase('judge'):
            contest = Contest(prompts, written, judge, both, config.seed)
            evaluation = contest.evaluate(poles, make_fronts(config, poles), config.evaluate.draws)
        piecework.write(ctx.workdir / 'verdicts.jsonl', contest.told)
        parts.check_verdicts(contest.failed, contest.asked, config.evaluate, 'evaluate.judge', models.last_error)
        failed = {'failed_verdicts': contest.failed, 'verdicts': contest.asked}
        return evaluation._replace(record={**evaluation.record, **failed, **models.usage})

    return piecework.make(ctx, len(jobs), work, 'evaluate', finish, [f'winrate_{name}' for name in SYSTEMS])


class Contest:
    """Comparisons of what was `written` by job; what a judge did not answer counts as a tie and is counted."""

    def __init__(
        self, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]], judge: Callable[[str], Annotator],
        both: bool, seed: int,
    ):  # fmt: skip
        self.prompts, self.written, self.judge, self.both, self.seed = prompts, written, judge, both, seed
        self.failed = self.asked = 0
        self.told: list[dict[str, Any]] = []

    def compare(self, preference: Preference, first: str, second: str) -> np.ndarray:
        """+1, 0 or -1 by prompt, for the first; a language model sees both orders, of which it is the mean."""
        rows = [
            {'instruction': prompt.question, 'input': '', 'output_1': a, 'output_2': b}
            for prompt, a, b in zip(self.prompts, self.written[first], self.written[second], strict=True)
        ]
        judge, points = self.judge(preference.id), {1: 1.0, 2: -1.0, 0: 0.0, None: 0.0}
        ways = (False, True)[: 1 + self.both] if jax.process_index() == 0 else ()
        own = [judge(preference, rows, self.seed, switched) for switched in ways]
        orders = processes.exchange('verdicts', own)[0]
        self.asked += sum(map(len, orders))
        self.failed += sum(order.count(None) for order in orders)
        self.told.append({'preference': preference.id, 'first': first, 'second': second, 'verdicts': orders})
        return np.mean([[points[verdict] for verdict in order] for order in orders], axis=0)

    def evaluate(
        self, poles: Sequence[Preference], fronts: Mapping[tuple[Preference, Preference], Sequence[Job]], draws: int
    ) -> Evaluation:
        combos, pairs = combinations(poles), itertools.combinations(SYSTEMS, 2)
        verdicts = {pair: [self.verdicts(combo, *pair) for combo in combos] for pair in pairs}
        outcomes = {pair: np.stack([winrates.outcome(each) for each in found]) for pair, found in verdicts.items()}
        by_criterion = rates_by_criterion(verdicts, combos)
        record: dict[str, Any] = {}
        for name in SYSTEMS:
            found = winrates.measure(winrates.against_all(outcomes, name))
            record |= {f'winrate_{name}': found['half'], f'winrate_{name}_se': found['half_se']}
        for (a, b), found in outcomes.items():
            record |= {f'{a}_{b}_{key}': value for key, value in winrates.measure(found).items()}
        alone: dict[str, np.ndarray] = {}
        for pole in poles:
            own, base = (job.names for job in pole_jobs(pole, draws))
            alone[pole.id] = np.stack([self.compare(pole, *pair) for pair in zip(own, base, strict=True)])
            found, name = winrates.measure(alone[pole.id]), f'{pole.id}_policy_beats_base'
            record |= {name: found['half'], f'{name}_se': found['half_se']}
            for key, jobs in (('base', base), ('policy', own)):
                if pole.rule:
                    record[f'{pole.id}_rule_{key}'] = float(np.mean([self.score(job, pole) for job in jobs]))
        scored = {
            (a.id, b.id): [(job.weights[1], self.score(job.name, a), self.score(job.name, b)) for job in front]
            for (a, b), front in fronts.items()
            if a.rule and b.rule
        }
        for (a, b), front in scored.items():
            toward, first, second = zip(*front, strict=True)
            record[f'front_{a}_{b}_spearman'] = winrates.spearman(toward, second)
            record[f'front_{b}_{a}_spearman'] = winrates.spearman([1.0 - w for w in toward], first)
            record[f'front_{a}_{b}'] = [list(each) for each in front]
        exhibits = winrates.make_exhibits(outcomes, by_criterion, alone, scored)
        asked, last = ask(self.prompts[0].question, combos[0]), name_of(combos[0])
        told = [as_dialogue(asked, self.written[f'{name}-{last}'][0], name) for name in SYSTEMS if name != 'rlhf']
        return Evaluation(record, told, exhibits)

    def verdicts(self, combo: Combination, first: str, second: str) -> np.ndarray:
        """[criteria, prompts] for the first system."""
        names = [name if name == 'rlhf' else f'{name}-{name_of(combo)}' for name in (first, second)]
        return np.stack([self.compare(each, *names) for each in combo])

    def score(self, name: str, pole: Preference) -> float:
        """The mean score by the rule of a pole, over the prompts that a job has answered."""
        assert pole.rule
        answers = self.written[name]
        pairs = zip(self.prompts[: len(answers)], answers, strict=True)
        return float(np.mean([pole.rule.score(prompt.question, text) for prompt, text in pairs]))


def rates_by_criterion(
    verdicts: Mapping[winrates.Pair, Sequence[np.ndarray]], combos: Sequence[Combination]
) -> dict[str, dict[str, float]]:
    """Of each system, its mean win rate (ties half) against the others on each pole, over the combinations with it."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in SYSTEMS}
    for (first, second), by_combo in verdicts.items():
        for combo, array in zip(combos, by_combo, strict=True):
            for pole, row in zip(combo, array, strict=True):
                for name, side in ((first, 1.0), (second, -1.0)):
                    found[name].setdefault(pole.id, []).append(float(np.mean((side * row + 1.0) / 2.0)))
    return {name: {pole: float(np.mean(rates)) for pole, rates in each.items()} for name, each in found.items()}


def as_dialogue(asked: str, answer: str, person: str = '') -> dict[str, Any]:
    """An answer as a report shows it."""
    turns = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answer}]
    return {'person': person or asked[:60], 'facts': [], 'turns': turns}
