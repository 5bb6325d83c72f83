"""Matches of all games: seats, invalid answers, prompts, and rewards with the sum 0."""

from __future__ import annotations

import random

import pytest

from pal_jax.recipes.spiral.kuhn_poker import KuhnPoker
from pal_jax.recipes.spiral.matches import ASKED, EVALUATION, Matches, play_matches
from pal_jax.recipes.spiral.negotiation import Negotiation
from pal_jax.recipes.spiral.tictactoe import TicTacToe
from tests.recipes.spiral.players import at_random, saying

RULES = TicTacToe(), KuhnPoker(), KuhnPoker(rounds=5), Negotiation()


@pytest.mark.parametrize('games', [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_rewards_of_valid_games_sum_to_zero(games):  # golden 1.7-6
    matches = Matches(RULES)
    starts = [matches.start(seed) for seed in range(games)]
    played = play_matches(matches, {'policy': at_random(matches)}, starts)
    for samples in played:
        end = matches.end([[sample] for sample in samples])
        assert end.offender is None and matches.turn(end) is None
        rewards = matches.rewards(end)
        assert sum(rewards) == 0
        assert all(sample.reward == rewards[sample.role] for sample in samples)
    assert {match.game for match in starts} == set(range(len(RULES)))


@pytest.mark.parametrize('rules', RULES, ids=lambda rules: rules.name)
def test_every_listed_action_is_read_and_played(rules):
    rng = random.Random(0)
    for seed in range(60):
        state = rules.start(seed)
        while rules.turn(state) is not None:
            listed = rules.legal(state)
            assert listed
            for action in listed:
                assert rules.read(state, action) == action
                rules.move(state, action)
            # The numbers of an offer are examples: here a whole stock is given away, too.
            gift = f'[Offer: 10 {rng.choice(("Wood", "Gold"))} -> 0 Wood]'
            state = rules.move(state, rng.choice([*listed, gift] if rules.read(state, gift) else listed))
        assert rules.legal(state) == ()


@pytest.mark.parametrize('text', [r'\boxed{9}', '', 'I do not know which of them I should take'])
@pytest.mark.parametrize('offender', [0, 1])
@pytest.mark.parametrize(('invalid', 'first', 'other'), [((-1.5, 0.5), -1.5, 0.5), (EVALUATION, -1.0, 1.0)])
def test_an_invalid_answer_ends_the_game_and_costs_the_offender(text, offender, invalid, first, other):  # golden 1.7-5
    matches = Matches(RULES, invalid=invalid)
    players = {'good': at_random(matches), 'bad': saying(lambda match: text)}
    seats = ('bad', 'good') if offender == 0 else ('good', 'bad')
    for samples in play_matches(matches, players, [matches.begin(game, 3, seats) for game in range(len(RULES))]):
        end = matches.end([[sample] for sample in samples])
        assert (end.offender, matches.turn(end)) == (offender, None)
        assert samples[-1].role == offender and samples[-1].reward == first
        assert [sample.reward for sample in samples if sample.role != offender] == [other] * offender


def test_players_are_asked_once_a_move_for_all_games_in_any_seat():
    matches, asked = Matches(RULES[:2]), []

    def player(states, moves):
        asked.append((moves, len(states)))
        return at_random(matches, moves)(states, moves)

    seats = [('policy', 'policy')] * 2 + [('policy', 'other'), ('other', 'policy')]
    starts = [matches.begin(0, 0, each) for each in seats]
    play_matches(matches, {'policy': player, 'other': at_random(matches)}, starts)
    assert asked[:2] == [(0, 3), (1, 3)]
    assert len({moves for moves, _ in asked}) == len(asked)


@pytest.mark.parametrize('rules', RULES, ids=lambda rules: rules.name)
def test_a_prompt_tells_the_seat_its_state_and_its_actions(rules):
    for wording in range(len(ASKED)):
        matches = Matches((rules,), wording=wording)
        ((message),) = matches.prompt(matches.start(0), 0)
        assert message['role'] == 'user' and 'You are Player 0' in message['content']
        listed = [action.strip('[]') if rules.name == 'tictactoe' else action for action in rules.legal(rules.start(0))]
        assert all(action in message['content'] for action in listed)
    reasoned = Matches((rules,), reasoned=True)
    assert r'\boxed{move}' in reasoned.prompt(reasoned.start(0), 0)[0]['content']
