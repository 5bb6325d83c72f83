"""Reward models (Ouyang et al. 2022): a decoder with a head of one number, read at the last token of a reply.

A step scores both replies of `batch_size` pairs and updates once on the Bradley-Terry loss of their differences. An
evaluation asks, on held-out pairs, how often the model is right, whether it is as right as it is sure, and whether it
goes by length. The export is a classifier of one label for transformers.
"""

from __future__ import annotations

import functools

import numpy as np

from pal_jax.data import chats
from pal_jax.data.packing import Group, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.evals import reward_model
from pal_jax.learners.reward import BradleyTerry, Pairs, RewardLearner, RewardState, pack_replies, to_score
from pal_jax.models.config import ModelConfig
from pal_jax.models.families import classifier_to_hf
from pal_jax.recipes import rows as data
from pal_jax.recipes.recipe import (
    Config,
    Context,
    Evaluation,
    Export,
    Host,
    Policy,
    Recipe,
    Trained,
    check_finite,
    make_adapters,
    make_policy,
    stage_before,
)
from pal_jax.runtime import sharding
from pal_jax.runtime.optim import make_optimizer
from pal_jax.types import Metrics


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config, reads the pairs and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    data.check(config)
    loss = BradleyTerry(**config.reward)
    policy = make_policy(config, ctx)
    if config.export:
        classifier_to_hf(policy.cfg, policy.tokenizer.padding_apart())
    rows = data.make_rows(config, policy.tokenizer, functools.partial(to_group, policy.tokenizer), 'chosen', n=2)
    steps = data.steps_of(config, rows)
    learner = make_learner(config, loss, policy.cfg, ctx, steps)
    ways, micro_rows, row_tokens = sharding.batch_ways(ctx.mesh), config.data.micro_rows, config.data.row_tokens

    def packed(groups: list[Group]) -> Pairs:
        return pack_replies(groups, ctx.mesh, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens)

    def init() -> tuple[RewardState, Host]:
        return learner.init(policy.source.load(learner.param_shardings)), {}

    def step(state: RewardState, host: Host, i: int) -> tuple[RewardState, Host, str, Metrics]:
        drawn = rows.draw(config, i)
        with ctx.phase('update'):
            gaps, grads, read = learner.read(state, packed(drawn))
            state, applied = learner.apply(state, grads)
        check_finite(state)
        metrics = {name.removeprefix('reward_'): value for name, value in (read | applied).items()}
        tokens = float(sum(group.length for group in drawn))
        metrics |= {'margin': float(gaps.mean()), 'tokens': tokens, 'left_out': float(rows.left_out)}
        return state, host, 'reward', metrics

    def evaluate(state: RewardState, stage: str) -> Evaluation:
        with ctx.phase('evaluate'):
            scores = np.concatenate([learner.scores(state, packed(groups)) for groups in rows.test_groups(config)])
        lengths = np.array([[len(branch.tokens) - 1 for branch in group.branches] for group in rows.test])
        record = reward_model.measure(scores, lengths)
        return Evaluation(record, exhibits=reward_model.make_exhibits(scores, lengths, record))

    stage = functools.partial(stage_before, warmup=0, steps=steps, every=config.eval.every)
    return Recipe(steps, learner.abstract, init, step, stage, evaluate, trained_by(policy, learner))


def make_trained(config: Config, ctx: Context) -> Trained:
    policy = make_policy(config, ctx)
    return trained_by(policy, make_learner(config, BradleyTerry(**config.reward), policy.cfg, ctx))


def trained_by(policy: Policy, learner: RewardLearner) -> Trained:
    def exports(state: RewardState) -> dict[str, Export]:
        params, head = learner.weights(state)
        return {'export': Export(params, policy.cfg, policy.tokenizer, head=head)}

    return Trained(exports, learner.abstract_weights, policy.cfg, policy.tokenizer)


def to_group(tokenizer: Tokenizer, record: object) -> Group:
    """A pair as a group: the prompt once, then the chosen and the rejected reply; its margin is the record's `margin`.

    Raises:
      ValueError: the record is no pair, its margin is no number, or nothing tells its replies apart.
    """
    pair = chats.to_prefer(record, tokenizer)
    if pair.chosen == pair.rejected:
        raise ValueError('the chosen and the rejected reply are the same; delete the row')
    margin = record.get('margin', 0.0) if isinstance(record, dict) else 0.0
    if not isinstance(margin, int | float) or not np.isfinite(margin):
        raise ValueError(f"'margin' must be a number, got {margin!r}")
    group = shared_prompt([to_score(example.prompt, example.completion) for example in pair])
    return group._replace(margin=float(margin))


def make_learner(config: Config, loss: BradleyTerry, cfg: ModelConfig, ctx: Context, steps: int = 1) -> RewardLearner:
    return RewardLearner(
        cfg, make_optimizer(**config.optimizer, total_steps=steps), ctx.mesh,
        micro_rows=config.data.micro_rows, adapters=make_adapters(config), loss=loss, seed=config.seed,
    )  # fmt: skip
