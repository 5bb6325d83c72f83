"""RLPA (arXiv 2505.15456): a policy learns its user's profile while it talks with the user.

A step answers the open conversations at the head of a queue with `n` samples each. It rewards every sample for the
profile it infers and for its reply, lets the best sample of each conversation go on to the user, and makes PPO's update
on all of them. A turn is one PPO sequence. The reward of a turn does not reach earlier turns, as in the published code.
With `turn_gamma` it does, as in the paper's decision process: a step then holds whole conversations with all their
turns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from pal_jax.data import holdouts
from pal_jax.data.packing import round_up
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.games.game import Group
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.recipes.rlpa.dialogue import (
    Conversation,
    DialogueGame,
    converse,
    down_sampled,
    first_alike,
    learnt_once,
    with_returns,
)
from pal_jax.recipes.rlpa.frozen import reads_in_training
from pal_jax.recipes.rlpa.queue import (
    answer,
    answered_of,
    answered_to_json,
    best_replies,
    from_json,
    join,
    open_queue,
    pop,
    to_json,
)
from pal_jax.recipes.rlpa.rollouts import Turns, describe_sample, spread, summarize, turns_of, turns_to_json
from pal_jax.recipes.rlpa.settings import DialogueEvaluationSettings, Dialogues
from pal_jax.recipes.rlpa.turns import Sampler, WarmupSettings, make_demonstration_batches, make_turn_sampler
from pal_jax.recipes.rlpa.users import CountingUser
from pal_jax.recipes.rlpa.world import World, check_openings, make_world
from pal_jax.run import models, sharding
from pal_jax.run.ahead import Ahead, check_ahead, make_lines
from pal_jax.run.files import write_whole
from pal_jax.run.models import SYSTEM, Policy, keeping, make_policy, trained_policy
from pal_jax.run.optim import Optimizer
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import (
    EVALUATION,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    check_at_least,
    check_divides,
    check_finite,
    stage_before,
)
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Dialogue, Metrics, RolloutBatch, Sample, TokenBatch, UserSimulator

# The console shows these figures; `strict`: a reply meets all five criteria.
SHOWN = 'reward', 'format', 'profile', 'strict'
# Keys that may change when a run goes on.
MAY_CHANGE = 'eval.rounds', 'eval.profiles', 'eval.shown', 'eval.restraint', 'dialogue.shown', 'reward.max_failed'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Dialogues):
    """The keys of a run of RLPA; those of every run in dialogues are in `recipes/rlpa/settings.py`.

    `total_steps` counts PPO's steps; the steps of the warm-up come before them.
    """

    warmup: WarmupSettings


@dataclasses.dataclass(frozen=True)
class RLPA:
    """PPO on the turns of open conversations, each of which goes on with the best of its samples.

    load: reads the weights before training.
    sample_turns: samples the next turn of dialogues with the weights that `decoder` has loaded.
    supervised: the batch of demonstrations of a step.
    pack: samples of a step, those of a prompt together, as the batch of an update.
    game: the dialogue, of `game.rounds` turns.
    dialogues, n: different prompts of a step, and samples of each.
    learnt: the number of samples of a conversation that are learnt.
    sampling, rollouts, replies: the work of samples, of their judges and of users that is done beside updates.
    share_alike: conversations that read the same get the same samples.
    round_batch_size: the number of best replies that are collected before their users answer (`recipes/rlpa/queue.py`).
    shuffle: the seed of the order of people; None: the order of the data.
    turn_gamma: the discount from turn to turn; 0: a step plays one turn of each conversation.
    min_std: PPO makes no update in a step whose rewards have a smaller standard deviation; 0: it always does.
    warmup: supervised steps before PPO. ptx: minibatches learn demonstrations too. shown: a step's samples in a report.
    test_rounds, test_shown: turns of a dialogue in evaluations, and how many dialogues a report shows.
    """

    plan: Plan
    ctx: Context
    world: World
    learner: PolicyLearner
    load: Callable[..., Params]
    decoder: Decoder
    sample_turns: Sampler
    supervised: Callable[[int], TokenBatch]
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    game: DialogueGame
    sampling: Ahead
    rollouts: Ahead
    replies: Ahead
    dialogues: int
    n: int
    learnt: int
    share_alike: bool
    round_batch_size: int
    shuffle: int | None
    turn_gamma: float
    min_std: float
    warmup: int
    ptx: bool
    seed: int
    shown: int
    test_rounds: int
    test_shown: int

    def init(self) -> tuple[PolicyState, Host]:
        queue = open_queue(self.world.train, shuffle=self.shuffle)
        state = self.learner.init(self.load(self.learner.actor.param_shardings))
        return state, {'queue': queue, 'rollouts': (), 'replies': ()}

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        # Small models do not write the format by themselves. So `warmup` steps of supervised learning come first, on
        # made-up people who share no topic and no value with those of the training.
        if i < self.warmup:
            state, metrics = self.imitate(state, i)
            return state, host, 'warm-up', metrics
        user, world = CountingUser(self.world.user), self.world
        queue, rollouts, replies = host['queue'], host['rollouts'], host['replies']
        with self.ctx.phase('rollout'):
            # With `rollout.ahead` the steps that are due are later ones, and in the end there are none.
            due_steps = self.rollouts.due(i, rollouts, self.plan.total_steps)
            if due_steps:
                self.sampling.refresh(self.decoder.load, self.learner.weights(state), i)
            for due in due_steps:
                # 1. Take open conversations from the queue.
                open_dialogues, queue = pop(
                    queue, self.dialogues, people=world.train, user=user, seed=due, shuffle=self.shuffle,
                    share_alike=self.share_alike,
                )  # fmt: skip
                # 2. Sample n answers to each and reward every answer.
                rollouts = self.rollouts.begin(rollouts, self.roll_out(open_dialogues, user, due))
            turns, rollouts = self.rollouts.take(rollouts)
            if not self.sampling.apart:
                self.decoder.release()
            # 3. The user replies to the best answer of each conversation, which queues up unless its rounds are over.
            asked, queue = best_replies(
                queue, turns[-1], max_rounds=self.game.rounds, round_batch_size=self.round_batch_size
            )
            replies = self.replies.begin(replies, functools.partial(answer, asked, world.user, i))
            if len(replies) > self.replies.steps:
                answered, replies = self.replies.take(replies)
                user.count(answered)
                queue = join(queue, answered, at_front=self.round_batch_size >= 0)
        samples = [sample for groups in turns for group in groups for sample in group]
        metrics = summarize(samples) | {'silent': float(user.silent)} | self.sampling.age(samples, i)
        self.ctx.show(map(describe_sample, spread(samples, self.shown)))
        with self.ctx.phase('annotate'):
            # 4. Log-probabilities and values of all answers, and from them and the rewards their advantages.
            batch, scored = self.learner.score(state, self.pack(self.chosen(turns)))
            batch, estimated = self.learner.advantages(state, batch, world.estimate)
        metrics |= scored | estimated | {'flat': float(metrics.get('reward_std', 0.0) < self.min_std)}
        # 5. Update actor and critic by PPO on all answers, unless their rewards deviate by less than `min_std`.
        if not metrics['flat']:
            with self.ctx.phase('update'):
                key = jax.random.fold_in(jax.random.key(self.seed), i)
                state, updated = self.learner.update(state, batch, key, self.supervised(i) if self.ptx else None)
            metrics |= updated
        check_finite(state, 'lower optimizer.lr or raise ppo.kl_coef')
        world.check_answers(samples, user)
        usage = world.models.usage
        host = {'queue': queue, 'rollouts': rollouts, 'replies': replies, 'usage': usage}
        return state, host, 'rlpa', metrics | usage

    def imitate(self, state: PolicyState, i: int) -> tuple[PolicyState, Metrics]:
        """A step of the warm-up; the policy after the last of these steps is the reference."""
        with self.ctx.phase('update'):
            state, metrics = self.learner.imitate(state, self.supervised(i))
        check_finite(state, 'lower warmup.optimizer.lr')
        return self.learner.anchor(state) if i == self.warmup - 1 else state, metrics

    def roll_out(self, dialogues: Sequence[Dialogue], user: UserSimulator, i: int) -> Callable[[], Turns]:
        """A function that gives the rewarded samples of dialogues: one turn of each, whose sampling begins now, or with
        `turn_gamma` all its turns."""
        if self.turn_gamma:
            return functools.partial(self.play, dialogues, user, i)
        (samples,) = self.sampling.begin((), functools.partial(self.sample, i, dialogues, 0))
        return lambda: [self.pay(i, samples())]

    def play(self, dialogues: Sequence[Dialogue], user: UserSimulator, i: int) -> Turns:
        """The rewarded samples of whole dialogues, whose people answer within the step and not through the queue."""

        def answer(dialogues: Sequence[Dialogue], turn: int) -> list[list[Sample]]:
            return self.pay(i, self.sample(i, dialogues, turn))

        played = converse(self.game, list(map(Conversation, dialogues)), answer, lambda live, _: user(live, i))
        # Dialogues may end early, so later turns have fewer of them.
        return [[groups[t] for groups in played if t < len(groups)] for t in range(max(map(len, played)))]

    def sample(self, i: int, dialogues: Sequence[Dialogue], turn: int) -> list[Sample]:
        """The `n` samples of each dialogue, side by side."""
        # A judge behind an address reads finished answers while the decoder still samples others.
        early = self.world.early and functools.partial(self.world.early.ask, seed=i)
        answered = first_alike(dialogues) if self.share_alike else list(range(len(dialogues)))
        distinct = sorted(set(answered))
        sampled = self.sample_turns([dialogues[k] for k in distinct], self.n, (self.seed, i, turn), early)
        groups = dict(zip(distinct, self.groups_of(sampled), strict=True))
        # Each person pays by itself, since a profile is right or wrong for one person.
        pairs = zip(dialogues, answered, strict=True)
        return [dataclasses.replace(sample, source=dialogue) for dialogue, k in pairs for sample in groups[k]]

    def pay(self, i: int, samples: Sequence[Sample]) -> list[list[Sample]]:
        """The samples with their rewards, as a group for each dialogue."""
        return self.groups_of(self.world.reward(samples, i))

    def groups_of(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Samples by conversation."""
        return [list(samples[k : k + self.n]) for k in range(0, len(samples), self.n)]

    def chosen(self, turns: Sequence[Sequence[Sequence[Sample]]]) -> list[Sample]:
        """The samples that are learnt, with their returns as rewards."""
        groups: Sequence[Group] = self.groups_of(with_returns(turns, gamma=self.turn_gamma))
        groups = learnt_once(groups) if self.share_alike else groups
        return [sample for group in groups for sample in down_sampled(group, self.learnt)]

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        def respond(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
            return self.sample_turns(dialogues, 1, (self.seed, EVALUATION, seed))

        with self.ctx.phase('evaluate'):
            self.sampling.wait()
            self.decoder.load(self.learner.weights(state))
            record, dialogues = self.world.evaluate(respond, rounds=self.test_rounds)
            self.decoder.release()
        return Evaluation(record, dialogues[: self.test_shown])


def fewer_people(evaluation: DialogueEvaluationSettings, world: World) -> str:
    """A warning where a split has fewer people than the settings ask for; '' else."""
    why = {'extended': f'{evaluation.profiles} has no more who are not trained on'}
    return ''.join(
        holdouts.fewer('eval.people', evaluation.people, len(people), why.get(split, holdouts.FIFTH))
        for split, people in world.tests.items()
    )


def make(settings: Settings, ctx: Context) -> Recipe:
    """Check the config and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or two values do not fit together.
      RuntimeError: a model or a file cannot be had.
    """
    check(settings, ctx.mesh)
    world = make_world(settings, sampler.make_shares(settings.decode), ctx.kept)
    policy = make_policy(settings.policy, ctx, settings.seed)
    check_openings(settings, world, policy.tokenizer, policy.cfg.max_len)
    learner, tokenizer, dialogue = make_turn_learner(settings, policy.cfg, ctx), policy.tokenizer, settings.dialogue
    ahead, lockstep = settings.rollout.ahead, settings.rollout.lockstep
    decoder, rounds = sampler.make_decoder(settings.decode, policy, ctx, lockstep=lockstep), dialogue.rounds
    # Some judges compute on this machine's devices.
    judged = world.models.here or settings.reward.matcher == 'embedding' or reads_in_training(settings.reward)
    here = {'sampling': not settings.served_ahead, 'rollouts': judged, 'replies': judged}
    lines = make_lines(ctx, ahead, lockstep, here)
    plan = make_plan(settings, policy, learner, world)
    ctx.log(world.told + fewer_people(settings.eval, world))
    return RLPA(
        plan=plan._replace(close=lambda: [line.close() for line in lines.values()]),
        ctx=ctx,
        world=world,
        learner=learner,
        load=policy.source.load,
        decoder=decoder,
        sample_turns=make_turn_sampler(settings, world.system, tokenizer, decoder),
        supervised=make_demonstration_batches(settings, settings.warmup, tokenizer, ctx.mesh),
        pack=sampler.make_packing(settings, ctx.mesh, dialogue.learnt),
        game=DialogueGame(world.train, rounds, world.system),
        **lines,
        dialogues=dialogue.rollout_batch_size,
        n=dialogue.n_samples_per_prompt,
        learnt=dialogue.learnt,
        share_alike=dialogue.share_alike,
        round_batch_size=dialogue.round_batch_size,
        shuffle=settings.seed if dialogue.shuffle else None,
        turn_gamma=dialogue.turn_gamma,
        # The published code updates on flat rewards, too.
        min_std=0.0 if settings.reference_compatible else settings.reward.min_std,
        warmup=settings.warmup.steps,
        ptx=bool(settings.ppo.ptx_coef),
        seed=settings.seed,
        shown=dialogue.shown,
        test_rounds=settings.eval.rounds or rounds,
        test_shown=settings.eval.shown,
    )


def make_plan(settings: Settings, policy: Policy, learner: PolicyLearner, world: World) -> Plan:
    """The plan of a run, whose checkpoints keep the queue of conversations and the usage of endpoints."""
    steps = settings.warmup.steps + settings.total_steps
    stage = functools.partial(
        stage_before, warmup=settings.warmup.steps, steps=steps, every=settings.eval.every, base=settings.eval.base
    )

    def keep(folder: Path) -> None:
        keeping(policy=policy)(folder)
        write_whole(folder / SYSTEM, world.system)

    def pack(host: Host) -> Host:
        packed = host | {
            'queue': to_json(host['queue']),
            'rollouts': [turns_to_json(turns()) for turns in host['rollouts']],
            'replies': [answered_to_json(answered()) for answered in host['replies']],
        }
        # Work that was under way has asked endpoints since the step.
        return packed | ({'usage': world.models.usage} if host['replies'] else {})

    def resume(host: Host) -> Host:
        return world.models.count_on(host) | {
            'queue': from_json(host['queue']),
            'rollouts': tuple(functools.partial(turns_of, turns) for turns in host.get('rollouts', ())),
            'replies': tuple(functools.partial(answered_of, answered) for answered in host.get('replies', ())),
        }

    trained = trained_policy(settings.policy, policy, learner)
    phases = {'warm-up': settings.warmup.steps, 'PPO': settings.total_steps}
    return Plan(
        steps, learner.abstract, stage, trained, SHOWN, pack, resume, keep=keep,
        phases={name: count for name, count in phases.items() if count},
    )  # fmt: skip


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its people and judges, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_policy(settings.policy, policy, make_turn_learner(settings, policy.cfg, ctx))


# --- parts from the settings ----------------------------------------------------------------------------------------


def check(settings: Settings, mesh: Mesh) -> None:
    """Raises ValueError for everything that can be wrong before a file is read."""
    dialogue, rows = settings.dialogue, settings.dialogue.rollout_batch_size
    if settings.total_steps + settings.warmup.steps < 1:
        steps = f'total_steps={settings.total_steps} and warmup.steps={settings.warmup.steps}'
        raise ValueError(f'{steps} leave nothing to do')
    named = settings.warmup.optimizer.name
    if named not in (Optimizer.name, settings.optimizer.name):
        raise ValueError(f'warmup.optimizer.name={named!r}: the warm-up shares the state of optimizer.name; set that')
    check_at_least(
        settings, 1, 'dialogue.rollout_batch_size', 'dialogue.n_samples_per_prompt', 'dialogue.max_rounds',
        'sampling.max_tokens', 'ppo.epochs', 'ppo.minibatches', 'ppo.micro_rows', 'warmup.rows',
        'warmup.examples_per_row', 'warmup.examples', 'dialogue.people', 'decode.stride', 'eval.people',
        'checkpoint.every',
    )  # fmt: skip
    if dialogue.profile_format == 'json' and (settings.warmup.steps or settings.ppo.ptx_coef):
        raise ValueError(
            "dialogue.profile_format='json': the warm-up's examples are in lines; set warmup.steps=0 and ppo.ptx_coef=0"
        )
    check_at_least(settings, 0, 'dialogue.shown')
    if dialogue.learnt_per_prompt and not 2 <= dialogue.learnt_per_prompt <= dialogue.n_samples_per_prompt:
        raise ValueError(
            f'dialogue.learnt_per_prompt={dialogue.learnt_per_prompt} must be 0 (all answers), or from 2 to '
            f'dialogue.n_samples_per_prompt={dialogue.n_samples_per_prompt}'
        )
    if not 0 <= dialogue.turn_gamma <= 1:
        raise ValueError(f'dialogue.turn_gamma={dialogue.turn_gamma} must be from 0 (off) to 1')
    check_ahead(settings.rollout, settings.decode)
    if settings.rollout.ahead and dialogue.turn_gamma:
        raise ValueError(
            f'rollout.ahead={settings.rollout.ahead}: with dialogue.turn_gamma={dialogue.turn_gamma} users answer '
            'between the samples of a step; leave one of them at 0'
        )
    check_divides(settings, 'dialogue.rollout_batch_size', 'ppo.minibatches')
    ways, micro = sharding.batch_ways(mesh), settings.ppo.micro_rows
    for key, size in (
        ('rollout_batch_size / minibatches', rows // settings.ppo.minibatches),
        ('rollout_batch_size', round_up(rows, ways * settings.ppo.minibatches)),
        ('warmup.rows', settings.warmup.rows),
    ):
        height = round_up(size, ways)
        if height % min(micro * ways, height):
            raise ValueError(f'{key}={height} does not divide into ppo.micro_rows={micro} on each of {ways} devices')


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    dialogue = settings.dialogue
    prompts, sampled = dialogue.rollout_batch_size, dialogue.n_samples_per_prompt
    return sampling(settings, make_turn_learner, prompts, dialogue.learnt, prompt, sampled)


def make_turn_learner(settings: Settings, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """PPO's learner with the warm-up's imitation, which shares the state of the policy's optimiser."""
    if settings.reference_compatible:
        # The published code takes the mean over the tokens of each micro-batch.
        settings = dataclasses.replace(settings, ppo=dataclasses.replace(settings.ppo, loss_agg='micro_token_mean'))
    warmup = settings.warmup
    imitation = dataclasses.replace(warmup.optimizer, name=settings.optimizer.name).over(max(warmup.steps, 1))
    n = settings.dialogue.learnt
    return models.make_learner(settings, cfg, ctx, n=n, imitation=imitation, warmup=warmup.steps > 0)
