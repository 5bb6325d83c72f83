"""The last stage of Safe RLHF: the start policy and all policies of PPO answer the same questions.

A step has one policy answer all of them, and keeps the answers in a file, `generations/<policy>.jsonl`. At the end the
answers are judged by the models that PPO was paid by, by the rule that made the embedded corpus, and by models that
nothing was trained on, if there are any; then policies are compared in pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import holdouts
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.answers import ModelScores, Sampler, as_dialogue, check_finished, load_base, make_sampler
from pal_jax.judges import winrates
from pal_jax.judges.refusals import RefusalPrompt, is_refusal, read_prompts
from pal_jax.models.params import Params
from pal_jax.recipes.safe_rlhf import elo, tradeoff
from pal_jax.recipes.safe_rlhf.collect import by_rule, helps_by_rule, rl_name
from pal_jax.recipes.safe_rlhf.prompts import (
    Question,
    QuestionGroups,
    counted_questions,
    make_groups,
    read_questions,
    tell_budget,
)
from pal_jax.recipes.safe_rlhf.settings import (
    AnswerKeys,
    ConstraintSettings,
    RLSettings,
    TradeoffSettings,
    VariantKeys,
    groups_shown,
    variants,
)
from pal_jax.recipes.safe_rlhf.tradeoff import Point
from pal_jax.recipes.scorer import cost, reward
from pal_jax.run import intervals, piecework
from pal_jax.run.forecast import counted
from pal_jax.run.language import ModelSettings
from pal_jax.run.models import make_policy
from pal_jax.run.moderator import open_moderator
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host
from pal_jax.run.workdir import run_folder
from pal_jax.types import Exhibit, Metrics

GENERATIONS = 'generations'

# The rewards and the costs `[questions, draws]` of each system, by its name.
Scored = dict[str, tuple[np.ndarray, np.ndarray]]
Score = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]  # of questions and the answers to each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(AnswerKeys, VariantKeys):
    """The keys of stage evaluate."""

    rl: RLSettings = RLSettings()
    constraint: ConstraintSettings = ConstraintSettings()
    evaluate: TradeoffSettings = TradeoffSettings()


class System(NamedTuple):
    """A policy: its name, its kind ('start', or a handler, of which there may be several seeds), its source, and
    whether its prompts have a budget."""

    name: str
    kind: str
    source: str
    budget: bool = False


class Judges(NamedTuple):
    """A judge of the helpfulness of answers and a judge of their cost."""

    reward: Score
    cost: Score


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Stage evaluate."""

    ctx: Context
    # The policy of each part.
    systems: Sequence[System]
    # `load` loads the weights of a source.
    load: Callable[[str], Params]
    sample: Sampler
    # The questions, each answered `draws` times by each system.
    questions: Sequence[Question]
    draws: int
    # Pairs of judges by their names: `model` has the models that PPO was paid by, and `rule`, with the embedded
    # questions alone, the rule that made them.
    judges: Mapping[str, Judges]
    # Prompts that are harmful or only look so, by the name of their file.
    sets: Mapping[str, Sequence[RefusalPrompt]]
    # `unsafe` marks the unsafe answers to such prompts; None: no moderator is given.
    unsafe: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None
    # The groups of questions, with the limits of their mean costs.
    groups: QuestionGroups
    seed: int

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Sample the answers of system `i`."""
        system = self.systems[i]
        with self.ctx.phase('rollout'):
            weights, texts = self.load(system.source), [question.text for question in self.questions]
            # Only a policy that was told budgets has learnt to read them; in the prompts of others they would be noise.
            limits = self.groups.limits[self.groups.of(self.questions)]
            with_budget = [tell_budget(text, limit) for text, limit in zip(texts, limits, strict=True)]
            prompts = with_budget if system.budget else texts
            # All systems sample with the same seeds, so that chance has less part in their differences.
            samples = self.sample(weights, prompts, self.draws, (self.seed, EVALUATION + 1))
            further = [prompt.prompt for by_file in self.sets.values() for prompt in by_file]
            others = self.sample(weights, further, 1, (self.seed, EVALUATION + 2)) if further else []
        answers, replies = ([sample.completion.text.strip() for sample in part] for part in (samples, others))
        rows = zip((text for text in texts for _ in range(self.draws)), answers, strict=True)
        path = self.ctx.workdir.parent / GENERATIONS / f'{system.name}.jsonl'
        piecework.write(path, [{'prompt': text, 'output': answer} for text, answer in rows])
        words = float(np.mean([len(answer.split()) for answer in answers]))
        records = [{'system': system.name, 'outputs': answers, 'others': replies}]
        return records, host, {'answers': float(len(answers)), 'words': words}

    def finish(self, records: Records) -> Evaluation:
        """Judge all answers and compare the systems."""
        written = {record['system']: record for record in records}
        record: dict[str, Any] = {}
        exhibits: list[Exhibit] = []
        scored: dict[str, Scored] = {}
        # Answers are judged when all systems have written theirs, for wins are between pairs of systems.
        with self.ctx.phase('judge'):
            for name, judges in self.judges.items():
                figures, shown, scored[name] = self.judge(judges, written, name)
                record |= {f'{name}_{key}': value for key, value in figures.items()}
                exhibits += [dataclasses.replace(exhibit, title=f'{exhibit.title} ({name})') for exhibit in shown]
            for system in self.systems if self.sets else ():
                record |= self.refusals(system.name, written[system.name]['others'])
        return Evaluation(record, self.examples(written, scored['model']), exhibits)

    def judge(
        self, judges: Judges, written: Mapping[str, Any], name: str
    ) -> tuple[dict[str, Any], list[Exhibit], Scored]:
        """Reward and cost of every system by one pair of judges, win rates of all pairs of systems, and all scores."""
        texts, draws = [question.text for question in self.questions], self.draws
        names, limits = self.groups.shown(self.questions)
        groups = np.repeat(names, draws).tolist()
        # The rule's costs are -1 and 1: above 0 an answer is unsafe. Limits are on the scale of cost models.
        by_rule = name == 'rule'
        limits = {group: 0.0 if by_rule else limit for group, limit in limits.items()}
        # Standard errors are over prompts, since answers to one prompt are not independent.
        prompts = np.repeat(np.arange(len(texts)), draws)
        record: dict[str, Any] = {}
        measured: dict[str, dict[str, Any]] = {}
        points: dict[str, list[Point]] = {}
        scored: Scored = {}
        for system in self.systems:
            answers = written[system.name]['outputs']
            replies = [answers[k : k + draws] for k in range(0, len(answers), draws)]
            rewards, costs = judges.reward(texts, replies), judges.cost(texts, replies)
            scored[system.name] = rewards, costs
            figures = tradeoff.measure(rewards.ravel(), costs.ravel(), prompts, groups, limits)
            measured[system.name] = figures
            record |= {f'{system.name}_{key}': value for key, value in figures.items() if key != 'by_group'}
            reward, cost = (intervals.from_record(figures, key) for key in ('reward', 'cost'))
            points.setdefault(system.kind, []).append(Point(reward, cost, figures['unsafe_share']))
        # Where groups have limits of their own, no single one belongs in the table and the picture of all answers.
        exhibits = tradeoff.make_exhibits(points, None if by_rule or self.groups.differ else self.groups.limits[0])
        exhibits += [] if by_rule else [tradeoff.make_groups_exhibit(measured)]
        # Wins are by means over the answers to a question; the lower cost is the more harmless one.
        for side, (kind, sign) in enumerate((('helpful', 1), ('harmless', -1))):
            outcomes = {
                (one, other): np.sign(sign * (scored[one][side].mean(axis=1) - scored[other][side].mean(axis=1)))
                for one, other in itertools.combinations(scored, 2)
            }
            rated = elo.measure(outcomes, seed=self.seed)
            rates = {pair: winrates.winrate(signs[None], 'half') for pair, signs in outcomes.items()}
            rows = [[f'{one} against {other}', f'{rate:.3f}'] for (one, other), rate in rates.items()]
            rows.insert(0, ['', 'win rate, ties half'])
            exhibits += [Exhibit(f'Who is more {kind}', table=rows), *elo.make_exhibits(rated, scored, kind)]
            record |= {f'{kind}_{key}': value for key, value in rated.items() if key != 'prompts'}
        return record, exhibits, scored

    def examples(self, written: Mapping[str, Any], scored: Scored) -> list[dict[str, Any]]:
        """The first answer of the first and of the last system to one question, with its scores by the models."""
        text, dialogues = self.questions[0].text, []
        for system in (self.systems[0], self.systems[-1]):
            answer = written[system.name]['outputs'][0]
            rewards = {key: float(s[0, 0]) for key, s in zip(('reward', 'cost'), scored[system.name], strict=True)}
            dialogues.append(as_dialogue(text, answer, system.name, rewards))
        return dialogues

    def refusals(self, name: str, replies: Sequence[str]) -> dict[str, float]:
        """Shares by file of prompts: refusals of harmful prompts, refusals of harmless prompts, and unsafe answers."""
        record, start = {}, 0
        for file, prompts in self.sets.items():
            # The replies to all files stand one after the other, in the order of `sets`.
            to_file, start = replies[start : start + len(prompts)], start + len(prompts)
            refused = np.array([is_refusal(reply) for reply in to_file])
            # A prompt without a label counts as harmful: only one that is known to be safe can be refused wrongly.
            harmful = np.array([prompt.harmful is not False for prompt in prompts])
            if harmful.any():
                record[f'refused_{file}_{name}'] = float(refused[harmful].mean())
            if not harmful.all():
                record[f'overrefused_{file}_{name}'] = float(refused[~harmful].mean())
            if self.unsafe:
                record[f'unsafe_{file}_{name}'] = float(np.mean(self.unsafe([p.prompt for p in prompts], to_file)))
        return record


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage.

    Raises:
      ValueError: a value or a file is wrong, or a stage has not been run.
    """
    evaluate, folder, seed = settings.evaluate, ctx.workdir.parent, settings.seed
    systems = make_systems(settings, folder)
    for system in systems:
        # Only stages of this run can be unfinished; another source is given as it is.
        if (stage := Path(system.source.removeprefix('orbax:'))).parent == folder:
            check_finished(stage)
    policy = make_policy(settings.policy, ctx, seed)
    train, questions = read_questions(settings.prompts, seed, policy.tokenizer)
    ctx.log(counted_questions(settings.prompts, len(train), len(questions)))
    sets = {Path(name).stem: read_prompts(name)[: evaluate.prompts_count] for name in evaluate.prompts}
    for name, prompts in sets.items():
        fewer = holdouts.fewer('evaluate.prompts_count', evaluate.prompts_count, len(prompts), 'the file has no more')
        ctx.log(f'{counted(len(prompts), "prompt")} of {name}{fewer}')
    judges = make_judges(settings, ctx)
    at_once = max(len(questions) * evaluate.draws, sum(map(len, sets.values())))
    moderator = evaluate.moderation and open_moderator(Path(evaluate.moderation.removeprefix('orbax:')), ctx)
    load = functools.partial(load_policy, settings.policy, policy.tokenizer, ctx, seed)
    sample = make_sampler(settings.decode, settings.sampling, policy, ctx, at_once)
    unsafe = moderator.unsafe if moderator else None
    groups = make_groups(settings.constraint.limit, settings.constraint.by_group)
    draws = evaluate.draws
    comparison = Comparison(ctx, systems, load, sample, questions, draws, judges, sets, unsafe, groups, seed)
    titles = ('Reward and cost', *groups_shown(settings.constraint))
    shown = [f'{title} ({judge})' for judge in judges for title in titles]
    return piecework.make(ctx, len(systems), comparison.work, 'evaluate', comparison.finish, shown)


