"""What is said of a reward model, against numbers worked out by hand and populations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.run import reward_model


def pairs(gaps, lengths):
    scores = np.stack([np.asarray(gaps, float), np.zeros(len(gaps))], axis=1)
    return scores, np.asarray(lengths), np.arange(len(gaps))


def test_figures_of_four_pairs():
    gaps = [np.log(3.0), -np.log(3.0), np.log(9.0), 0.0]  # confidences .75, .75, .9, .5
    record = reward_model.measure(*pairs(gaps, [(5, 2), (4, 9), (3, 3), (8, 1)]))
    assert record['accuracy'] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert record['loss'] == pytest.approx(-np.log([0.75, 0.25, 0.9, 0.5]).mean())
    # bins .75: two pairs, half right; .9: one, right; .5: one, a tie
    assert record['ece'] == pytest.approx((2 * 0.25 + 0.1 + 0.0) / 4)
    assert record['accuracy_of_longer'] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert record['accuracy_chosen_longer'] == pytest.approx(0.75)
    assert record['accuracy_chosen_shorter'] == 0.0
    assert (record['rows_chosen_longer'], record['rows_chosen_shorter']) == (2, 1)
    low, high = record['accuracy_interval']
    assert low <= record['accuracy'] <= high


def test_a_model_that_is_as_right_as_it_is_sure_has_no_calibration_error():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=200_000) * 2
    chosen = np.where(rng.random(gaps.size) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)  # nature draws from the model
    assert reward_model.calibration_error(reward_model.reliability(chosen)) < 0.005
    assert reward_model.calibration_error(reward_model.reliability(5 * chosen)) > 0.1  # too sure of itself
    assert reward_model.reliability(chosen)[:, 0].sum() == gaps.size


def test_length_bias_is_seen_whichever_reply_comes_first():
    lengths = np.random.default_rng(1).integers(1, 90, size=(300, 2))
    prompts = np.arange(300)
    by_length = reward_model.measure(0.1 * lengths, lengths, prompts)
    assert by_length['length_correlation'] == pytest.approx(1.0)
    assert by_length['length_correlation_in_pairs'] == pytest.approx(1.0)
    assert by_length['accuracy'] == by_length['accuracy_of_longer']
    swapped = reward_model.measure(0.1 * lengths[:, ::-1], lengths[:, ::-1], prompts)
    assert swapped['length_correlation_in_pairs'] == pytest.approx(1.0)
    none = reward_model.measure(np.random.default_rng(2).normal(size=(300, 2)), lengths, prompts)
    assert abs(none['length_correlation']) < 0.15


def test_pairs_of_one_prompt_are_no_independent_evidence():
    gaps = np.random.default_rng(3).normal(size=100) + 0.5
    alone = reward_model.measure(*pairs(gaps, [(3, 3)] * 100))
    six = reward_model.measure(*pairs(np.repeat(gaps, 6), [(3, 3)] * 600)[:2], np.repeat(np.arange(100), 6))
    assert six['accuracy'] == pytest.approx(alone['accuracy'])
    assert six['accuracy_se'] == pytest.approx(alone['accuracy_se'])
    assert six['rows'] == 600


def test_exhibits_are_a_table_and_pictures():
    scores, lengths, prompts = pairs([1.0, -2.0, 3.0], [(3, 3)] * 3)
    record = reward_model.measure(scores, lengths, prompts)
    assert 'accuracy_chosen_longer' not in record  # there are none
    table, *pictures = reward_model.make_exhibits(scores, lengths, record)
    assert table.table[1][1].startswith('0.667 (95 %: ')
    assert all(each.picture.startswith(b'\x89PNG') for each in pictures)
