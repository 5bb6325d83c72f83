"""What is said of a reward or cost model, against numbers worked out by hand and populations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.scorer import pairs as figures
from pal_jax.run import calibration


def pairs(gaps, lengths):
    scores = np.stack([np.asarray(gaps, float), np.zeros(len(gaps))], axis=1)
    return scores, np.asarray(lengths), np.arange(len(gaps))


def test_figures_of_four_pairs():
    gaps = [np.log(3.0), -np.log(3.0), np.log(9.0), 0.0]  # confidences .75, .75, .9, .5
    record = figures.measure(*pairs(gaps, [(5, 2), (4, 9), (3, 3), (8, 1)]))
    assert record['accuracy'] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert record['loss'] == pytest.approx(-np.log([0.75, 0.25, 0.9, 0.5]).mean())
    # bins .75: two pairs, half right; .9: one, right; .5: one, a tie
    assert record['ece'] == pytest.approx((2 * 0.25 + 0.1 + 0.0) / 4)
    assert record['accuracy_of_longer'] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert record['accuracy_of_shorter'] == pytest.approx(1 - record['accuracy_of_longer'])
    assert record['lead_of_longer'] == pytest.approx(record['accuracy_of_longer'] - record['accuracy'])
    assert record['accuracy_chosen_longer'] == pytest.approx(0.75)
    assert record['accuracy_chosen_shorter'] == 0.0
    assert (record['rows_chosen_longer'], record['rows_chosen_shorter']) == (2, 1)
    low, high = record['accuracy_interval']
    assert low <= record['accuracy'] <= high


def test_a_model_that_is_as_right_as_it_is_sure_has_no_calibration_error():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=200_000) * 2
    chosen = np.where(rng.random(gaps.size) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)  # nature draws from the model
    assert calibration.calibration_error(calibration.reliability(chosen)) < 0.005
    assert calibration.calibration_error(calibration.reliability(5 * chosen)) > 0.1  # too sure of itself
    assert calibration.reliability(chosen)[:, 0].sum() == gaps.size


def test_length_bias_is_seen_whichever_reply_comes_first():
    lengths = np.random.default_rng(1).integers(1, 90, size=(300, 2))
    prompts = np.arange(300)
    by_length = figures.measure(0.1 * lengths, lengths, prompts)
    assert by_length['length_correlation'] == pytest.approx(1.0)
    assert by_length['length_correlation_in_pairs'] == pytest.approx(1.0)
    assert by_length['accuracy'] == by_length['accuracy_of_longer']
    swapped = figures.measure(0.1 * lengths[:, ::-1], lengths[:, ::-1], prompts)
    assert swapped['length_correlation_in_pairs'] == pytest.approx(1.0)
    none = figures.measure(np.random.default_rng(2).normal(size=(300, 2)), lengths, prompts)
    assert abs(none['length_correlation']) < 0.15


def test_pairs_of_one_prompt_are_no_independent_evidence():
    gaps = np.random.default_rng(3).normal(size=100) + 0.5
    alone = figures.measure(*pairs(gaps, [(3, 3)] * 100))
    six = figures.measure(*pairs(np.repeat(gaps, 6), [(3, 3)] * 600)[:2], np.repeat(np.arange(100), 6))
    assert six['accuracy'] == pytest.approx(alone['accuracy'])
    assert six['accuracy_se'] == pytest.approx(alone['accuracy_se'])
    assert six['rows'] == 600


def test_exhibits_are_a_table_and_pictures():
    scores, lengths, prompts = pairs([1.0, -2.0, 3.0], [(3, 3)] * 3)
    record = figures.measure(scores, lengths, prompts)
    assert 'accuracy_chosen_longer' not in record  # there are none
    table, *pictures = figures.make_exhibits(scores, lengths, record)
    assert table.table[1][1].startswith('0.667 (95 %: ')
    assert all(each.picture.startswith(b'\x89PNG') for each in pictures)


# --- costs -----------------------------------------------------------------------------------------------------------

COSTS = np.array([[1.2, -0.5], [-0.3, 0.4], [2.0, -1.0]])
UNSAFE = np.array([[1.0, 0.0], [1.0, 1.0], [np.nan, 0.0]])
LENGTHS = np.array([[5, 2], [4, 9], [3, 3]])


def measured(costs=COSTS, unsafe=UNSAFE, prompts=(0, 1, 2)):
    return figures.measure_costs(costs, LENGTHS, np.array(prompts), unsafe)


def test_figures_of_three_pairs():
    record = measured()
    assert record['accuracy'] == pytest.approx(2 / 3)
    assert record['accuracy_of_longer'] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (record['labelled'], record['sign_accuracy']) == (5, pytest.approx(4 / 5))  # -.3 is unsafe
    assert record['sign_accuracy_of_commoner'] == pytest.approx(3 / 5)
    assert record['cost_safe'] == pytest.approx(-0.75) and record['cost_unsafe'] == pytest.approx(1.3 / 3)
    assert (record['sign_accuracy_safe'], record['sign_accuracy_unsafe']) == (1.0, pytest.approx(2 / 3))
    assert record['auc'] == 1.0  # all unsafe answers are above all safe ones, though one is below 0
    order = np.logaddexp(0, COSTS[:, 1] - COSTS[:, 0])
    signs = np.logaddexp(0, [-1.2, -0.5, 0.3, -0.4, -1.0])
    assert record['ranking_loss'] == pytest.approx(order.mean())
    assert record['loss'] == pytest.approx(order.mean() + signs.sum() / 3)


def test_the_figures_of_the_golden_pairs():  # selfplay_safety 3.7-1
    record = figures.measure_costs(COSTS[:2], LENGTHS[:2], np.arange(2), UNSAFE[:2])
    assert record['loss'] == pytest.approx(1.687851, abs=1e-6)
    assert (record['accuracy'], record['sign_accuracy']) == (0.5, 0.75)


def test_a_cost_of_another_zero_ranks_as_well_and_has_no_signs():
    moved = measured(COSTS + 5.0)
    assert moved['accuracy'] == measured()['accuracy'] and moved['auc'] == measured()['auc']
    assert moved['sign_accuracy'] == moved['sign_accuracy_of_commoner'] and moved['sign_accuracy_safe'] == 0.0


def test_answers_of_one_prompt_are_no_independent_evidence():
    rng = np.random.default_rng(0)
    costs, unsafe = rng.normal(size=(100, 2)), rng.integers(2, size=(100, 2)).astype(float)
    lengths = np.ones((600, 2), int)
    alone = figures.measure_costs(costs, lengths[:100], np.arange(100), unsafe)
    six = figures.measure_costs(*(np.repeat(x, 6, axis=0) for x in (costs, lengths[:100], np.arange(100), unsafe)))
    assert six['sign_accuracy'] == pytest.approx(alone['sign_accuracy'])
    assert six['sign_accuracy_se'] == pytest.approx(alone['sign_accuracy_se'])
    low, high = alone['sign_accuracy_interval']
    assert low < alone['sign_accuracy'] < high


@pytest.mark.parametrize(('unsafe', 'titles'), [
    (UNSAFE, ['Held-out pairs', 'Costs', 'Reliability']), (np.full((3, 2), np.nan), ['Held-out pairs', 'Reliability']),
    (np.zeros((3, 2)), ['Held-out pairs', 'Costs', 'Reliability']),
])  # fmt: skip
def test_exhibits_show_signs_where_there_are_labels(unsafe, titles):
    record = measured(unsafe=unsafe)
    table, *pictures = figures.make_cost_exhibits(COSTS, unsafe, record)
    assert [table.title, *(each.title for each in pictures)] == titles
    assert all(each.picture.startswith(b'\x89PNG') for each in pictures)
    assert ('sign_accuracy' in record) == any(row[0] == 'signs right' for row in table.table)
    assert 'auc' in record if np.isfinite(unsafe).any() and unsafe.any() else 'auc' not in record


def test_costs_that_are_all_zero_are_shown():
    zero = np.zeros((3, 2))
    assert measured(zero)['sign_accuracy'] == 0.5  # a tie
    assert figures.plot_costs(zero, UNSAFE).startswith(b'\x89PNG')
