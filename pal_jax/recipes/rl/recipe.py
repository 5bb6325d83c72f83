"""Reinforcement learning on prompts and rewards of your own: GRPO (arXiv 2402.03300), RLOO, REINFORCE or PPO.

A step samples `n` answers to each of some prompts, pays them, makes advantages of the rewards by `ppo.estimator`, and
descends PPO's loss. With a game of your own the policy plays whole games, `n` from each start, in place of answers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pal_jax.data import holdouts
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.judges.sharing import share_reward
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.params import Params
from pal_jax.recipes.rl.prompts import PromptRow, Prompts, read_prompts
from pal_jax.recipes.rl.rewards import make_rewards
from pal_jax.recipes.rl.settings import EMBEDDED, PromptSettings, RewardSources, Settings
from pal_jax.recipes.rl.sources import Groups, PaidAnswers, PaidGames, flat, groups_of, groups_to_json, open_game
from pal_jax.run import intervals
from pal_jax.run.ahead import RolloutsAhead, check_ahead, make_rollouts
from pal_jax.run.forecast import counted
from pal_jax.run.models import Policy, improve, keeping, make_learner, make_policy, trained_policy
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, check_at_least, check_divides, stage_before
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics, RolloutBatch, Sample, Sampling

MAY_CHANGE = 'reward.max_failed', 'rl.shown'  # keys that may change when a run goes on
SHORT = 12  # tokens of an answer to a sum


@dataclasses.dataclass(frozen=True)
class RL:
    """PPO's update on the samples of a source."""

    plan: Plan
    ctx: Context
    learner: PolicyLearner
    # `load` reads the weights before training.
    load: Callable[..., Params]
    decoder: Decoder
    # `sample` samples prompts with the weights that `decoder` has loaded, see `sources.Sampler`.
    sample: Callable[[Sequence[PromptRow], int, Sequence[int]], list[Sample]]
    source: PaidAnswers | PaidGames
    rollouts: RolloutsAhead[Groups]
    # `pack` makes a batch of samples.
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    # The judges among language models.
    models: ChatModels
    # A run stops above this share of samples without a reward.
    max_failed: float
    # `shown` samples of a step that a report keeps.
    shown: int
    seed: int

    def init(self) -> tuple[PolicyState, Host]:
        return self.learner.init(self.load(self.learner.actor.param_shardings)), {'rollouts': ()}

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        # 1. Draw prompts and sample n answers to each; or play n games from each of some starts. 2. Pay every sample.
        # With `rollout.ahead` those of a later step begin, too.
        sample = functools.partial(self.source.train, self.sample)
        groups, rollouts = self.rollouts(host, i, lambda: self.learner.weights(state), sample, self.source.pay)
        self.check_paid(groups)
        metrics = summarize(groups) | self.rollouts.sampling.age(flat(groups), i)
        self.ctx.show(map(describe, flat(groups)[: self.shown]))
        # 3. Make advantages of the rewards, and update actor and critic in epochs of minibatches.
        batch, key = self.pack(self.source.credit(groups, i)), jax.random.fold_in(jax.random.key(self.seed), i)
        state, updated = improve(self.learner, self.ctx, state, batch, key, estimate=self.source.estimate)
        usage = self.models.usage
        return state, {'rollouts': rollouts, 'usage': usage}, 'rl', metrics | updated | usage

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        with self.ctx.phase('evaluate'):
            self.rollouts.sampling.wait()
            self.decoder.load(self.learner.weights(state))
            groups = self.source.pay(self.source.test(self.sample), EVALUATION)
            self.decoder.release()
        self.check_paid(groups)
        # Prompts, and games, are independent; the moves of a game are not.
        paid = [np.mean([sample.reward for sample in group]) for group in groups if all(s.ok for s in group)]
        record = summarize(groups) | intervals.mean(np.array(paid)).named('reward') | {'prompts': len(groups)}
        return Evaluation(record | self.models.usage, [describe(group[-1]) for group in groups[:3]])

    def check_paid(self, groups: Groups) -> None:
        """Raises RuntimeError where too many samples have no reward."""
        samples = flat(groups)
        failed = [sample for sample in samples if not sample.ok]
        silent = [text for name, text in self.source.payers.items() if any(name not in s.info for s in failed)]
        served = any(text.startswith('reward.judge=') for text in silent)
        why = self.models.last_error if served else 'None was returned'
        whom = ' and '.join(silent) or 'reward'
        check_failed(len(failed), len(samples), 'samples got no reward', whom, self.max_failed, why, served=served)


