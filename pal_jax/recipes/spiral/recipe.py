"""SPIRAL (arXiv 2506.24119): one policy plays both seats of zero-sum games against itself and learns from who wins.

A step plays whole matches with the current policy, gives every answer of a seat that seat's return less a baseline of
its game and seat, and makes PPO's update with the constant divisor of Dr. GRPO. There is no critic and no data. No
match is left open at the end of a step, so a run resumes between steps, bit by bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.envs.matches import POLICY, SEATS, TRAINING, Match, Matches, play_matches
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, decoder_specs
from pal_jax.objectives.selfplay import Baseline, as_given, role_conditioned
from pal_jax.parts import models, sampler
from pal_jax.parts.models import keeping, make_policy, trained_policy
from pal_jax.parts.recipe import EVALUATION, Context, Evaluation, Host, Plan, Trained, check_finite, stage_before
from pal_jax.recipes.spiral.evaluate import Examiner, make_examiner
from pal_jax.recipes.spiral.players import Answers, Player, at_random, expert, shown
from pal_jax.recipes.spiral.settings import Settings, check, make_rules
from pal_jax.runtime import sharding
from pal_jax.types import Metrics, RolloutBatch, Sample

SHOWN = 'legal', 'winrate', 'nashconv'
OPPONENT = 'opponent'  # the player beside the policy where the policy does not play both seats


@dataclasses.dataclass(frozen=True)
class Spiral:
    """PPO on whole matches of the policy, by default against itself.

    Attributes:
      load: reads the weights before training.
      answers: the policy as a player, with the weights that its decoder has loaded.
      opponent: the player in the other seat of the matches of a step, by a seed; None: the policy.
      pack: samples of a step as the batch of an update.
      count, max_turns: matches of a step, and the most of their answers that are learnt.
      baseline, alpha: see `role_conditioned`.
      examiner: the evaluation.
    """

    plan: Plan
    ctx: Context
    learner: PolicyLearner
    load: Callable[..., Params]
    answers: Answers
    opponent: Callable[[Sequence[int]], Player] | None
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    count: int
    max_turns: int
    baseline: Baseline
    alpha: float
    examiner: Examiner | None
    seed: int
    shown: int

    @property
    def matches(self) -> Matches:
        return self.answers.matches

    def init(self) -> tuple[PolicyState, Host]:
        baselines = [[0.0] * len(SEATS) for _ in self.matches.rules]
        return self.learner.init(self.load(self.learner.actor.param_shardings)), {'baselines': baselines}

    def step(self, state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        with self.ctx.phase('rollout'):
            # 1. Play whole matches with the current policy.
            self.answers.decoder.load(self.learner.weights(state))
            played = self.play(i)
            # The update needs the memory that the decoder has taken.
            self.answers.decoder.release()
        # 2. Role-conditioned advantages: all answers of a seat get its return less the baseline of its game and seat.
        credited, baselines = self.credited(played, host['baselines'])
        metrics = self.summarize(played) | self.named(baselines)
        self.ctx.show(shown(self.matches, samples, f'match {k + 1}') for k, samples in enumerate(played[: self.shown]))
        # 3. Leave out answers without advantage, and draw at most `max_turns` of the others.
        samples = self.drawn([sample for match in credited for sample in match], i)
        metrics |= {'samples': float(len(samples))}
        if samples:
            with self.ctx.phase('annotate'):
                # 4. The log-probabilities that the ratios of the update start from; answers keep their advantages.
                batch, scored = self.learner.score(state, self.pack(samples))
                batch, estimated = self.learner.advantages(state, batch, as_given)
            with self.ctx.phase('update'):
                # 5. Descend the clipped loss, summed over tokens and divided by a constant, for all epochs.
                state, updated = self.learner.update(state, batch, jax.random.fold_in(jax.random.key(self.seed), i))
            metrics |= scored | estimated | updated
        check_finite(state)
        return state, {'baselines': baselines}, 'spiral', metrics

    def play(self, i: int) -> list[list[Sample]]:
        """The answers of the matches of step `i`, in turn of each game, and against another player of each seat."""
        seeds = np.random.SeedSequence([self.seed, i]).generate_state(self.count).tolist()
        starts = []
        for k, seed in enumerate(seeds):
            turn, game = divmod(i * self.count + k, len(self.matches.rules))
            # Against another player the policy changes seats after each turn of all games, so it learns both seats.
            seats = (POLICY, OPPONENT) if turn % 2 == 0 else (OPPONENT, POLICY)
            starts.append(self.matches.begin(game, seed, seats if self.opponent else (POLICY, POLICY)))
        players = {POLICY: self.answers.player((self.seed, i))}
        if self.opponent:
            players[OPPONENT] = self.opponent((self.seed, i, 1))
        return play_matches(self.matches, players, starts)

    def credited(
        self, played: Sequence[Sequence[Sample]], baselines: Sequence[Sequence[float]]
    ) -> tuple[list[list[Sample]], list[list[float]]]:
        """The policy's answers of each match with their advantages as rewards, and the baselines after all matches."""
        ends = [self.end(samples) for samples in played]
        returns = np.array([self.matches.rewards(end) for end in ends])
        # A baseline follows the policy alone: the returns of another player in that seat are not its own.
        moved = np.array([[is_policys(samples, seat) for seat in SEATS] for samples in played])
        advantages, after = role_conditioned(
            jnp.asarray(baselines, jnp.float32), jnp.array([end.game for end in ends]),
            jnp.asarray(returns, jnp.float32), jnp.asarray(moved), alpha=self.alpha, baseline=self.baseline,
        )  # fmt: skip
        given = np.asarray(advantages).tolist()
        credited = [
            [dataclasses.replace(sample, rewards=(given[k][sample.role],)) for sample in policys(samples)]
            for k, samples in enumerate(played)
        ]
        return credited, np.asarray(after).tolist()

    def drawn(self, samples: Sequence[Sample], i: int) -> list[Sample]:
        """At most `max_turns` of the samples with an advantage, in the order of their matches."""
        samples = [sample for sample in samples if sample.reward]
        # The draw depends on the step alone, so a resumed run makes the same one.
        chosen = np.random.default_rng([self.seed, i]).permutation(len(samples))[: self.max_turns]
        return [samples[k] for k in sorted(chosen.tolist())]

    def end(self, samples: Sequence[Sample]) -> Match:
        return self.matches.end([[sample] for sample in samples])

    def summarize(self, played: Sequence[Sequence[Sample]]) -> Metrics:
        """Figures of the matches of a step: legal answers of the policy, who wins, and how long matches and answers
        are."""
        answers = [sample for samples in played for sample in policys(samples)]
        ends = [self.end(samples) for samples in played]
        # A match that an invalid answer ended says nothing of which seat plays better.
        won = [self.matches.rewards(end)[0] for end in ends if end.offender is None]
        metrics = {
            'matches': float(len(played)),
            'turns': float(len(answers)),
            'moves': float(np.mean([len(samples) for samples in played])),
            'legal': float(np.mean([sample.parsed is not None for sample in answers])),
            'length': float(np.mean([len(sample.completion.token_ids) for sample in answers])),
            'truncated': float(np.mean([sample.completion.finish_reason == 'length' for sample in answers])),
        }
        if won:
            metrics['return_first'] = float(np.mean(won))
        for game, rules in enumerate(self.matches.rules):
            said = [sample.parsed is not None for sample in answers if sample.source.game == game]
            metrics |= {f'{rules.name}_legal': float(np.mean(said))} if said else {}
        return metrics

    def named(self, baselines: Sequence[Sequence[float]]) -> Metrics:
        """The baselines as figures."""
        pairs = zip(self.matches.rules, baselines, strict=True)
        return {f'baseline_{rules.name}_{self.matches.roles[s]}': b[s] for rules, b in pairs for s in SEATS}

    def evaluate(self, state: PolicyState, stage: str) -> Evaluation:
        assert self.examiner is not None
        with self.ctx.phase('evaluate'):
            return self.examiner(self.learner.weights(state), stage)


