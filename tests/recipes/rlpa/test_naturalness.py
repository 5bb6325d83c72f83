"""Naturalness: what is usual by length, how a judge's verdicts follow it, and what no judge may like."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import naturalness as adversaries
from pal_jax.models.files import sources
from pal_jax.recipes.rlpa import naturalness
from pal_jax.recipes.rlpa.criteria import CRITERIA, judge_by_rules
from pal_jax.recipes.rlpa.naturalness import Naturalness, calibrate, figures, good_replies, score, separation, spoil
from pal_jax.types import Dialogue, Person, Turn

HELLO = Dialogue(Person('p', ()), (Turn('user', 'Hello'),))
GOOD = 'Hello! Quiet day here, I am sorting photos. Which pet or hobby makes you happy?'
MENDED = {  # by rules alone: what needs no model to be seen through
    'salad', 'echo', 'echo_turned_round', 'own_reply_again', 'repetition', 'yes', 'profile_values', 'profile_recited',
    'topics', 'markup', 'cut', 'orders',
}  # fmt: skip


def known(*good: str):
    """A reader to whom these replies are likely, and all others are not."""

    def read(dialogues, replies):
        assert len(dialogues) == len(replies)
        return [
            np.full(len(reply.split()) + 1, -2.9 - len(reply) / 1000 if reply in good else -9.0) for reply in replies
        ]

    return read


def test_every_process_fetches_the_model_whether_it_has_replies_to_read_or_not():
    opened = []
    reward = naturalness.open_before(lambda samples, seed: list(samples), lambda: opened.append(True))
    assert reward([], 0) == [] and opened == [True]
    assert naturalness.open_before(reward, None) is reward


def test_figures_are_the_mean_and_the_worst_four_neighbours():
    assert figures(np.array([-1.0, -1.0, -8.0, -8.0, -8.0, -8.0, -1.0])) == pytest.approx([-5.0, -8.0])
    assert figures(np.array([-2.0, -4.0])) == pytest.approx([-3.0, -3.0])


def test_scores_rise_over_the_lowest_percentiles_of_good_replies():
    good = [np.full(20, mean) for mean in np.linspace(-5.0, -3.0, 101)]
    scale = calibrate(good)
    assert scale.full[2] == pytest.approx([-4.9, -4.9]) and scale.nothing[2] == pytest.approx([-5.16, -5.16])
    scores = [score(scale, np.full(20, mean)) for mean in (-9.0, -5.16, -5.03, -4.9, -0.1)]
    assert scores == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_a_stretch_of_nonsense_is_not_averaged_away():
    scale = calibrate([np.full(20, mean) for mean in np.linspace(-5.0, -3.0, 101)])
    fluent = np.full(20, -3.0)
    fluent[8:12] = -9.0
    assert np.mean(fluent) > -4.9 and score(scale, fluent) == 0.0


def test_each_length_has_a_scale_of_its_own_if_it_has_replies():
    short, long = ([np.full(n, mean) for mean in np.linspace(top - 2, top, 101)] for n, top in ((6, -5.0), (20, -3.0)))
    scale = calibrate([*short, *long])
    assert scale.full[0, 0] < -6.0 < -5.2 < scale.full[2, 0]
    assert scale.full[3] == pytest.approx(scale.full[1])  # of neither there was one: what is usual of all


def test_separation_is_an_area_under_the_curve():
    assert separation([np.array([-1.0]), np.array([-3.0])], [np.array([-2.0]), np.array([-4.0])]) == 0.75


def test_a_model_takes_naturalness_down_and_the_totals_with_it():
    good = [reply for _, reply in good_replies(seed=0)]
    natural = Naturalness(known(GOOD, *good))
    assert natural.able and natural.separation == 1.0
    judge = naturalness.make_natural_judge(judge_by_rules, natural)
    senseless = 'I like photos because the bridge was sleeping under seven candles. Does your pet fly?'
    ours, theirs, bad = judge([HELLO] * 3, [()] * 3, [GOOD, senseless, 'Yes.'], 0)
    assert ours.scores == pytest.approx(judge_by_rules([HELLO], [()], [GOOD], 0)[0].scores)
    before = judge_by_rules([HELLO], [()], [senseless], 0)[0].scores
    assert before['graded'] == before['strict'] == 1.0
    assert (theirs.scores['naturalness'], theirs.scores['graded'], theirs.scores['strict']) == (0.0, 0.0, 0.0)
    assert [theirs.scores[name] for name in CRITERIA[1:]] == [before[name] for name in CRITERIA[1:]]
    assert bad.scores['graded'] == 0.0


def test_half_a_naturalness_is_half_the_graded_score():
    verdict = judge_by_rules([HELLO], [()], [GOOD], 0)[0]
    for natural, strict in ((0.5, 1.0), (0.4, 0.0)):
        scores = naturalness.with_naturalness(verdict, natural).scores
        assert (scores['naturalness'], scores['graded'], scores['strict']) == (natural, natural, strict)


def test_a_model_that_knows_no_language_judges_nothing():
    natural = Naturalness(known())
    assert not natural.able
    judge = naturalness.make_natural_judge(judge_by_rules, natural)
    assert judge([HELLO], [()], [GOOD], 0) == judge_by_rules([HELLO], [()], [GOOD], 0)
    with pytest.raises(RuntimeError, match=r'reward\.naturalness'):
        _ = Naturalness(known(), required=True).able


def test_what_rules_refuse_is_not_read():
    asked = []

    def read(dialogues, replies):
        asked.extend(replies)
        return known(*replies)(dialogues, replies)

    naturalness.make_natural_judge(judge_by_rules, Naturalness(read))([HELLO] * 2, [()] * 2, ['Yes.', ''], 0)
    assert asked == []


def test_good_replies_and_spoilt_ones_are_the_same_every_time_and_differ():
    good = good_replies(seed=0)
    assert good == good_replies(seed=0) and len({reply for _, reply in good}) > 40
    spoilt = list(spoil(good, seed=0))
    assert spoilt == list(spoil(good, seed=0)) and len(spoilt) == 2 * len(good)
    assert not {reply for _, reply in good} & {reply for _, reply in spoilt}


# --- adversaries -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def good():
    return adversaries.held_out(people=6)


def test_good_replies_please_the_rules(good):
    assert adversaries.mean(adversaries.judged(good), 'graded') >= 0.9


@pytest.mark.parametrize('name', sorted(MENDED))
def test_rules_see_through_what_needs_no_model(good, name):
    verdicts = adversaries.judged(adversaries.attacked(good, adversaries.ATTACKS[name]))
    assert adversaries.mean(verdicts, 'graded') <= 0.2
    assert adversaries.mean(verdicts, 'strict') <= 0.2


def test_one_text_for_all_turns_is_paid_for_the_first():
    verdicts = adversaries.judged(adversaries.play(adversaries.FIXED, people=10, rounds=6))
    assert adversaries.mean(verdicts, 'graded') <= 0.2 and adversaries.mean(verdicts, 'strict') <= 0.2


@pytest.mark.slow
def test_the_embedded_model_sees_through_all_of_them_and_likes_good_replies(good):
    natural = Naturalness(adversaries.open_model(sources.EMBEDDED))
    assert natural.able and natural.separation > 0.98
    verdicts = adversaries.judged([*good[:16], *adversaries.examples(8)], natural)
    assert adversaries.mean(verdicts, 'naturalness') >= 0.85
    assert adversaries.mean(verdicts[:16], 'graded') >= 0.8
    for name, attack in adversaries.ATTACKS.items():  # those that rules see through are not read
        verdicts = adversaries.judged(adversaries.attacked(good[4:12], attack), natural)
        assert adversaries.mean(verdicts, 'graded') <= 0.2, name
        assert adversaries.mean(verdicts, 'strict') <= 0.2, name
