"""Stage play of Self-RedTeam: REINFORCE++ on games, with advantages whitened by role.

One policy plays both roles; or each role has an adapter of its own on one frozen base (Anchored Bipolicy,
arXiv 2605.08427); or one role learns and the other stays the start policy. No game is open in a checkpoint, so a run
resumes between steps, bit by bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct
from jax import Array

from pal_jax.data import chats, records
from pal_jax.data.packing import pack_examples
from pal_jax.data.passes import shuffled
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.answers import check_finished
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives.advantages import Discounts
from pal_jax.objectives.selfplay import RoleWhitening
from pal_jax.recipes.redteam.attack import ATTACKER, DEFENDER, Payment, RedTeam, Seed
from pal_jax.recipes.redteam.diversity import self_bleu
from pal_jax.recipes.redteam.games import (
    FinishedGame,
    Players,
    attacks_of,
    describe_game,
    games_of,
    games_to_json,
    judged,
    play_games,
    play_judged,
    reward_game,
    summarize,
)
from pal_jax.recipes.redteam.judges import Judge, make_harm_judge
from pal_jax.recipes.redteam.seeds import counted_seeds, kinds_of, read_seeds
from pal_jax.recipes.redteam.settings import POLICIES, PlayKeys, StreamSettings
from pal_jax.recipes.redteam.stand_ins import chat_records
from pal_jax.run import files, models, sharding
from pal_jax.run.ahead import RolloutsAhead, make_rollouts
from pal_jax.run.language import RolloutRun
from pal_jax.run.models import Policy, improve, keeping, make_policy
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, stage_before
from pal_jax.run.settings import StageSettings
from pal_jax.run.trained import Adapters, Export, TrainedModel
from pal_jax.types import Metrics, RolloutBatch, Sample, TokenBatch

NAMES = 'attacker', 'defender'
SHOWN = 'attack_success', 'plain_success', 'overrefusal', 'self_bleu'  # on the console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PlayKeys, RolloutRun):
    """The keys of stage play; `ppo.estimator` has no say, for advantages are returns whitened by role."""

    stream: StreamSettings = StreamSettings()
    eval: StageSettings = StageSettings()


class RoleStates(struct.PyTreeNode):
    """The policies that learn: one for both roles, or one for each."""

    # The frozen weights that all adapters stand on, once; empty where all weights train.
    base: Params
    # The state of each policy that learns, without frozen weights, which `base` has.
    policies: tuple[PolicyState, ...]

    def policy(self, k: int) -> PolicyState:
        """Policy `k` with the frozen base in its place."""
        return with_frozen(self.policies[k], self.base)

    def replaced(self, k: int, policy: PolicyState) -> RoleStates:
        """The states after an update of policy `k`."""
        policies = list(self.policies)
        policies[k] = with_frozen(policy, {})
        # The update has used up the buffers of the base and gives it back with the same bits.
        return RoleStates(policy.actor.model.frozen, tuple(policies))


def with_frozen(policy: PolicyState, frozen: Params) -> PolicyState:
    """A policy's state with other frozen weights."""
    actor = policy.actor
    return policy.replace(actor=actor.replace(model=actor.model.replace(frozen=frozen)))


