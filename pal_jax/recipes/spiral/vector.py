"""Kuhn poker and tic-tac-toe as arrays, so that thousands of matches are played in one compiled program.

They have the rules of `kuhn_poker.py` and `tictactoe.py`. A state is a tree of arrays with a leading axis of matches;
a match that is over stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pal_jax.recipes.spiral.kuhn_poker import ACTIONS, CARDS, payoff
from pal_jax.recipes.spiral.tictactoe import LINES

State = Any


class ArrayGame(Protocol):
    """A two-player game of at most `plies` moves, each one of `actions`, of which a player sees `features` numbers."""

    @property
    def plies(self) -> int: ...

    @property
    def actions(self) -> int: ...

    @property
    def features(self) -> int: ...

    def start(self, key: Array, matches: int, /) -> State:
        """Matches before their first move."""
        ...

    def mover(self, state: State, /) -> Int[Array, ' n']:
        """The seat that moves next."""
        ...

    def observe(self, state: State, /) -> Float[Array, 'n F']:
        """Features of all that this seat knows."""
        ...

    def legal(self, state: State, /) -> Bool[Array, 'n A']:
        """The actions that it may take."""
        ...

    def move(self, state: State, action: Int[Array, ' n'], /) -> State:
        """The matches after these actions."""
        ...

    def over(self, state: State, /) -> Bool[Array, ' n']: ...

    def rewards(self, state: State, /) -> Float[Array, 'n 2']:
        """The reward of each seat in matches that are over."""
        ...


HISTORIES = '', 'pb', 'p', 'b', 'pp', 'bp', 'bb', 'pbp', 'pbb'  # of Kuhn poker: those with a move first
# The place of the next history, by a history that is not over and the letter of the move.
FOLLOWING = np.array([[HISTORIES.index(history + letter) for letter in 'pb'] for history in HISTORIES[: len(ACTIONS)]])
MOVERS = np.array([len(history) % 2 for history in HISTORIES])
# The chips of the seat that moves first at the end of each history, with the lower and with the higher card.
GAINS = np.array(
    [[0 if history in ACTIONS else payoff(history, *cards) for history in HISTORIES] for cards in ((0, 1), (1, 0))]
)


class KuhnHands(NamedTuple):
    cards: Int[Array, 'n 2']
    history: Int[Array, ' n']  # its place in `HISTORIES`


@dataclasses.dataclass(frozen=True)
class KuhnArrays:
    """Kuhn poker of one hand. Features tell which of the twelve information sets of `recipes/spiral/exploitability.py`
    it is."""

    plies: int = 3
    actions: int = 2
    features: int = 12

    def start(self, key: Array, matches: int) -> KuhnHands:
        keys = jax.random.split(key, matches)
        cards = jax.vmap(lambda key: jax.random.permutation(key, len(CARDS))[:2])(keys)
        return KuhnHands(cards, jnp.zeros(matches, jnp.int32))

    def mover(self, state: KuhnHands) -> Int[Array, ' n']:
        return jnp.asarray(MOVERS)[state.history]

    def observe(self, state: KuhnHands) -> Float[Array, 'n 12']:
        card = jnp.take_along_axis(state.cards, self.mover(state)[:, None], axis=1)[:, 0]
        # Where a match is over, its features are of no information set.
        return jax.nn.one_hot(len(CARDS) * state.history + card, self.features)

    def legal(self, state: KuhnHands) -> Bool[Array, 'n 2']:
        return jnp.ones((len(state.history), self.actions), bool)

    def move(self, state: KuhnHands, action: Int[Array, ' n']) -> KuhnHands:
        # Places are bounded, since matches that are over are looked up, too.
        following = jnp.asarray(FOLLOWING)[jnp.minimum(state.history, len(ACTIONS) - 1), action]
        return state._replace(history=jnp.where(self.over(state), state.history, following))

    def over(self, state: KuhnHands) -> Bool[Array, ' n']:
        return state.history >= len(ACTIONS)

    def rewards(self, state: KuhnHands) -> Float[Array, 'n 2']:
        higher = state.cards[:, 0] > state.cards[:, 1]
        gain = jnp.asarray(GAINS, jnp.float32)[higher.astype(jnp.int32), state.history]
        return jnp.stack([gain, -gain], axis=1)


@dataclasses.dataclass(frozen=True)
class TicTacToeArrays:
    """Tic-tac-toe; a state is boards of 9 cells: 0 free, 1 player 0's, 2 player 1's. Features are the mover's marks,
    the other's, and the mover's seat."""

    plies: int = 9
    actions: int = 9
    features: int = 19

    def start(self, key: Array, matches: int) -> Int[Array, 'n 9']:
        return jnp.zeros((matches, 9), jnp.int32)

    def mover(self, state: Int[Array, 'n 9']) -> Int[Array, ' n']:
        return jnp.sum(state > 0, axis=1) % 2

    def observe(self, state: Int[Array, 'n 9']) -> Float[Array, 'n 19']:
        seat = self.mover(state)[:, None]
        # `seat + 1` is the mover's mark, and `2 - seat` the other's.
        marks = [state == seat + 1, state == 2 - seat, seat == 1]
        return jnp.concatenate([mark.astype(jnp.float32) for mark in marks], axis=1)

    def legal(self, state: Int[Array, 'n 9']) -> Bool[Array, 'n 9']:
        return state == 0

    def move(self, state: Int[Array, 'n 9'], action: Int[Array, ' n']) -> Int[Array, 'n 9']:
        here = jax.nn.one_hot(action, 9, dtype=jnp.int32) * (self.mover(state)[:, None] + 1)
        return jnp.where(self.over(state)[:, None], state, state + here)

    def over(self, state: Int[Array, 'n 9']) -> Bool[Array, ' n']:
        return (self.rewards(state)[:, 0] != 0) | jnp.all(state > 0, axis=1)

    def rewards(self, state: Int[Array, 'n 9']) -> Float[Array, 'n 2']:
        lines = state[:, np.array(LINES)]
        first, second = (jnp.any(jnp.all(lines == mark, axis=2), axis=1).astype(jnp.float32) for mark in (1, 2))
        return jnp.stack([first - second, second - first], axis=1)


class Plies(NamedTuple):
    """The moves of matches, `[plies, n, ...]`; `live` tells which were made."""

    observed: Float[Array, 'P n F']
    legal: Bool[Array, 'P n A']
    action: Int[Array, 'P n']
    seat: Int[Array, 'P n']
    live: Bool[Array, 'P n']


Policy = Callable[[Array, Array], Array]  # of features `[n, F]` and the seats that move `[n]`: logits `[n, A]`


def play_arrays(game: ArrayGame, policy: Policy, key: Array, matches: int) -> tuple[Plies, Float[Array, 'n 2']]:
    """Matches in which both seats draw legal actions by `policy`: their moves, and what each seat has won."""

    def ply(state: State, key: Array) -> tuple[State, Plies]:
        observed, legal, seat, live = game.observe(state), game.legal(state), game.mover(state), ~game.over(state)
        action = jax.random.categorical(key, masked(policy(observed, seat), legal))
        return game.move(state, action), Plies(observed, legal, action, seat, live)

    deal, draw = jax.random.split(key)
    state, plies = jax.lax.scan(ply, game.start(deal, matches), jax.random.split(draw, game.plies))
    return plies, game.rewards(state)


def masked(logits: Float[Array, '*S A'], legal: Bool[Array, '*S A']) -> Float[Array, '*S A']:
    """Logits of legal actions alone."""
    # The value is finite, so that a full board, which has no legal action, makes no NaN.
    return jnp.where(legal, logits, -1e9)
