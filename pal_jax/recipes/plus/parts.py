"""The summariser and the reward model of PLUS, as settings name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.scorer import Scorer
from pal_jax.models.config import ModelConfig
from pal_jax.recipes.plus.context import Describe, PairPacker, make_pair_packer, make_writer
from pal_jax.recipes.plus.settings import RewardModelSettings, Settings
from pal_jax.run.models import Policy, make_adapters, make_learner, make_policy
from pal_jax.run.optim import make_schedule
from pal_jax.run.recipe import Context


class Models(NamedTuple):
    """The summariser and the reward model, with the learner and the scorer that train them."""

    policy: Policy
    learner: PolicyLearner
    judge: Policy
    reader: Scorer


class PlusParts(NamedTuple):
    """The summariser, the reward model, and how text goes from one to the other."""

    policy: Policy
    learner: PolicyLearner
    judge: Policy
    reader: Scorer
    describe: Describe
    pair_up: PairPacker


def make_parts(settings: Settings, ctx: Context) -> PlusParts:
    """The parts that the settings describe. Raises ValueError or RuntimeError where a model cannot be had."""
    models = make_models(settings, ctx)
    describe = make_writer(settings, models.policy, models.learner, ctx)
    return PlusParts(*models, describe, make_pair_packer(settings.reward_model, models.judge.tokenizer, ctx.mesh))


def make_models(settings: Settings, ctx: Context) -> Models:
    """The models that the settings name. Raises ValueError or RuntimeError where a model cannot be had."""
    reading, seed, n = settings.reward_model, settings.seed, settings.summary.n_samples
    policy, judge = make_policy(settings.policy, ctx, seed), make_policy(reading, ctx, seed, of='reward_model')
    # A summariser that is not trained needs no reference.
    learner = make_learner(settings, policy.cfg, ctx, n=n, anchored=settings.reads == 'summary')
    return Models(policy, learner, judge, make_summary_scorer(reading, judge.cfg, ctx.mesh, seed))


def make_summary_scorer(settings: RewardModelSettings, cfg: ModelConfig, mesh: Mesh, seed: int) -> Scorer:
    """The reward model's scorer; its optimiser keeps one rate, and `make_rate` scales it."""
    # The schedule is kept out of the optimiser: its length depends on when the wait ends.
    optimizer = dataclasses.replace(settings.optimizer, warmup_ratio=0.0, min_ratio=1.0).over(1)
    adapters = make_adapters(settings.lora)
    return Scorer(cfg, optimizer, mesh, micro_rows=settings.micro_rows, adapters=adapters, seed=seed)


def make_rate(settings: Settings) -> Callable[[int], Any]:
    """A factor of the reward model's rate, by the number of the step: 1 while the summariser waits, then falling."""
    shape, steps = settings.reward_model.optimizer, {'total_steps': settings.total_steps, 'held': settings.hold.steps}
    return make_schedule(lr=1.0, warmup_ratio=shape.warmup_ratio, min_ratio=shape.min_ratio, decay=shape.decay, **steps)
