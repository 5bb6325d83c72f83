"""Kuhn poker (Kuhn 1950) with real payoffs, as one hand or as a match of several.

Three cards J < Q < K, one each; both players pay an ante of one chip. A bet and a call cost one chip more. Who folds
loses the ante; at a showdown the higher card wins one chip, or two after a bet and a call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pal_jax.games.actions import extract

CARDS = 'JQK'
PASS, BET = 'p', 'b'  # check or fold; bet or call
ACTIONS: Mapping[str, tuple[str, str]] = {  # what may be done after a round's history: passing, then betting
    '': ('[check]', '[bet]'),
    'p': ('[check]', '[bet]'),
    'b': ('[fold]', '[call]'),
    'pb': ('[fold]', '[call]'),
}


class Hand(NamedTuple):
    """A match under way."""

    seed: int
    # The cards of the seats, from 0 (J) to 2 (K).
    cards: tuple[int, int]
    # A letter for each action of this round.
    history: str = ''
    # What player 0 has won in earlier rounds, less what it has lost.
    chips: int = 0
    # The results of earlier rounds, in words.
    results: tuple[str, ...] = ()

    @property
    def round(self) -> int:
        return len(self.results)

    @property
    def starter(self) -> int:
        """The seat that acts first; it changes with every round."""
        return self.round % 2


@dataclasses.dataclass(frozen=True)
class KuhnPoker:
    """Rules for `matches.Matches`.

    With one round the reward is the chips that a seat wins. With more, the match counts 1 for the seat that has won
    more chips, -1 for the other, and 0 where both have as many.
    """

    rounds: int = 1
    name: str = 'kuhn'

    def start(self, seed: int) -> Hand:
        return Hand(seed, deal(seed, 0))

    def turn(self, state: Hand) -> int | None:
        if state.round >= self.rounds:
            return None
        return (state.starter + len(state.history)) % 2

    def legal(self, state: Hand) -> tuple[str, ...]:
        return () if state.round >= self.rounds else ACTIONS[state.history]

    def read(self, state: Hand, text: str) -> str | None:
        action = extract(text)
        return action if action in self.legal(state) else None

    def move(self, state: Hand, action: str) -> Hand:
        history = state.history + (PASS, BET)[ACTIONS[state.history].index(action)]
        # A history with actions of its own is not over.
        if history in ACTIONS:
            return state._replace(history=history)
        first, second = state.cards[state.starter], state.cards[1 - state.starter]
        # `payoff` is what the seat that acted first wins; chips are counted for player 0.
        gain = payoff(history, first, second) * (-1 if state.starter else 1)
        results = (*state.results, f'Player {0 if gain > 0 else 1} won {abs(gain)}')
        return Hand(state.seed, deal(state.seed, len(results)), '', state.chips + gain, results)

    def rewards(self, state: Hand) -> tuple[float, float]:
        value = float(state.chips if self.rounds == 1 else np.sign(state.chips))
        return value, -value

    def observe(self, state: Hand, seat: int) -> str:
        lines = [
            'Kuhn poker: one card each of J < Q < K, and one chip paid each. A bet or a call costs one chip more.',
            f'You are Player {seat}. Your card is {CARDS[state.cards[seat]]}.',
        ]
        if self.rounds > 1:
            chips = -state.chips if seat else state.chips
            earlier = f' Earlier: {"; ".join(state.results)}.' if state.results else ''
            lines.insert(1, f'Round {state.round + 1} of {self.rounds}. You have won {chips:+d} chips.{earlier}')
        past = [state.history[:k] for k in range(len(state.history))]
        for k, history in enumerate(past):
            name = ACTIONS[history][state.history[k] == BET].strip('[]')
            lines.append(f'Player {(state.starter + k) % 2} did {name}.')
        return '\n'.join(lines)


def deal(seed: int, round: int) -> tuple[int, int]:
    """The cards of both seats in a round, each of the six deals with the same chance."""
    first, second = np.random.default_rng([seed, round]).permutation(len(CARDS))[:2].tolist()
    return first, second


def payoff(history: str, first: int, second: int) -> int:
    """The chips that whoever acted first wins at the end of a round, given the cards of both."""
    showdown = 1 if first > second else -1
    # After pbp the seat that acted first has folded, after bp the other one; otherwise the cards decide.
    return {'pp': showdown, 'pbp': -1, 'pbb': 2 * showdown, 'bp': 1, 'bb': 2 * showdown}[history]
