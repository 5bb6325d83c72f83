"""Supervised fine-tuning: the policy learns to say what the assistant says in given dialogues.

A step is one update on the mean cross-entropy of the assistant's tokens of `batch_size` rows, several of which share a
row of the device batch. On the oracle's answers it is the baseline of RLPA (section 4.1 of arXiv 2505.15456).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from pal_jax.data import chats
from pal_jax.data import rows as data
from pal_jax.data.packing import PromptGroup, shared_prompt
from pal_jax.data.rows import Rows
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.shown_answers import ShownAnswers, make_shown_answers
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import intervals, sharding
from pal_jax.run.language import SampleSettings, SupervisedRun
from pal_jax.run.models import make_policy, trained_actor
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_finite
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics

MAY_CHANGE = ('samples.*',)  # keys that may change when a run goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SupervisedRun):
    """The keys of a run of SFT; those that every supervised method has are in `run/language.py`."""

    samples: SampleSettings = SampleSettings()
    max_z_coef: float = 0.0  # the weight of the squares of the largest logits (Baichuan 2: 2e-4)


@dataclasses.dataclass(frozen=True)
class SFT:
    """An actor that imitates the rows of a file. `load` reads its weights before training."""

    plan: Plan
    ctx: Context
    actor: Actor
    rows: Rows
    answers: ShownAnswers
    load: Callable[[Params], Params]

    def init(self) -> tuple[ActorState, Host]:
        return self.actor.init(self.load(self.actor.param_shardings)), {}

    def step(self, state: ActorState, host: Host, i: int) -> tuple[ActorState, Host, str, Metrics]:
        with self.ctx.phase('update'):
            # 1. Draw the rows of the step.
            batch = self.rows.batch(i, self.ctx.mesh)
            # 2. Descend their mean cross-entropy once.
            state, metrics = self.actor.imitate(state, batch)
        check_finite(state)
        # Rows differ in length, so a step's loss is worth reading beside the number of its tokens.
        tokens, left_out = float(batch.acts.sum()), float(self.rows.left_out)
        return state, host, 'sft', metrics | {'tokens': tokens, 'left_out': left_out}

    def evaluate(self, state: ActorState, stage: str) -> Evaluation:
        """The mean cross-entropy of held-out rows, in nats a token, and its standard error over prompts."""
        by_row = []
        with self.ctx.phase('evaluate'):
            for rows, batch in self.rows.tests(self.ctx.mesh):
                logprobs = self.actor.logprobs(state.whole, batch)
                sums = -(logprobs * batch.acts).sum(axis=-1), batch.acts.sum(axis=-1)
                by_row.append(map(np.ravel, (rows, *sharding.to_every_host(sums, self.ctx.mesh))))
            shown = self.answers(self.actor.weights(state))
        row, total, tokens = map(np.concatenate, zip(*by_row, strict=True))
        # A mean over tokens, whatever row they stand in. Prompts are independent; the rows of one prompt are not.
        # Padding has no tokens, so the last prompt, which its index -1 names, does not count it.
        prompts = np.array(self.rows.test_prompts)[row]
        loss = intervals.mean(total / np.maximum(tokens, 1), prompts, weights=tokens)
        rows = {'rows': len(self.rows.test), 'prompts': len(set(prompts)), 'moved': self.rows.moved}
        return Evaluation(rows | loss.named('loss') | {'perplexity': float(np.exp(loss.value))}, shown)


def make(settings: Settings, ctx: Context) -> SFT:
    """Check the config, read the rows and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong.
      RuntimeError: the model cannot be had.
    """
    data.check(settings)
    policy = make_policy(settings.policy, ctx, settings.seed)
    rows = data.make_rows(settings, policy.tokenizer, to_group, 'completion', n=1)
    ctx.log(rows.told)
    actor = make_actor(settings, policy.cfg, ctx, data.steps_of(settings, rows))
    trained = trained_actor(settings.policy, policy, actor)
    plan = data.make_plan(settings, rows, policy, actor.abstract, trained)
    answers = make_shown_answers(settings.samples, rows, ['the reply of the row'], policy, ctx)
    return SFT(plan, ctx, actor, rows, answers, policy.source.load)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_actor(settings.policy, policy, make_actor(settings, policy.cfg, ctx))


def to_group(tokenizer: Tokenizer, record: object) -> PromptGroup:
    """A record to imitate, as a group of one branch."""
    return shared_prompt([chats.to_imitate(record, tokenizer)])


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, make_actor, n=1)


def make_actor(settings: Settings, cfg: ModelConfig, ctx: Context, steps: int = 1) -> Actor:
    """The actor that the settings describe, for so many steps."""
    # Nothing is compared with the model's start, so no reference is kept.
    return data.make_actor(settings, cfg, ctx, steps, anchored=False, max_z_coef=settings.max_z_coef)
