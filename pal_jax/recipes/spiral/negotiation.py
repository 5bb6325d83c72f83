"""A negotiation over two goods that the players value differently, decided by who has gained more.

Both have ten of each good. Player 0 values wood at 5 and gold at 15, player 1 wood at 15 and gold at 5, and neither
knows the other's values. A turn says one of `[Offer: 3 Wood -> 2 Gold]`, `[Accept]` and `[Deny]`, with words around it
if the player likes. Offers are parsed, not compared with a list; after ten turns the seat with the larger gain in its
own values has won.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from pal_jax.games.actions import extract

GOODS = 'Wood', 'Gold'
START = 10  # of each good
VALUES = (5, 15), (15, 5)  # of a unit of each good, by seat
ACTION = re.compile(r'\[\s*(Accept|Deny|Offer:\s*(\d+) (Wood|Gold) -> (\d+) (Wood|Gold))\s*\]')

Goods = tuple[int, int]


class Offer(NamedTuple):
    """The numbers of each good that the offerer gives and takes."""

    gives: Goods
    takes: Goods


class Market(NamedTuple):
    """A negotiation under way."""

    # The goods of each seat.
    goods: tuple[Goods, Goods] = ((START, START), (START, START))
    # The offer that the seat which moves next may accept.
    pending: Offer | None = None
    # All that was said, in order; player 0 speaks first.
    said: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Negotiation:
    """Rules for `matches.Matches`; an action is what a player says, with one valid action among its words."""

    turns: int = 10
    name: str = 'negotiation'

    def start(self, seed: int) -> Market:
        return Market()

    def turn(self, state: Market) -> int | None:
        return None if len(state.said) >= self.turns else len(state.said) % 2

    def legal(self, state: Market) -> tuple[str, ...]:
        """The forms of legal actions; the numbers of an offer are an example."""
        seat = self.turn(state)
        if seat is None:
            return ()
        answers = ('[Accept]',) if state.pending and holds(state.goods[seat], state.pending.takes) else ()
        # The example gives a good that the seat still has.
        give, take = GOODS if state.goods[seat][0] else GOODS[::-1]
        # A seat that has given everything away can still ask.
        count = int(any(state.goods[seat]))
        return (*answers, *(('[Deny]',) if state.pending else ()), f'[Offer: {count} {give} -> 1 {take}]')

    def read(self, state: Market, text: str) -> str | None:
        """The words of an answer that has one valid action, else None."""
        said, seat = extract(text), self.turn(state)
        actions = list(ACTION.finditer(said or ''))
        if said is None or seat is None or len(actions) != 1:
            return None
        if offer := to_offer(actions[0]):
            # An offer is valid if the offerer holds the goods that it gives.
            return said if holds(state.goods[seat], offer.gives) else None
        # Only a pending offer is accepted or denied, and whoever accepts it holds the goods that it costs.
        return said if f'[{actions[0][1]}]' in self.legal(state) else None

    def move(self, state: Market, action: str) -> Market:
        """A new offer denies the one before it."""
        named, said = ACTION.search(action), (*state.said, action)
        assert named is not None
        if offer := to_offer(named):
            return Market(state.goods, offer, said)
        if named[1] == 'Deny':
            return Market(state.goods, None, said)
        assert state.pending is not None
        seat, (gives, takes) = len(state.said) % 2, state.pending
        # The seat that accepts gives what the offer takes, and gets what the offer gives.
        mine = traded(state.goods[seat], takes, gives)
        other = traded(state.goods[1 - seat], gives, takes)
        return Market((other, mine) if seat else (mine, other), None, said)

    def rewards(self, state: Market) -> tuple[float, float]:
        first, second = gains(state)
        value = float((first > second) - (first < second))
        return value, -value

    def observe(self, state: Market, seat: int) -> str:
        (wood, gold), (per_wood, per_gold) = state.goods[seat], VALUES[seat]
        lines = [
            f'A negotiation of {self.turns} turns. You are Player {seat} and have {wood} Wood and {gold} Gold.',
            f'To you a Wood is worth {per_wood} and a Gold {per_gold}. Whoever gains more in value wins. '
            'The numbers of an offer are yours to choose.',
        ]
        lines += [f'Player {turn % 2}: {said}' for turn, said in enumerate(state.said)]
        return '\n'.join(lines)


def to_offer(named: re.Match[str]) -> Offer | None:
    """The offer of a match of `ACTION`; None where it accepts or denies."""
    if not named[2]:
        return None
    gives, takes = [0, 0], [0, 0]
    gives[GOODS.index(named[3])], takes[GOODS.index(named[5])] = int(named[2]), int(named[4])
    return Offer((gives[0], gives[1]), (takes[0], takes[1]))


def holds(goods: Goods, asked: Goods) -> bool:
    return goods[0] >= asked[0] and goods[1] >= asked[1]


def traded(goods: Goods, less: Goods, more: Goods) -> Goods:
    return goods[0] - less[0] + more[0], goods[1] - less[1] + more[1]


def gains(state: Market) -> tuple[int, int]:
    """The gain of each seat: the value to it of the goods that it holds, less that of the goods it began with."""
    first, second = (
        sum(value * (count - START) for value, count in zip(VALUES[seat], state.goods[seat], strict=True))
        for seat in (0, 1)
    )
    return first, second
