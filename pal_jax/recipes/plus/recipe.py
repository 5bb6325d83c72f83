"""PLUS (arXiv 2507.13579): summaries of people learnt by reinforcement, together with the reward model that reads them.

A step draws people and writes `n_samples` summaries of each from the person's context. The reward model as it is judges
a choice of the person by each summary, which pays the summariser log sigmoid(gap). Then the reward model learns other
choices by the first of the same summaries, and the summariser makes its PPO update. Nothing but text goes from one to
the other. At first the summariser waits: a reward model that cannot read yet pays noise. The wait takes `hold.steps` at
most, and ends when the choices of two steps in a row were worth `hold.reward`.
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
from pal_jax.evals import conditioning
from pal_jax.feedback.histories import Splits
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.learners.scorer import Scorer
from pal_jax.models.params import Params
from pal_jax.parts.models import Policy, keeping, make_policy, trained_policy
from pal_jax.parts.recipe import (
    EVALUATION,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    Trained,
    check_at_least,
    check_finite,
    stage_before,
)
from pal_jax.recipes.plus import latent, table
from pal_jax.recipes.plus.context import (
    WRITTEN,
    Describe,
    RewardModel,
    State,
    make_replies,
    make_reward_model,
    summarize,
)
from pal_jax.recipes.plus.parts import make_learner, make_packing, make_parts, make_rate, make_reader
from pal_jax.recipes.plus.people import Draw, check_reads, make_draw, of_whom, read_people
from pal_jax.runtime.checkpoint import CONFIG
from pal_jax.types import Exhibit, Metrics, RolloutBatch, Sample

READS = ('summary', 'untrained', 'context', 'kind', 'nothing', 'latent')
SHOWN = 'accuracy', 'reward', 'written_better'
MAY_CHANGE = 'seeds', 'eval.shown'  # when a run goes on


@dataclasses.dataclass(frozen=True)
class PLUS:
    """Trains a summariser of people together with the reward model that reads the summaries.

    Attributes:
      load: by `policy` and `reward`, reads the weights before training; baselines without a writer have no `policy`.
      learner: updates the summariser.
      describe: writes summaries, or gives what a baseline reads in place of them.
      reward_model: pays for summaries, and learns by them.
      draw: the people of a step, by its number.
      rate: what a step makes of the reward model's rate, by its number.
      pack: lays samples out as a batch.
      tests: people to test on, by the name of their split.
      measure: figures of such people, see `evals.conditioning.evaluate`.
      replies: figures of what another model writes after a summary.
      waiting: the name of a step that does not pay.
      trains: whether the summariser is updated where it is paid.
    """

    plan: Plan
    ctx: Context
    load: Mapping[str, Callable[..., Params]]
    learner: PolicyLearner
    describe: Describe
    reward_model: RewardModel
    draw: Draw
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
            policy, updated = self.improve(state['policy'], paid, i)
            state, metrics = state | {'policy': policy}, metrics | updated
        return state, host, 'plus' if pays else self.waiting, metrics

    def improve(self, state: PolicyState, samples: Sequence[Sample], i: int) -> tuple[PolicyState, Metrics]:
        """PPO's update of the summariser on samples that have their rewards.

        Raises:
          RuntimeError: three updates in a row were not finite.
        """
        with self.ctx.phase('annotate'):
            batch, scored = self.learner.score(state, self.pack(samples))
            batch, estimated = self.learner.advantages(state, batch)
        with self.ctx.phase('update'):
            state, updated = self.learner.update(state, batch, jax.random.fold_in(jax.random.key(self.seed), i))
        check_finite(state, ' or raise ppo.kl_coef')
        return state, scored | estimated | updated

    def texts(self, state: State, people: Sequence[History], temperatures: Sequence[float] = (0.0,)) -> list[str]:
        """What the reward model reads of people in an evaluation; at temperature 0 the likeliest summaries."""
        return self.describe(state, people, temperatures, (self.seed, EVALUATION)).texts

    def evaluate(self, state: State, stage: str) -> Evaluation:
        texts = functools.partial(self.texts, state)
        gaps = functools.partial(self.reward_model.gaps, state['reward'])
        with self.ctx.phase('evaluate'):
            record, people = self.measure(texts, gaps, self.tests, whole=stage != 'base')
            answered = next(iter(self.tests.values())) if stage == 'final' else []
            written, examples = self.replies(answered, texts, gaps)
        record |= {'learnt_from': len({person.user for person in self.draw.train})} | written
        return Evaluation(record, people, [*conditioning.make_exhibits(record, list(self.tests)), *examples])


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config, reads the people and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or a line of the file.
      RuntimeError: a model cannot be had.
    """
    if config.methods:
        return table.make_table(config, ctx)
    check(config)
    train, tests = read_people(config, ctx.log)
    of_whom(train, train, (config.seed,), shuffled=config.shuffled)  # raises here where nobody can stand for somebody
    if config.reads == 'latent':
        return latent.make(config, ctx, train, tests)
    policy, learner, judge, reader, describe, pair_up = make_parts(config, ctx)
    replies, learns, writes = make_replies(config), config.reads == 'summary', config.reads in WRITTEN
    measure = functools.partial(
        conditioning.evaluate, temperature=(config.sampling if learns else config.hold).temperature,
        samples=config.eval.samples, shown=config.eval.shown,
    )  # fmt: skip
    return PLUS(
        make_plan(config, policy, learner, judge, reader), ctx,
        {'reward': judge.source.load} | ({'policy': policy.source.load} if writes else {}),
        learner, describe, make_reward_model(config, reader, pair_up), make_draw(config, train), make_rate(config),
        make_packing(config, ctx), tests, measure, replies,
        waiting='hold' if learns else config.reads, trains=config.summary.train, seed=config.seed,
    )  # fmt: skip


