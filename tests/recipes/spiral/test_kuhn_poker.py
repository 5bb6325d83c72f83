"""Kuhn poker: its deals, its payoffs, and matches of several rounds."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from pal_jax.recipes.spiral.kuhn_poker import ACTIONS, Hand, KuhnPoker, deal, payoff

RULES, DEALS = KuhnPoker(), list(itertools.permutations(range(3), 2))


def played(cards, *actions, rules=RULES):
    hand = Hand(0, cards)
    for action in actions:
        assert action in rules.legal(hand)
        hand = rules.move(hand, action)
    return hand


@pytest.mark.parametrize(
    ('actions', 'first'),
    [
        (('[check]', '[check]'), 1.0),
        (('[check]', '[bet]', '[fold]'), -1.0),
        (('[check]', '[bet]', '[call]'), 2.0),
        (('[bet]', '[fold]'), 1.0),
        (('[bet]', '[call]'), 2.0),
    ],
)
def test_chips_move_with_a_bet_and_a_call(actions, first):
    assert RULES.rewards(played((2, 1), *actions)) == (first, -first)
    folded = actions[-1] == '[fold]'
    assert RULES.rewards(played((0, 1), *actions))[0] == (first if folded else -first)


def test_each_deal_is_as_likely_and_a_function_of_the_seed():
    counts = Counter(deal(seed, 0) for seed in range(3000))
    assert set(counts) == set(DEALS) and min(counts.values()) > 400
    assert RULES.start(7) == RULES.start(7)
    assert {deal(7, k) for k in range(40)} == set(DEALS)


def test_a_match_changes_the_starter_and_is_decided_by_chips():
    rules = KuhnPoker(rounds=5)
    hand, starters = rules.start(1), []
    while rules.turn(hand) is not None:
        if not hand.history:
            starters.append(rules.turn(hand))
        hand = rules.move(hand, '[bet]' if hand.history == '' else '[fold]')  # the starter always wins the ante
    assert starters == [0, 1, 0, 1, 0]
    assert (hand.chips, rules.rewards(hand)) == (1, (1.0, -1.0))
    assert 'Round 2 of 5. You have won -1 chips.' in rules.observe(rules.start(1)._replace(chips=1, results=('x',)), 1)
    assert rules.rewards(hand._replace(chips=0)) == (0.0, 0.0)
    assert rules.rewards(hand._replace(chips=-7)) == (-1.0, 1.0)


def test_a_player_sees_its_own_card_alone():
    shown = RULES.observe(played((0, 2), '[check]'), 1)
    assert 'Your card is K.' in shown and 'Your card is J' not in shown and 'Player 0 did check.' in shown
    assert RULES.read(played((0, 2), '[check]'), 'call') is None
    assert RULES.read(played((0, 2), '[bet]'), 'call') == '[call]'


def test_every_reachable_state_is_as_openspiel_has_it():
    pyspiel = pytest.importorskip('pyspiel', reason='needs open-spiel, see the extra dev')
    count = 0
    for cards in DEALS:
        theirs = pyspiel.load_game('kuhn_poker').new_initial_state()
        for card in cards:
            theirs.apply_action(card)
        todo = [(Hand(0, cards), theirs)]
        while todo:
            hand, theirs = todo.pop()
            count += 1
            assert (RULES.turn(hand) is None) == theirs.is_terminal()
            if theirs.is_terminal():
                assert list(RULES.rewards(hand)) == theirs.returns()
                continue
            assert RULES.turn(hand) == theirs.current_player()
            assert theirs.information_state_string() == str(cards[RULES.turn(hand)]) + hand.history
            assert len(theirs.legal_actions()) == len(ACTIONS[hand.history]) == 2
            todo += [(RULES.move(hand, action), theirs.child(k)) for k, action in enumerate(RULES.legal(hand))]
    assert count == 6 * 9
    assert payoff('bb', 2, 0) == 2