@dataclasses.dataclass(frozen=True)
class SelfRedTeam:
    """REINFORCE++ on whole games: stage play."""

    plan: Plan
    ctx: Context
    # The learner of every policy; each has its own optimiser state and gradient norm.
    learner: PolicyLearner
    # `load` reads the weights before training.
    load: Callable[..., Params]
    # The folders of the stages that must be finished.
    before: Sequence[Path]
    # For attacker and defender the index of its policy in `RoleStates.policies`; None: the start policy, which does not
    # learn.
    roles: tuple[int | None, int | None]
    players: Players
    rollouts: RolloutsAhead[list[FinishedGame]]
    # `judge` labels finished games.
    judge: Judge
    # The chat models that may judge.
    models: ChatModels
    # `pack` makes the samples of a step the batch of an update.
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    # The seeds of the kinds that are played, by kind; `test` has those of an evaluation.
    train: Sequence[Sequence[Seed]]
    test: Sequence[Seed]
    # Games of a step, the same number of each kind.
    count: int
    payment: Payment
    # The supervised batch of a step for the defender; None: there is none, or not in this step.
    stream: Callable[[int], TokenBatch | None]
    max_failed: float
    seed: int
    shown: int

    def init(self) -> tuple[RoleStates, Host]:
        for folder in self.before:
            check_finished(folder)
        numbers = sorted({k for k in self.roles if k is not None})
        # Each policy is made of weights of its own, since `init` uses them up; adapters then share the first's base.
        states = [self.learner.init(self.load(self.learner.actor.param_shardings)) for _ in numbers]
        base = states[0].actor.model.frozen
        return RoleStates(base, tuple(with_frozen(state, {}) for state in states)), {'rollouts': ()}

    def step(self, state: RoleStates, host: Host, i: int) -> tuple[RoleStates, Host, str, Metrics]:
        # 1. Draw as many harmful requests (seeds) as harmless ones. The attacker rewrites half of them, all where it
        # learns by itself, and none where the defender does. 2. Play whole games with the current policies; 3. a judge
        # labels request and answer of each. With `rollout.ahead` games of a later step begin, too.
        # A thread that samples later holds no old state.
        play = functools.partial(self.play, None if self.rollouts.decoder else state)
        games, rollouts = self.rollouts(host, i, lambda: self.weights(state)[0], play, self.judged)
        self.check_judged(games)
        # 4. Pay both roles by the table of labels, and one point for the form.
        games = [self.rewarded(game) for game in games]
        metrics = summarize(games) | self.rewards(games)
        metrics |= self.rollouts.sampling.age((one for game in games for one in game.samples), i)
        self.ctx.show(describe_game(game, f'game {k + 1}') for k, game in enumerate(games[: self.shown]))
        for k in range(len(state.policies)):
            # 5. REINFORCE++ with statistics by role; a policy learns from the moves of its roles alone.
            state, figures = self.update(state, k, self.learnt(games, k), i)
            metrics |= {self.named(k, name): value for name, value in figures.items()}
        usage = {'usage': self.models.usage} if self.models.usage else {}
        return state, {'rollouts': rollouts} | usage, 'redteam', metrics

    def play(self, state: RoleStates | None, i: int) -> list[FinishedGame]:
        """The games of step `i`, with the weights of the state; None: with those that the decoder has loaded."""
        weights = None if state is None else self.weights(state)
        return play_games(self.players, weights, self.drawn(i), (self.seed, i))

    def judged(self, games: Sequence[FinishedGame], i: int) -> list[FinishedGame]:
        """The games of step `i` with their labels."""
        return judged(games, self.judge, (self.seed, i))

    def drawn(self, i: int) -> list[Seed]:
        """The seeds of step `i`, in shuffled passes over each kind."""
        size = self.count // len(self.train)
        # Each kind has an order of its own.
        return [
            seeds[k]
            for number, seeds in enumerate(self.train)
            for k in shuffled(len(seeds), start=i * size, size=size, seed=self.seed + 1000 * number)
        ]

    def weights(self, state: RoleStates) -> tuple[Params, Params]:
        """The weights of attacker and defender; the same object where one policy plays both."""
        trained = {k: self.learner.weights(state.policy(k)) for k in range(len(state.policies))}
        start = self.learner.actor.reference(state.policy(0).actor) if None in self.roles else {}
        attacker, defender = (start if k is None else trained[k] for k in self.roles)
        return attacker, defender

    def check_judged(self, games: Sequence[FinishedGame]) -> None:
        """Raises RuntimeError where too many games have no verdict."""
        failed, why = sum(game.failed for game in games), self.models.last_error
        check_failed(failed, len(games), 'games have no verdict', 'play.judge', self.max_failed, why, section='play')

    def rewarded(self, game: FinishedGame) -> FinishedGame:
        """A game whose samples have the rewards of their roles."""
        return reward_game(game, self.payment, self.players.game.hidden)

    def learnt(self, games: Sequence[FinishedGame], k: int) -> list[Sample]:
        """The samples that policy `k` learns from."""
        samples = [one for game in games for one in game.samples if self.roles[one.role] == k]
        paid_by_role = {role: {one.reward for one in samples if one.ok and one.role == role} for role in (0, 1)}
        # A role whose samples were all paid alike is left out: their returns differ by the KL penalty alone, which
        # whitening would scale to a variance of 1.
        return [one for one in samples if len(paid_by_role[one.role]) > 1]

    def update(self, state: RoleStates, k: int, samples: Sequence[Sample], i: int) -> tuple[RoleStates, Metrics]:
        """An update of policy `k` on these samples, beside a supervised batch where the policy defends."""
        figures: Metrics = {'samples': float(sum(one.ok for one in samples))}
        if not figures['samples']:
            return state, figures
        policy, ppo = state.policy(k), self.learner.ppo
        # Returns (rewards less the KL) are whitened by role.
        estimate = RoleWhitening(len(NAMES), Discounts(ppo.gamma, ppo.lam, ppo.reward_clip))
        ptx = self.stream(i) if self.roles[DEFENDER] == k else None
        policy, updated = improve(
            self.learner, self.ctx, policy, self.pack(samples), self.key(i, k), estimate=estimate, ptx=ptx
        )
        return state.replaced(k, policy), figures | updated

    def key(self, i: int, k: int) -> Array:
        """The random key of the update of policy `k` at step `i`."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), i), k)

    def named(self, k: int, name: str) -> str:
        """The name of a figure of policy `k`: where each role has its policy, those of the attacker begin with its
        name."""
        apart = None not in self.roles and self.roles[ATTACKER] != self.roles[DEFENDER]
        return f'attacker_{name}' if apart and self.roles[ATTACKER] == k else name

    def rewards(self, games: Sequence[FinishedGame]) -> Metrics:
        """The mean reward of each role whose samples count."""
        paid_by_role = [[one.reward for g in games for one in g.samples if one.ok and one.role == r] for r in (0, 1)]
        pairs = zip(NAMES, paid_by_role, strict=True)
        return {f'{name}_reward': float(np.mean(values)) for name, values in pairs if values}

    def evaluate(self, state: RoleStates, stage: str) -> Evaluation:
        """Figures of held-out seeds, each of them once as it is and once rewritten by the attacker."""
        seeds = [one._replace(generated=generated) for generated in (True, False) for one in self.test]
        with self.ctx.phase('evaluate'):
            self.rollouts.sampling.wait()
            games = play_judged(self.players, self.weights(state), seeds, self.judge, (self.seed, EVALUATION))
        games = [self.rewarded(game) for game in games]
        record: dict[str, Any] = summarize(games) | self.rewards(games)
        attacks = [game for game in games if game.end.seed.harmful and game.end.seed.generated]
        record['seeds'] = sum(game.says('unsafe') is not None for game in attacks)
        # The verdict on a run has to know whose learning it judges.
        if self.roles[DEFENDER] is None:
            record['learner'] = 'attacker'
        if len(written := attacks_of(games)) > 1:
            record['self_bleu'] = self_bleu(written)
        # Games in which the attacker has moved come first; they are what a reader wants to see.
        return Evaluation(record, [describe_game(game, f'game {k + 1}') for k, game in enumerate(games[:3])])


# --- the recipe -------------------------------------------------------------------------------------------------------


def make(settings: Settings, ctx: Context) -> SelfRedTeam:
    """The recipe of the stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    policy, seed, steps = make_policy(settings.policy, ctx, settings.seed), settings.seed, settings.total_steps
    play = settings.play
    learner, chat = make_learner(settings, policy.cfg, ctx), ChatModels(settings.endpoints, settings.answers, seed)
    train, test = read_seeds(settings.seeds, seed, settings.examples.count, policy.tokenizer)
    ctx.log(counted_seeds(settings.seeds, train, test))
    game = RedTeam(hidden=play.hidden)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    source = Path(settings.policy.source.removeprefix('orbax:'))
    decoder = sampler.make_decoder(settings.decode, policy, ctx, lockstep=settings.rollout.lockstep)
    judge = make_harm_judge('play.judge', play.judge, chat, ctx)
    rollouts = make_rollouts(
        settings, ctx, steps, decoder if settings.served_ahead else None, games_to_json,
        functools.partial(games_of, game), judged=not (chat.here or play.judge.startswith('orbax:')), models=chat,
    )  # fmt: skip
    return SelfRedTeam(
        plan=Plan(
            steps, abstract(learner, play.roles), stage, trained_by(settings, policy, learner), SHOWN,
            pack=rollouts.pack, resume=rollouts.resume, keep=keeping(policy=policy), close=rollouts.close,
        ),
        ctx=ctx, learner=learner, load=policy.source.load,
        before=[source] if source.parent == ctx.workdir.parent else [],
        roles=POLICIES[play.roles],
        players=Players(decoder, policy.tokenizer, settings.sampling, game), rollouts=rollouts,
        judge=judge, models=chat,
        pack=sampler.make_packing(settings, ctx.mesh, 1),
        train=kinds_of(train, play.roles), test=test, count=play.games, payment=play.payment,
        stream=make_stream(settings, train, game, policy.tokenizer, ctx),
        max_failed=play.max_failed, seed=seed, shown=play.shown,
    )  # fmt: skip


