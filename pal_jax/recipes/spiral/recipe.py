"""SPIRAL (arXiv 2506.24119): one policy plays both seats of zero-sum games against itself and learns from who wins.

A step of self-play plays whole matches with the current policy, gives every answer of a seat that seat's return less a
baseline of its game and seat, and makes PPO's update with the constant divisor of Dr. GRPO. There is no critic and no
data. No match is open in a checkpoint, so a run resumes between steps, bit by bit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.decode import sampler
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, decoder_specs
from pal_jax.objectives.selfplay import Baseline, as_given, role_conditioned
from pal_jax.recipes.spiral.counts import is_policys, named, policys, summarize
from pal_jax.recipes.spiral.evaluate import Examiner, make_examiner
from pal_jax.recipes.spiral.matches import (
    POLICY,
    SEATS,
    TRAINING,
    Match,
    Matches,
    Played,
    play_matches,
    played_of,
    played_to_json,
)
from pal_jax.recipes.spiral.past import Keeper, Selves
from pal_jax.recipes.spiral.players import ModelPlayer, Player, at_random, describe_match, expert, make_chat_opponents
from pal_jax.recipes.spiral.settings import Settings, check, make_rules
from pal_jax.recipes.spiral.textarena import Arena
from pal_jax.recipes.spiral.warmup import make_legal_action_batches
from pal_jax.run import models, sharding
from pal_jax.run.ahead import RolloutsAhead, check_ahead, make_rollouts
from pal_jax.run.models import improve, keeping, make_policy, trained_policy
from pal_jax.run.planned import PlannedRun, sampling
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, check_finite, stage_before
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics, RolloutBatch, Sample, TokenBatch

SHOWN = 'legal', 'winrate', 'nashconv'
OPPONENT = 'opponent'  # the player beside the policy where the policy does not play both seats


@dataclasses.dataclass(frozen=True)
class Spiral:
    """PPO on whole matches of the policy, by default against itself."""

    plan: Plan
    ctx: Context
    learner: PolicyLearner
    # Past selves of the policy.
    keeper: Keeper
    # `load` reads the weights before training.
    load: Callable[..., Params]
    # The policy as a player, with the weights that its decoder has loaded.
    answers: ModelPlayer
    rollouts: RolloutsAhead[Played]
    # The player in the other seat of the matches of a step, by a seed; None: the policy, or with `past` one of its past
    # selves.
    opponent: Callable[[Sequence[int]], Player] | None
    past: bool
    # The batch of legal actions of a step, for the warm-up and for `ppo.ptx_coef`.
    supervised: Callable[[int], TokenBatch]
    # `pack` makes the samples of a step the batch of an update.
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    warmup: int
    # The places of the rules of matches in turn; a game that is there twice is played as often.
    games: Sequence[int]
    # Matches of a step, and the most of their answers that are learnt.
    count: int
    max_turns: int
    # The baseline and its decay, see `role_conditioned`.
    baseline: Baseline
    alpha: float
    # The evaluation.
    examiner: Examiner | None
    seed: int
    shown: int

    @property
    def matches(self) -> Matches:
        return self.answers.matches

    def init(self) -> tuple[Selves, Host]:
        baselines = [[0.0] * len(SEATS) for _ in self.matches.rules]
        policy = self.learner.init(self.load(self.learner.actor.param_shardings))
        return self.keeper.new(policy), {'baselines': baselines, 'rollouts': ()}

    def step(self, state: Selves, host: Host, i: int) -> tuple[Selves, Host, str, Metrics]:
        # Small models do not answer with moves by themselves, so `warmup` steps of supervised learning on legal moves
        # may come first.
        if i < self.warmup:
            policy, metrics = self.imitate(state.policy, i)
            return state.replace(policy=policy), host, 'warm-up', metrics
        state = self.keeper.kept(state, i)
        # 1. Play whole matches with the current policy. With `rollout.ahead` those of a later step begin, too.
        # A thread that samples later holds no old state.
        play = functools.partial(self.play, state if self.past else None)
        played, rollouts = self.rollouts(host, i, lambda: self.learner.weights(state.policy), play)
        # 2. Role-conditioned advantages: all answers of a seat get its return less the baseline of its game and seat.
        credited, baselines = self.credited(played, host['baselines'])
        metrics = summarize(self.matches, played) | named(self.matches, baselines)
        self.ctx.show(
            describe_match(self.matches, samples, f'match {k + 1}') for k, samples in enumerate(played[: self.shown])
        )
        # 3. Leave out answers without advantage, and draw at most `max_turns` of the others.
        samples, policy = self.drawn([sample for match in credited for sample in match], i), state.policy
        metrics |= {'samples': float(len(samples))}
        metrics |= self.rollouts.sampling.age(itertools.chain.from_iterable(played), i)
        if samples:
            # 4. Descend the clipped loss, summed over tokens and divided by a constant; answers keep their advantages.
            key = jax.random.fold_in(jax.random.key(self.seed), i)
            # Beside it, all legal actions of some positions are learnt alike, where `ppo.ptx_coef` weighs that.
            ptx = self.supervised(i) if self.learner.ppo.ptx_coef else None
            policy, updated = improve(
                self.learner, self.ctx, policy, self.pack(samples), key, estimate=as_given, ptx=ptx
            )
            metrics |= updated
        return state.replace(policy=policy), {'baselines': baselines, 'rollouts': rollouts}, 'spiral', metrics

    def imitate(self, state: PolicyState, i: int) -> tuple[PolicyState, Metrics]:
        """A step of the warm-up, after the last of which the optimiser starts afresh."""
        with self.ctx.phase('update'):
            state, metrics = self.learner.imitate(state, self.supervised(i))
        check_finite(state)
        return self.learner.anchor(state) if i == self.warmup - 1 else state, metrics

    def play(self, state: Selves | None, i: int) -> Played:
        """The answers of the matches of step `i`, in turn of each game, and against another player of each seat.

        With a state the policy plays a past self; None: the decoder has loaded the policy.
        """
        alone = self.opponent is None and state is None
        # Each match has a seed of its own, which follows from the step alone.
        seeds = np.random.SeedSequence([self.seed, i]).generate_state(self.count).tolist()
        starts = []
        for k, seed in enumerate(seeds):
            turn, place = divmod(i * self.count + k, len(self.games))
            game = self.games[place]
            # Against another player the policy changes seats after each turn of all games, so it learns both seats.
            seats = (POLICY, OPPONENT) if turn % 2 == 0 else (OPPONENT, POLICY)
            starts.append(self.matches.begin(game, seed, (POLICY, POLICY) if alone else seats))
        seed = self.seed, i
        if state is None:
            players = {POLICY: self.answers.player(seed)}
            players |= {OPPONENT: self.opponent((*seed, 1))} if self.opponent else {}
            return play_matches(self.matches, players, starts)
        # One past self sits in all matches of a step, so that few weights are loaded.
        chosen = int(np.random.default_rng([*seed, 2]).integers(len(state.past)))
        policy, past = self.learner.weights(state.policy), self.keeper.weights(state, chosen)
        players = {POLICY: self.answers.loaded(policy, seed), OPPONENT: self.answers.loaded(past, (*seed, 1))}
        played = play_matches(self.matches, players, starts)
        # The update needs the memory that the decoder has taken.
        self.answers.decoder.release()
        return played

    def credited(
        self, played: Sequence[Sequence[Sample]], baselines: Sequence[Sequence[float]]
    ) -> tuple[list[list[Sample]], list[list[float]]]:
        """The policy's answers of each match with their advantages as rewards, and the baselines after all matches."""
        ends = [self.end(samples) for samples in played]
        returns = np.array([self.matches.rewards(end) for end in ends])
        # A baseline follows the policy alone: the returns of another player in that seat are not its own.
        moved = np.array([[is_policys(samples, seat) for seat in SEATS] for samples in played])
        advantages, after = role_conditioned(
            jnp.asarray(baselines, jnp.float32),
            jnp.array([end.game for end in ends]),
            jnp.asarray(returns, jnp.float32),
            jnp.asarray(moved),
            alpha=self.alpha,
            baseline=self.baseline,
        )
        given = np.asarray(advantages).tolist()
        credited = [
            [dataclasses.replace(sample, rewards=(given[k][sample.role],)) for sample in policys(samples)]
            for k, samples in enumerate(played)
        ]
        return credited, np.asarray(after).tolist()

    def drawn(self, samples: Sequence[Sample], i: int) -> list[Sample]:
        """The samples with an advantage, `max_turns` of them or fewer, in the order of their matches."""
        samples = [sample for sample in samples if sample.reward]
        # The draw depends on the step alone, so a resumed run makes the same one.
        chosen = np.random.default_rng([self.seed, i]).permutation(len(samples))[: self.max_turns]
        return [samples[k] for k in sorted(chosen.tolist())]

    def end(self, samples: Sequence[Sample]) -> Match:
        return self.matches.end([[sample] for sample in samples])

    def evaluate(self, state: Selves, stage: str) -> Evaluation:
        assert self.examiner is not None
        # Before self-play has begun past selves hold nothing yet; later ones play at the end alone.
        count = {'base': 0, 'warm-up': 0, 'final': len(state.past)}.get(stage, 1)
        steps = self.keeper.steps(self.plan.total_steps)[:count]
        past = {step: self.keeper.weights(state, k) for k, step in enumerate(steps)}
        with self.ctx.phase('evaluate'):
            self.rollouts.sampling.wait()
            return self.examiner(self.learner.weights(state.policy), stage, past)


