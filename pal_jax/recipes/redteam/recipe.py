"""Self-RedTeam (arXiv 2506.07468): an attacker and a defender play on seeds, and both learn from what a judge says.

    examples   moves of both roles, which a small model learns from before it plays
    sft        the start policy, supervised on them
    play       REINFORCE++ on games, with advantages whitened by role: `SelfRedTeam`
    evaluate   attackers and defenders of all runs against each other

One policy plays both roles; or each role has an adapter of its own on one frozen base (Anchored Bipolicy,
arXiv 2605.08427); or one role learns and the other stays the start policy. No game is left open at the end of a step,
so a run resumes between steps, bit by bit. Each stage is a run of its own, in a folder beside the others'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct
from jax import Array

from pal_jax.data.passes import shuffled
from pal_jax.decode.answers import check_finished
from pal_jax.judges.chat_models import ChatModels
from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.params import Params
from pal_jax.objectives.advantages import Discounts
from pal_jax.objectives.selfplay import ByRole
from pal_jax.recipes.redteam.attack import ATTACKER, DEFENDER, Payment, Seed
from pal_jax.recipes.redteam.diversity import self_bleu
from pal_jax.recipes.redteam.games import Played, Players, attacks_of, play_judged, rewarded, shown, summarize
from pal_jax.recipes.redteam.judges import Judge
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, check_finite
from pal_jax.types import Metrics, RolloutBatch, Sample, TokenBatch

NAMES = 'attacker', 'defender'


class RoleStates(struct.PyTreeNode):
    """The policies that learn: one for both roles, or one for each.

    Attributes:
      base: the frozen weights that all adapters stand on, once; empty where all weights train.
      policies: the state of each policy that learns, without frozen weights, which `base` has.
    """

    base: Params
    policies: tuple[PolicyState, ...]

    def policy(self, k: int) -> PolicyState:
        """Policy `k` with the frozen base in its place."""
        return with_frozen(self.policies[k], self.base)

    def replaced(self, k: int, policy: PolicyState) -> RoleStates:
        """The states after an update of policy `k`. The update has used up the buffers of the base and gives it back
        with the same bits."""
        policies = list(self.policies)
        policies[k] = with_frozen(policy, {})
        return RoleStates(policy.actor.model.frozen, tuple(policies))


def with_frozen(policy: PolicyState, frozen: Params) -> PolicyState:
    """A policy's state with other frozen weights."""
    actor = policy.actor
    return policy.replace(actor=actor.replace(model=actor.model.replace(frozen=frozen)))


