"""Stage rl of Safe RLHF: PPO on the scores of a reward model and of a cost model under a limit, by any handler of
`objectives/constraints.py`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import chats, records
from pal_jax.data.packing import pack_examples
from pal_jax.data.passes import shuffled
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.answers import ModelScores, Sampler, as_dialogue, check_finished, make_sampler
from pal_jax.decode.sampler import make_packing, samples_of, samples_to_json
from pal_jax.learners.actor import mean_weights
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, abstract, decoder_specs
from pal_jax.objectives.advantages import ConstrainedEstimator, Discounts
from pal_jax.objectives.handler import Handler, State, updated
from pal_jax.recipes.safe_rlhf import tradeoff
from pal_jax.recipes.safe_rlhf.collect import SFT, records_folder
from pal_jax.recipes.safe_rlhf.prompts import (
    Question,
    QuestionGroups,
    counted_questions,
    make_groups,
    read_questions,
    tell_budget,
)
from pal_jax.recipes.safe_rlhf.settings import AnswerKeys, ConstraintSettings, PtxSettings, RLSettings, groups_shown
from pal_jax.recipes.scorer import cost, reward
from pal_jax.run import files, sharding
from pal_jax.run.ahead import RolloutsAhead, make_rollouts
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.language import ReinforcedRun, RolloutRun
from pal_jax.run.models import Policy, keeping, make_learner, make_policy, trained_policy
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, check_finite, stage_before
from pal_jax.run.settings import StageSettings
from pal_jax.run.summary import SUMMARY
from pal_jax.run.trained import TrainedModel, trained_in
from pal_jax.types import Metrics, RolloutBatch, Sample, TokenBatch

SHOWN = 'reward', 'cost', 'limit', 'prompts_above_limit', 'unsafe_share'  # on the console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(AnswerKeys, RolloutRun):
    """The keys of stage rl."""

    rl: RLSettings = RLSettings()
    constraint: ConstraintSettings = ConstraintSettings()
    ptx: PtxSettings = PtxSettings()
    eval: StageSettings = StageSettings()


@dataclasses.dataclass(frozen=True)
class SafeRLHF:
    """PPO on the scores of a reward model under a limit on those of a cost model: stage rl."""

    plan: Plan
    ctx: Context
    learner: PolicyLearner
    # `load` loads the policy's weights.
    load: Callable[..., Params]
    # The folders of the stages that must be finished.
    before: Sequence[Path]
    # `critics` reads the weights and the head that each critic (reward, cost) starts from.
    critics: Callable[[], Sequence[tuple[Params, Array]]]
    sample: Sampler
    rollouts: RolloutsAhead[list[Sample]]
    # `reward` and `cost` score the answers to questions; a cost is above 0 for what is unsafe.
    reward: ModelScores
    cost: ModelScores
    # The text of tokens, without special ones.
    decode: Callable[[Sequence[int]], str]
    # `pack` makes a batch of samples, which has the `n` samples of a prompt side by side.
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    # Questions to learn from, in shuffled passes; `test` has those of an evaluation.
    train: Sequence[Question]
    test: Sequence[Question]
    groups: QuestionGroups
    # `handler` keeps the limit of each of the `groups`, by the mean of the last `window` costs of the group.
    handler: Handler
    # `estimate` makes advantages of both channels, reward and cost.
    estimate: ConstrainedEstimator
    window: int
    batch_size: int
    n: int
    # The supervised batch of a step; None: there is none. `ptx_coef` times its loss is learnt.
    ptx: Callable[[int], TokenBatch] | None
    ptx_coef: float
    seed: int

    def init(self) -> tuple[PolicyState, Host]:
        for folder in self.before:
            check_finished(folder)
        # Every stage before has finished here, so PPO starts from the weights that they have ended with.
        params, groups = self.load(self.learner.actor.param_shardings), len(self.groups.names)
        host = {'constraint': self.handler.init(groups), 'costs': [[] for _ in range(groups)], 'rollouts': ()}
        return self.learner.init(params, self.critics()), host

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        # 1. Draw prompts. 2. Sample answers of the policy. With `rollout.ahead` those of a later step begin, too.
        samples, rollouts = self.rollouts(host, i, lambda: self.learner.weights(state), self.roll_out)
        questions, (names, limits) = self.drawn(i), self.groups
        group, budgets = np.repeat(self.groups.of(questions), self.n), self.budgets(questions)
        with self.ctx.phase('reward'):
            # 3. Score the answers by the reward model and by the cost model; keep the last costs of each group.
            samples = self.end_early(questions, samples)
            rewards, costs = self.scores(questions, samples)
            counted = self.handler.count(costs, limits[group], self.n)
            paid = self.handler.pay(rewards, costs, np.repeat(budgets, self.n))
            # The policy learns from what is paid and counted; metrics report the models' own scores.
            rows = zip(samples, paid, counted, group.tolist(), strict=True)
            samples = [dataclasses.replace(s, rewards=(float(r), float(c)), role=g) for s, r, c, g in rows]
            past = enumerate(host['costs'])
            kept = [[*costs_of, *counted[group == g].tolist()][-self.window :] for g, costs_of in past]
        # 4. Update the handler by the mean costs: a multiplier moves by how far the mean is above its limit.
        # A group without costs so far is shown as at its limit.
        means = np.array([np.mean(last) if last else limit for last, limit in zip(kept, limits, strict=True)])
        shares = np.bincount(group, minlength=len(names)) / len(group)
        constraint = updated(self.handler, host['constraint'], means, limits, shares > 0)
        weights = self.handler.weigh(constraint, shares)
        with self.ctx.phase('annotate'):
            # 5. Score tokens by policy, reference and critics; estimate advantages of both channels and mix them.
            batch, figures = self.learner.score(state, self.pack(samples))
            batch, estimated = self.learner.advantages(state, batch, self.estimator, weights)
        with self.ctx.phase('update'):
            # 6. Update the policy and both critics.
            key = jax.random.fold_in(jax.random.key(self.seed), i)
            state, moved = self.update(state, batch, key, constraint)
            # 7. Learn supervised answers in a step of their own, so that the policy forgets less.
            state, learnt = self.learn_answers(state, i)
        check_finite(state, 'lower optimizer.lr or raise ppo.kl_coef')
        metrics = self.summarize(questions, samples, rewards, costs) | figures | estimated | moved | learnt
        metrics |= self.groups.apart('multiplier', constraint['lambda']) | self.groups.apart('limit', limits)
        metrics |= self.groups.apart('mean_cost', means) | {'cost_step': float(weights.reward == 0)}
        metrics |= self.rollouts.sampling.age(samples, i)
        return state, {'constraint': constraint, 'costs': kept, 'rollouts': rollouts}, 'rl', metrics

    def drawn(self, i: int) -> list[Question]:
        """The prompts of step `i`."""
        drawn = shuffled(len(self.train), start=i * self.batch_size, size=self.batch_size, seed=self.seed)
        return [self.train[k] for k in drawn]

    def budgets(self, questions: Sequence[Question]) -> np.ndarray:
        """The budget of each prompt of a step, which follows from the limits and no state of the handler."""
        return self.handler.budget(self.groups.limits[self.groups.of(questions)])

    def roll_out(self, i: int) -> list[Sample]:
        """Answers to the prompts of step `i`, by the weights that the decoder has loaded."""
        questions = self.drawn(i)
        return self.sample(None, self.prompt_texts(questions, self.budgets(questions)), self.n, (self.seed, i))

    @functools.cached_property
    def estimator(self) -> ConstrainedEstimator:
        """The estimate of both channels. The reward alone pays the KL where the costs stand by themselves."""
        return dataclasses.replace(self.estimate, kl_of_cost=0.0) if self.handler.costs_apart else self.estimate

    def update(
        self, state: PolicyState, batch: RolloutBatch, key: Array, constraint: State
    ) -> tuple[PolicyState, Metrics]:
        """PPO's update with the handler's loss of a token, and the handler's second update, if it has one."""
        learner, before = self.learner, None
        if self.handler.costs_apart:
            weight = learner.loss_weights(batch)
            costs = learner.advantages(state, batch, self.estimator.of_cost, weight)[0].advantages
            # The excess is of an answer and the costs are of tokens, so it is divided by the tokens of an answer.
            excess = constraint['excess'][0] / float(batch.tokens.acts.sum() / batch.ok.sum())
            batch, before = batch.replace(costs=costs), functools.partial(self.with_costs, excess)
        second, projected = self.handler.second_update(constraint), batch
        if second:
            # Both updates have the KL coefficient of the rollout, which the first one adapts for the next.
            projected, _ = learner.advantages(state, batch, self.estimate, second.weights)
        loss = self.handler.token_loss(learner.ppo.token_loss)
        state, figures = learner.update(state, batch, key, loss=loss, before=before)
        if second:
            # The second update is held near the policy that the first one has made.
            anchored = projected.replace(ref_logprobs=learner.actor.score(state.actor, batch.tokens).logprobs)
            # The critics have learnt from this batch in the first update.
            policy = dataclasses.replace(learner, critics=())
            moved, _ = policy.update(state.replace(critics=()), anchored, key, loss=second.loss)
            state = moved.replace(critics=state.critics, kl_coef=state.kl_coef)
        return state, figures

    def with_costs(self, excess: float, state: PolicyState, batch: RolloutBatch, weight: Array) -> RolloutBatch:
        """A minibatch with the costs that the handler makes. All ratios are 1 where a rollout has one update
        and `old_logprobs` are those of the policy before it."""
        assert batch.costs is not None and batch.logprobs is not None
        ppo = self.learner.ppo
        if ppo.epochs * ppo.minibatches == 1 and ppo.old_logprobs == 'policy':
            ratio = jnp.ones_like(batch.costs)
        else:
            new = self.learner.actor.score(state.actor, batch.tokens).logprobs
            assert new is not None
            ratio = jnp.exp(new - batch.logprobs)
        return batch.replace(costs=self.handler.before(batch.costs, ratio, weight, excess))

    def learn_answers(self, state: PolicyState, i: int) -> tuple[PolicyState, Metrics]:
        """The supervised step, if there is one."""
        if self.ptx is None:
            return state, {}
        batch = self.ptx(i)
        actor, loss, _ = self.learner.actor.imitate_weighted(state.actor, batch, self.ptx_coef * mean_weights(batch))
        # The figure leaves the coefficient out, so that runs with other coefficients compare.
        return state.replace(actor=actor), {'ptx_loss': float(loss) / self.ptx_coef}

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        with self.ctx.phase('evaluate'):
            self.rollouts.sampling.wait()
            texts = self.prompt_texts(self.test, self.groups.limits[self.groups.of(self.test)])
            samples = self.sample(self.learner.weights(state), texts, 1, (self.seed, EVALUATION))
            rewards, costs = self.scores(self.test, samples)
        record = tradeoff.measure(rewards, costs, np.arange(len(texts)), *self.groups.shown(self.test))
        record |= self.summarize(self.test, samples, rewards, costs)
        answers = [sample.completion.text for sample in samples[:3]]
        pays = [{'reward': float(r), 'cost': float(c)} for r, c in zip(rewards, costs, strict=True)]
        shown = zip(texts, answers, pays, strict=False)
        dialogues = [as_dialogue(text, answer, rewards=pay) for text, answer, pay in shown]
        return Evaluation(record, dialogues, [tradeoff.make_groups_exhibit({'policy': record})])

    def scores(self, questions: Sequence[Question], samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Reward and cost of every sample; the samples of a question stand side by side."""
        texts, n = [sample.completion.text.strip() for sample in samples], len(samples) // len(questions)
        replies = [texts[k : k + n] for k in range(0, len(texts), n)]
        prompts = [question.text for question in questions]
        return self.reward(prompts, replies).ravel(), self.cost(prompts, replies).ravel()

    def prompt_texts(self, questions: Sequence[Question], budgets: np.ndarray) -> list[str]:
        """The texts that the policy reads: the questions, followed by their budgets where the handler tells them."""
        if self.handler.tells_budget:
            return [tell_budget(question.text, budget) for question, budget in zip(questions, budgets, strict=True)]
        return [question.text for question in questions]

    def end_early(self, questions: Sequence[Question], samples: list[Sample]) -> list[Sample]:
        """The samples, up to the first sentence at which their cost is above the limit where the handler cuts them."""
        if not self.handler.cuts_answers:
            return samples
        limits = np.repeat(self.groups.limits[self.groups.of(questions)], self.n)
        ends = [(k, end) for k, s in enumerate(samples) for end in sentences(s.completion.token_ids, self.decode)]
        texts = [self.decode(samples[k].completion.token_ids[:end]).strip() for k, end in ends]
        prompts = [questions[k // self.n].text for k, _ in ends]
        costs = self.cost(prompts, [[text] for text in texts])[:, 0] if ends else []
        cuts: dict[int, Sample] = {}
        for (k, end), text, paid in zip(ends, texts, costs, strict=True):
            if paid > limits[k]:
                # The ends of an answer come in order, so the first one above the limit stays.
                cuts.setdefault(k, cut(samples[k], end, text))
        return [cuts.get(k, sample) for k, sample in enumerate(samples)]

    def summarize(
        self, questions: Sequence[Question], samples: Sequence[Sample], rewards: np.ndarray, costs: np.ndarray
    ) -> Metrics:
        """Means over samples, and the share of prompts whose mean cost is above their limit."""
        limits, n = self.groups.limits[self.groups.of(questions)], len(samples) // len(questions)
        lengths = [len(sample.completion.token_ids) for sample in samples]
        return {
            'reward': float(rewards.mean()),
            'reward_std': float(rewards.std()),
            'cost': float(costs.mean()),
            'prompts_above_limit': float(np.mean(costs.reshape(-1, n).mean(axis=1) > limits)),
            'samples': float(len(samples)),
            'length': float(np.mean(lengths)),
            'truncated': float(np.mean([sample.completion.finish_reason == 'length' for sample in samples])),
        }


def make(settings: Settings, ctx: Context) -> SafeRLHF:
    """The recipe of the stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    policy, rl, seed = make_policy(settings.policy, ctx, settings.seed), settings.rl, settings.seed
    learner, n, steps = make_policy_learner(settings, policy.cfg, ctx), rl.n_samples_per_prompt, settings.total_steps
    judges = [Path(named.removeprefix('orbax:')) for named in (rl.reward, rl.cost)]
    check_limits(settings.constraint, judges[1])
    opens = reward.open_scores, cost.open_scores
    scores = [ModelScores(folder, ctx, opened) for folder, opened in zip(judges, opens, strict=True)]
    train, test = read_questions(settings.prompts, seed, policy.tokenizer)
    ctx.log(counted_questions(settings.prompts, len(train), len(test)))
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    trained, keep = trained_policy(settings.policy, policy, learner), keeping(policy=policy)
    # One decoder samples the answers of a step and those of an evaluation, so it is as large as both need.
    at_once = max(rl.rollout_batch_size * n, len(test))
    lockstep = settings.rollout.lockstep
    sample = make_sampler(settings.decode, settings.sampling, policy, ctx, at_once, lockstep=lockstep)
    rollouts = make_rollouts(settings, ctx, steps, sample.decoder, samples_to_json, samples_of)
    return SafeRLHF(
        Plan(
            steps, learner.abstract, stage, trained, (*SHOWN, *groups_shown(settings.constraint)),
            pack=rollouts.pack, resume=rollouts.resume, keep=keep, close=rollouts.close,
        ),
        ctx, learner, policy.source.load, [folder for folder in judges if folder.parent == ctx.workdir.parent],
        critics=functools.partial(read_critics, judges, policy, ctx) if settings.ppo.has_critic else tuple,
        sample=sample, rollouts=rollouts,
        reward=scores[0], cost=scores[1], decode=policy.tokenizer.text_of,
        pack=make_packing(settings, ctx.mesh, n), train=train, test=test,
        groups=make_groups(settings.constraint.limit, settings.constraint.by_group),
        handler=settings.constraint.chosen,
        estimate=estimate_of(settings),
        window=settings.constraint.window, batch_size=rl.rollout_batch_size, n=n,
        ptx=make_ptx(settings, policy.tokenizer, ctx), ptx_coef=settings.ptx.coef, seed=seed,
    )  # fmt: skip


def check_limits(constraint: ConstraintSettings, folder: Path) -> str:
    """The limits that the cost model in this folder leaves, by its held-out answers, as a line; '' without these.

    Raises:
      ValueError: a limit is below all costs, so that no policy meets it.
    """
    summary = folder / SUMMARY
    # Without an evaluation no lowest cost is known.
    final = files.read_object(summary)['evaluations'].get('final', {}) if summary.exists() else {}
    if not constraint.chosen.reads_limit or 'cost_least' not in final:
        return ''
    least, safe, unsafe = (final.get(key, np.nan) for key in ('cost_least', 'cost_safe', 'cost_unsafe'))
    possible = f'above {least:.2f}; the mean cost is {safe:.2f} of safe answers and {unsafe:.2f} of unsafe ones'
    for name, limit in {'limit': constraint.limit, **constraint.by_group}.items():
        if limit < least:
            raise ValueError(
                f'constraint: {name}={limit} is below the lowest cost of a held-out answer by {folder}, so no policy '
                f'meets it; give one {possible}'
            )
    return f'constraint.limit={constraint.limit:g} of limits {possible} (held-out answers by {folder})'


def estimate_of(settings: ReinforcedRun) -> ConstrainedEstimator:
    """The advantages of both channels. Raises ValueError where the estimator does not keep their scales."""
    ppo = settings.ppo
    return ConstrainedEstimator(ppo.estimator, Discounts(ppo.gamma, ppo.lam, ppo.reward_clip))


def make_policy_learner(settings: Settings, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """PPO with a critic of the reward and one of the cost, if its estimator has critics."""
    learner = make_learner(settings, cfg, ctx, n=settings.rl.n_samples_per_prompt)
    # An estimator without critics has an empty tuple here, which stays empty.
    return dataclasses.replace(learner, critics=learner.critics * 2)


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of the run that is planned, see `run/planned.py`."""
    rl = settings.rl
    return sampling(settings, make_policy_learner, rl.rollout_batch_size, rl.n_samples_per_prompt, prompt)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The policy of PPO."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_policy(settings.policy, policy, make_policy_learner(settings, policy.cfg, ctx))


def read_critics(folders: Sequence[Path], policy: Policy, ctx: Context) -> list[tuple[Params, Array]]:
    """The weights and heads of the models in these folders, from which critics start.

    Raises:
      ValueError: a model has another shape than the policy, whose tokens its critic reads.
    """
    starts = []
    for folder in folders:
        trained = trained_in(str(folder), ctx)
        # Shapes are compared before the weights are read, which takes longer.
        if abstract(decoder_specs(trained.model)) != abstract(decoder_specs(policy.cfg)):
            raise ValueError(f'{folder} has another model than policy.source, whose tokens its critic reads')
        state, *_ = Checkpoints(folder, trained.exported, read_only=True).read()
        export = trained.exports(state)['export']
        assert export.head is not None
        starts.append((export.params, export.head))
    return starts


def make_ptx(settings: Settings, tokenizer: Tokenizer, ctx: Context) -> Callable[[int], TokenBatch] | None:
    """The supervised batch of a step: answers that the start policy has learnt; None without `ptx.coef`."""
    if not settings.ptx.coef:
        return None
    path = records_folder(ctx.workdir.parent, 1) / f'{SFT}.jsonl'
    examples = records.read_all(path, functools.partial(chats.to_imitate, tokenizer=tokenizer))
    ways = sharding.batch_ways(ctx.mesh)

    def batch(i: int) -> TokenBatch:
        packed = pack_examples(
            examples, groups=settings.ptx.batch_size, n=1, i=i, seed=settings.seed, ways=ways,
            row_tokens=settings.ppo.row_tokens,
        )  # fmt: skip
        return sharding.put_batch(packed, ctx.mesh)

    return batch


def sentences(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The numbers of tokens after which a sentence ends and words follow, a whole sentence or not."""
    marks = [any(mark in decode([token]) for mark in '.!?') for token in tokens]
    ends = [k for k in range(1, len(tokens)) if marks[k - 1] and not marks[k]]
    return [k for k in ends if any(sign.isalnum() for sign in decode(tokens[k:]))]


def cut(sample: Sample, end: int, text: str) -> Sample:
    """A sample of its first `end` tokens, which say `text`."""
    whole = sample.completion
    kept = dataclasses.replace(
        whole,
        text=text,
        token_ids=whole.token_ids[:end],
        logprobs=whole.logprobs[:end],
        policy_logprobs=whole.policy_logprobs[:end],
        versions=whole.versions[:end],
    )
    return dataclasses.replace(sample, completion=kept)
