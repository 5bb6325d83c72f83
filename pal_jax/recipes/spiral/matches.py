"""Matches of two-player games in text: the rules of several games as one game for `play`.

The rules of a game are pure functions over a state that never changes in place; they know actions and no players.
`Matches` adds what all games share: who sits where, how an answer becomes an action, and what an invalid answer costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from pal_jax.decode.sampler import samples_of, samples_to_json
from pal_jax.games.game import Group, Sampler, play, replayed
from pal_jax.types import Sample

S = TypeVar('S')  # the state of a game

SEATS = 0, 1
POLICY = 'policy'  # the player that learns
# The offender and the other seat get so much after an invalid answer (SPIRAL's released code).
TRAINING = -1.5, 0.5
# The offender and the other seat get so much where an invalid answer counts as a loss.
EVALUATION = -1.0, 1.0

# How an answer is asked for: first as in training, then other wordings for evaluations. The state of the game comes
# late, since prompts that begin alike are read once.
ASKED = (
    'You are playing a two-player zero-sum game. Answer with a move and nothing else.\n{state}\nMoves: {legal}',
    'This is a game for two; what one wins, the other loses.\n{state}\nWrite your move only. Choose from {legal}',
    'A zero-sum game of two players.\n{state}\nWhich move do you make? Say one of {legal} without any other word.',
)
REASONED = (
    'You are playing a two-player zero-sum game.\n{state}\nYour moves: {legal}\n'
    'Think step by step about what is best for you. Then write your move as \\boxed{{move}}.'
)


class Rules(Protocol[S]):
    """A two-player game. Actions are strings in brackets.

    A prompt lists the legal actions, unless a game has a method `listed(state)` whose text stands in their place.
    """

    @property
    def name(self) -> str:
        """The name in figures."""
        ...

    def start(self, seed: int, /) -> S:
        """The state before the first move; chance is a function of `seed`."""
        ...

    def turn(self, state: S, /) -> int | None:
        """The seat that moves next; None: the game is over."""
        ...

    def legal(self, state: S, /) -> tuple[str, ...]:
        """The actions of the seat that moves next."""
        ...

    def read(self, state: S, text: str, /) -> str | None:
        """The legal action that an answer names; None: it names none."""
        ...

    def move(self, state: S, action: str, /) -> S:
        """The state after a legal action."""
        ...

    def rewards(self, state: S, /) -> tuple[float, float]:
        """The reward of each seat when the game is over; their sum is 0."""
        ...

    def observe(self, state: S, seat: int, /) -> str:
        """A text of all that a seat knows."""
        ...


class Match(NamedTuple):
    """A game under way.

    game: the place of its rules.
    players: the name of the player in each seat.
    offender: the seat whose invalid answer has ended the game.
    seed: that of its chance.
    """

    game: int
    state: Any
    players: tuple[str, str] = (POLICY, POLICY)
    offender: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Matches:
    """Matches of several games as one game of two seats, so that `play` has all of them move in step.

    rules: the games.
    invalid: the rewards of the offender and of the other seat after an invalid answer.
    reasoned: whether answers may reason before they name an action in a box.
    wording: which of the wordings of `ASKED` asks for an answer.
    """

    rules: Sequence[Rules[Any]]
    invalid: tuple[float, float] = TRAINING
    reasoned: bool = False
    wording: int = 0
    roles: tuple[str, ...] = ('first', 'second')

    def start(self, seed: int) -> Match:
        """A match of the game number `seed` modulo the number of games."""
        return self.begin(seed % len(self.rules), seed)

    def begin(self, game: int, seed: int, players: tuple[str, str] = (POLICY, POLICY)) -> Match:
        """A match of a game between two players."""
        return Match(game, self.rules[game].start(seed), players, seed=seed)

    def turn(self, match: Match) -> int | None:
        return None if match.offender is not None else self.rules[match.game].turn(match.state)

    def player(self, match: Match) -> str:
        """The name of the player that moves next."""
        seat = self.turn(match)
        assert seat is not None
        return match.players[seat]

    def prompt(self, match: Match, role: int) -> list[dict[str, str]]:
        """One message of the user: what the seat knows, its legal actions, and how to answer."""
        rules = self.rules[match.game]
        listed = getattr(rules, 'listed', lambda state: ' '.join(rules.legal(state)))
        template = REASONED if self.reasoned else ASKED[self.wording]
        content = template.format(state=rules.observe(match.state, role), legal=listed(match.state))
        return [{'role': 'user', 'content': content}]

    def read(self, match: Match, text: str) -> str | None:
        """The legal action that an answer names; None: the answer is invalid."""
        return self.rules[match.game].read(match.state, text)

    def apply(self, match: Match, sample: Sample) -> Match:
        """The match after the action that the sample's text names; an invalid answer ends it."""
        action = self.read(match, sample.completion.text)
        if action is None:
            return match._replace(offender=self.turn(match))
        return match._replace(state=self.rules[match.game].move(match.state, action))

    def rewards(self, match: Match) -> tuple[float, float]:
        if match.offender is None:
            return self.rules[match.game].rewards(match.state)
        offended = self.invalid
        return (offended[0], offended[1]) if match.offender == 0 else (offended[1], offended[0])

    def end(self, groups: Sequence[Group]) -> Match:
        """The last state of a match that `play` has played, whose samples have its states as their `source`."""
        (last,) = groups[-1]
        return self.apply(last.source, last)


def seat_samplers(
    matches: Matches, players: Mapping[str, Callable[[Sequence[Match], int], list[Sample]]]
) -> Sampler[Match]:
    """A sampler for every seat: asks each player once for all matches in which it moves next.

    Args:
      players: by name, a function of the states of matches and the number of moves made in each. It gives a sample for
        each state, which has the state as its `source`.
    """

    def sampler(states: Sequence[Match], moves: int) -> list[list[Sample]]:
        groups: list[list[Sample]] = [[] for _ in states]
        for name, player in players.items():
            places = [k for k, state in enumerate(states) if matches.player(state) == name]
            samples = player([states[k] for k in places], moves) if places else []
            for k, sample in zip(places, samples, strict=True):
                groups[k] = [sample]
        return groups

    return sampler


def play_matches(
    matches: Matches, players: Mapping[str, Callable[[Sequence[Match], int], list[Sample]]], states: Sequence[Match]
) -> list[list[Sample]]:
    """The samples of each match in the order of play, each with its seat as its role and that seat's reward."""
    sampler = seat_samplers(matches, players)
    return [[sample for (sample,) in groups] for groups in play(matches, [sampler] * len(matches.roles), states)]


Played = list[list[Sample]]  # the samples of each match, in the order of play


def played_to_json(played: Played) -> list[Any]:
    """Matches as plain dicts, lists, strings and numbers; the inverse of `played_of`."""
    starts: list[Match] = [samples[0].source for samples in played]
    pairs = zip(starts, played, strict=True)
    return [[start.game, start.seed, start.players, samples_to_json(samples)] for start, samples in pairs]


def played_of(matches: Matches, records: Sequence[Any]) -> Played:
    """The matches that `played_to_json` gave, also after they went through JSON text: they are played again."""
    played = []
    for game, seed, (first, second), samples in records:
        moves = replayed(matches, matches.begin(game, seed, (first, second)), samples_of(samples))
        played.append([dataclasses.replace(one, parsed=matches.read(one.source, one.completion.text)) for one in moves])
    return played