def policys(samples: Sequence[Sample]) -> list[Sample]:
    """The policy's answers of a match."""
    return [sample for sample in samples if sample.source.players[sample.role] == POLICY]


def is_policys(samples: Sequence[Sample], seat: int) -> bool:
    """True where the policy has answered in this seat of a match."""
    return any(sample.role == seat for sample in policys(samples))


def make(settings: Settings, ctx: Context) -> Spiral:
    """Checks the settings and builds the parts; weights are read by `init`.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
      RuntimeError: a model cannot be had.
    """
    check(settings)
    play, policy = settings.play, make_policy(settings.policy, ctx, settings.seed)
    matches = Matches(make_rules(play), TRAINING, play.reasoned)
    decoder = sampler.make_decoder(settings.decode, policy, ctx)
    answers = Answers(decoder, policy.tokenizer, settings.sampling, matches)
    learner = make_learner(settings, policy.cfg, ctx)
    examiner = make_examiner(
        answers, ctx=ctx, actor=learner.actor, count=settings.eval.matches, row_tokens=settings.ppo.row_tokens,
        start=functools.partial(policy.source.load, sharding.param_shardings(decoder_specs(policy.cfg), ctx.mesh))
        if settings.eval.start else None,
        shown=settings.eval.shown, seed=(settings.seed, EVALUATION),
    )  # fmt: skip
    stage = functools.partial(
        stage_before, warmup=0, steps=settings.total_steps, every=settings.eval.every, base=settings.eval.base
    )
    trained = trained_policy(settings.policy, policy, learner)
    return Spiral(
        plan=Plan(settings.total_steps, learner.abstract, stage, trained, SHOWN, keep=keeping(policy=policy)),
        ctx=ctx,
        learner=learner,
        load=policy.source.load,
        answers=answers,
        opponent=make_opponent(play.opponent, matches),
        pack=sampler.make_packing(settings, ctx.mesh, 1),
        count=play.matches,
        max_turns=play.max_turns,
        baseline=play.baseline,
        alpha=play.alpha,
        examiner=examiner,
        seed=settings.seed,
        shown=play.shown,
    )


def make_trained(settings: Settings, ctx: Context) -> Trained:
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_policy(settings.policy, policy, make_learner(settings, policy.cfg, ctx))


def make_learner(settings: Settings, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """PPO without a critic, whose loss divides by `sampling.max_tokens`."""
    ppo = dataclasses.replace(settings.ppo, loss_agg=settings.ppo.loss_agg or 'constant')
    return models.make_learner(dataclasses.replace(settings, ppo=ppo), cfg, ctx, n=1)


def make_opponent(name: str, matches: Matches) -> Any:
    """The player in the other seat, by its name in settings."""
    players = {'random': at_random, 'expert': expert}
    return functools.partial(players[name], matches) if name in players else None
