"""What is said of a cost model, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.cost import evaluation as cost_model

COSTS = np.array([[1.2, -0.5], [-0.3, 0.4], [2.0, -1.0]])
UNSAFE = np.array([[1.0, 0.0], [1.0, 1.0], [np.nan, 0.0]])
LENGTHS = np.array([[5, 2], [4, 9], [3, 3]])


def measure(costs=COSTS, unsafe=UNSAFE, prompts=(0, 1, 2)):
    return cost_model.measure(costs, LENGTHS, np.array(prompts), unsafe)


def test_figures_of_three_pairs():
    record = measure()
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
    record = cost_model.measure(COSTS[:2], LENGTHS[:2], np.arange(2), UNSAFE[:2])
    assert record['loss'] == pytest.approx(1.687851, abs=1e-6)
    assert (record['accuracy'], record['sign_accuracy']) == (0.5, 0.75)


def test_a_cost_of_another_zero_ranks_as_well_and_has_no_signs():
    moved = measure(COSTS + 5.0)
    assert moved['accuracy'] == measure()['accuracy'] and moved['auc'] == measure()['auc']
    assert moved['sign_accuracy'] == moved['sign_accuracy_of_commoner'] and moved['sign_accuracy_safe'] == 0.0


def test_answers_of_one_prompt_are_no_independent_evidence():
    rng = np.random.default_rng(0)
    costs, unsafe = rng.normal(size=(100, 2)), rng.integers(2, size=(100, 2)).astype(float)
    lengths = np.ones((600, 2), int)
    alone = cost_model.measure(costs, lengths[:100], np.arange(100), unsafe)
    six = cost_model.measure(*(np.repeat(x, 6, axis=0) for x in (costs, lengths[:100], np.arange(100), unsafe)))
    assert six['sign_accuracy'] == pytest.approx(alone['sign_accuracy'])
    assert six['sign_accuracy_se'] == pytest.approx(alone['sign_accuracy_se'])
    low, high = alone['sign_accuracy_interval']
    assert low < alone['sign_accuracy'] < high


@pytest.mark.parametrize(('unsafe', 'titles'), [
    (UNSAFE, ['Held-out pairs', 'Costs', 'Reliability']), (np.full((3, 2), np.nan), ['Held-out pairs', 'Reliability']),
    (np.zeros((3, 2)), ['Held-out pairs', 'Costs', 'Reliability']),
])  # fmt: skip
def test_exhibits_show_signs_where_there_are_labels(unsafe, titles):
    record = measure(unsafe=unsafe)
    table, *pictures = cost_model.make_exhibits(COSTS, unsafe, record)
    assert [table.title, *(each.title for each in pictures)] == titles
    assert all(each.picture.startswith(b'\x89PNG') for each in pictures)
    assert ('sign_accuracy' in record) == any(row[0] == 'signs right' for row in table.table)
    assert 'auc' in record if np.isfinite(unsafe).any() and unsafe.any() else 'auc' not in record


def test_costs_that_are_all_zero_are_shown():
    zero = np.zeros((3, 2))
    assert measure(zero)['sign_accuracy'] == 0.5  # a tie
    assert cost_model.plot_costs(zero, UNSAFE).startswith(b'\x89PNG')
