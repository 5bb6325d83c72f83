"""The last stage of Personalized Soups: every system answers the same prompts, and judges compare the answers.

A step has one system answer all test prompts under one combination of preferences (see `jobs.py`), and keeps the
answers in a file, `generations/<system>-<combination>.jsonl` with id, prompt and output.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.data import holdouts
from pal_jax.decode.answers import Sampler, as_dialogue, load_base, make_sampler
from pal_jax.judges import winrates
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.models import merging
from pal_jax.models.params import Params
from pal_jax.recipes.psoups import figures, merge
from pal_jax.recipes.psoups.annotators import COMPARING, Annotator
from pal_jax.recipes.psoups.jobs import SYSTEMS, Fronts, Job, make_fronts, make_jobs, pole_jobs
from pal_jax.recipes.psoups.judges import open_annotators, read_annotators
from pal_jax.recipes.psoups.policies import check_trained, open_adapters
from pal_jax.recipes.psoups.preferences import Combination, Preference, ask, combinations, name_of
from pal_jax.recipes.psoups.prompts import Prompt, read_preferences, read_prompts
from pal_jax.recipes.psoups.settings import AnnotatorKeys, MergeSettings, PromptedKeys, WinRateSettings
from pal_jax.run import piecework, processes
from pal_jax.run.forecast import counted
from pal_jax.run.models import make_policy
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host
from pal_jax.types import Metrics

GENERATIONS = 'generations'
MAY_CHANGE = ('evaluate.max_failed',)  # keys that may change when a run goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PromptedKeys, AnnotatorKeys):
    """The keys of stage evaluate."""

    merge: MergeSettings = MergeSettings()
    evaluate: WinRateSettings = WinRateSettings()


@dataclasses.dataclass(frozen=True)
class SystemEvaluation:
    """Stage 6: a part has one system answer the test prompts; at the end judges compare the systems."""

    ctx: Context
    poles: Sequence[Preference]
    # The test prompts.
    prompts: Sequence[Prompt]
    # The system of every part.
    jobs: Sequence[Job]
    # Jobs between two poles.
    fronts: Fronts
    # The number of answers to a prompt where a policy of one pole is compared with the base.
    draws: int
    # `sampler` makes a sampler for a number of prompts at once.
    sampler: Callable[[int], Sampler]
    # `load` loads the weights of the base policy.
    load: Callable[[], Params]
    # `adapters` reads the adapters that the stage in a folder has trained.
    adapters: Callable[[Path], Params]
    # `judge` gives the annotator of a preference by its id.
    judge: Callable[[str], Annotator]
    # `both` says whether the annotator sees pairs in both orders.
    both: bool
    # The chat models that judge, whose usage is counted.
    models: ChatModels
    # The share of comparisons without a verdict above which there is no result.
    max_failed: float
    seed: int

    @property
    def folder(self) -> Path:
        """The folder that all stages share."""
        return self.ctx.workdir.parent

    @functools.cached_property
    def base(self) -> Params:
        """The weights of the base policy, which are loaded once."""
        return self.load()

    def weights(self, job: Job) -> Params:
        """The base's weights, or the same with the merged adapters of the job's stages."""
        if not job.sources:
            return self.base
        # Only adapters are averaged: the base is the same for all stages.
        soup = merging.linear([self.adapters(self.folder / stage) for stage in job.sources], job.weights)
        return merge.whole(soup, self.base)

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Sample and write the answers of job `i`."""
        job = self.jobs[i]
        prompts = self.prompts[: job.prompts]
        texts = [ask(prompt.question, job.preferences) for prompt in prompts]
        with self.ctx.phase('rollout'):
            sample = self.sampler(len(texts))
            samples = sample(self.weights(job), texts, job.draws, (self.seed, EVALUATION + 1))
        answers = [sample.completion.text.strip() for sample in samples]
        # The draws of a prompt stand side by side, so every so many answers one of the same draw comes.
        by_draw = {name: answers[k :: job.draws] for k, name in enumerate(job.names)}
        for name, outputs in by_draw.items():
            records = [
                {'id': prompt.id, 'prompt': text, 'output': output}
                for prompt, text, output in zip(prompts, texts, outputs, strict=True)
            ]
            piecework.write(self.folder / GENERATIONS / f'{name}.jsonl', records)
        words = float(np.mean([len(answer.split()) for answer in answers]))
        records = [{'job': name, 'outputs': outputs} for name, outputs in by_draw.items()]
        return records, host, {'answers': float(len(answers)), 'words': words}

    def finish(self, records: Records) -> Evaluation:
        """Compare all answers. Raises RuntimeError where too many comparisons have no verdict."""
        written = {record['job']: record['outputs'] for record in records}
        contest = Contest(self.prompts, written, self.judge, self.both, self.seed)
        with self.ctx.phase('judge'):
            evaluation = contest.evaluate(self.poles, self.fronts, self.draws)
        piecework.write(self.ctx.workdir / 'verdicts.jsonl', contest.comparisons)
        failed, why = 'rows have no verdict', self.models.last_error
        check_failed(contest.failed, contest.asked, failed, 'evaluate.judge', self.max_failed, why, section='evaluate')
        failed = {'failed_verdicts': contest.failed, 'verdicts': contest.asked}
        return evaluation._replace(record={**evaluation.record, **failed, **self.models.usage})


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage. Raises ValueError where a value is wrong, or a stage has not been run."""
    policy, poles = make_policy(settings.policy, ctx, settings.seed), read_preferences(settings)
    evaluate, models = settings.evaluate, ChatModels(settings.endpoints, settings.answers, settings.seed)
    specs = read_annotators(evaluate.judge, settings.preferences, COMPARING)
    judge = open_annotators(models, specs, 'evaluator')
    prompts = read_prompts(settings, 'test', policy.tokenizer)
    asked = {'prompts.test_count': settings.prompts.test_count, 'evaluate.front_prompts': evaluate.front_prompts}
    fewer = (holdouts.fewer(key, count, len(prompts), 'prompts.test has no more') for key, count in asked.items())
    ctx.log(f'{counted(len(prompts), "prompt")} to test on{"".join(fewer)}')
    jobs = make_jobs(settings.merge, evaluate, poles)
    for stage in dict.fromkeys(source for job in jobs for source in job.sources):
        check_trained(ctx.workdir.parent / stage, settings)
    tasting = SystemEvaluation(
        ctx, poles, prompts, jobs, make_fronts(evaluate, poles), evaluate.draws,
        sampler=functools.cache(functools.partial(make_sampler, settings.decode, settings.sampling, policy, ctx)),
        load=functools.partial(load_base, policy, ctx),
        adapters=functools.cache(functools.partial(open_adapters, ctx=ctx)),
        judge=judge, both=evaluate.judge != 'rule', models=models,
        max_failed=evaluate.max_failed, seed=settings.seed,
    )  # fmt: skip
    shown = [f'winrate_{name}' for name in SYSTEMS]
    return piecework.make(ctx, len(jobs), tasting.work, 'evaluate', tasting.finish, shown)


@dataclasses.dataclass(frozen=True)
class Contest:
    """Comparisons of the answers of jobs; a comparison without a verdict counts as a tie, and is counted."""

    prompts: Sequence[Prompt]
    # Answers to the prompts, or to the first of them, by the name of their job.
    written: Mapping[str, Sequence[str]]
    judge: Callable[[str], Annotator]
    both: bool
    seed: int
    # Every comparison that was made, with its verdicts.
    comparisons: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def asked(self) -> int:
        """The number of verdicts that were asked for."""
        return sum(len(order) for comparison in self.comparisons for order in comparison['verdicts'])

    @property
    def failed(self) -> int:
        """The number of verdicts that were not given."""
        return sum(order.count(None) for comparison in self.comparisons for order in comparison['verdicts'])

    def compare(self, preference: Preference, first: str, second: str) -> np.ndarray:
        """Points of the first job by prompt: 1, 0 or -1, or the mean of both orders that a language model sees."""
        rows = [
            {'instruction': prompt.question, 'input': '', 'output_1': a, 'output_2': b}
            for prompt, a, b in zip(self.prompts, self.written[first], self.written[second], strict=True)
        ]
        judge, points = self.judge(preference.id), {1: 1.0, 2: -1.0, 0: 0.0, None: 0.0}
        # A language model's verdict may depend on the order of the answers: it sees both, and the mean counts.
        ways = (False, True)[: 1 + self.both] if jax.process_index() == 0 else ()
        here = [judge(preference, rows, self.seed, switched) for switched in ways]
        orders = processes.exchange('verdicts', here)[0]
        self.comparisons.append({'preference': preference.id, 'first': first, 'second': second, 'verdicts': orders})
        return np.mean([[points[verdict] for verdict in order] for order in orders], axis=0)

    def evaluate(self, poles: Sequence[Preference], fronts: Fronts, draws: int) -> Evaluation:
        """Compare all systems under every combination, and each pole's policy with the base."""
        # 1. Every system against every other one, under each combination, by all of its criteria.
        combos, pairs = combinations(poles), itertools.combinations(SYSTEMS, 2)
        verdicts = {pair: [self.verdicts(combo, *pair) for combo in combos] for pair in pairs}
        outcomes = {pair: np.stack(list(map(winrates.outcome, arrays))) for pair, arrays in verdicts.items()}
        by_criterion = rates_by_criterion(verdicts, combos)
        record: dict[str, Any] = {}
        for name in SYSTEMS:
            rates = winrates.measure(winrates.against_all(outcomes, name))
            record |= {f'winrate_{name}{end}': rates[f'half{end}'] for end in winrates.ENDS}
        for (a, b), points in outcomes.items():
            record |= {f'{a}_{b}_{key}': value for key, value in winrates.measure(points).items()}
        # 2. Each pole's policy against the base under that pole, draw by draw.
        alone: dict[str, np.ndarray] = {}
        for pole in poles:
            policy, base = (job.names for job in pole_jobs(pole, draws))
            alone[pole.id] = np.stack([self.compare(pole, *pair) for pair in zip(policy, base, strict=True)])
            rates, name = winrates.measure(alone[pole.id]), f'{pole.id}_policy_beats_base'
            record |= {f'{name}{end}': rates[f'half{end}'] for end in winrates.ENDS}
            for key, jobs in (('base', base), ('policy', policy)):
                if pole.rule:
                    record[f'{pole.id}_rule_{key}'] = float(np.mean([self.score(job, pole) for job in jobs]))
        # 3. The fronts between two poles: scores by both rules, by the weight of the second pole.
        scored = {
            (a.id, b.id): [(job.weights[1], self.score(job.name, a), self.score(job.name, b)) for job in front]
            for (a, b), front in fronts.items()
            if a.rule and b.rule
        }
        # A front is good where a score rises with the weight of its pole.
        for (a, b), front in scored.items():
            toward, first, second = zip(*front, strict=True)
            record[f'front_{a}_{b}_spearman'] = winrates.spearman(toward, second)
            record[f'front_{b}_{a}_spearman'] = winrates.spearman([1.0 - w for w in toward], first)
            record[f'front_{a}_{b}'] = [list(point) for point in front]
        criteria = {pole.id: pole.criterion for pole in poles}
        exhibits = winrates.make_exhibits(outcomes, by_criterion, alone, scored, criteria, figures.SYSTEMS)
        question, first = ask(self.prompts[0].question, combos[0]), name_of(combos[0])
        prompted = {name: said for name, said in figures.SYSTEMS.items() if name != 'rlhf'}
        dialogues = [as_dialogue(question, self.written[f'{name}-{first}'][0], said) for name, said in prompted.items()]
        return Evaluation(record, dialogues, exhibits)

    def verdicts(self, combo: Combination, first: str, second: str) -> np.ndarray:
        """Points `[criteria, prompts]` of the first system: 1 where it wins, 0 for a tie, -1 where it loses."""
        names = [name if name == 'rlhf' else f'{name}-{name_of(combo)}' for name in (first, second)]
        return np.stack([self.compare(pole, *names) for pole in combo])

    def score(self, name: str, pole: Preference) -> float:
        """The mean score by the rule of a pole, over the prompts that a job has answered."""
        assert pole.rule
        answers = self.written[name]
        pairs = zip(self.prompts[: len(answers)], answers, strict=True)
        return float(np.mean([pole.rule.score(prompt.question, text) for prompt, text in pairs]))


def rates_by_criterion(
    verdicts: Mapping[winrates.Pair, Sequence[np.ndarray]], combos: Sequence[Combination]
) -> dict[str, dict[str, float]]:
    """The mean win rate by system and pole (a tie is a half) against the other systems, over combinations with the
    pole."""
    by_pole: dict[str, dict[str, list[float]]] = {name: {} for name in SYSTEMS}
    for (first, second), by_combo in verdicts.items():
        for combo, array in zip(combos, by_combo, strict=True):
            for pole, row in zip(combo, array, strict=True):
                for name, side in ((first, 1.0), (second, -1.0)):
                    by_pole[name].setdefault(pole.id, []).append(float(np.mean((side * row + 1.0) / 2.0)))
    return {name: {pole: float(np.mean(rates)) for pole, rates in poles.items()} for name, poles in by_pole.items()}