def make(settings: Settings, ctx: Context) -> Spiral:
    """Checks the settings and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
      RuntimeError: a model cannot be had.
    """
    check(settings)
    check_ahead(settings.rollout, settings.decode)
    for name in settings.eval.textarena:
        # A game that is missing is told before a weight is read.
        Arena(name, 0)
    play, policy = settings.play, make_policy(settings.policy, ctx, settings.seed)
    matches = Matches(make_rules(play), TRAINING, play.reasoned)
    decoder = sampler.make_decoder(settings.decode, policy, ctx, lockstep=settings.rollout.lockstep)
    answers = ModelPlayer(decoder, policy.tokenizer, settings.sampling, matches)
    learner = make_match_learner(settings, policy.cfg, ctx)
    examiner = make_examiner(
        answers, ctx=ctx, actor=learner.actor, count=settings.eval.matches,
        randomly=settings.eval.random_matches, row_tokens=settings.ppo.row_tokens,
        start=functools.partial(policy.source.load, sharding.param_shardings(decoder_specs(policy.cfg), ctx.mesh))
        if settings.eval.start else None,
        models=make_chat_opponents(settings), arenas=settings.eval.textarena, crossplay=settings.eval.crossplay,
        longest=policy.cfg.max_len - settings.sampling.max_tokens, shown=settings.eval.shown,
        seed=(settings.seed, EVALUATION),
    )  # fmt: skip
    steps, phases = settings.warmup.steps + settings.total_steps, {'warm-up': settings.warmup.steps}
    stage = functools.partial(
        stage_before, warmup=settings.warmup.steps, steps=steps, every=settings.eval.every, base=settings.eval.base
    )
    rollouts = make_rollouts(
        settings, ctx, steps, None if play.opponent == 'past' else decoder, played_to_json,
        functools.partial(played_of, matches),
    )  # fmt: skip
    keeper = make_keeper(settings, learner)
    trained = keeper.trained(trained_policy(settings.policy, policy, learner))
    return Spiral(
        plan=Plan(
            steps,
            keeper.abstract,
            stage,
            trained,
            SHOWN,
            pack=rollouts.pack,
            resume=rollouts.resume,
            keep=keeping(policy=policy),
            close=rollouts.close,
            phases={name: count for name, count in (phases | {'self-play': settings.total_steps}).items() if count},
        ),
        ctx=ctx,
        learner=learner,
        keeper=keeper,
        load=policy.source.load,
        answers=answers,
        rollouts=rollouts,
        opponent=make_opponent(play.opponent, matches),
        past=play.opponent == 'past',
        supervised=make_legal_action_batches(settings, answers, ctx.mesh),
        pack=sampler.make_packing(settings, ctx.mesh, play.gathered, gathered=True),
        warmup=settings.warmup.steps,
        games=[game for game in range(len(play.games)) for _ in range(play.shares[game] if play.shares else 1)],
        count=play.matches,
        max_turns=play.max_turns,
        baseline=play.baseline,
        alpha=play.alpha,
        examiner=examiner,
        seed=settings.seed,
        shown=play.shown,
    )


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    policy = make_policy(settings.policy, ctx, settings.seed)
    learner = make_match_learner(settings, policy.cfg, ctx)
    return make_keeper(settings, learner).trained(trained_policy(settings.policy, policy, learner))


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return sampling(settings, make_match_learner, settings.play.max_turns, 1, prompt)


def make_match_learner(settings: Settings, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """PPO without a critic, whose loss divides by `sampling.max_tokens`."""
    ppo = dataclasses.replace(settings.ppo, loss_agg=settings.ppo.loss_agg or 'constant')
    warmup = settings.warmup
    return models.make_learner(
        dataclasses.replace(settings, ppo=ppo),
        cfg,
        ctx,
        n=1,
        imitation=warmup.optimizer.over(max(warmup.steps, 1)),
        warmup=warmup.steps > 0,
    )


def make_keeper(settings: Settings, learner: PolicyLearner) -> Keeper:
    """Keeps the past selves of the settings, and after a warm-up at least the policy before self-play."""
    count = max(settings.play.past, int(settings.warmup.steps > 0))
    return Keeper(learner, count, settings.play.past_every, settings.warmup.steps)


def make_opponent(name: str, matches: Matches) -> Any:
    """The player in the other seat, by its name in settings."""
    players = {'random': at_random, 'expert': expert}
    return functools.partial(players[name], matches) if name in players else None
