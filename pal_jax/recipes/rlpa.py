"""RLPA (arXiv 2505.15456): a policy learns its user's profile while it talks with the user.

A step answers the open conversations at the head of a queue with `n` samples each, rewards every sample for the profile
it infers and for its reply, lets the best sample of each conversation go on to the user, and makes PPO's update on all
of them. A turn is one PPO sequence: the reward of a turn does not reach earlier turns, as in the published code. With
`turn_gamma` it does, as in the paper's decision process: a step then holds whole conversations, all their turns.

Small models do not write the format by themselves: `warmup` steps of supervised learning on made-up people who share no
topic and no value with those of the training come first. The reference policy is the model after them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from pal_jax.data.packing import Example, pack_examples, pack_rollouts, round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.envs import dialogue as env
from pal_jax.evals.rollouts import shown, spread, summarize
from pal_jax.feedback.demonstrations import TOPICS, Demonstration, make_demonstrations
from pal_jax.feedback.profiles import parse_completion
from pal_jax.feedback.users import Listened
from pal_jax.learners import ppo
from pal_jax.learners.ppo import PPO, PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.parts import sampler
from pal_jax.parts.recipe import (
    EVALUATION,
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Policy,
    Recipe,
    Trained,
    check_at_least,
    check_finite,
    keeping,
    make_adapters,
    make_policy,
    stage_before,
    trained_policy,
)
from pal_jax.parts.world import SYSTEM, World, check_openings, make_world, read_system
from pal_jax.runtime import sharding
from pal_jax.runtime.files import write_whole
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Dialogue, Metrics, RolloutBatch, Sample, TokenBatch

Sampler = Callable[..., list[Sample]]  # of dialogues, samples of each, seed and who is told: see `make_sampler`

SHOWN = 'reward', 'format', 'profile', 'strict'


class Parts(NamedTuple):
    """People and judges, the policy, and what goes from one to the other."""

    world: World
    policy: Policy
    learner: PolicyLearner
    decoder: Decoder
    sample_turns: Sampler
    supervised: Callable[[int], TokenBatch]


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
      RuntimeError: the model cannot be had.
    """
    check(config, ctx.mesh)
    world, policy, learner, decoder, sample_turns, supervised = make_parts(config, ctx)
    ctx.log(world.told)
    warmup, dialogue = config.warmup.steps, config.dialogue
    n, prompts_a_step = dialogue.n_samples_per_prompt, dialogue.rollout_batch_size
    max_rounds = rounds_of(dialogue)
    turn_gamma, turns_a_step = dialogue.turn_gamma, max_rounds if dialogue.turn_gamma else 1
    order = config.seed if dialogue.shuffle else None
    rounds = {'max_rounds': max_rounds, 'round_batch_size': dialogue.round_batch_size}
    pack = make_packing(config, ctx.mesh)
    min_std = 0.0 if config.reference_compatible else config.reward.min_std

    def init() -> tuple[PolicyState, Host]:
        return learner.init(policy.source.load(learner.actor.param_shardings)), {
            'queue': env.to_json(env.open_queue(world.train, shuffle=order))
        }

    def imitation_step(state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        with ctx.phase('update'):
            state, metrics = learner.imitate(state, supervised(i))
        check_finite(state, ' or raise ppo.kl_coef')
        return learner.anchor(state) if i == warmup - 1 else state, host, 'warm-up', metrics

    def answer(dialogues: Sequence[Dialogue], i: int, turn: int) -> list[list[Sample]]:
        early = world.early and functools.partial(world.early.ask, seed=i)  # judged while others are decoded
        samples = world.reward(sample_turns(dialogues, n, (config.seed, i, turn), early), i)
        return [samples[k : k + n] for k in range(0, len(samples), n)]

    def rlpa_step(state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        queue, user = env.from_json(host['queue']), Listened(world.user)
        with ctx.phase('rollout'):
            decoder.load(learner.weights(state))
            open_dialogues, queue = env.pop(queue, prompts_a_step, people=world.train, user=user, seed=i, shuffle=order)
            turns = env.play(open_dialogues, answer, turns=turns_a_step, user=user, seed=i)
            decoder.release()
            queue = env.continue_best(queue, turns[-1], **rounds, user=user, seed=i)
        samples = [sample for groups in turns for group in groups for sample in group]
        metrics = summarize(samples) | {'silent': float(user.silent)}
        ctx.show(map(shown, spread(samples, dialogue.shown)))
        with ctx.phase('annotate'):
            returns = env.with_returns(turns, gamma=turn_gamma)
            batch, scored = learner.score(state, pack(returns))
            batch, estimated = learner.advantages(state, batch)
        metrics |= scored | estimated | {'flat': float(metrics.get('reward_std', 0.0) < min_std)}
        if not metrics['flat']:
            with ctx.phase('update'):
                ptx = supervised(i) if config.ppo.ptx_coef else None
                key = jax.random.fold_in(jax.random.key(config.seed), i)
                state, updated = learner.update(state, batch, key, ptx)
            metrics |= updated
        check_finite(state, ' or raise ppo.kl_coef')
        world.check_answers(samples, user)
        usage = world.models.usage
        return state, {'queue': env.to_json(queue), 'usage': usage}, 'rlpa', metrics | usage

    def step(state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        return (imitation_step if i < warmup else rlpa_step)(state, host, i)

    def respond(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
        return sample_turns(dialogues, 1, (config.seed, EVALUATION, seed))

    def evaluate(state: PolicyState, stage: str) -> Evaluation:
        with ctx.phase('evaluate'):
            decoder.load(learner.weights(state))
            record, dialogues = world.evaluate(respond, rounds=config.eval.rounds or max_rounds)
            decoder.release()
        return Evaluation(record, dialogues[: config.eval.shown])

    steps = warmup + config.total_steps
    stage = functools.partial(stage_before, warmup=warmup, steps=steps, every=config.eval.every)
    trained = trained_policy(config, policy, learner)

    def keep(folder: Path) -> None:
        keeping(policy=policy)(folder)
        write_whole(folder / SYSTEM, world.system)

    plan = Plan(steps, learner.abstract, stage, trained, SHOWN, world.models.count_on, keep=keep)
    return Closures(plan, init, step, evaluate)


def make_trained(config: Config, ctx: Context) -> Trained:
    policy = make_policy(config, ctx)
    return trained_policy(config, policy, make_learner(config, policy.cfg, ctx))


def rounds_of(dialogue: Config) -> int:
    """Turns of a dialogue."""
    return dialogue.max_rounds if dialogue.use_multiturn else 1


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


def make_parts(config: Config, ctx: Context) -> Parts:
    """Raises ValueError or RuntimeError where a file or a model cannot be had."""
    world, policy = make_world(config, sampler.make_shares(config), ctx.kept), make_policy(config, ctx)
    check_openings(config, world, policy.tokenizer, policy.cfg.max_len)
    learner, tokenizer = make_learner(config, policy.cfg, ctx), policy.tokenizer
    decoder = sampler.make_decoder(config, policy, ctx)
    sample_turns = make_sampler(config, world.system, tokenizer, decoder)
    return Parts(world, policy, learner, decoder, sample_turns, make_supervised(config, tokenizer, ctx.mesh))


def make_packing(config: Config, mesh: Mesh) -> Callable[[Sequence[Sample]], RolloutBatch]:
    """Samples of a step, those of a prompt together, as the batch of an update."""
    n, actions = config.dialogue.n_samples_per_prompt, round_up(config.sampling.max_tokens, 8)
    rows = {'micro_rows': config.ppo.micro_rows, 'row_tokens': config.ppo.row_tokens}
    ways = sharding.batch_ways(mesh) * config.ppo.minibatches
    return functools.partial(pack_rollouts, n=n, actions=actions, mesh=mesh, ways=ways, **rows)


def make_sampler(config: Config, system: str, tokenizer: Tokenizer, decoder: Decoder) -> Sampler:
    """Samples the next turn of dialogues, `n` times each; `tell` hears of each sample as soon as it is there."""
    sampling, longest = sampler.make_sampling(config), config.dialogue.prompt_max_len

    def render(dialogue: Dialogue) -> tuple[int, ...]:
        return tuple(tokenizer.chat(env.messages(dialogue, system)))

    def prompt_of(dialogue: Dialogue) -> tuple[int, ...]:
        prompt = render(env.recent(dialogue, lambda each: len(render(each)) <= longest) if longest else dialogue)
        if longest and len(prompt) > longest:
            raise ValueError(
                f'the last messages alone of {dialogue.person.id!r} make a prompt of {len(prompt)} tokens, more than '
                f'dialogue.prompt_max_len={longest}; raise it'
            )
        return prompt

    def sample_turns(
        dialogues: Sequence[Dialogue], n: int, seed: Sequence[int], tell: Callable[[Sample], None] | None = None
    ) -> list[Sample]:
        prompts = list(map(prompt_of, dialogues))
        return sampler.sample(
            decoder, tokenizer, prompts, [sampling] * n, seed, sources=dialogues, parse=parse_completion, tell=tell
        )

    return sample_turns


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


def make_supervised(config: Config, tokenizer: Tokenizer, mesh: Mesh) -> Callable[[int], TokenBatch]:
    """The batch of a step's supervised update: demonstrations, each ended by the token that ends a turn."""
    system = read_system(config.dialogue.system)
    system = env.actor_prompt(TOPICS) if system is None else system

    def example(each: Demonstration) -> Example:
        prompt = tokenizer.chat(env.messages(each.dialogue, system))
        return Example(prompt, [*tokenizer.encode(each.completion), tokenizer.stop_ids[0]])

    examples = [example(each) for each in make_demonstrations(config.warmup.examples, seed=config.seed)]
    ways, per_row = sharding.batch_ways(mesh), config.warmup.examples_per_row
    rows = round_up(config.warmup.rows, ways)

    def batch(i: int) -> TokenBatch:
        packed = pack_examples(
            examples, groups=rows, n=per_row, i=i, seed=config.seed, ways=ways, row_tokens=config.ppo.row_tokens
        )
        return sharding.put_batch(packed, mesh)

    return batch
