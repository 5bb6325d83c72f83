"""PLUS (arXiv 2507.13579): summaries of people learnt by reinforcement, together with the reward model that reads them.

A step draws people and writes `n_samples` summaries of each from the person's context. The reward model, as it is
before the step, judges a choice of the person by each summary, and the summariser is paid log sigmoid(gap). Then the
reward model learns other choices by the first of the same summaries, and the summariser makes its PPO update. Nothing
but text goes from one model to the other.

At first the summariser waits: a reward model that cannot read yet pays noise. The wait takes `hold.steps` steps at
most, and ends when the mean reward of two steps in a row is above `hold.reward`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.data.histories import History
from pal_jax.decode.sampler import make_packing
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.training import MULTIPLE
from pal_jax.models.params import Params
from pal_jax.recipes.plus import conditioning, latent, table
from pal_jax.recipes.plus.context import Describe, State, SummaryRewardModel, make_replies, make_reward_model, summarize
from pal_jax.recipes.plus.histories import Splits
from pal_jax.recipes.plus.parts import Models, PlusParts, make_models, make_parts, make_rate
from pal_jax.recipes.plus.people import PeopleDraw, check_reads, make_draw, of_whom, read_people
from pal_jax.recipes.plus.settings import READS, WRITTEN, Settings
from pal_jax.run.checkpoint import CONFIG
from pal_jax.run.models import improve, keeping, make_learner, trained_policy
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import (
    EVALUATION,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    check_at_least,
    check_finite,
    stage_before,
)
from pal_jax.run.stages import Stage
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Exhibit, Metrics, RolloutBatch, Sample

SHOWN = 'accuracy', 'reward', 'written_better'
MAY_CHANGE = 'seeds', 'eval.shown'  # when a run goes on


@dataclasses.dataclass(frozen=True)
class PLUS:
    """Trains a summariser of people together with the reward model that reads the summaries.

    Attributes:
      load: by `policy` and `reward`, reads the weights before training; baselines without a writer have no `policy`.
      learner: updates the summariser.
      describe: writes summaries, or gives the texts that a baseline reads in place of them.
      reward_model: pays for summaries, and learns by them.
      draw: the people of a step, by its number.
      rate: a factor of the reward model's rate, by the number of the step.
      pack: lays samples out as a batch.
      tests: people to test on, by the name of their split.
      measure: figures of such people, see `recipes.plus.conditioning.evaluate`.
      replies: figures of the replies that another model writes after a summary.
      waiting: the name of a step that does not pay.
      trains: whether the summariser is updated where it is paid.
    """

    plan: Plan
    ctx: Context
    load: Mapping[str, Callable[..., Params]]
    learner: PolicyLearner
    describe: Describe
    reward_model: SummaryRewardModel
    draw: PeopleDraw
    rate: Callable[[int], Any]
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    tests: Splits
    measure: Callable[..., tuple[dict[str, Any], list[Any]]]
    replies: Callable[..., tuple[dict[str, Any], list[Exhibit]]]
    waiting: str = 'hold'
    trains: bool = True
    seed: int = 0

    def init(self) -> tuple[State, Host]:
        scorer = self.reward_model.scorer
        state: State = {'reward': scorer.init(self.load['reward'](scorer.param_shardings))}
        if 'policy' in self.load:
            state['policy'] = self.learner.init(self.load['policy'](self.learner.actor.param_shardings))
        return state, {'rewards': []}

    def step(self, state: State, host: Host, i: int) -> tuple[State, Host, str, Metrics]:
        # 1. Draw people, and the persons whose choices pay and teach.
        people, choosers, temperatures, pays = self.draw(i)
        # 2. Write summaries of each person from the person's context.
        with self.ctx.phase('rollout'):
            texts, samples = self.describe(state, people, temperatures, (self.seed, i))
        # 3. The reward model as it is judges a choice by each summary, which is paid log sigmoid(gap). Then it learns
        #    other choices by the first of the same summaries.
        with self.ctx.phase('read'):
            rate = float(self.rate(i))
            reward, rewards, metrics = self.reward_model.read(state['reward'], texts, choosers, pays=pays, rate=rate)
        check_finite(reward)
        state, metrics = state | {'reward': reward}, metrics | summarize(texts, rewards, people)
        # 4. Keep the last two mean rewards: the wait ends when both together are worth enough (`plan.after`).
        host = {'rewards': [*host['rewards'], metrics['reward']][-2:]}
        # 5. Update the summariser by PPO on these rewards; while it waits there is no update.
        if pays and self.trains:
            paid = [dataclasses.replace(s, rewards=(float(r),)) for s, r in zip(samples, rewards, strict=True)]
            key = jax.random.fold_in(jax.random.key(self.seed), i)
            policy, updated = improve(self.learner, self.ctx, state['policy'], self.pack(paid), key)
            state, metrics = state | {'policy': policy}, metrics | updated
        return state, host, 'plus' if pays else self.waiting, metrics

    def texts(self, state: State, people: Sequence[History], temperatures: Sequence[float] = (0.0,)) -> list[str]:
        """The texts that the reward model reads of people in an evaluation; at temperature 0 the likeliest
        summaries."""
        return self.describe(state, people, temperatures, (self.seed, EVALUATION)).texts

    def evaluate(self, state: State, stage: str) -> Evaluation:
        texts = functools.partial(self.texts, state)
        gaps = functools.partial(self.reward_model.gaps, state['reward'])
        with self.ctx.phase('evaluate'):
            record, people = self.measure(texts, gaps, self.tests, whole=stage != 'base')
            # Another model writes replies at the end alone, for the people of the first split.
            answered = next(iter(self.tests.values())) if stage == 'final' else []
            written, examples = self.replies(answered, texts, gaps)
        record |= {'learnt_from': len({person.user for person in self.draw.train})} | written
        return Evaluation(record, people, [*conditioning.make_exhibits(record, list(self.tests)), *examples])


def make(settings: Settings, ctx: Context) -> Recipe:
    """Check the settings, read the people and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of the file is wrong.
      RuntimeError: a model cannot be had.
    """
    check(settings)
    train, tests = read_people(settings, ctx.log)
    # Raises here, before models are opened, where a person has no other to stand in.
    of_whom(train, train, (settings.seed,), shuffled=settings.shuffled)
    if settings.reads == 'latent':
        return latent.make(settings, ctx, train, tests)
    parts = make_parts(settings, ctx)
    learns, summary, evaluated = settings.reads == 'summary', settings.summary, settings.eval
    load = {'reward': parts.judge.source.load}
    if settings.reads in WRITTEN:
        load |= {'policy': parts.policy.source.load}
    measure = functools.partial(
        conditioning.evaluate,
        temperature=(settings.sampling if learns else settings.hold).temperature,
        samples=evaluated.samples,
        shown=evaluated.shown,
    )
    # Rows that prompts share are all as long, so that one program computes them (`data.packing.pack_rollouts`).
    pack = make_packing(settings, ctx.mesh, summary.n_samples, multiple=settings.ppo.row_tokens or MULTIPLE)
    return PLUS(
        make_plan(settings, parts), ctx, load, parts.learner, parts.describe,
        make_reward_model(settings, parts.reader, parts.pair_up), make_draw(settings, train), make_rate(settings),
        pack, tests, measure, make_replies(settings),
        waiting='hold' if learns else settings.reads, trains=summary.train, seed=settings.seed,
    )  # fmt: skip


def make_plan(settings: Settings, parts: PlusParts) -> Plan:
    """The plan of a run, with a checkpoint of the models that it has."""
    steps, evaluated = settings.hold.steps + settings.total_steps, settings.eval
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=evaluated.every, base=evaluated.base)
    abstract = {'reward': parts.reader.abstract}
    if settings.reads in WRITTEN:
        # Baselines without a writer have no summariser to keep or to restore.
        abstract |= {'policy': parts.learner.abstract}
    trained, keep = trained_by(settings, parts), keeping(policy=parts.policy, reward_model=parts.judge)
    phases = {'the reward model alone, at most': settings.hold.steps, 'both models': settings.total_steps}
    if settings.reads != 'summary' or not settings.hold.steps:
        phases = {}
    return Plan(steps, abstract, stage, trained, SHOWN, after=make_after(settings), keep=keep, phases=phases)


def stages(settings: Settings, workdir: Path) -> list[Stage]:
    """The run itself, or, where `settings.methods` names some, their runs and the table of them.

    Raises:
      ValueError: a value is wrong.
    """
    check(settings)
    if not settings.methods:
        return [Stage(workdir, settings)]
    if (workdir / CONFIG).exists():
        raise ValueError(f'{workdir} holds a single run; give the table another --workdir')
    runs, people = table.stages(settings, workdir), read_people(settings)
    for name in table.read_methods(settings):
        try:
            check_reads(table.METHODS[name].get('reads', settings.reads), settings.data, people)
        except ValueError as error:
            raise ValueError(f'{error}, or leave {name} out of --config.methods') from error
    return runs


def planned(settings: Settings, prompt: int) -> PlannedRun | None:
    """The part of a run that is planned, see `run/planned.py`: the summariser."""
    n = settings.summary.n_samples
    return sampling(settings, functools.partial(make_learner, n=n), settings.summary.people, n, prompt)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel | None:
    """The model that a run trains, without its people, who may be gone; None where it trains no summariser."""
    if settings.reads == 'latent':
        return None
    return trained_by(settings, make_models(settings, ctx))


def trained_by(settings: Settings, models: Models | PlusParts) -> TrainedModel | None:
    """The export of the summariser, where one learns."""
    if settings.reads != 'summary':
        return None
    trained = trained_policy(settings.policy, models.policy, models.learner)
    exported = {'reward': jax.tree.map(lambda _: ..., models.reader.abstract), 'policy': trained.exported}
    return trained._replace(exports=lambda state: trained.exports(state['policy']), exported=exported)


def check(settings: Settings) -> None:
    """Raises ValueError for everything that can be wrong before a file is read."""
    if settings.reads not in READS:
        raise ValueError(f'reads={settings.reads!r} is unknown; use one of {", ".join(READS)}')
    check_at_least(
        settings, 1, 'total_steps', 'people', 'summary.people', 'summary.n_samples', 'summary.taught', 'hold.people',
        'eval.people', 'eval.samples', 'history.told', 'history.taught', 'history.held', 'history.each',
        'checkpoint.every', 'reward_model.micro_rows', 'latent.dim', 'latent.hidden', 'latent.passes', 'latent.people',
    )  # fmt: skip
    if settings.seeds != 1 and not settings.methods:
        raise ValueError(
            f'seeds={settings.seeds} is for a table of --config.methods; a run has --config.seed, --workdir'
        )
    if not settings.data:
        raise ValueError('data is empty; name people, such as --config.data=votes:<folder>/<name>')
    check_at_least(settings, 0, 'hold.steps', 'reward_model.row_tokens')
    if settings.reward_model.std <= 0:
        raise ValueError(f'reward_model.std={settings.reward_model.std} must be above 0')
    if settings.ppo.ptx_coef:
        raise ValueError(f'ppo.ptx_coef={settings.ppo.ptx_coef} must be 0: PLUS has no supervised examples to learn')


def make_after(settings: Settings) -> Callable[[Host, int], int]:
    """The function that gives the next step; baselines never end their wait early."""
    reward = settings.hold.reward if settings.reads == 'summary' else np.inf
    return functools.partial(step_after, hold=settings.hold.steps, reward=reward)


def step_after(host: Host, i: int, *, hold: int, reward: float) -> int:
    """The number of the next step.

    Where the last two rewards are above `reward` on average, it is the first step in which the summariser is paid.
    """
    # The mean of two steps: a single one is too noisy to end the wait.
    enough = len(host['rewards']) == 2 and np.mean(host['rewards']) > reward
    return max(i + 1, hold) if enough else i + 1
