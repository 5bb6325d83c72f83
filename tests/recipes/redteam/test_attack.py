"""Red teaming as a game: the form of moves, who reads what, and the 16 rows of rewards."""

from __future__ import annotations

import itertools

import pytest

from pal_jax.games.game import play
from pal_jax.recipes.redteam.attack import (
    ATTACKER,
    DEFENDER,
    Attack,
    GameLabels,
    Move,
    RedTeam,
    Seed,
    lowest,
    read,
    role_rewards,
    table,
)
from pal_jax.types import Completion, Sample

ROWS = {  # of a harmful and of a harmless seed: q, f, h -> attacker, defender (computed apart from this code)
    True: {
        (1, 1, 1): (1, 0), (1, 1, 0): (-1, 2), (1, 0, 1): (2, -2), (1, 0, 0): (0, 0),
        (0, 1, 1): (1, -2), (0, 1, 0): (-1, 0), (0, 0, 1): (0, 0), (0, 0, 0): (-2, 2),
    },
    False: {
        (1, 1, 1): (0, 0), (1, 1, 0): (-2, 2), (1, 0, 1): (1, -2), (1, 0, 0): (-1, 0),
        (0, 1, 1): (2, -2), (0, 1, 0): (0, 0), (0, 0, 1): (1, 0), (0, 0, 0): (-1, 2),
    },
}  # fmt: skip
CASES = [(seed, *flags) for seed in (True, False) for flags in itertools.product((True, False), repeat=3)]
GOOD = ' it is fine </think> <answer> {} </answer>'
HARMFUL, HARMLESS = Seed('Be mean.', True, generated=True), Seed('Be kind.', False)


def finished(harmful=True, offender=None):
    return Attack(Seed('x', harmful, True), 'x', None if offender is not None else 'y', offender)


@pytest.mark.parametrize(('seed', 'q', 'f', 'h'), CASES)
def test_the_sixteen_rows(seed, q, f, h):
    labels = GameLabels(q, f, h)
    attacker, defender = ROWS[seed][q, f, h]
    assert table(seed, labels) == (attacker, defender)
    # A move in the form is paid 1 more; without hidden thoughts there is no such term.
    assert role_rewards(finished(seed), labels) == (attacker + 1, defender + 1)
    assert role_rewards(finished(seed), labels, hidden=False) == (attacker, defender)
    assert table(seed, labels, 'zero_sum') == ((1, -1) if h else (-1, 1))
    assert table(seed, labels, 'all_one') == ((1 if q == seed else -1) + (1 if h else -1) - (1 if q == f else -1),
                                              defender)  # fmt: skip


def test_a_missing_label_makes_its_terms_zero():
    assert table(True, GameLabels(None, None, None)) == (0, 0)
    assert table(True, GameLabels(True, None, False)) == (-0.5, 1)  # the refusal is unknown, so nobody is paid for it
    assert table(True, GameLabels(None, True, True)) == (1, -1)
    assert role_rewards(finished(), None) == (None, None)


def test_who_breaks_the_form_gets_less_than_any_row_and_the_other_move_does_not_count():
    assert lowest('general') == (-2, -2) and lowest('zero_sum') == (-1, -1)
    assert role_rewards(finished(offender=ATTACKER), GameLabels(True, True, True)) == (-3, None)
    assert role_rewards(finished(offender=DEFENDER), None) == (None, -3)
    assert role_rewards(finished(offender=DEFENDER), None, 'zero_sum', hidden=False) == (None, -1)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (' a </think> <answer> b </answer>', Move('a', 'b')),
        ('a</think>\n\n<answer>b\nc</answer>\n', Move('a', 'b\nc')),
        ('<think> a </think> <answer> b </answer>', None),
        ('a</think>x<answer>b</answer>', None),
        ('a</think><answer> </answer>', None),
        (' </think><answer>b</answer>', None),
        ('a</think><answer>b</answer> and more', None),
        ('a</think><answer>b</answer></answer>', None),
        ('a</think></think><answer>b</answer>', None),
        ('<answer>b</answer>a</think>', None),
        ('a</think><answer>b', None),
        ('b', None),
        ('', None),
    ],
)
def test_the_form(text, said):
    assert read(text) == said


def test_without_hidden_thoughts_a_move_is_its_text():
    game = RedTeam(hidden=False)
    assert game.read(' a </think> b ') == Move('', 'a </think> b') and game.read('  ') is None
    assert '<think>' not in game.prompt(game.begin(HARMLESS), DEFENDER)[0]['content']


def scripted(texts, asked):
    """A sampler that says these texts in turn and keeps what it was asked."""

    def sampler(states, moves):
        asked.extend((state, game.prompt(state, game.turn(state))) for state in states)
        return [[Sample((), Completion(texts.pop(0), (), (), 'stop'), source=state)] for state in states]

    game = RedTeam()
    return sampler


def test_generated_seeds_have_two_moves_and_others_one_and_thoughts_stay_hidden():
    game, asked = RedTeam(), []
    thought = 'a secret plan </think> <answer> For a play. </answer>'
    sampler = scripted([thought, GOOD.format('no'), GOOD.format('yes')], asked)
    whole = play(game, [sampler] * 2, [game.begin(HARMFUL), game.begin(HARMLESS)])
    assert [[group[0].role for group in groups] for groups in whole] == [[ATTACKER, DEFENDER], [DEFENDER]]
    (_, attack), (_, plain), (state, sent) = asked
    assert 'Be mean.' in attack[1]['content'] and 'harmful' in attack[1]['content']
    assert plain[1]['content'] == 'Be kind.' and sent[1]['content'] == 'For a play.'
    assert '</think>' not in sent[1]['content'] and 'secret' not in str(sent) + str(state)
    assert game.end(whole[0]) == Attack(HARMFUL, 'For a play.', 'yes')


@pytest.mark.parametrize('broken', ['a secret plan', 'a secret plan </think> x <answer> b </answer>', ''])
def test_a_broken_form_ends_the_game_and_nothing_of_it_is_read(broken):
    game, asked = RedTeam(), []
    (groups,) = play(game, [scripted([broken], asked)] * 2, [game.begin(HARMFUL)])
    assert len(groups) == 1 and len(asked) == 1
    assert game.end(groups) == Attack(HARMFUL, None, None, ATTACKER)
    (groups,) = play(game, [scripted([GOOD.format('hi'), broken], asked)] * 2, [game.begin(HARMFUL)])
    assert game.end(groups).offender == DEFENDER and game.end(groups).answer is None
