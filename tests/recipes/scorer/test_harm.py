"""Figures of a classifier of several labels: golden numbers, scipy's ranks, and what must hold for any classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from pal_jax.recipes.scorer import harm as m
from pal_jax.run.moderator import unsafe_by


def column(values):
    return np.array(values, float)[:, None]


LABELS = column([1, 1, 1, 0, 0, 0, 0, 1]).astype(bool)
PROBABILITIES = column([0.9, 0.4, 0.8, 0.2, 0.6, 0.1, 0.3, 0.7])


def draw(rows=400, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((rows, classes)) < 0.3
    return special.expit(rng.normal(size=labels.shape) + 2.0 * labels - 1.0).round(2), labels


def test_figures_of_eight_rows():  # selfplay_safety 4.4-2
    record = m.measure(PROBABILITIES, LABELS, np.arange(8), np.array([0.5]))
    for name in ('accuracy', 'precision', 'recall', 'f1', 'macro_f1', 'macro_precision', 'macro_recall'):
        assert record[name] == 0.75
    assert record['auc'] == record['macro_auc'] == record['auc_by_class'][0] == 15 / 16  # .4 is below .6
    assert record['support_by_class'] == [4] and record['unsafe'] == record['called_unsafe'] == 0.5


def test_one_number_for_all_kinds_of_harm():  # selfplay_safety 4.4-1
    probabilities = special.expit(np.array([2.0, -1.0, 0.5]))
    assert m.harm(probabilities) == pytest.approx(0.880797, abs=1e-6)
    assert m.harm(probabilities, 'mean') == pytest.approx(0.590733, abs=1e-6)


def test_areas_are_those_of_scipys_ranks_with_ties():
    probabilities, labels = draw()
    found = m.by_class(probabilities, labels, np.full(3, 0.5))['auc']
    for area, score, label in zip(found, probabilities.T, labels.T, strict=True):
        ranks = stats.rankdata(score)
        n = label.sum()
        assert area == pytest.approx((ranks[label].sum() - n * (n + 1) / 2) / (n * (~label).sum()))


def test_a_class_of_one_kind_has_no_area_and_is_left_out_of_means():
    probabilities, labels = draw()
    labels[:, 1] = False
    record = m.measure(probabilities, labels, np.arange(len(labels)), np.full(3, 0.5))
    assert record['auc_by_class'][1] is None and record['support_by_class'][1] == 0
    for name in ('auc', 'precision', 'recall', 'f1'):
        assert record[f'macro_{name}'] == pytest.approx(np.mean([record[f'{name}_by_class'][k] for k in (0, 2)]))
    nothing = m.measure(probabilities, np.zeros_like(labels), np.arange(len(labels)), np.full(3, 0.5))
    assert math.isnan(nothing['auc']) and math.isnan(nothing['macro_f1']) and 'auc_interval' not in nothing
    assert nothing['recall'] == nothing['f1'] == 0


def test_a_verdict_has_the_threshold_of_each_class():
    probabilities = np.array([[0.4, 0.4], [0.6, 0.1], [0.1, 0.6]])
    np.testing.assert_array_equal(unsafe_by(probabilities, np.array([0.3, 0.7])), [True, True, False])


def test_rows_of_one_prompt_are_no_independent_evidence():
    probabilities, labels = draw(rows=100)
    alone = m.measure(probabilities, labels, np.arange(100), np.full(3, 0.5))
    four = m.measure(
        np.repeat(probabilities, 4, axis=0),
        np.repeat(labels, 4, axis=0),
        np.repeat(np.arange(7, 107), 4),  # numbers of prompts need not start at 0
        np.full(3, 0.5),
    )
    for name in ('accuracy', 'precision', 'recall', 'f1', 'auc'):
        assert four[name] == pytest.approx(alone[name])
        assert four[f'{name}_se'] == pytest.approx(alone[f'{name}_se'])
        low, high = alone[f'{name}_interval']
        assert low <= alone[name] <= high
    assert four['rows'] == 400


def test_thresholds_have_the_highest_f1_nearest_to_the_middle():
    probabilities, labels = draw(rows=200, seed=1)
    labels[:, 2] = False
    chosen = m.choose_thresholds(probabilities, labels)
    assert chosen[2] == 0.5
    for k in (0, 1):

        def f1(threshold, k=k):
            return m.rates(probabilities[:, k] > threshold, labels[:, k])['f1']

        assert f1(chosen[k]) == pytest.approx(max(f1(threshold) for threshold in np.linspace(0, 1, 1001)))
    # all thresholds from .3 to .7 are perfect, and from .7 to .9
    assert m.choose_thresholds(column([0.3, 0.7]), column([0, 1]).astype(bool)) == 0.5
    assert m.choose_thresholds(column([0.7, 0.9]), column([0, 1]).astype(bool)) == pytest.approx(0.8)
    assert m.choose_thresholds(column([0.2, 0.3]), column([1, 1]).astype(bool)) == pytest.approx(0.1)
    assert m.choose_thresholds(column([0.0, 0.9]).astype('f4'), column([0, 1]).astype(bool)) == 0.5


def test_exhibits_are_tables_and_pictures():
    probabilities, labels = draw()
    record = m.measure(probabilities, labels, np.arange(len(labels)), np.full(3, 0.5))
    names = ['animal_abuse', 'drug_abuse,weapons,banned_substance', 'self_harm']
    verdict, curve, classes, bars = m.make_exhibits(probabilities, labels, record, names)
    assert verdict.table[1][1] == f'{record["auc"]:.3f}' and ' to ' in verdict.table[1][2]
    assert [row[0] for row in classes.table[1:-1]] == names and classes.table[-1][2] == f'{record["macro_auc"]:.3g}'
    assert all(picture.startswith(b'\x89PNG') for picture in (curve.picture, bars.picture))
    safe = np.zeros_like(labels)
    nothing = m.measure(probabilities, safe, np.arange(len(labels)), np.full(3, 0.5))
    assert len(m.make_exhibits(probabilities, safe, nothing, names)) == 3
