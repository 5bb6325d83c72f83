"""Figures of the bench against the golden numbers of its specification, and against enumeration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from pal_jax.recipes.personal import judged as protocol
from pal_jax.run import intervals

RIGHT = {0: [1] * 8, 1: [1, 1, 0, 0], 2: [1, 0], 3: [0, 0, 1, 0.5]}
MARGIN = {1: 1.0, 0: -1.0, 0.5: 0.0}


@pytest.fixture
def judged():
    users = np.concatenate([[person] * len(row) for person, row in RIGHT.items()])
    margins = np.array([MARGIN[value] for row in RIGHT.values() for value in row])
    return protocol.judge(margins, users)


def test_each_person_alike_pairs_and_the_worst(judged):
    result = protocol.figures([judged])
    assert result.pairs.value == pytest.approx(12.5 / 18, abs=2e-6)  # .694444
    assert result.people.value == pytest.approx(0.593750, abs=2e-6)
    assert result.worst == pytest.approx(0.375)
    assert result.people.error == pytest.approx(0.120018 * np.sqrt(4 / 3), abs=2e-6)
    share = judged.hits.sum() / judged.pairs.sum()
    assert np.sqrt(share * (1 - share) / 18) == pytest.approx(0.108574, abs=2e-6)  # the naive one
    assert result.pairs.error == pytest.approx(0.185528, abs=2e-6)


def test_a_choice_is_right_where_the_chosen_option_is_ahead_of_all_others():
    margins, users = np.array([1.0, 2.0, -1.0, 0.0, 3.0, 0.5, 0.5]), np.array([7, 7, 7, 7, 4, 4, 4])
    part = protocol.judge(margins, users, np.array([5, 5, 9, 9, 1, 2, 2]))
    # Person 4 has two choices, both right; of person 7, one is right and another has an option ahead of the chosen one.
    np.testing.assert_array_equal([part.people, part.choices, part.first, part.pairs], [[4, 7], [2, 2], [2, 1], [3, 4]])
    tied = protocol.judge(np.array([1.0, 0.0]), np.zeros(2, int), np.zeros(2, int))
    assert tied.first.tolist() == [0.5]
    share = protocol.put_first([part, tied._replace(people=np.array([9]))])
    assert share.value == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    twice = protocol.together([part, part])
    assert (
        twice.choices.tolist() == [4, 4] and protocol.from_json(json.loads(json.dumps(twice.to_json()))).first[0] == 4
    )
    assert protocol.put_first([protocol.judge(margins, users)]) is None
    # Records of earlier versions lack both counts.
    before = {key: value for key, value in part.to_json().items() if key not in ('choices', 'first')}
    np.testing.assert_array_equal(protocol.from_json(before).first, part.hits)


@pytest.mark.parametrize(('pairs', 'worst'), [(2, 0.091), (5, 0.333), (20, 0.517), (100, 0.619)])
def test_the_worst_tenth_if_all_were_alike(pairs, worst):
    assert protocol.worst_if_alike(np.full(100, pairs), 0.7) == pytest.approx(worst, abs=3e-3)


def test_expected_calibration_error():
    p, right = np.array([0.55, 0.65, 0.65, 0.95, 0.95, 0.95]), np.array([1, 0, 1, 1, 1, 0])
    margins = np.log(p / (1 - p)) * (2 * right - 1)
    result = protocol.figures([protocol.judge(margins, np.zeros(6, int))])
    assert result.ece == pytest.approx(0.266667, abs=2e-6)


def test_paired_differences():
    A, B = np.array([0.9, 0.7, 0.6, 0.55, 0.8]), np.array([0.85, 0.6, 0.6, 0.5, 0.7])
    gain = protocol.paired(A, B).mean
    assert gain.value == pytest.approx(0.060)
    assert gain.error == pytest.approx(0.0187, abs=5e-5)
    assert (gain.low, gain.high) == pytest.approx(stats.t.interval(0.95, 4, 0.06, gain.error), abs=5e-3)
    unpaired = np.sqrt(A.var(ddof=1) / 5 + B.var(ddof=1) / 5)
    assert unpaired == pytest.approx(0.0872, abs=5e-5)


def test_splits_of_the_same_people_are_no_more_people(judged):
    """Five splits that test the same people on the same choices tell as much as one of them."""
    worse = protocol.judge(np.array([1.0, -1.0] * 9), np.repeat(list(RIGHT), [8, 4, 2, 4]))
    one, five = protocol.gain([judged], [worse]), protocol.gain([judged] * 5, [worse] * 5)
    gaps = np.array([1.0, 0.5, 0.5, 0.375]) - 0.5
    assert one.mean.value == pytest.approx(gaps.mean())
    assert one.mean.error == pytest.approx(gaps.std(ddof=1) / 2)
    assert five.mean == pytest.approx(one.mean)
    assert protocol.alike([judged] * 5) == pytest.approx(protocol.alike([judged]))


def test_people_that_a_gain_needs():
    assert protocol.people_needed(0.02, 0.08) == 126


def test_splits_add_up_by_person_and_survive_json(judged):
    back = protocol.from_json(json.loads(json.dumps(judged.to_json())))
    for a, b in zip(judged, back, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)
    both = protocol.together([judged, back])
    np.testing.assert_array_equal(both.people, judged.people)
    np.testing.assert_allclose(protocol.by_person(both), protocol.by_person(judged))
    assert both.pairs.sum() == 2 * judged.pairs.sum()


def test_other_people_are_refused(judged):
    fewer = protocol.judge(np.ones(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match='3 people were tested'):
        protocol.figures([judged], [fewer])
    with pytest.raises(ValueError, match='1 of 2 margins'):
        protocol.judge(np.array([np.nan, 1.0]), np.zeros(2, int))


def test_a_gain_counts_where_it_exceeds_that_of_shuffled_people():
    gain, shuffled = (protocol.Paired(intervals.of_mean(mean, 0.01, 40), 0.1) for mean in (0.05, 0.0))
    assert protocol.counts(gain, shuffled)
    assert not protocol.counts(gain, gain)
    assert not protocol.counts(gain._replace(mean=intervals.of_mean(0.02, 0.01, 40)), shuffled)
    worse, still_worse = (gain._replace(mean=intervals.of_mean(mean, 0.01, 40)) for mean in (-0.02, -0.09))
    assert not protocol.counts(worse, still_worse)
