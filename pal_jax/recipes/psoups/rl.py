"""Stages rlhf, morl and policy of Personalized Soups: PPO on the general reward, on the mean over the preferences of a
prompt by the joint reward model, and on one preference, which makes a policy for each (arXiv 2310.11564)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from pal_jax.data import holdouts
from pal_jax.data.passes import shuffled
from pal_jax.decode.answers import ModelScores, Sampler, as_dialogue, check_finished, make_sampler
from pal_jax.decode.sampler import make_packing, samples_of, samples_to_json
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.params import Params
from pal_jax.recipes.personal.pal import scores as pal_scores
from pal_jax.recipes.psoups.judges import ReplyScorer, Score
from pal_jax.recipes.psoups.moments import Moments, add_scores, standardised
from pal_jax.recipes.psoups.preferences import GENERAL, JOINT, Preference, combinations
from pal_jax.recipes.psoups.prompts import PreferencePrompt, Prompt, everyone, read_preferences, read_prompts
from pal_jax.recipes.psoups.settings import PromptedKeys, RLHFSettings
from pal_jax.recipes.scorer import reward
from pal_jax.run.ahead import RolloutsAhead, make_rollouts
from pal_jax.run.forecast import counted
from pal_jax.run.language import RolloutRun
from pal_jax.run.models import improve, keeping, make_learner, make_policy, trained_policy
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import (
    EVALUATION,
    Context,
    Evaluation,
    Host,
    Plan,
    stage_before,
)
from pal_jax.run.settings import StageSettings
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics, RolloutBatch, Sample

PHASES = {GENERAL: 'rlhf', JOINT: 'morl'}  # the stages of what is no pole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PromptedKeys, RolloutRun):
    """The keys of stages rlhf, morl and policy."""

    preference: str  # general (rlhf), joint (morl), or the pole of a policy
    rl: RLHFSettings = RLHFSettings()
    eval: StageSettings = StageSettings(base=False)


@dataclasses.dataclass(frozen=True)
class RLPHF:
    """PPO of the base policy's adapters by a reward model: stages rlhf, morl and policy."""

    plan: Plan
    ctx: Context
    stage: str
    learner: PolicyLearner
    # `load` loads the base's weights.
    load: Callable[..., Params]
    sample: Sampler
    rollouts: RolloutsAhead[list[Sample]]
    score: Score
    # The folder of the reward model's stage, which must be finished; None: `score` needs no stage.
    judge: Path | None
    # `pack` makes a batch of samples, which has the `n` samples of a prompt side by side.
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    # Prompts to learn from, in shuffled passes of which step 0 begins at entry `first`.
    train: Sequence[Prompt]
    # The prompts of an evaluation.
    test: Sequence[Prompt]
    # The preferences of prompts, in turn.
    wanted: Sequence[tuple[Preference, ...]]
    # The number of prompts of a step.
    batch_size: int
    n: int
    first: int = 0
    # `scale_scores` says whether rewards are scores less their mean, over their deviation, of all steps so far.
    scale_scores: bool = False
    seed: int = 0

    def init(self) -> tuple[PolicyState, Host]:
        if self.judge:
            check_finished(self.judge)
        policy = self.learner.init(self.load(self.learner.actor.param_shardings))
        return policy, {'moments': list(Moments()), 'rollouts': ()}

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        # 1. Draw prompts, each with the preferences that the policy is told. 2. Sample answers of the policy. With
        # `rollout.ahead` those of a later step begin, too.
        samples, rollouts = self.rollouts(host, i, lambda: self.learner.weights(state), self.roll_out)
        questions = self.draw(i)
        with self.ctx.phase('reward'):
            # 3. Score question and whole answer by the reward model; put the scores on one scale.
            scores = self.scores(questions, samples)
            moments = add_scores(Moments(*host['moments']), scores)
            rewards = standardised(moments, scores) if self.scale_scores else scores
            samples = [dataclasses.replace(s, rewards=(float(r),)) for s, r in zip(samples, rewards, strict=True)]
        # 4. Estimate advantages, and update policy and critic in epochs of minibatches.
        key = jax.random.fold_in(jax.random.key(self.seed), i)
        state, updated = improve(self.learner, self.ctx, state, self.pack(samples), key)
        metrics = summarize(samples, scores) | self.rollouts.sampling.age(samples, i)
        return state, {'moments': list(moments), 'rollouts': rollouts}, self.stage, metrics | updated

    def roll_out(self, i: int) -> list[Sample]:
        """Answers to the prompts of step `i`, by the weights that the decoder has loaded."""
        return self.sample(None, [question.text for question in self.draw(i)], self.n, (self.seed, i))

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        questions = self.ask(self.test, 0)
        with self.ctx.phase('evaluate'):
            self.rollouts.sampling.wait()
            texts = [question.text for question in questions]
            samples = self.sample(self.learner.weights(state), texts, 1, (self.seed, EVALUATION))
            scores = self.scores(questions, samples)
        answers = [sample.completion.text for sample in samples]
        record = summarize(samples, scores)
        for preference in self.wanted[0] if len(self.wanted) == 1 else ():
            if rule := preference.rule:
                # A pole's rule shows, beside the reward model, whether the policy does what the pole says.
                met = [rule.score(prompt.question, text) for prompt, text in zip(self.test, answers, strict=True)]
                record[f'rule_{preference.id}'] = float(np.mean(met))
        dialogues = [as_dialogue(text, answer) for text, answer in zip(texts[:3], answers[:3], strict=True)]
        return Evaluation(record, dialogues)

    def draw(self, i: int) -> list[PreferencePrompt]:
        """The prompts of step `i`, each with its preferences."""
        start = i * self.batch_size
        drawn = shuffled(len(self.train), start=self.first + start, size=self.batch_size, seed=self.seed)
        return self.ask([self.train[k] for k in drawn], start)

    def ask(self, prompts: Sequence[Prompt], start: int) -> list[PreferencePrompt]:
        """Prompts with their preferences in turn; the first of them is prompt `start` of the stage."""
        return [
            PreferencePrompt(prompt, self.wanted[(start + k) % len(self.wanted)]) for k, prompt in enumerate(prompts)
        ]

    def scores(self, questions: Sequence[PreferencePrompt], samples: Sequence[Sample]) -> np.ndarray:
        """The reward of every sample; the samples of a prompt stand side by side."""
        texts, n = [sample.completion.text.strip() for sample in samples], len(samples) // len(questions)
        replies = [texts[k : k + n] for k in range(0, len(texts), n)]
        return paid(self.score([question.readings for question in questions], replies).ravel(), texts)


