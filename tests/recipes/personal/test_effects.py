"""The effects in each group of people, their worth, and the file with all effects as numbers."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pal_jax.recipes.personal import effects, logit
from pal_jax.recipes.personal.logit import Common
from pal_jax.recipes.personal.mixed_logit import MixedLogit
from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate
from tests.recipes.personal.people import apart

UNITS = logit.units_of(('price', 'minutes'), np.array([2.0, 4.0]), 'price')


def group(name, price, minutes, error=0.05):
    return effects.GroupModel(name, 30, Common(np.array([price, minutes]), np.diag([error**2, error**2]), 30))


def test_each_group_has_its_own_effects():
    rng = np.random.default_rng(0)
    users, groups = np.repeat(np.arange(40), 10), np.arange(40) % 3 - 1
    x = rng.normal(size=(400, 2))
    x[groups[users] == 0, 0] = np.abs(x[groups[users] == 0, 0])
    data: Any = SimpleNamespace(groups=groups, group_names=('north', 'south'))
    shown = effects.exhibit_by_group(
        effects.group_models(data, apart(x, users)), logit.units_of(('a', 'b'), np.array([2.0, 1.0])), 0.001
    )
    assert shown.table[0][1:3] == ['north (13 people)', 'south (13 people)'] and 'p = 0.001' in shown.text
    south = logit.of_all(apart(x, users).at(groups[users] == 1)).estimates
    assert shown.table[1][2] == (half := south[0].scaled(0.5)).with_error(f'+{half.form}')
    assert shown.table[2][2] == south[1].with_error(f'+{south[1].form}') and shown.table[1][1] == '–'
    north = logit.of_all(apart(x, users).at(groups[users] == 0)).estimates
    gap = intervals.difference(south[1], north[1])
    assert shown.table[2][3:] == [f'{gap.value:+{gap.form}}', gap.ends(f'+{gap.form}')]


def test_what_a_group_has_not_chosen_between_is_a_dash():
    rng = np.random.default_rng(0)
    users, groups = np.repeat(np.arange(45), 10), np.arange(45) % 3
    x = np.concatenate([rng.normal(size=(450, 2)), np.ones((450, 1))], axis=1)
    x[:, 2] = np.where(groups[users] == 0, 0.0, rng.normal(size=450))
    data: Any = SimpleNamespace(groups=groups, group_names=('n', 's', 'w'))
    models = effects.group_models(data, apart(x, users))
    _, a, _, c = effects.exhibit_by_group(models, logit.units_of(('a', 'b', 'c'), None), 0.5).table
    assert c[1] == '–' and '–' not in (*c[2:4], *a) and 0 <= float(c[4]) <= 1
    everybody = logit.of_all(apart(np.concatenate([x, np.zeros((450, 1))], axis=1), users)).estimates
    assert everybody[3].error > logit.CERTAIN > everybody[0].error


def test_effects_that_are_equal_but_for_their_errors_have_a_p_like_chance():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.0, [1.0, 2.0, 0.5], (2000, 3))
    errors = 1.0, 2.0, 0.5
    rows = [[Estimate(*pair, None, None) for pair in zip(row, errors, strict=True)] for row in draws]
    p = [effects.p_of_equal(row, [10**6] * 3) for row in rows]
    assert 0.04 < np.mean(np.array(p) <= 0.05) < 0.06
    assert effects.p_of_equal([Estimate(0.0, 0.1, None, None), Estimate(1.0, 0.1, None, None)], [30, 30]) < 1e-6


def test_p_of_equal_is_that_of_welch_for_means():
    rng = np.random.default_rng(1)
    samples = [rng.normal(mean, spread, n) for mean, spread, n in ((0.0, 1.0, 8), (0.5, 2.0, 12), (0.2, 0.5, 6))]
    of_means = [Estimate(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5), None, None) for x in samples]
    expected = stats.f_oneway(*samples, equal_var=False).pvalue
    assert effects.p_of_equal(of_means, [8, 12, 6]) == pytest.approx(expected, rel=1e-9)


def test_groups_of_few_people_have_no_model_of_their_own():
    users, groups = np.repeat(np.arange(24), 6), np.repeat([0, 1, 2], [10, 10, 4])
    x = np.random.default_rng(0).normal(size=(144, 2))
    data: Any = SimpleNamespace(groups=groups, group_names=('n', 's', 'w'))
    choices = apart(x, users)
    assert [model.name for model in effects.group_models(data, choices)] == ['n', 's']
    data.groups = np.repeat([0, 1], [20, 4])
    assert effects.group_models(data, choices) == []


def test_the_worth_in_each_group_and_its_difference():
    models = [group('n', -0.8, -0.4), group('s', -0.8, -0.2)]
    shown = effects.exhibit_worths(models, UNITS)
    # A minute has the effect -.4 / 4 in the north, and a unit of the price -.8 / 2.
    (_, row) = shown.table
    assert row[0] == 'minutes' and row[1].startswith('-0.250 (') and row[2].startswith('-0.125 (')
    worths = [model.common.worth(1, 0).scaled(0.5) for model in models]
    gap = intervals.difference(worths[1], worths[0])
    assert row[3:] == ['+0.125', gap.ends('+.3f')] and gap.low > 0
    # Where a price may have no effect there is no interval.
    unknown = effects.exhibit_worths([group('n', -0.8, -0.4), group('s', -0.01, -0.2)], UNITS)
    assert unknown.table[1][2].endswith('(–)') and unknown.table[1][4] == '–'
    # A price that choices cannot tell gives no worth at all.
    assert effects.exhibit_worths([models[0], group('s', -100.0, -0.2)], UNITS).table[1][2:] == ['–', '–', '–']
    assert len(effects.exhibit_worths([*models, group('w', -1.0, -0.1)], UNITS).table[0]) == 4


def test_effects_stand_in_a_picture_with_their_intervals():
    shown = effects.exhibit_intervals([group(effects.EVERYBODY, -0.8, -0.4), group('n', -100.0, -0.3)], UNITS)
    assert shown.picture.startswith(b'\x89PNG')


def test_all_effects_are_numbers_in_the_file():
    mixed = MixedLogit(np.array([-1.0, -0.8]), np.array([0.4, 0.2]), np.array([[0.1, 0.2], [0.1, np.nan]]))
    models = [group(effects.EVERYBODY, -0.8, -0.4), group('n', -0.8, 100.0)]
    rows = list(csv.DictReader(io.StringIO(effects.table_of_effects(models, UNITS, mixed))))
    assert [(row['model'], row['group'], row['attribute']) for row in rows] == [
        *[('logit', name, attribute) for name in (effects.EVERYBODY, 'n') for attribute in ('price', 'minutes')],
        *[
            (f'mixed logit {part}', effects.EVERYBODY, attribute)
            for attribute in ('price', 'minutes')
            for part in ('mean', 'deviation', *(['above 0'] if attribute == 'price' else []))
        ],
    ]
    estimate: Any = models[0].common.estimates[1].scaled(0.25)
    number = [float(rows[1][key]) for key in ('effect', 'error', 'low', 'high')]
    assert number == pytest.approx([estimate.value, estimate.error, estimate.low, estimate.high], rel=1e-5)
    assert float(rows[1]['p']) == pytest.approx(2 * stats.t.sf(8.0, 29), rel=1e-5)
    assert float(rows[1]['worth']) == pytest.approx(-0.25) and rows[0]['worth'] == ''
    two = [models[0], group('n', -0.8, -0.4), group('s', -0.8, -0.2)]
    *_, price, minutes = csv.DictReader(io.StringIO(effects.table_of_effects(two, UNITS)))
    assert (price['group'], price['people'], float(price['effect'])) == ('s less n', '60', 0.0)
    assert (float(minutes['effect']), float(minutes['worth'])) == (pytest.approx(0.05), pytest.approx(0.125))
    assert float(minutes['low']) < 0.05 < float(minutes['high']) and price['worth'] == ''
    # Welch's test of two groups is that of the difference.
    t = 0.2 / np.hypot(0.05, 0.05)
    assert float(minutes['p']) == pytest.approx(2 * stats.t.sf(t, 58), rel=1e-4) and float(price['p']) == 1.0
    # An effect that choices cannot tell has empty cells, and so has an error that is not known.
    assert {rows[3][key] for key in ('effect', 'error', 'low', 'high', 'p', 'worth')} == {''}
    assert (float(rows[4]['effect']), float(rows[4]['error']), rows[8]['error']) == (-0.5, 0.05, '')
    t = stats.t.ppf(0.975, 29)
    assert float(rows[4]['high']) == pytest.approx(-0.5 + 0.05 * t, rel=1e-5)
    assert float(rows[6]['effect']) == pytest.approx(stats.norm.cdf(-2.5), rel=1e-5) and len(rows) == 9


def test_the_fit_of_models_is_that_of_their_likelihoods():
    """Against statsmodels' formulas, by hand."""
    x, users = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [0.5, -1.0]]), np.array([0, 0, 1, 1])
    choices, mixed = apart(x, users), MixedLogit(np.zeros(2), np.ones(2), log_likelihood=-2.0)
    common = logit.of_all(choices)
    chance, shared, last = effects.exhibit_fit(choices, common, mixed).table[1:]
    fit = float(np.sum(np.log(1 / (1 + np.exp(-x @ common.weights)))))
    assert chance == ['chance', '0', f'{-4 * np.log(2):.2f}', '0.000', f'{8 * np.log(2):.1f}', f'{8 * np.log(2):.1f}']
    assert shared[1:3] == ['2', f'{fit:.2f}'] and shared[4:] == [f'{4 - 2 * fit:.1f}', f'{2 * np.log(4) - 2 * fit:.1f}']
    # An attribute that follows from the others is no parameter of its own.
    twice = np.column_stack([x, x.sum(axis=1)])
    mixed_of_three = MixedLogit(np.zeros(3), np.ones(3), log_likelihood=-2.0)
    fits = effects.exhibit_fit(apart(twice, users), common._replace(weights=np.zeros(3)), mixed_of_three).table[2:]
    assert [row[1] for row in fits] == ['2', '4']
    assert last[1:] == ['4', '-2.00', f'{1 - 2 / (4 * np.log(2)):.3f}', '12.0', f'{4 * np.log(4) + 4:.1f}']


def test_the_covariance_is_of_effects_of_one_unit():
    common = Common(np.zeros(2), np.array([[4.0, 8.0], [8.0, 32.0]]), 30)
    rows = list(csv.reader(io.StringIO(effects.table_of_covariance(common, UNITS))))
    assert rows == [['attribute', 'price', 'minutes'], ['price', '1', '1'], ['minutes', '1', '2']]
    unknown = Common(np.zeros(2), np.diag([4.0, 1e6]), 30)
    rows = list(csv.reader(io.StringIO(effects.table_of_covariance(unknown, UNITS))))
    assert rows[1:] == [['price', '1', ''], ['minutes', '', '']]