def make_plan(config: Config, policy: Policy, learner: PolicyLearner, judge: Policy, reader: Scorer) -> Plan:
    steps = config.hold.steps + config.total_steps
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=config.eval.every, base=config.eval.base)
    abstract = {'reward': reader.abstract} | ({'policy': learner.abstract} if config.reads in WRITTEN else {})
    trained, keep = trained_by(config, policy, learner, reader), keeping(policy=policy, reward_model=judge)
    return Plan(steps, abstract, stage, trained, SHOWN, after=make_after(config), keep=keep)


def stages(config: Config, workdir: Path) -> list[tuple[Config, Path]]:
    """The run itself, or, where `config.methods` names some, their runs and the table of them.

    Raises:
      ValueError: a value is wrong.
    """
    check(config)
    if not config.methods:
        return [(config, workdir)]
    if (workdir / CONFIG).exists():
        raise ValueError(f'{workdir} holds a single run; give the table another --workdir')
    runs, people = table.stages(config, workdir), read_people(config)
    for run, _ in runs[: len(table.read_methods(config))]:
        try:
            check_reads(run, people)
        except ValueError as error:
            raise ValueError(f'{error}, or leave {run.stage} out of --config.methods') from error
    return runs


def make_trained(config: Config, ctx: Context) -> Trained | None:
    if config.methods or config.reads == 'latent':
        return None
    policy, judge = make_policy(config, ctx), make_policy(config, ctx, of='reward_model')
    learner, reader = make_learner(config, policy.cfg, ctx), make_reader(config, judge.cfg, ctx)
    return trained_by(config, policy, learner, reader)


def trained_by(config: Config, policy: Policy, learner: PolicyLearner, reader: Scorer) -> Trained | None:
    """The summariser, where one learns."""
    if config.reads != 'summary':
        return None
    trained, nothing = trained_policy(config, policy, learner), jax.tree.map(lambda _: ..., reader.abstract)
    exported = {'reward': nothing, 'policy': trained.exported}
    return trained._replace(exports=lambda state: trained.exports(state['policy']), exported=exported)


def check(config: Config) -> None:
    """Everything that can be wrong before a file is read."""
    if config.reads not in READS:
        raise ValueError(f'reads={config.reads!r} is unknown; use one of {", ".join(READS)}')
    check_at_least(
        config, 1, 'total_steps', 'people', 'summary.people', 'summary.n_samples', 'summary.taught', 'hold.people',
        'eval.people', 'eval.samples', 'history.told', 'history.taught', 'history.held', 'history.each',
        'checkpoint.every', 'reward_model.micro_rows', 'latent.dim', 'latent.hidden', 'latent.passes', 'latent.people',
    )  # fmt: skip
    if config.seeds != 1 and not config.methods:
        raise ValueError(f'seeds={config.seeds} is for a table of --config.methods; a run has --config.seed, --workdir')
    if not config.data:
        raise ValueError('data is empty; name people, such as --config.data=votes:<folder>/<name>')
    check_at_least(config, 0, 'hold.steps', 'reward_model.row_tokens')
    if config.reward_model.std <= 0:
        raise ValueError(f'reward_model.std={config.reward_model.std} must be above 0')


def make_after(config: Config) -> Callable[[Host, int], int]:
    learns = config.reads == 'summary'
    return functools.partial(step_after, hold=config.hold.steps, reward=config.hold.reward if learns else np.inf)


def step_after(host: Host, i: int, *, hold: int, reward: float) -> int:
    """The next step: the first in which the summariser is paid where the last two rewards are worth more than `reward`
    on average."""
    enough = len(host['rewards']) == 2 and np.mean(host['rewards']) > reward
    return max(i + 1, hold) if enough else i + 1