def make(settings: Settings, ctx: Context) -> RLPHF:
    """The recipe of the stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    policy, rl, seed = make_policy(settings.policy, ctx, settings.seed), settings.rl, settings.seed
    n, steps, evaluated = rl.n_samples_per_prompt, settings.total_steps, settings.eval
    learner = make_learner(settings, policy.cfg, ctx, n=n)
    judge = None if rl.reward else ctx.workdir.parent / f'reward-{settings.preference}'
    train, test = (read_prompts(settings, split, policy.tokenizer) for split in ('train', 'test'))
    # Each of these stages is evaluated on the first of the test prompts.
    fewer = holdouts.fewer('rl.test_count', rl.test_count, len(test), 'prompts.test has no more')
    ctx.log(f'{counted(len(train), "prompt")} to learn from, {min(len(test), rl.test_count)} to test on{fewer}')
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=evaluated.every, base=evaluated.base)
    trained, keep = trained_policy(settings.policy, policy, learner), keeping(policy=policy)
    scores = ModelScores(judge, ctx, reward.open_scores) if judge else None
    score = ReplyScorer(scores) if scores else pal_scores.make_score(rl.reward, rl.person)
    sample = make_sampler(
        settings.decode, settings.sampling, policy, ctx, at_once=max(rl.rollout_batch_size * n, rl.test_count),
        lockstep=settings.rollout.lockstep,
    )  # fmt: skip
    rollouts = make_rollouts(settings, ctx, steps, sample.decoder, samples_to_json, samples_of)
    return RLPHF(
        Plan(
            steps, learner.abstract, stage, trained, ('reward', 'words'),
            pack=rollouts.pack, resume=rollouts.resume, keep=keep, close=rollouts.close,
        ),
        ctx, PHASES.get(settings.preference, 'policy'),
        learner, policy.source.load,
        sample=sample, rollouts=rollouts, score=score,
        judge=judge, pack=make_packing(settings, ctx.mesh, n),
        train=train, test=test[: rl.test_count], wanted=who_wants_what(settings),
        batch_size=rl.rollout_batch_size, n=n, scale_scores=rl.scale_scores, seed=seed,
        # The prompts come in orders that no reward model's prompts were drawn by.
        first=len(everyone(settings)) * len(train),
    )  # fmt: skip


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of the run that is planned, see `run/planned.py`."""
    n = settings.rl.n_samples_per_prompt
    return sampling(settings, functools.partial(make_learner, n=n), settings.rl.rollout_batch_size, n, prompt)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The policy that PPO trains."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    learner = make_learner(settings, policy.cfg, ctx, n=settings.rl.n_samples_per_prompt)
    return trained_policy(settings.policy, policy, learner)


def who_wants_what(settings: Settings) -> list[tuple[Preference, ...]]:
    """The preferences of a stage's prompts, in turn."""
    poles = read_preferences(settings)
    if settings.preference == JOINT:
        return combinations(poles)
    return [()] if settings.preference == GENERAL else [tuple(p for p in poles if p.id == settings.preference)]


def paid(scores: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The scores, where an answer without text gets the least of them."""
    # Reward models have learnt from no such answer, and judges let it lose against any other.
    return np.where([not text.strip() for text in texts], scores.min(), scores)


def summarize(samples: Sequence[Sample], scores: np.ndarray) -> Metrics:
    """Means over the samples of a step; `reward` before any scaling."""
    completions = [sample.completion for sample in samples]
    return {
        'reward': float(scores.mean()),
        'reward_std': float(scores.std()),
        'samples': float(len(samples)),
        'length': float(np.mean([len(completion.token_ids) for completion in completions])),
        'words': float(np.mean([len(completion.text.split()) for completion in completions])),
        'truncated': float(np.mean([completion.finish_reason == 'length' for completion in completions])),
    }
