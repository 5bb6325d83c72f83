"""Offers: how they are read, what they do, and who has gained more."""

from __future__ import annotations

import pytest

from pal_jax.recipes.spiral.negotiation import Negotiation, gains

RULES = Negotiation()


def after(*said):
    state = RULES.start(0)
    for text in said:
        action = RULES.read(state, text)
        assert action is not None, text
        state = RULES.move(state, action)
    return state


@pytest.mark.parametrize(
    ('offer', 'expected'),
    [
        ('5 Wood -> 5 Gold', (50, 50)),
        ('3 Wood -> 2 Gold', (15, 35)),
        ('1 Wood -> 2 Gold', (25, 5)),
        ('10 Wood -> 10 Gold', (100, 100)),
    ],
)
def test_what_an_accepted_offer_of_player_0_brings_both(offer, expected):  # golden 1.7-4
    state = after(f'[Offer: {offer}]', '[Accept]')
    assert gains(state) == expected
    rest = after(f'[Offer: {offer}]', '[Accept]', *['[Offer: 0 Wood -> 0 Gold]'] * 8)
    assert RULES.turn(rest) is None
    assert RULES.rewards(rest)[0] == (expected[0] > expected[1]) - (expected[0] < expected[1])


def test_an_offer_of_player_1_is_the_other_way_round():
    state = after('[Offer: 1 Wood -> 1 Gold]', 'No. [Offer: 3 Gold -> 2 Wood]', r'\boxed{Fine, [Accept]}')
    assert state.goods == ((8, 13), (12, 7)) and state.pending is None
    assert gains(state) == (35, 15)


@pytest.mark.parametrize(
    ('said', 'text'),
    [
        ((), '[Accept]'),
        ((), '[Deny]'),
        ((), 'Shall we trade?'),
        ((), '[Offer: 11 Wood -> 1 Gold]'),
        ((), '[Offer: 1 Wood -> 1 Gold] or [Offer: 2 Wood -> 1 Gold]'),
        ((), '[Offer: 1 Stone -> 1 Gold]'),
        (('[Offer: 1 Wood -> 11 Gold]',), '[Accept]'),
        (('[Offer: 1 Wood -> 1 Gold]', '[Deny]'), '[Accept]'),
    ],
)
def test_what_is_no_valid_action(said, text):
    assert RULES.read(after(*said), text) is None


def test_a_player_hears_what_was_said_and_not_what_things_are_worth_to_the_other():
    state = after('Hello, [Offer: 3 Wood -> 2 Gold]')
    shown = RULES.observe(state, 1)
    assert 'Player 0: Hello, [Offer: 3 Wood -> 2 Gold]' in shown and 'a Wood is worth 15 and a Gold 5' in shown
    assert RULES.legal(state) == ('[Accept]', '[Deny]', '[Offer: 1 Wood -> 1 Gold]')
