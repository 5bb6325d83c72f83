"""RLPA (arXiv 2505.15456): a policy learns its user's profile while it talks with the user.

A step answers the open conversations at the head of a queue with `n` samples each, rewards every sample for the profile
it infers and for its reply, lets the best sample of each conversation go on to the user, and makes PPO's update on all
of them. A turn is one PPO sequence: the reward of a turn does not reach earlier turns, as in the published code. With
`turn_gamma` it does, as in the paper's decision process: a step then holds whole conversations, all their turns.

Small models do not write the format by themselves: `warmup` steps of supervised learning on made-up people who share no
topic and no value with those of the training come first. The reference policy is the model after them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.decode.choose import Decoder
from pal_jax.envs.dialogue import Conversation, DialogueGame, converse, with_returns
from pal_jax.envs.queue import continue_best, from_json, open_queue, pop, to_json
from pal_jax.evals.rollouts import shown, spread, summarize
from pal_jax.feedback.users import Listened
from pal_jax.learners import ppo
from pal_jax.learners.ppo import PPO, PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.parts import sampler
from pal_jax.parts.models import Policy, keeping, make_adapters, make_policy, trained_policy
from pal_jax.parts.recipe import (
    EVALUATION,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    Trained,
    check_at_least,
    check_finite,
    stage_before,
)
from pal_jax.parts.turns import Sampler, make_sampler, make_supervised, rounds_of
from pal_jax.parts.world import SYSTEM, World, check_openings, make_world
from pal_jax.runtime import sharding
from pal_jax.runtime.files import write_whole
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Dialogue, Metrics, RolloutBatch, Sample, TokenBatch, UserSimulator

SHOWN = 'reward', 'format', 'profile', 'strict'
MAY_CHANGE = 'eval.rounds', 'eval.profiles', 'eval.shown', 'dialogue.shown', 'reward.max_failed'  # when a run goes on


@dataclasses.dataclass(frozen=True)
class RLPA:
    """PPO on the turns of open conversations, each of which goes on with the best of its samples.

    load: reads the weights before training.
    sample_turns: samples the next turn of dialogues with the weights that `decoder` has loaded.
    supervised: the batch of demonstrations of a step.
    pack: samples of a step, those of a prompt together, as the batch of an update.
    game: the dialogue, of `game.rounds` turns.
    dialogues, n: conversations that a step answers, and samples of each.
    round_batch_size: when and where conversations go on: see `envs/queue.py`.
    shuffle: the seed of the order of people; None: the order of the data.
    turn_gamma: the discount from turn to turn; 0: a step plays one turn of each conversation.
    min_std: a step whose rewards deviate less makes no update.
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
    dialogues: int
    n: int
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
        return self.learner.init(self.load(self.learner.actor.param_shardings)), {'queue': queue}

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        if i < self.warmup:
            state, metrics = self.imitate(state, i)
            return state, host, 'warm-up', metrics
        user, world = Listened(self.world.user), self.world
        with self.ctx.phase('rollout'):
            self.decoder.load(self.learner.weights(state))
            # 1. Take open conversations from the queue.
            open_dialogues, queue = pop(
                host['queue'], self.dialogues, people=world.train, user=user, seed=i, shuffle=self.shuffle
            )
            # 2. Sample n answers to each and reward every answer.
            turns = self.roll_out(open_dialogues, user, i)
            self.decoder.release()
            # 3. The best answer of each conversation goes on: its user replies, and it queues up for its next round.
            queue = continue_best(
                queue, turns[-1], max_rounds=self.game.rounds, round_batch_size=self.round_batch_size, user=user, seed=i
            )
        samples = [sample for groups in turns for group in groups for sample in group]
        metrics = summarize(samples) | {'silent': float(user.silent)}
        self.ctx.show(map(shown, spread(samples, self.shown)))
        with self.ctx.phase('annotate'):
            # 4. Log-probabilities and values of all answers, and from them and the rewards their advantages.
            batch, scored = self.learner.score(state, self.pack(with_returns(turns, gamma=self.turn_gamma)))
            batch, estimated = self.learner.advantages(state, batch)
        metrics |= scored | estimated | {'flat': float(metrics.get('reward_std', 0.0) < self.min_std)}
        # 5. Update actor and critic by PPO on all answers, unless no answer is better than another.
        if not metrics['flat']:
            with self.ctx.phase('update'):
                key = jax.random.fold_in(jax.random.key(self.seed), i)
                state, updated = self.learner.update(state, batch, key, self.supervised(i) if self.ptx else None)
            metrics |= updated
        check_finite(state, ' or raise ppo.kl_coef')
        world.check_answers(samples, user)
        usage = world.models.usage
        return state, {'queue': queue, 'usage': usage}, 'rlpa', metrics | usage

    def imitate(self, state: PolicyState, i: int) -> tuple[PolicyState, Metrics]:
        """A step of the warm-up. The policy after the last of these steps is the reference."""
        with self.ctx.phase('update'):
            state, metrics = self.learner.imitate(state, self.supervised(i))
        check_finite(state, ' or raise ppo.kl_coef')
        return self.learner.anchor(state) if i == self.warmup - 1 else state, metrics

    def roll_out(self, dialogues: Sequence[Dialogue], user: UserSimulator, i: int) -> list[list[list[Sample]]]:
        """The groups of each turn: one turn of each dialogue, or with `turn_gamma` all its turns."""
        answer = functools.partial(self.answer, i)
        if not self.turn_gamma:
            return [answer(dialogues, 0)]
        played = converse(self.game, list(map(Conversation, dialogues)), answer, lambda asked, _: user(asked, i))
        return [[groups[t] for groups in played if t < len(groups)] for t in range(max(map(len, played)))]

    def answer(self, i: int, dialogues: Sequence[Dialogue], turn: int) -> list[list[Sample]]:
        """A group of rewarded samples for each dialogue."""
        early = self.world.early and functools.partial(self.world.early.ask, seed=i)  # judged while others are decoded
        samples = self.world.reward(self.sample_turns(dialogues, self.n, (self.seed, i, turn), early), i)
        return [samples[k : k + self.n] for k in range(0, len(samples), self.n)]

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        def respond(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
            return self.sample_turns(dialogues, 1, (self.seed, EVALUATION, seed))

        with self.ctx.phase('evaluate'):
            self.decoder.load(self.learner.weights(state))
            record, dialogues = self.world.evaluate(respond, rounds=self.test_rounds)
            self.decoder.release()
        return Evaluation(record, dialogues[: self.test_shown])


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
      RuntimeError: a model or a file cannot be had.
    """
    check(config, ctx.mesh)
    world, policy = make_world(config, sampler.make_shares(config), ctx.kept), make_policy(config, ctx)
    check_openings(config, world, policy.tokenizer, policy.cfg.max_len)
    learner, tokenizer, dialogue = make_learner(config, policy.cfg, ctx), policy.tokenizer, config.dialogue
    decoder, rounds = sampler.make_decoder(config, policy, ctx), rounds_of(dialogue)
    ctx.log(world.told)
    return RLPA(
        plan=make_plan(config, policy, learner, world),
        ctx=ctx,
        world=world,
        learner=learner,
        load=policy.source.load,
        decoder=decoder,
        sample_turns=make_sampler(config, world.system, tokenizer, decoder),
        supervised=make_supervised(config, tokenizer, ctx.mesh),
        pack=make_packing(config, ctx.mesh),
        game=DialogueGame(world.train, rounds, world.system),
        dialogues=dialogue.rollout_batch_size,
        n=dialogue.n_samples_per_prompt,
        round_batch_size=dialogue.round_batch_size,
        shuffle=config.seed if dialogue.shuffle else None,
        turn_gamma=dialogue.turn_gamma,
        min_std=0.0 if config.reference_compatible else config.reward.min_std,
        warmup=config.warmup.steps,
        ptx=bool(config.ppo.ptx_coef),
        seed=config.seed,
        shown=dialogue.shown,
        test_rounds=config.eval.rounds or rounds,
        test_shown=config.eval.shown,
    )


def make_plan(config: Config, policy: Policy, learner: PolicyLearner, world: World) -> Plan:
    """A checkpoint keeps the queue of conversations and what was asked of endpoints."""
    steps = config.warmup.steps + config.total_steps
    stage = functools.partial(stage_before, warmup=config.warmup.steps, steps=steps, every=config.eval.every)

    def keep(folder: Path) -> None:
        keeping(policy=policy)(folder)
        write_whole(folder / SYSTEM, world.system)

    def pack(host: Host) -> Host:
        return host | {'queue': to_json(host['queue'])}

    def resume(host: Host) -> Host:
        return world.models.count_on(host) | {'queue': from_json(host['queue'])}

    trained = trained_policy(config, policy, learner)
    return Plan(steps, learner.abstract, stage, trained, SHOWN, pack, resume, keep=keep)


def make_trained(config: Config, ctx: Context) -> Trained:
    policy = make_policy(config, ctx)
    return trained_policy(config, policy, make_learner(config, policy.cfg, ctx))


# --- parts from the config ------------------------------------------------------------------------------------------


def check(config: Config, mesh: Mesh) -> None:
    """Everything that can be wrong before a file is read."""
    dialogue, rows = config.dialogue, config.dialogue.rollout_batch_size
    if config.total_steps + config.warmup.steps < 1:
        raise ValueError(f'total_steps={config.total_steps} and warmup.steps={config.warmup.steps} leave nothing to do')
    check_at_least(
        config, 1, 'dialogue.rollout_batch_size', 'dialogue.n_samples_per_prompt', 'dialogue.max_rounds',
        'sampling.max_tokens', 'ppo.epochs', 'ppo.minibatches', 'ppo.micro_rows', 'warmup.rows',
        'warmup.examples_per_row', 'warmup.examples', 'dialogue.people', 'decode.stride', 'eval.people',
        'checkpoint.every',
    )  # fmt: skip
    if dialogue.profile_format not in ('lines', 'json'):
        raise ValueError(f"dialogue.profile_format={dialogue.profile_format!r} is unknown; use 'lines' or 'json'")
    if dialogue.profile_format == 'json' and (config.warmup.steps or config.ppo.ptx_coef):
        raise ValueError(
            "dialogue.profile_format='json': the warm-up's examples are in lines; set warmup.steps=0 and ppo.ptx_coef=0"
        )
    check_at_least(config, 0, 'dialogue.shown')
    if not 0 <= dialogue.turn_gamma <= 1:
        raise ValueError(f'dialogue.turn_gamma={dialogue.turn_gamma} must be from 0 (off) to 1')
    if rows % config.ppo.minibatches:
        raise ValueError(
            f'dialogue.rollout_batch_size={rows} does not divide into ppo.minibatches={config.ppo.minibatches}'
        )
    ways, micro = sharding.batch_ways(mesh), config.ppo.micro_rows
    for key, size in (
        ('rollout_batch_size / minibatches', rows // config.ppo.minibatches),
        ('rollout_batch_size', round_up(rows, ways * config.ppo.minibatches)),
        ('warmup.rows', config.warmup.rows),
    ):
        height = round_up(size, ways)
        if height % min(micro * ways, height):
            raise ValueError(f'{key}={height} does not divide into ppo.micro_rows={micro} on each of {ways} devices')


def make_packing(config: Config, mesh: Mesh) -> Callable[[Sequence[Sample]], RolloutBatch]:
    """Samples of a step, those of a prompt together, as the batch of an update."""
    n, actions = config.dialogue.n_samples_per_prompt, round_up(config.sampling.max_tokens, 8)
    rows = {'micro_rows': config.ppo.micro_rows, 'row_tokens': config.ppo.row_tokens}
    ways = sharding.batch_ways(mesh) * config.ppo.minibatches
    return functools.partial(pack_rollouts, n=n, actions=actions, mesh=mesh, ways=ways, **rows)


def make_learner(config: Config, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    updates = max(config.total_steps, 1) * config.ppo.epochs * config.ppo.minibatches
    published = {'loss_agg': 'micro_token_mean'} if config.reference_compatible else {}
    imitation = config.warmup.optimizer.to_dict() | {'name': config.optimizer.name}  # they share one state
    return ppo.make_learner(
        cfg,
        PPO(**config.ppo.to_dict() | published, temperature=config.sampling.temperature or 1.0),
        Optimizer(**config.optimizer, total_steps=updates),
        ctx.mesh,
        critic=Optimizer(**config.critic, total_steps=updates),
        imitation=Optimizer(**imitation, total_steps=max(config.warmup.steps, 1)),
        n=config.dialogue.n_samples_per_prompt,
        length=config.sampling.max_tokens,
        adapters=make_adapters(config),
        warmup=config.warmup.steps > 0,
        seed=config.seed,
    )