def summarize(groups: Groups) -> Metrics:
    """Means over the samples of a step, those of rewards over the samples that have one."""
    samples = flat(groups)
    paid = [sample for sample in samples if sample.ok]
    lengths = [len(sample.completion.token_ids) for sample in samples]
    metrics = {
        'samples': float(len(paid)),
        'failed': float(len(samples) - len(paid)),
        'length': float(np.mean(lengths)),
        'truncated': float(np.mean([sample.completion.finish_reason == 'length' for sample in samples])),
    }
    # A group of one sample is always alike.
    if any(len(group) > 1 for group in groups):
        metrics['alike'] = float(np.mean([len({sample.reward for sample in group}) == 1 for group in groups]))
    if paid:
        rewards = [sample.reward for sample in paid]
        metrics |= {'reward': float(np.mean(rewards)), 'reward_std': float(np.std(rewards))}
        metrics |= {name: float(np.mean([sample.info[name] for sample in paid])) for name in paid[0].info}
    return metrics


def describe(sample: Sample) -> Mapping[str, Any]:
    """A sample as a report shows it: what the policy read, what it answered, and what it was paid."""
    scores = {'reward': sample.reward, **sample.info}
    answer = {'role': 'assistant', 'content': sample.completion.text, 'rewards': scores}
    turns = [*sample.source.chat, answer]
    return {'person': f'prompt {sample.group + 1}', 'facts': [], 'judged': sample.ok, 'scores': scores, 'turns': turns}


def make(settings: Settings, ctx: Context) -> RL:
    """Check the config, read prompts and rewards and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value, a file or a row of it is wrong.
      RuntimeError: a model cannot be had.
    """
    check_ahead(settings.rollout, settings.decode)
    check_at_least(settings, 1, 'total_steps', 'rl.rollout_batch_size', 'rl.n_samples_per_prompt', 'prompts.test_count')
    if settings.ppo.compares and not settings.sampling.temperature:
        raise ValueError(
            f'sampling.temperature=0 makes all answers to a prompt alike, and ppo.estimator={settings.ppo.estimator!r} '
            'learns from their differences; raise it, such as to 1'
        )
    policy = make_policy(settings.policy, ctx, settings.seed)
    models = ChatModels(settings.endpoints, settings.answers, settings.seed)
    source = make_games(settings, policy) if settings.rl.game else make_answers(settings, policy, models, ctx)
    learner, steps, evaluated = make_rl_learner(settings, policy.cfg, ctx), settings.total_steps, settings.eval
    decoder = sampler.make_decoder(settings.decode, policy, ctx, lockstep=settings.rollout.lockstep)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=evaluated.every, base=evaluated.base)
    trained = trained_policy(settings.policy, policy, learner)

    # A scorer computes on this machine's devices.
    judged = not (models.here or settings.reward.scorer)
    rollouts = make_rollouts(settings, ctx, steps, decoder, groups_to_json, groups_of, judged=judged, models=models)
    plan = Plan(
        steps, learner.abstract, stage, trained, pack=rollouts.pack, resume=rollouts.resume,
        keep=keeping(policy=policy), close=rollouts.close,
    )  # fmt: skip
    return RL(
        plan=plan,
        ctx=ctx,
        learner=learner,
        load=policy.source.load,
        decoder=decoder,
        sample=functools.partial(sample, decoder, policy, settings.sampling),
        source=source,
        rollouts=rollouts,
        pack=sampler.make_packing(settings, ctx.mesh, source.packed),
        models=models,
        max_failed=settings.reward.max_failed,
        shown=settings.rl.shown,
        seed=settings.seed,
    )


