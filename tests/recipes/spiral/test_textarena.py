"""Games of textarena: a match follows from its seed and from what is said, and the package's faults are told."""

from __future__ import annotations

import random
import sys
import types

import pytest

from pal_jax.recipes.spiral.textarena import TURNS, Arena, play_arenas


class Guess:
    """A game where the first to say the hidden number has won; other words in brackets are invalid."""

    def reset(self, num_players, seed):
        self.player, self.hidden = 0, random.randrange(4)

    def get_observation(self):
        return self.player, f' Guess, Player {self.player}. '

    def step(self, text):
        self.invalid, self.right = text == '[no]', text == f'[{self.hidden}]'
        self.mover, self.player = self.player, 1 - self.player
        return self.invalid or self.right, {}

    def close(self):
        first = 1 if self.right == (self.mover == 0) else -1
        return {0: first, 1: -first}, {self.mover: {'invalid_move': self.invalid}}


@pytest.fixture
def package(monkeypatch):
    fake = types.ModuleType('textarena')
    fake.make = lambda name: {'Guess-v0': Guess}[name]()
    monkeypatch.setitem(sys.modules, 'textarena', fake)


def test_a_match_is_played_to_its_end_by_whoever_sits_in_its_seats(package):
    arenas = [Arena('Guess-v0', seed) for seed in range(6)]
    hidden = [arena._env.hidden for arena in arenas]
    guesses = iter(range(100))
    speakers = {
        'policy': lambda chats, turns: [rf'It is \boxed{{{next(guesses) % 4}}}' for _ in chats],
        'other': lambda chats, turns: ['pass'] * len(chats),
    }
    play_arenas(arenas, [('policy', 'other')] * 3 + [('other', 'policy')] * 3, speakers)
    assert all(sum(arena.rewards) == 0 for arena in arenas)
    assert any(arena.rewards == (1.0, -1.0) for arena in arenas[:3]) and max(a.turns for a in arenas) <= TURNS
    random.seed(7)
    assert [Arena('Guess-v0', seed)._env.hidden for seed in range(6)] == hidden and len(set(hidden)) > 1
    assert random.random() == random.Random(7).random()  # nobody else's random numbers are touched


def test_invalid_moves_and_silence_end_a_match(package):
    broken, silent = Arena('Guess-v0', 0), Arena('Guess-v0', 1)
    said = iter(['[no]', None])
    play_arenas([broken, silent], [('a', 'a')] * 2, {'a': lambda chats, turns: [next(said) for _ in chats]})
    assert broken.offender == 0 and broken.rewards == (-1.0, 1.0)
    assert silent.rewards == (0.0, 0.0) and silent.offender is None


def test_what_is_missing_is_told(monkeypatch, package):
    with pytest.raises(ValueError, match=r"eval\.textarena.*'Chess-v9'"):
        Arena('Chess-v9', 0)
    monkeypatch.setitem(sys.modules, 'textarena', None)
    with pytest.raises(RuntimeError, match=r"eval\.textarena='Guess-v0'.*games"):
        Arena('Guess-v0', 0)


def test_the_package_itself_is_played_in_its_own_words():
    pytest.importorskip('textarena', reason='needs textarena, see the extra games')
    arena = Arena('TicTacToe-v0', 0)
    player, ((message),) = arena.asked()
    assert player == 0 and 'Tic Tac Toe' in message['content'] and '[4]' in message['content']
    for move in ('[0]', r'\boxed{3}', '[1]', '[4]', r'\boxed{[2]}'):
        arena.say(move)
    assert arena.rewards == (1.0, -1.0) and arena.offender is None