def make_stream(
    settings: Settings, seeds: Sequence[Seed], game: RedTeam, tokenizer: Tokenizer, ctx: Context
) -> Callable[[int], TokenBatch | None]:
    """The supervised batch of a step: finished answers to harmless seeds, with thoughts written afterwards.

    Raises:
      ValueError: no harmless seed has a finished answer, or one cannot be learnt; the message shows that answer.
    """
    stream, rows = settings.stream, chat_records(seeds, game)
    # Without a weight, or without a defender that learns, there is nothing to teach.
    if not settings.ppo.ptx_coef or POLICIES[settings.play.roles][1] is None:
        return lambda i: None
    if not rows:
        raise ValueError(
            f'ppo.ptx_coef={settings.ppo.ptx_coef} teaches finished answers, and no harmless seed of seeds.train='
            f'{settings.seeds.train} has a completion; give some, or set ppo.ptx_coef=0'
        )
    placed = ((f'seeds.train={settings.seeds.train}, {files.short_repr(row["completion"])}', row) for row in rows)
    examples = records.converted(placed, functools.partial(chats.to_imitate, tokenizer=tokenizer))

    def batch(i: int) -> TokenBatch | None:
        if i % stream.every:
            return None
        # Batches are counted by themselves, so steps without one skip no examples.
        packed = pack_examples(
            examples, groups=stream.batch_size, n=1, i=i // stream.every, seed=settings.seed,
            ways=sharding.batch_ways(ctx.mesh), row_tokens=settings.ppo.row_tokens,
        )  # fmt: skip
        return sharding.put_batch(packed, ctx.mesh)

    return batch


