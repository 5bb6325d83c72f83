"""Players of matches: the language model, players that move at random or exactly, and tables of Kuhn poker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pal_jax.data.thoughts import spoken
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.envs.kuhn_poker import CARDS, Hand
from pal_jax.envs.matches import Match, Matches
from pal_jax.envs.tictactoe import best_cells
from pal_jax.evals.exploitability import SETS, Table, equilibrium
from pal_jax.parts import sampler
from pal_jax.types import Completion, Sample, Sampling

Player = Callable[[Sequence[Match], int], list[Sample]]  # of matches and the number of moves made in each

BLUFFS = 1 / 6  # of the expert's equilibrium: how often J is bet first


@dataclasses.dataclass(frozen=True)
class Answers:
    """A language model that plays with the weights which `decoder` has loaded."""

    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling
    matches: Matches

    def player(self, seed: Sequence[int]) -> Player:
        """The model as a player of the matches of a step, whose randomness is by `seed`."""
        return lambda states, moves: self(states, (*seed, moves))

    def __call__(self, states: Sequence[Match], seed: Sequence[int]) -> list[Sample]:
        """A sample for the seat that moves next in each match; `parsed` is its action, None where it is invalid."""
        prompts = [self.prompt(match) for match in states]
        samples = sampler.sample(
            self.decoder, self.tokenizer, prompts, [self.sampling], seed, sources=states
        )  # fmt: skip
        return [self.parsed(sample) for sample in samples]

    def prompt(self, match: Match) -> tuple[int, ...]:
        """The tokens that the seat which moves next reads."""
        seat = self.matches.turn(match)
        assert seat is not None
        return tuple(self.tokenizer.chat(self.matches.prompt(match, seat)))

    def parsed(self, sample: Sample) -> Sample:
        """The sample with its action. Thoughts of a reasoning model are no part of its text."""
        # An answer that has not ended its thoughts says nothing, which is an invalid move.
        text = spoken(sample.completion.text) or ''
        said = dataclasses.replace(sample.completion, text=text)
        return dataclasses.replace(sample, completion=said, parsed=self.matches.read(sample.source, text))


def moving(choose: Callable[[Match, np.random.Generator], str], seed: Sequence[int]) -> Player:
    """A player whose moves are a function of a match and of chance."""

    def player(states: Sequence[Match], moves: int) -> list[Sample]:
        # The number of moves is part of the seed, so that a player draws anew at each move.
        rng = np.random.default_rng([*seed, moves])
        actions = [choose(match, rng) for match in states]
        pairs = zip(states, actions, strict=True)
        return [Sample((), Completion(action, (), (), 'stop'), source=match, parsed=action) for match, action in pairs]

    return player


def at_random(matches: Matches, seed: Sequence[int]) -> Player:
    """A player that draws one of the actions which its prompt would list."""
    return moving(lambda match, rng: one_of(matches.rules[match.game].legal(match.state), rng), seed)


def expert(matches: Matches, seed: Sequence[int]) -> Player:
    """A player that draws one of the best moves of tic-tac-toe, and plays an equilibrium of Kuhn poker."""

    def choose(match: Match, rng: np.random.Generator) -> str:
        if isinstance(match.state, Hand):
            return by_table(equilibrium(BLUFFS), matches, match, rng)
        return one_of([f'[{cell}]' for cell in best_cells(match.state)], rng)

    return moving(choose, seed)


def tabled(table: Table, matches: Matches, seed: Sequence[int]) -> Player:
    """A player of Kuhn poker that bets and calls with the chances of a table."""
    return moving(lambda match, rng: by_table(table, matches, match, rng), seed)


def by_table(table: Table, matches: Matches, match: Match, rng: np.random.Generator) -> str:
    hand, seat = match.state, matches.turn(match)
    assert seat is not None
    check, bet = matches.rules[match.game].legal(hand)
    return bet if rng.random() < table[SETS.index(f'{hand.cards[seat]}{hand.history}')] else check


def one_of(actions: Sequence[str], rng: np.random.Generator) -> str:
    return actions[int(rng.integers(len(actions)))]


def information_sets() -> list[Hand]:
    """A hand of the first round for each of `exploitability.SETS`; the card of the other seat is arbitrary."""
    hands = []
    for name in SETS:
        card, history = int(name[0]), name[1:]
        other = (card + 1) % len(CARDS)
        # After an odd number of moves the second seat is to move, so it holds the card of the information set.
        hands.append(Hand(0, (other, card) if len(history) % 2 else (card, other), history))
    return hands


def shown(matches: Matches, samples: Sequence[Sample], title: str) -> dict[str, Any]:
    """A whole match as a report shows it: what each seat read, and what it answered."""
    turns = []
    for sample in samples:
        match = sample.source
        asked = '\n'.join(str(message['content']) for message in matches.prompt(match, sample.role))
        note = '' if sample.parsed is not None else '  (invalid)'
        turns.append({'role': 'user', 'content': asked})
        turns.append({'role': 'assistant', 'content': f'Player {sample.role}: {sample.completion.text}{note}'})
    end = matches.end([[sample] for sample in samples])
    rewards = matches.rewards(end)
    facts = [f'Player {seat}: {end.players[seat]}, reward {reward:g}' for seat, reward in enumerate(rewards)]
    return {'person': title, 'facts': facts, 'turns': turns}
