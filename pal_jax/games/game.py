"""Games of one or more roles, and the one function that plays them.

A game is a handful of pure functions over a state that never changes in place. A role may be a policy in training, a
frozen model, or a simulated person: `play` asks the sampler of each role and knows no difference.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pal_jax.types import Chat, Sample

S = TypeVar('S')  # the state of a game

# Samples of one turn of one game, which answer the same prompt.
Group = Sequence[Sample]
# A sampler takes the states of games and the number of moves made in each.
Sampler = Callable[[Sequence[S], int], Sequence[Group]]


class Game(Protocol[S]):
    """Rules of a game, as pure functions on the host."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The name of each role; a role's number is its place here."""
        ...

    def start(self, seed: int, /) -> S:
        """The state before the first move."""
        ...

    def turn(self, state: S, /) -> int | None:
        """The role that moves next; None: the game is over."""
        ...

    def prompt(self, state: S, role: int, /) -> Chat:
        """The messages that a role reads before its move. Hidden reasoning of another role is never among them."""
        ...

    def apply(self, state: S, sample: Sample, /) -> S:
        """The state after the role that moves next has said `sample`, which may be malformed or cut off."""
        ...

    def rewards(self, state: S, /) -> tuple[float, ...]:
        """The reward of each role when the game is over. It is empty if samplers reward each sample themselves."""
        ...


def play(
    game: Game[S],
    samplers: Sequence[Sampler[S]],
    states: Sequence[S],
    *,
    choose: Callable[[Group], Sample] = lambda group: group[0],
) -> list[list[list[Sample]]]:
    """Play games from the given states to their ends, all of them in step.

    Each game that is not over makes one move at a time. At a move, a sampler is called once, with the states of all
    games in which a role of its moves next.

    Args:
      samplers: a function for each role; several roles may have the same. It gives a group of samples for each state:
        one, or several of which the game goes on with one.
      choose: the sample of a group that the game goes on with.
    Returns:
      The groups of each game, one a move in the order of play. Each sample has the number of its `role`, and the
      reward of that role at the end of the game, if the game has rewards.
    Raises:
      ValueError: the number of samplers is not that of the roles.
    """
    if len(samplers) != len(game.roles):
        raise ValueError(f'{len(samplers)} samplers for the roles {game.roles}; give one for each')
    states = list(states)
    played: list[list[list[Sample]]] = [[] for _ in states]
    for moves in itertools.count():
        movers = {k: role for k, state in enumerate(states) if (role := game.turn(state)) is not None}
        if not movers:
            break
        for sampler in dict.fromkeys(samplers):
            places = [k for k, mover in movers.items() if samplers[mover] is sampler]
            groups = sampler([states[k] for k in places], moves) if places else ()
            for k, group in zip(places, groups, strict=True):
                states[k] = game.apply(states[k], choose(group))
                played[k].append([dataclasses.replace(sample, role=movers[k]) for sample in group])
    ends = (game.rewards(state) for state in states)
    return [_rewarded(groups, rewards) if rewards else groups for groups, rewards in zip(played, ends, strict=True)]


def replayed(game: Game[S], state: S, samples: Sequence[Sample]) -> list[Sample]:
    """The samples of a game from its first state to its end, each with the state that it was made in as its source."""
    placed = []
    for sample in samples:
        placed.append(dataclasses.replace(sample, source=state))
        state = game.apply(state, sample)
    return placed


def _rewarded(groups: list[list[Sample]], rewards: tuple[float, ...]) -> list[list[Sample]]:
    return [[dataclasses.replace(sample, rewards=(rewards[sample.role],)) for sample in group] for group in groups]
