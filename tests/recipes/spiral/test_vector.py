"""Games as arrays against the state machines, on every state."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.recipes.spiral.exploitability import SETS
from pal_jax.recipes.spiral.kuhn_poker import ACTIONS, Hand, KuhnPoker
from pal_jax.recipes.spiral.tictactoe import EMPTY, TicTacToe
from pal_jax.recipes.spiral.vector import HISTORIES, KuhnArrays, KuhnHands, TicTacToeArrays, play_arrays


def test_tic_tac_toe_is_that_of_text_on_every_position():
    rules, arrays, boards, seen = TicTacToe(), TicTacToeArrays(), [EMPTY], {EMPTY}
    for board in boards:
        after = [rules.move(board, action) for action in rules.legal(board)]
        boards += (new := [each for each in after if each not in seen and not seen.add(each)])
        assert len(new) <= 9
    state = jnp.asarray(boards)
    over = np.array([rules.turn(board) is None for board in boards])
    np.testing.assert_array_equal(arrays.over(state), over)
    np.testing.assert_array_equal(arrays.rewards(state), [rules.rewards(board) for board in boards])
    going = [(k, board) for k, board in enumerate(boards) if not over[k]]
    places = np.array([k for k, _ in going])
    np.testing.assert_array_equal(arrays.mover(state)[places], [rules.turn(board) for _, board in going])
    legal = np.asarray(arrays.legal(state))
    for cell in range(9):
        moved = np.asarray(arrays.move(state, jnp.full(len(boards), cell)))
        for k, board in going:
            assert legal[k, cell] == (f'[{cell}]' in rules.legal(board))
            if legal[k, cell]:
                assert tuple(moved[k]) == rules.move(board, f'[{cell}]')
        np.testing.assert_array_equal(moved[over], np.asarray(state)[over])
    seen_by = np.asarray(arrays.observe(state[1:2]))[0]  # the first move was O's on cell 0, so X moves
    assert seen_by.tolist() == [0] * 9 + [1] + [0] * 8 + [1]


def test_kuhn_poker_is_that_of_text_on_every_state():
    rules, arrays = KuhnPoker(), KuhnArrays()
    for cards in itertools.permutations(range(3), 2):
        todo = [(Hand(0, cards), KuhnHands(jnp.array([cards]), jnp.array([0])))]
        while todo:
            hand, state = todo.pop()
            assert bool(arrays.over(state)[0]) == (rules.turn(hand) is None)
            if rules.turn(hand) is None:
                assert tuple(np.asarray(arrays.rewards(state))[0].tolist()) == rules.rewards(hand)
                continue
            seat = rules.turn(hand)
            assert int(arrays.mover(state)[0]) == seat
            assert SETS[int(arrays.observe(state)[0].argmax())] == f'{cards[seat]}{hand.history}'
            for k, action in enumerate(rules.legal(hand)):
                todo.append((rules.move(hand, action), arrays.move(state, jnp.array([k]))))
    assert set(HISTORIES[:4]) == set(ACTIONS)


def test_random_play_ends_as_it_must():
    def evenly(actions):
        return lambda seen, seat: jnp.zeros((len(seen), actions))

    plies, rewards = play_arrays(TicTacToeArrays(), evenly(9), jax.random.key(0), 4000)
    shares = [float(np.mean(np.asarray(rewards[:, 0]) == value)) for value in (1, 0, -1)]
    np.testing.assert_allclose(shares, [0.585, 0.127, 0.288], atol=0.03)
    assert plies.live[:5].all() and not plies.live[-1].all()
    _, chips = play_arrays(KuhnArrays(), evenly(2), jax.random.key(1), 20_000)
    assert abs(float(chips[:, 0].mean()) - 0.125) < 0.04
    assert set(np.unique(chips)) == {-2, -1, 1, 2}
