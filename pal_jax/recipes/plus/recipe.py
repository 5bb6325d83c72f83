"""PLUS (arXiv 2507.13579): summaries of people learnt by reinforcement, together with the reward model that reads them.

A step draws people and writes `n_samples` summaries of each from what is told of them. By each the reward model judges
a choice of the person's, which pays the summariser log sigmoid(gap), by the reward model as it is; then the summariser
makes its PPO update, and after it the reward model its own, on other choices and the first of the same summaries.
Nothing but text goes from one to the other. At first the summariser waits: what a reward model says that cannot read
yet is noise. The wait takes `hold.steps` at most, and ends when what two of them read was worth `hold.reward`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data.histories import History
from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.data.passes import shuffled
from pal_jax.evals import conditioning
from pal_jax.feedback import histories
from pal_jax.learners import ppo
from pal_jax.learners.ppo import PPO, PolicyLearner, PolicyState
from pal_jax.learners.scorer import Scorer
from pal_jax.learners.training import MULTIPLE
from pal_jax.models.config import ModelConfig
from pal_jax.parts.recipe import (
    EVALUATION,
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Policy,
    Recipe,
    Trained,
    check_at_least,
    check_finite,
    keeping,
    make_adapters,
    make_policy,
    stage_before,
    trained_policy,
)
from pal_jax.recipes.plus import latent, table
from pal_jax.recipes.plus.context import (
    WRITTEN,
    PairUp,
    Written,
    make_condition,
    make_pairs,
    make_reading,
    make_writer,
    of_whom,
    summarize,
)
from pal_jax.runtime import sharding
from pal_jax.runtime.checkpoint import CONFIG
from pal_jax.runtime.optim import Optimizer, make_schedule
from pal_jax.types import Metrics, RolloutBatch, Sample

READS = ('summary', 'untrained', 'context', 'kind', 'nothing', 'latent')
SHOWN = 'accuracy', 'reward', 'written_better'

State = dict[str, Any]  # 'reward', and 'policy' where one writes


class Parts(NamedTuple):
    """The summariser, the reward model, and how text goes from one to the other."""

    policy: Policy
    learner: PolicyLearner
    judge: Policy
    reader: Scorer
    describe: Callable[..., Written]  # (state, people, temperatures of each one's summaries, seed)
    pair_up: PairUp


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
    of_whom(config, train, train, ())  # if nobody can stand for somebody, it is told here
    if config.reads == 'latent':
        return latent.make(config, ctx, train, tests)
    policy, learner, judge, reader, describe, pair_up = make_parts(config, ctx)
    condition = make_condition(config, pair_up.compare)
    draw, hold, learns = make_draw(config, train), config.hold.steps, config.reads == 'summary'
    read = make_reading(config, reader, pair_up)
    pack, n, rate = make_packing(config, ctx), config.summary.n_samples, make_rate(config)

    def init() -> tuple[State, Host]:
        state = {'reward': reader.init(judge.source.load(reader.param_shardings))}
        if config.reads in WRITTEN:
            state['policy'] = learner.init(policy.source.load(learner.actor.param_shardings))
        return state, {'rewards': []}

    def step(state: State, host: Host, i: int) -> tuple[State, Host, str, Metrics]:
        waits, (people, choosers) = i < hold or not learns, draw(i)
        with ctx.phase('rollout'):
            count, temperature = (1, config.hold.temperature) if waits else (n, config.sampling.temperature)
            texts, samples = describe(state, people, [temperature] * count, (config.seed, i))
        with ctx.phase('read'):
            reward, rewards, metrics = read(state['reward'], texts, choosers, pays=not waits, rate=float(rate(i)))
        check_finite(reward)
        state, metrics = state | {'reward': reward}, metrics | summarize(texts, rewards, people)
        host = {'rewards': [*host['rewards'], metrics['reward']][-2:]}
        if not waits and config.summary.train:
            paid = [dataclasses.replace(s, rewards=(float(r),)) for s, r in zip(samples, rewards, strict=True)]
            improved, updated = improve(state['policy'], paid, i)
            state, metrics = state | {'policy': improved}, metrics | updated
        return state, host, ('hold' if i < hold else 'plus') if learns else config.reads, metrics

    def improve(state: PolicyState, samples: Sequence[Sample], i: int) -> tuple[PolicyState, Metrics]:
        """PPO's update of the summariser."""
        with ctx.phase('annotate'):
            batch, scored = learner.score(state, pack(samples))
            batch, estimated = learner.advantages(state, batch)
        with ctx.phase('update'):
            state, updated = learner.update(state, batch, jax.random.fold_in(jax.random.key(config.seed), i))
        check_finite(state, ' or raise ppo.kl_coef')
        return state, scored | estimated | updated

    def evaluate(state: State, stage: str) -> Evaluation:
        drawn = config.sampling.temperature if learns else config.hold.temperature
        with ctx.phase('evaluate'):
            record, people = conditioning.evaluate(
                lambda people, temperatures: describe(state, people, temperatures, (config.seed, EVALUATION)).texts,
                lambda texts, choices: reader.gaps(state['reward'], pair_up.compare(texts, choices)),
                tests, temperature=drawn, samples=config.eval.samples, shown=config.eval.shown,
                whole=stage != 'base',
            )  # fmt: skip
            written, replies = condition(
                next(iter(tests.values())) if stage == 'final' else [],
                lambda people: describe(state, people, [0.0], (config.seed, EVALUATION)).texts,
                functools.partial(reader.gaps, state['reward']),
            )
        record |= {'learnt_from': len({person.user for person in train})} | written
        return Evaluation(record, people, [*conditioning.make_exhibits(record, list(tests)), *replies])

    steps = hold + config.total_steps
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=config.eval.every, base=config.eval.base)
    abstract = {'reward': reader.abstract} | ({'policy': learner.abstract} if config.reads in WRITTEN else {})
    trained, keep = trained_by(config, policy, learner, reader), keeping(policy=policy, reward_model=judge)
    plan = Plan(steps, abstract, stage, trained, SHOWN, after=make_after(config), keep=keep)
    return Closures(plan, init, step, evaluate)


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


