"""Tic-tac-toe: the rules, and the exact values of its positions.

Player 0 has O and moves first, player 1 has X. A win counts 1, a full board without one 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from pal_jax.games.actions import extract

Board = tuple[int, ...]  # of the 9 cells, by row: 0 is free, 1 player 0's, 2 player 1's

EMPTY: Board = (0,) * 9
MARKS = ' OX'
LINES = (0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)


@dataclasses.dataclass(frozen=True)
class TicTacToe:
    """Rules for `matches.Matches`; the state is a board, and the action on cell k is `[k]`."""

    name: str = 'tictactoe'

    def start(self, seed: int) -> Board:
        return EMPTY

    def turn(self, state: Board) -> int | None:
        return None if over(state) else mover(state)

    def legal(self, state: Board) -> tuple[str, ...]:
        return () if over(state) else tuple(f'[{cell}]' for cell in free(state))

    def listed(self, state: Board) -> str:
        """The form of an action."""
        # The board shows which cells are free, and a list of them would double a prompt.
        return '[number of a free cell]'

    def read(self, state: Board, text: str) -> str | None:
        action = extract(text)
        return action if action in self.legal(state) else None

    def move(self, state: Board, action: str) -> Board:
        return place_mark(state, int(action[1:-1]))

    def rewards(self, state: Board) -> tuple[float, float]:
        value = float(result(state))
        return value, -value

    def observe(self, state: Board, seat: int) -> str:
        cells = [MARKS[mark] if mark else str(cell) for cell, mark in enumerate(state)]
        rows = '\n'.join(' '.join(cells[k : k + 3]) for k in (0, 3, 6))
        return f'Tic-tac-toe. You are Player {seat} with {MARKS[seat + 1]}.\n{rows}'


# --- boards -----------------------------------------------------------------------------------------------------------


def free(board: Board) -> list[int]:
    return [cell for cell, mark in enumerate(board) if not mark]


def mover(board: Board) -> int:
    """The seat that moves next where the game is not over."""
    return (9 - board.count(0)) % 2


def place_mark(board: Board, cell: int) -> Board:
    """The board with the mark of the seat that moves next on a free cell."""
    return (*board[:cell], mover(board) + 1, *board[cell + 1 :])


@functools.cache
def result(board: Board) -> int:
    """1 where player 0 has a line, -1 where player 1 has one, otherwise 0."""
    for a, b, c in LINES:
        if board[a] and board[a] == board[b] == board[c]:
            return 1 if board[a] == 1 else -1
    return 0


def over(board: Board) -> bool:
    return bool(result(board)) or 0 not in board


# --- exact values -----------------------------------------------------------------------------------------------------


@functools.cache
def minimax(board: Board) -> int:
    """The result of perfect play from a board, 1, 0 or -1 for player 0."""
    if over(board):
        return result(board)
    values = [minimax(place_mark(board, cell)) for cell in free(board)]
    # Player 0 looks for the highest value, and player 1 for the lowest.
    return min(values) if mover(board) else max(values)


def best_cells(board: Board) -> list[int]:
    """The cells that keep the value of perfect play."""
    return [cell for cell in free(board) if minimax(place_mark(board, cell)) == minimax(board)]


Chances = tuple[float, float, float]  # of a win of player 0, a draw and a win of player 1


def chances(first: Callable[[Board], list[int]], second: Callable[[Board], list[int]]) -> Chances:
    """The chances of the results between two players who choose uniformly among the cells that their functions give."""

    @functools.cache
    def ends(board: Board) -> Chances:
        if over(board):
            value = result(board)
            return float(value > 0), float(value == 0), float(value < 0)
        cells = (first, second)[mover(board)](board)
        return mean([ends(place_mark(board, cell)) for cell in cells])

    return ends(EMPTY)


def mean(chances: list[Chances]) -> Chances:
    first, draw, second = (sum(column) / len(chances) for column in zip(*chances, strict=True))
    return first, draw, second
