"""Direct preference optimisation (arXiv 2305.18290) and its relatives: the policy learns to prefer one of two answers.

A step scores both answers of `batch_size` pairs under the policy and under its frozen start, makes the loss of the
difference, and updates once. On the best against the worst of `n` samples (`pal-jax collect`) it is the
baseline of RLPA (section 4.1 of arXiv 2505.15456).
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
from pal_jax.learners.dpo import DPO, PreferenceLearner, open_loss
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run.language import SampleSettings, SupervisedRun
from pal_jax.run.models import make_policy, trained_actor
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_finite
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics

MAY_CHANGE = ('samples.*',)  # keys that may change when a run goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SupervisedRun):
    """The keys of a run of DPO; those that every supervised method has are in `run/language.py`."""

    samples: SampleSettings = SampleSettings()
    dpo: DPO = DPO()


@dataclasses.dataclass(frozen=True)
class DPORecipe:
    """An actor that learns from pairs of answers. `load` reads its weights before training."""

    plan: Plan
    ctx: Context
    learner: PreferenceLearner
    rows: Rows
    answers: ShownAnswers
    load: Callable[[Params], Params]

    def init(self) -> tuple[ActorState, Host]:
        actor = self.learner.actor
        return actor.init(self.load(actor.param_shardings)), {}

    def step(self, state: ActorState, host: Host, i: int) -> tuple[ActorState, Host, str, Metrics]:
        with self.ctx.phase('update'):
            # 1. Draw the pairs of the step.
            batch = self.rows.batch(i, self.ctx.mesh)
            # 2. Score both answers under the policy and its start, and descend the loss of the difference once.
            state, metrics = self.learner.prefer(state, batch)
        check_finite(state)
        return state, host, 'dpo', metrics | {'left_out': float(self.rows.left_out)}

    def evaluate(self, state: ActorState, stage: str) -> Evaluation:
        """The figures of a training step, on held-out pairs.

        Raises:
          RuntimeError: the loss is not finite.
        """
        with self.ctx.phase('evaluate'):
            tests = self.rows.tests(self.ctx.mesh)
            batches = [
                (len(np.unique(rows[rows >= 0])), self.learner.compare(state, batch)[1]) for rows, batch in tests
            ]
            shown = self.answers(self.learner.actor.weights(state))
        # Batches differ in size: a mean over pairs weighs each batch by its pairs.
        counts = [count for count, _ in batches]
        means = {name: float(np.average([m[name] for _, m in batches], weights=counts)) for name in batches[0][1]}
        if not np.isfinite(means['loss']):
            began = ' before any update, so that no other optimizer.lr helps: mend it' if stage == 'base' else ''
            raise RuntimeError(f'dpo.loss={self.learner.dpo.loss!r} is {means["loss"]} on held-out pairs{began}')
        prompts = len(set(self.rows.test_prompts))
        return Evaluation({'rows': sum(counts), 'prompts': prompts, 'moved': self.rows.moved, **means}, shown)


def make(settings: Settings, ctx: Context) -> DPORecipe:
    """Check the config, read the rows and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong.
      RuntimeError: the model cannot be had.
    """
    data.check(settings)
    policy = make_policy(settings.policy, ctx, settings.seed)
    # A row is a prompt with two branches: it is read once for both answers.
    rows = data.make_rows(settings, policy.tokenizer, to_group, 'chosen', n=2)
    ctx.log(rows.told)
    learner = make_pair_learner(settings, policy.cfg, ctx, data.steps_of(settings, rows))
    trained = trained_actor(settings.policy, policy, learner.actor)
    plan = data.make_plan(settings, rows, policy, learner.actor.abstract, trained)
    answers = make_shown_answers(settings.samples, rows, ['chosen', 'rejected'], policy, ctx)
    return DPORecipe(plan, ctx, learner, rows, answers, policy.source.load)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_actor(settings.policy, policy, make_actor(settings, policy.cfg, ctx))


def to_group(tokenizer: Tokenizer, record: object) -> PromptGroup:
    """A pair as a group: the prompt once, then the chosen and the rejected answer."""
    return shared_prompt(chats.to_prefer(record, tokenizer))


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, make_pair_learner, n=2)


def make_pair_learner(settings: Settings, cfg: ModelConfig, ctx: Context, steps: int = 1) -> PreferenceLearner:
    """The learner of pairs that the settings describe, for so many steps."""
    return PreferenceLearner(make_actor(settings, cfg, ctx, steps), settings.dpo, open_loss(settings.dpo))


def make_actor(settings: Settings, cfg: ModelConfig, ctx: Context, steps: int = 1) -> Actor:
    """The actor of that learner."""
    # No reference is kept where the loss is free of one: that saves a copy of the weights.
    return data.make_actor(settings, cfg, ctx, steps, anchored=not settings.dpo.reference_free)