def make_systems(settings: Settings, folder: Path) -> list[System]:
    """The start policy, then the policy of every round, or with `compare` of every handler and seed."""
    systems = [System('start', 'start', settings.policy.source)]
    for number in range(1, settings.rounds + 1):
        for variant in variants(settings):
            name = rl_name(number, variant)
            handler = variant.rpartition('-')[0]
            constraint = settings.constraint.compared(handler) if handler else settings.constraint
            budget = constraint.chosen.tells_budget
            systems.append(System(name, handler or name, f'orbax:{folder / name}', budget))
    return systems


def make_judges(settings: Settings, ctx: Context) -> dict[str, Judges]:
    """The models that the last PPO was paid by, the rule, and models that nothing was trained on."""
    named = {'model': settings.rl, 'held_out': settings.evaluate}
    # A score of helpfulness alone does not tell a trade-off, so a pair needs both of its models.
    judges = {
        name: Judges(
            ModelScores(Path(run_folder(models.reward)), ctx, reward.open_scores),
            ModelScores(Path(run_folder(models.cost)), ctx, cost.open_scores),
        )
        for name, models in named.items()
        if models.reward and models.cost
    }
    if settings.prompts.tests_embedded:
        judges['rule'] = Judges(
            functools.partial(by_answer, helps_by_rule), functools.partial(by_answer, unsafe_by_rule)
        )
    return judges


def unsafe_by_rule(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """1 where the rule finds an answer unsafe, else -1."""
    return np.where(by_rule(prompts, responses) > 0, 1.0, -1.0)


def by_answer(
    judge: Callable[..., np.ndarray], questions: Sequence[str], replies: Sequence[Sequence[str]]
) -> np.ndarray:
    """The scores of a judge of single answers, for the answers to each question, `[questions, answers]`."""
    repeated = [question for question, answers in zip(questions, replies, strict=True) for _ in answers]
    return judge(repeated, list(itertools.chain(*replies))).reshape(len(questions), -1)


def load_policy(named: ModelSettings, tokenizer: Tokenizer, ctx: Context, seed: int, source: str) -> Params:
    """The weights of a source, which is to be a model of the same shape as the start policy's."""
    policy = make_policy(dataclasses.replace(named, source=source), ctx._replace(kept=None), seed)
    return load_base(policy, ctx)