def make_answers(settings: Settings, policy: Policy, models: ChatModels, ctx: Context) -> PaidAnswers:
    """The source of samples where there is no game. Raises ValueError as `read_prompts` and `make_rewards`."""
    prompts = read_prompts(settings.prompts, policy.tokenizer, settings.seed)
    rows = f'{counted(len(prompts.train), "prompt")} to learn from, {counted(len(prompts.test), "other")} to test on'
    if prompts.left_out:
        rows += f'; {counted(prompts.left_out, "row")} left out, longer than prompts.max_length'
    ctx.log(rows + fewer_tests(settings.prompts, prompts))
    if settings.prompts.train != EMBEDDED and settings.sampling.max_tokens <= SHORT:
        ctx.log(
            f'warning: answers end after sampling.max_tokens={settings.sampling.max_tokens} tokens, which is enough '
            'for the sums of the default prompts; for longer answers give more, as --config.sampling.max_tokens=256'
        )
    # A function may compare the answers of a step, so one process calls it for all of them.
    reward = make_rewards(settings, prompts, models)
    shared = share_reward(reward, sampler.make_shares(settings.decode), together=True)
    rl = settings.rl
    # A row of a minibatch is a prompt with all its answers.
    check_divides(settings, 'rl.rollout_batch_size', 'ppo.minibatches')
    return PaidAnswers(
        prompts, shared, rl.rollout_batch_size, rl.n_samples_per_prompt, settings.seed, settings.reward.shuffled,
        reward.payers,
    )  # fmt: skip


def fewer_tests(settings: PromptSettings, prompts: Prompts) -> str:
    """A warning where fewer prompts are tested than a config asks for; '' else."""
    count, kept = settings.test_count, len(prompts.test)
    if settings.test:
        return holdouts.fewer('prompts.test_count', count, kept, f'{settings.test} has no more that fit')
    if count == PromptSettings().test_count:
        return ''
    why = (
        f'{kept} of your {counted(kept + len(prompts.train), "prompt")} {"is" if kept == 1 else "are"} kept for '
        'testing, at most a fifth; more prompts, or prompts.test=FILE, give more'
    )
    return holdouts.fewer('prompts.test_count', count, kept, why)


def make_games(settings: Settings, policy: Policy) -> PaidGames:
    """The source of samples of a game.

    Raises:
      ValueError: the game cannot be had, or another setting contradicts it.
    """
    if settings.reward != RewardSources():
        raise ValueError(f'rl.game={settings.rl.game!r} pays its roles itself; leave out the keys of reward')
    if settings.ppo.has_critic:
        raise ValueError("rl.game has no critic, and ppo.estimator='gae' needs one; set ppo.estimator='group_norm'")
    rl, prompts, default = settings.rl, settings.prompts, PromptSettings()
    changed = [key for key in ('train', 'test', 'key') if getattr(prompts, key) != getattr(default, key)]
    if unused := [f'prompts.{key}' for key in changed]:
        raise ValueError(f'rl.game={rl.game!r} writes its prompts itself; leave out {", ".join(unused)}')
    return PaidGames(
        open_game(rl.game), policy.tokenizer.chat, prompts.max_length, settings.ppo, rl.rollout_batch_size,
        rl.n_samples_per_prompt, prompts.test_count, settings.seed, rl.game,
    )  # fmt: skip


def sample(
    decoder: Decoder, policy: Policy, sampling: Sampling, prompts: Sequence[PromptRow], n: int, seed: Sequence[int]
) -> list[Sample]:
    """`n` samples of each prompt, side by side, with the weights that the decoder has loaded."""
    ids = [prompt.ids for prompt in prompts]
    return sampler.sample(decoder, policy.tokenizer, ids, [sampling] * n, seed, sources=prompts)


def make_rl_learner(settings: Settings, cfg: Any, ctx: Context) -> PolicyLearner:
    """The PPO learner of the settings."""
    return make_learner(settings, cfg, ctx, n=settings.rl.n_samples_per_prompt)


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of the run that is planned, see `run/planned.py`."""
    rl = settings.rl
    return sampling(settings, make_rl_learner, rl.rollout_batch_size, rl.n_samples_per_prompt, prompt)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its prompts and rewards, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_policy(settings.policy, policy, make_rl_learner(settings, policy.cfg, ctx))
