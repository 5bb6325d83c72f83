"""The sources of the samples of a step: answers to prompts that somebody pays, and games that pay their roles.

A group is what is sampled together: the `n` answers to a prompt, or all moves of a game.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from pal_jax.data.passes import shuffled
from pal_jax.decode import sampler
from pal_jax.games.game import Game, play
from pal_jax.learners.ppo import Estimate
from pal_jax.learners.ppo_settings import PPO
from pal_jax.objectives.advantages import EstimatorInputs
from pal_jax.objectives.selfplay import as_given
from pal_jax.recipes.rl.prompts import PromptRow, Prompts
from pal_jax.run import files, own
from pal_jax.run.recipe import EVALUATION
from pal_jax.types import Chat, RewardFn, Sample

Groups = list[list[Sample]]
Sampler = Callable[[Sequence[PromptRow], int, Sequence[int]], list[Sample]]  # `n` samples of each prompt, by a seed


@dataclasses.dataclass(frozen=True)
class PaidAnswers:
    """Answers to prompts, `n` to each of the `size` prompts of a step. `reward` pays them."""

    prompts: Prompts
    reward: RewardFn
    size: int
    n: int
    seed: int
    control: bool
    # The key and value of the config behind each name of a figure of rewards.
    payers: Mapping[str, str]
    # The estimator of the settings compares the answers to a prompt.
    estimate: ClassVar[Estimate | None] = None

    @property
    def packed(self) -> int:
        """The number of neighbours among the learnt samples that have one prompt."""
        return self.n

    def train(self, sample: Sampler, i: int) -> Groups:
        """The answers of step `i`, whose prompts come in shuffled passes over all."""
        rows = shuffled(len(self.prompts.train), start=i * self.size, size=self.size, seed=self.seed)
        samples = sample([self.prompts.train[k] for k in rows], self.n, (self.seed, i))
        return _cut(samples, self.n)

    def test(self, sample: Sampler) -> Groups:
        """An answer to each prompt of the test."""
        return _cut(sample(self.prompts.test, 1, (self.seed, EVALUATION)), 1)

    def pay(self, groups: Groups, seed: int) -> Groups:
        """The answers with their rewards."""
        return _cut(self.reward(flat(groups), seed), len(groups[0]))

    def credit(self, groups: Groups, i: int) -> list[Sample]:
        """The answers that are learnt, with rewards of which the learner makes advantages."""
        samples = flat(groups)
        if not self.control:
            return samples
        # With `control` the rewards of a step go to its answers at random.
        order = np.random.default_rng([self.seed, i]).permutation(len(samples))
        return [
            dataclasses.replace(sample, rewards=samples[k].rewards, ok=samples[k].ok)
            for sample, k in zip(samples, order, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class PaidGames:
    """Games of which the policy plays all roles, `n` from each of the `size` starts of a step, or `tests` of a test."""

    game: Game[Any]
    # The token ids of a chat.
    tokens: Callable[[Chat], Sequence[int]]
    # The largest number of tokens of a prompt.
    longest: int
    # The estimator of `ppo` makes the advantages of games.
    ppo: PPO
    size: int
    n: int
    tests: int
    seed: int
    # The value of `rl.game`, for messages.
    name: str
    # Rewards are advantages already, see `credit`.
    estimate: ClassVar[Estimate | None] = staticmethod(as_given)
    payers: ClassVar[Mapping[str, str]] = {}
    packed: ClassVar[int] = 1  # every move has a prompt of its own

    def train(self, sample: Sampler, i: int) -> Groups:
        """The games of step `i`."""
        starts = np.random.SeedSequence([self.seed, i]).generate_state(self.size).tolist()
        return self._play(sample, [start for start in starts for _ in range(self.n)], (self.seed, i))

    def test(self, sample: Sampler) -> Groups:
        """Games from starts that are the same in every evaluation."""
        seed = self.seed, EVALUATION
        return self._play(sample, np.random.SeedSequence(seed).generate_state(self.tests).tolist(), seed)

    def pay(self, groups: Groups, seed: int) -> Groups:
        """The games as they are, for a game pays its roles when it ends."""
        return groups

    def credit(self, groups: Groups, i: int) -> list[Sample]:
        """The moves of all games with their advantages as rewards."""
        by_role = []
        for role in range(len(self.game.roles)):
            rewards = [next((sample.reward for sample in moves if sample.role == role), None) for moves in groups]
            # A game may end before a role has moved.
            moved = jnp.array([reward is not None for reward in rewards])
            paid = jnp.array([reward or 0.0 for reward in rewards], jnp.float32)
            zeros = jnp.zeros(len(groups), jnp.int32)
            # The estimator compares the rewards of a role in the games of one start, as it compares the answers to a
            # prompt; all moves of a role in a game have the same advantage.
            games = EstimatorInputs(
                paid[:, None], jnp.zeros((len(groups), 1)), None, moved[:, None], moved, zeros, self.n
            )
            by_role.append(np.asarray(self.ppo.estimate(games)[0])[:, 0].tolist())
        return [
            dataclasses.replace(sample, rewards=(by_role[sample.role][k],))
            for k, moves in enumerate(groups)
            for sample in moves
        ]

    def _play(self, sample: Sampler, starts: Sequence[int], seed: Sequence[int]) -> Groups:
        def move(states: Sequence[Any], number: int) -> Groups:
            return _cut(sample(list(map(self._prompt, states)), 1, (*seed, number)), 1)

        played = play(self.game, [move] * len(self.game.roles), [self.game.start(start) for start in starts])
        return list(map(flat, played))

    def _prompt(self, state: Any) -> PromptRow:
        """The prompt of the role that moves next. Raises RuntimeError where it is no chat or too long."""
        role = self.game.turn(state)
        assert role is not None
        messages: Any = self.game.prompt(state, role)
        if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
            raise RuntimeError(
                f'rl.game={self.name!r}: prompt() must return a list of messages, got {files.short_repr(messages)}'
            )
        chat = [dict(message) for message in messages]
        ids = tuple(self.tokens(chat))
        if len(ids) > self.longest:
            raise RuntimeError(f'rl.game: a prompt has {len(ids)} tokens, above prompts.max_length={self.longest}')
        return PromptRow(chat, ids, {})


def open_game(text: str) -> Game[Any]:
    """The game that `rl.game` names, made by its class without arguments.

    Raises:
      ValueError: it cannot be had, or lacks a function of `games.game.Game`.
    """
    return own.load_game('rl.game', text, ('roles', 'start', 'turn', 'prompt', 'apply', 'rewards'))


def groups_to_json(groups: Groups) -> list[Any]:
    """Paid samples as plain dicts, lists, strings and numbers; the inverse of `groups_of`."""
    return [[sampler.to_json(sample) | {'chat': list(sample.source.chat)} for sample in group] for group in groups]


def groups_of(records: Sequence[Any]) -> Groups:
    """The samples that `groups_to_json` gave, also after they went through JSON text. Their sources have no columns,
    which rewards alone read."""

    def sample(record: Mapping[str, Any]) -> Sample:
        row = PromptRow(record['chat'], tuple(record['prompt_ids']), {})
        return sampler.from_json({key: value for key, value in record.items() if key != 'chat'}, source=row)

    return [list(map(sample, group)) for group in records]


def flat(groups: Groups) -> list[Sample]:
    """The samples of all groups, in their order."""
    return [sample for group in groups for sample in group]


def _cut(samples: Sequence[Sample], n: int) -> Groups:
    """Neighbours as groups of `n`."""
    return [list(samples[k : k + n]) for k in range(0, len(samples), n)]