# --- parts from the config ------------------------------------------------------------------------------------------


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


def read_people(config: Config, log: histories.Log = histories.silent) -> tuple[list[History], histories.Splits]:
    """Those to learn from, and those to test on by the name of their split. Raises ValueError where they are wrong."""
    train, tests = histories.read(
        config.data, people=config.people, tested=config.eval.people, seed=config.seed, form=config.form,
        made=histories.Made(**config.history), log=log,
    )  # fmt: skip
    check_reads(config, (train, tests))
    return train, tests


def check_reads(config: Config, people: tuple[Sequence[History], histories.Splits]) -> None:
    """Raises ValueError where what `config.reads` names is not known of them."""
    everyone = [*people[0], *(person for split in people[1].values() for person in split)]
    if config.reads == 'kind' and not all(person.kind for person in everyone):
        raise ValueError(f'reads=kind: people of {config.data} have no kind; read something else')
    if config.reads == 'latent':
        latent.check(everyone)


def make_parts(config: Config, ctx: Context) -> Parts:
    """Raises ValueError or RuntimeError where a model cannot be had."""
    policy, judge = make_policy(config, ctx), make_policy(config, ctx, of='reward_model')
    learner, reader = make_learner(config, policy.cfg, ctx), make_reader(config, judge.cfg, ctx)
    describe, pair_up = make_writer(config, policy, learner, ctx), make_pairs(config, judge.tokenizer, ctx)
    return Parts(policy, learner, judge, reader, describe, pair_up)


def make_learner(config: Config, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    updates = config.total_steps * config.ppo.epochs * config.ppo.minibatches
    actor, critic = (Optimizer(**each, total_steps=updates) for each in (config.optimizer, config.critic))
    return ppo.make_learner(
        cfg, PPO(**config.ppo, temperature=config.sampling.temperature or 1.0), actor, ctx.mesh, critic=critic,
        n=config.summary.n_samples, length=config.sampling.max_tokens, adapters=make_adapters(config),
        anchored=config.reads == 'summary', seed=config.seed,
    )  # fmt: skip


def make_reader(config: Config, cfg: ModelConfig, ctx: Context) -> Scorer:
    settings = config.reward_model
    optimizer = Optimizer(**settings.optimizer.to_dict() | {'warmup_ratio': 0.0, 'min_ratio': 1.0}, total_steps=1)
    adapters = make_adapters(config, of='reward_model')
    return Scorer(cfg, optimizer, ctx.mesh, micro_rows=settings.micro_rows, adapters=adapters, seed=config.seed)


def make_rate(config: Config) -> Callable[[int], Any]:
    """What a step makes of the reward model's rate, which its optimiser keeps: it falls while the summariser learns."""
    shape, steps = config.reward_model.optimizer, {'total_steps': config.total_steps, 'held': config.hold.steps}
    return make_schedule(lr=1.0, warmup_ratio=shape.warmup_ratio, min_ratio=shape.min_ratio, **steps)


def make_packing(config: Config, ctx: Context) -> Callable[[Sequence[Sample]], RolloutBatch]:
    """Rows that prompts share are all as long, so that one program computes them."""
    ppo = config.ppo
    return functools.partial(
        pack_rollouts, n=config.summary.n_samples, actions=round_up(config.sampling.max_tokens, 8), mesh=ctx.mesh,
        ways=sharding.batch_ways(ctx.mesh) * ppo.minibatches, micro_rows=ppo.micro_rows, row_tokens=ppo.row_tokens,
        multiple=ppo.row_tokens or MULTIPLE,
    )  # fmt: skip


def make_after(config: Config) -> Callable[[Host, int], int]:
    """The next step; the first in which the summariser learns when the last two rewards are worth it."""

    def after(host: Host, i: int) -> int:
        enough = len(host['rewards']) == 2 and np.mean(host['rewards']) > config.hold.reward
        return max(i + 1, config.hold.steps) if enough and config.reads == 'summary' else i + 1

    return after


def make_draw(config: Config, train: Sequence[History]) -> Callable[[int], tuple[list[History], Sequence[History]]]:
    """The people of a step, in shuffled passes, and those whose choices go with them: themselves, or, for the control,
    somebody at random. Both are functions of the step's number."""
    hold, waiting, learning = config.hold.steps, config.hold.people, config.summary.people
    learning = learning if config.reads == 'summary' else waiting

    def draw(i: int) -> tuple[list[History], Sequence[History]]:
        start, size = (i * waiting, waiting) if i < hold else (hold * waiting + (i - hold) * learning, learning)
        people = [train[k] for k in shuffled(len(train), start=start, size=size, seed=config.seed)]
        return people, of_whom(config, people, train, (i,))

    return draw