@dataclasses.dataclass(frozen=True)
class SelfRedTeam:
    """REINFORCE++ on whole games: stage play.

    Attributes:
      load: reads the weights before training.
      before: the folders of the stages that must be finished.
      learner: of every policy; each has its own optimiser state and gradient norm.
      roles: for attacker and defender the index of its policy in `RoleStates.policies`; None: the start policy, which
        does not learn.
      judge: labels finished games.
      models: the chat models that may judge.
      pack: samples of a step as the batch of an update.
      train: seeds of the kinds that are played, by kind; test: those of an evaluation.
      count: games of a step, the same number of each kind.
      stream: the supervised batch of a step for the defender; None: there is none, or not in this step.
    """

    plan: Plan
    ctx: Context
    learner: PolicyLearner
    load: Callable[..., Params]
    before: Sequence[Path]
    roles: tuple[int | None, int | None]
    players: Players
    judge: Judge
    models: ChatModels
    pack: Callable[[Sequence[Sample]], RolloutBatch]
    train: Sequence[Sequence[Seed]]
    test: Sequence[Seed]
    count: int
    payment: Payment
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
        return RoleStates(base, tuple(with_frozen(state, {}) for state in states)), {}

    def step(self, state: RoleStates, host: Host, i: int) -> tuple[RoleStates, Host, str, Metrics]:
        # 1. Draw as many harmful requests (seeds) as harmless ones. The attacker rewrites half of them, all where it
        # learns by itself, and none where the defender does.
        seeds = self.drawn(i)
        with self.ctx.phase('rollout'):
            # 2. Play whole games with the current policies; 3. a judge labels request and answer of each.
            games = play_judged(self.players, self.weights(state), seeds, self.judge, (self.seed, i))
        self.check_judged(games)
        # 4. Pay both roles by the table of labels, and one point for the form.
        games = [self.rewarded(game) for game in games]
        metrics = summarize(games) | self.rewards(games)
        self.ctx.show(shown(game, f'game {k + 1}') for k, game in enumerate(games[: self.shown]))
        for k in range(len(state.policies)):
            # 5. REINFORCE++ with statistics by role; a policy learns from the moves of its roles alone.
            state, figures = self.update(state, k, self.learnt(games, k), i)
            metrics |= {self.named(k, name): value for name, value in figures.items()}
        for policy in state.policies:
            check_finite(policy)
        return state, {'usage': self.models.usage} if self.models.usage else {}, 'redteam', metrics

    def drawn(self, i: int) -> list[Seed]:
        """The seeds of step `i`, in shuffled passes over each kind."""
        size = self.count // len(self.train)
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

    def check_judged(self, games: Sequence[Played]) -> None:
        """Raises RuntimeError where too many games have no verdict."""
        failed = sum(game.failed for game in games)
        if failed > self.max_failed * len(games):
            raise RuntimeError(
                f'{failed} of {len(games)} games have no verdict, more than play.max_failed={self.max_failed}; check '
                f'play.judge ({self.models.last_error or "its answers could not be read"}), then run this again'
            )

    def rewarded(self, game: Played) -> Played:
        """A game whose samples have the rewards of their roles."""
        return rewarded(game, self.payment, self.players.game.hidden)

    def learnt(self, games: Sequence[Played], k: int) -> list[Sample]:
        """The samples that policy `k` learns from.

        A role whose samples were all paid alike is left out. Their returns differ by the KL penalty alone, which
        whitening would scale to a variance of 1.
        """
        samples = [one for game in games for one in game.samples if self.roles[one.role] == k]
        paid_by_role = {role: {one.reward for one in samples if one.ok and one.role == role} for role in (0, 1)}
        return [one for one in samples if len(paid_by_role[one.role]) > 1]

    def update(self, state: RoleStates, k: int, samples: Sequence[Sample], i: int) -> tuple[RoleStates, Metrics]:
        """An update of policy `k` on these samples, beside a supervised batch where the policy defends."""
        figures: Metrics = {'samples': float(sum(one.ok for one in samples))}
        if not figures['samples']:
            return state, figures
        policy, ppo = state.policy(k), self.learner.ppo
        with self.ctx.phase('annotate'):
            # Compute the log-probabilities before the update, and returns (rewards less the KL) whitened by role.
            batch, scored = self.learner.score(policy, self.pack(samples))
            estimate = ByRole(len(NAMES), Discounts(ppo.gamma, ppo.lam, ppo.reward_clip))
            batch, estimated = self.learner.advantages(policy, batch, estimate)
        with self.ctx.phase('update'):
            ptx = self.stream(i) if self.roles[DEFENDER] == k else None
            policy, updated = self.learner.update(policy, batch, self.key(i, k), ptx)
        return state.replaced(k, policy), figures | scored | estimated | updated

    def key(self, i: int, k: int) -> Array:
        """The random key of the update of policy `k` at step `i`."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), i), k)

    def named(self, k: int, name: str) -> str:
        """The name of a figure of policy `k`: where each role has its policy, those of the attacker begin with its
        name."""
        apart = None not in self.roles and self.roles[ATTACKER] != self.roles[DEFENDER]
        return f'attacker_{name}' if apart and self.roles[ATTACKER] == k else name

    def rewards(self, games: Sequence[Played]) -> Metrics:
        """The mean reward of each role whose samples count."""
        paid_by_role = [[one.reward for g in games for one in g.samples if one.ok and one.role == r] for r in (0, 1)]
        pairs = zip(NAMES, paid_by_role, strict=True)
        return {f'{name}_reward': float(np.mean(values)) for name, values in pairs if values}

    def evaluate(self, state: RoleStates, stage: str) -> Evaluation:
        """Figures of held-out seeds, each of them once as it is and once rewritten by the attacker."""
        seeds = [one._replace(generated=generated) for generated in (True, False) for one in self.test]
        with self.ctx.phase('evaluate'):
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
        return Evaluation(record, [shown(game, f'game {k + 1}') for k, game in enumerate(games[:3])])