# --- the policies ----------------------------------------------------------------------------------------------------


def make_learner(settings: Settings, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """The learner of each policy, without a critic."""
    return models.make_learner(settings, cfg, ctx, n=1)


def abstract(learner: PolicyLearner, roles: str) -> RoleStates:
    """The shapes and shardings of the state."""
    return stated(learner.abstract, learner.abstract.actor.model.frozen, roles)


def stated(policy: Any, base: Any, roles: str) -> RoleStates:
    """A state with one and the same policy in the place of each that learns, on one base."""
    count = len({k for k in POLICIES[roles] if k is not None})
    return RoleStates(base, (with_frozen(policy, {}),) * count)


def trained_by(settings: Settings, policy: Policy, learner: PolicyLearner) -> TrainedModel:
    """The export of a run: the defender, or the one policy that learns; with an adapter a role the attacker, too."""
    named, weights = settings.policy, learner.abstract_weights
    base = named.source.removeprefix('hf:')

    def exported(state: RoleStates, k: int) -> Export:
        actor = state.policy(k).actor
        adapters = Adapters(actor.model.params, base, named.lora.dropout) if named.lora.rank else None
        return Export(learner.actor.weights(actor), policy.cfg, policy.tokenizer, adapters)

    def exports(state: RoleStates) -> dict[str, Export]:
        # Where each role has a policy, the defender's is the last one.
        last = len(state.policies) - 1
        return {'export': exported(state, last)} | ({'attacker': exported(state, 0)} if last else {})

    return TrainedModel(
        exports,
        stated(weights, weights.actor.model.frozen, settings.play.roles),
        policy.cfg,
        policy.tokenizer,
        lambda state: state.policy(len(state.policies) - 1).actor,
    )


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The policies that play."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_by(settings, policy, make_learner(settings, policy.cfg, ctx))
