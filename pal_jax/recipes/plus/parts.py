"""The summariser and the reward model of PLUS, as a config names them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.learners import ppo
from pal_jax.learners.ppo import PPO, PolicyLearner
from pal_jax.learners.scorer import Scorer
from pal_jax.learners.training import MULTIPLE
from pal_jax.models.config import ModelConfig
from pal_jax.parts.models import Policy, make_adapters, make_policy
from pal_jax.parts.recipe import Config, Context
from pal_jax.recipes.plus.context import Describe, PairUp, make_pairs, make_writer
from pal_jax.runtime import sharding
from pal_jax.runtime.optim import Optimizer, make_schedule
from pal_jax.types import RolloutBatch, Sample


class Parts(NamedTuple):
    """The summariser, the reward model, and how text goes from one to the other."""

    policy: Policy
    learner: PolicyLearner
    judge: Policy
    reader: Scorer
    describe: Describe
    pair_up: PairUp


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
    """The reward model's scorer; its optimiser keeps one rate, and `make_rate` scales it."""
    settings = config.reward_model
    optimizer = Optimizer(**settings.optimizer.to_dict() | {'warmup_ratio': 0.0, 'min_ratio': 1.0}, total_steps=1)
    adapters = make_adapters(config, of='reward_model')
    return Scorer(cfg, optimizer, ctx.mesh, micro_rows=settings.micro_rows, adapters=adapters, seed=config.seed)


def make_rate(config: Config) -> Callable[[int], Any]:
    """A factor of the reward model's rate, by the number of the step: 1 while the summariser waits, then falling."""
    shape, steps = config.reward_model.optimizer, {'total_steps': config.total_steps, 'held': config.hold.steps}
    return make_schedule(lr=1.0, warmup_ratio=shape.warmup_ratio, min_ratio=shape.min_ratio, **steps)


def make_packing(config: Config, ctx: Context) -> Callable[[Sequence[Sample]], RolloutBatch]:
    """Lays samples out in rows. Rows that prompts share are all as long, so that one program computes them."""
    ppo = config.ppo
    return functools.partial(
        pack_rollouts, n=config.summary.n_samples, actions=round_up(config.sampling.max_tokens, 8), mesh=ctx.mesh,
        ways=sharding.batch_ways(ctx.mesh) * ppo.minibatches, micro_rows=ppo.micro_rows, row_tokens=ppo.row_tokens,
        multiple=ppo.row_tokens or MULTIPLE,
    )  # fmt: skip
