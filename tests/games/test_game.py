"""The one `play`: two roles that count to a number, in games of different length."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from pal_jax.games.game import play
from pal_jax.types import Completion, Sample


class Count(NamedTuple):
    goal: int
    said: tuple[int, ...] = ()
    resigned: bool = False


class Counting:
    """Two roles add 1 or 2 in turn; whoever reaches the goal wins, and whoever says anything else loses."""

    roles = 'first', 'second'

    def start(self, seed):
        return Count(seed)

    def turn(self, state):
        return None if state.resigned or sum(state.said) >= state.goal else len(state.said) % 2

    def prompt(self, state, role):
        return [{'role': 'user', 'content': f'You are {self.roles[role]}: {sum(state.said)} of {state.goal}.'}]

    def apply(self, state, sample):
        text = sample.completion.text
        if text not in ('1', '2'):
            return state._replace(resigned=True)
        return state._replace(said=(*state.said, int(text)))

    def rewards(self, state):
        return (1.0, -1.0) if len(state.said) % 2 else (-1.0, 1.0)  # the last who counted wins


def seat(text, seen, group=1):
    """A sampler that says the same whatever it reads, and notes what it is asked."""

    def sampler(states, moves):
        seen.append((text, moves, [state.goal for state in states]))
        done = Completion(text, (), (), 'stop')
        return [[Sample((), done, source=state) for _ in range(group)] for state in states]

    return sampler


def test_games_of_different_length_are_played_in_step_and_reward_each_role():
    game, seen = Counting(), []
    played = play(game, (seat('1', seen), seat('2', seen)), [game.start(goal) for goal in (1, 4, 6)])
    assert seen == [('1', 0, [1, 4, 6]), ('2', 1, [4, 6]), ('1', 2, [4, 6]), ('2', 3, [6])]
    assert [[sample.role for (sample,) in groups] for groups in played] == [[0], [0, 1, 0], [0, 1, 0, 1]]
    assert [[sample.reward for (sample,) in groups] for groups in played] == [
        [1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]
    ]  # fmt: skip
    assert [sample.source.said for (sample,) in played[2]] == [(), (1,), (1, 2), (1, 2, 1)]


def test_roles_of_different_games_may_move_at_once_and_a_game_that_is_over_is_not_played():
    game, seen = Counting(), []
    states = [Count(4), Count(4, (1,)), Count(1, (2,))]
    played = play(game, (seat('2', seen), seat('2', seen)), states)
    assert [(moves, len(goals)) for _, moves, goals in seen] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    assert [len(groups) for groups in played] == [2, 2, 0]
    assert states == [Count(4), Count(4, (1,)), Count(1, (2,))]


def test_a_game_goes_on_with_the_sample_that_is_chosen():
    game, seen = Counting(), []

    def mixed(states, moves):
        groups = seat('1', seen, group=3)(states, moves)
        return [
            [dataclasses.replace(s, completion=Completion(text, (), (), 'stop'))
             for s, text in zip(group, ('?', '1', '2'), strict=True)]
            for group in groups
        ]  # fmt: skip

    chosen = play(game, (mixed, mixed), [game.start(4)], choose=lambda group: group[2])
    (first,) = play(game, (mixed, mixed), [game.start(4)])
    assert [len(group) for group in chosen[0]] == [3, 3]
    assert [len(group) for group in first] == [3]
    assert first[0][0].reward == -1.0  # the first role resigned


def test_each_role_needs_a_sampler():
    with pytest.raises(ValueError, match='1 samplers'):
        play(Counting(), (seat('1', []),), [])


def test_roles_with_one_sampler_are_asked_together():
    game, seen = Counting(), []
    both = seat('2', seen)
    played = play(game, (both, both), [Count(4), Count(4, (1,))])
    assert [(moves, len(goals)) for _, moves, goals in seen] == [(0, 2), (1, 2)]
    assert [[sample.role for (sample,) in groups] for groups in played] == [[0, 1], [1, 0]]
