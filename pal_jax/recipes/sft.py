"""Supervised fine-tuning: the policy learns to say what the assistant says in given dialogues.

A step is one update on the mean cross-entropy of the assistant's tokens of `batch_size` rows, several of which share a
row of the device batch. On the oracle's answers it is the baseline of RLPA (section 4.1 of arXiv 2505.15456).
"""

from __future__ import annotations

import functools

import numpy as np

from pal_jax.data import chats
from pal_jax.data.packing import Group, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.models.config import ModelConfig
from pal_jax.parts import rows as data
from pal_jax.parts.recipe import (
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    Trained,
    check_finite,
    keeping,
    make_adapters,
    make_policy,
    stage_before,
    trained_actor,
)
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Metrics


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config, reads the rows and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong.
      RuntimeError: the model cannot be had.
    """
    data.check(config)
    policy = make_policy(config, ctx)
    rows = data.make_rows(config, functools.partial(to_group, policy.tokenizer), 'completion', n=1)
    ctx.log(rows.told)
    steps = data.steps_of(config, rows)
    learner = make_learner(config, policy.cfg, ctx, steps)

    def init() -> tuple[ActorState, Host]:
        return learner.init(policy.source.load(learner.param_shardings)), {}

    def step(state: ActorState, host: Host, i: int) -> tuple[ActorState, Host, str, Metrics]:
        with ctx.phase('update'):
            batch = rows.batch(config, ctx.mesh, i)
            state, metrics = learner.imitate(state, batch)
        check_finite(state)
        return state, host, 'sft', metrics | {'tokens': float(batch.acts.sum()), 'left_out': float(rows.left_out)}

    def evaluate(state: ActorState, stage: str) -> Evaluation:
        total, count = 0.0, 0
        with ctx.phase('evaluate'):
            for _, batch in rows.tests(config, ctx.mesh):
                logprobs = learner.logprobs(state.whole, batch)
                total, count = total - float((logprobs * batch.acts).sum()), count + int(batch.acts.sum())
        loss = total / count
        return Evaluation(
            {'rows': len(rows.test), 'moved': rows.moved, 'loss': loss, 'perplexity': float(np.exp(loss))}, []
        )

    stage = functools.partial(stage_before, warmup=0, steps=steps, **config.eval)
    trained, keep = trained_actor(config, policy, learner), keeping(policy=policy)
    return Closures(Plan(steps, learner.abstract, stage, trained, keep=keep), init, step, evaluate)


def make_trained(config: Config, ctx: Context) -> Trained:
    policy = make_policy(config, ctx)
    return trained_actor(config, policy, make_learner(config, policy.cfg, ctx))


def to_group(tokenizer: Tokenizer, record: object) -> Group:
    """A record to imitate, as a group of one branch."""
    return shared_prompt([chats.to_imitate(record, tokenizer)])


def make_learner(config: Config, cfg: ModelConfig, ctx: Context, steps: int = 1) -> Actor:
    return Actor(
        cfg, Optimizer(**config.optimizer, total_steps=steps), ctx.mesh, micro_rows=config.data.micro_rows,
        adapters=make_adapters(config), anchored=False, max_z_coef=config.max_z_coef, seed=config.seed,
    )  # fmt: skip
