"""Tic-tac-toe: its rules on every position, and its exact values."""

from __future__ import annotations

import functools

import pytest

from pal_jax.recipes.spiral.matches import Matches
from pal_jax.recipes.spiral.tictactoe import (
    EMPTY,
    TicTacToe,
    best_cells,
    chances,
    free,
    minimax,
    mover,
    over,
    place_mark,
    result,
)

RULES = TicTacToe()


@functools.cache
def positions():
    seen, todo = {EMPTY}, [EMPTY]
    while todo:
        board = todo.pop()
        for action in RULES.legal(board):
            after = RULES.move(board, action)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return seen


@functools.cache
def complete(board=EMPTY):
    """The numbers of complete games from a board that player 0 wins, that are drawn, and that player 1 wins."""
    if over(board):
        value = result(board)
        return int(value > 0), int(value == 0), int(value < 0)
    return tuple(map(sum, zip(*(complete(place_mark(board, cell)) for cell in free(board)), strict=True)))


def test_values_and_counts_of_the_whole_game():  # golden 1.7-3
    assert minimax(EMPTY) == 0
    assert len(positions()) == 5478
    assert complete() == (131_184, 46_080, 77_904)


def reply_to_random(seat):
    """The best reply to a player who moves at random, which `chances` takes: the first of the best cells."""
    sign = -1.0 if seat else 1.0

    @functools.cache
    def value(board):
        if over(board):
            return sign * result(board)
        values = [value(place_mark(board, cell)) for cell in free(board)]
        return max(values) if mover(board) == seat else sum(values) / len(values)

    return lambda board: [max(free(board), key=lambda cell: value(place_mark(board, cell)))]


def test_how_games_end_against_a_random_player():  # golden 1.7-3
    assert chances(free, free) == pytest.approx((0.584921, 0.126984, 0.288095), abs=1e-6)
    assert chances(reply_to_random(0), free) == pytest.approx((0.994792, 0.005208, 0.0), abs=1e-6)
    assert chances(free, reply_to_random(1)) == pytest.approx((0.007407, 0.060317, 0.932275), abs=1e-6)
    assert chances(best_cells, best_cells) == (0.0, 1.0, 0.0)


def test_an_illegal_cell_is_no_action():
    board = RULES.move(EMPTY, '[4]')
    assert RULES.read(board, r'\boxed{4}') is None and RULES.read(board, '9') is None
    assert RULES.read(board, r'so \boxed{\text{5}}') == '[5]'
    assert RULES.turn(board) == 1


def test_an_observation_shows_marks_and_free_cells():
    content = Matches((RULES,)).prompt(Matches((RULES,)).start(0), 0)[0]['content']
    assert '0 1 2\n3 4 5\n6 7 8' in content
    shown = RULES.observe(RULES.move(RULES.move(EMPTY, '[4]'), '[0]'), 0)
    assert 'X 1 2\n3 O 5' in shown and 'You are Player 0 with O' in shown


def test_every_position_is_as_openspiel_has_it():
    pyspiel = pytest.importorskip('pyspiel', reason='needs open-spiel, see the extra dev')
    todo, seen = [(EMPTY, pyspiel.load_game('tic_tac_toe').new_initial_state())], set()
    while todo:
        board, theirs = todo.pop()
        if board in seen:
            continue
        seen.add(board)
        assert (RULES.turn(board) is None) == theirs.is_terminal()
        if theirs.is_terminal():
            assert list(RULES.rewards(board)) == theirs.returns()
            continue
        assert RULES.turn(board) == theirs.current_player()
        assert free(board) == theirs.legal_actions()
        todo += [(place_mark(board, cell), theirs.child(cell)) for cell in free(board)]
    assert len(seen) == 5478
