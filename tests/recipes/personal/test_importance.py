"""What counts for people: importances of attributes, what is wanted in words, and counts of values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pal_jax.data.comparisons import PreferencePair, from_pairs, standardized
from pal_jax.recipes.personal import importance, logit, offers
from pal_jax.recipes.personal.logit import Common

NAMES = ('price', 'maker: VW over Ford', 'maker: Seat over Ford', 'neither')
UNITS = logit.units_of(NAMES, np.array([2.0, 1.0, 1.0, 1.0]), alone=frozenset({3}))
COMMON = Common(np.array([-0.5, 0.4, -0.6, -3.0]), np.diag([0.1, 0.1, 0.3, 0.5]) ** 2, 40)


def test_the_importance_is_the_range_of_the_utility_of_a_column():
    columns = importance.columns_of(UNITS)
    assert columns == {'price': [0], 'maker': [1, 2]}
    # Prices have 4 units of .5, and makers are from -.6 to .4, with Ford at 0.
    found = importance.importances(COMMON, columns, np.array([4.0, 1.0, 1.0, 1.0]))
    assert found == pytest.approx({'price': 2.0 / 3.0, 'maker': 1.0 / 3.0})
    better = COMMON._replace(weights=np.array([-0.5, 0.4, 0.6, -3.0]))
    found = importance.importances(better, columns, np.array([4.0, 1.0, 1.0, 1.0]))
    assert found == pytest.approx({'price': 2.0 / 2.6, 'maker': 0.6 / 2.6})
    # An effect of thousands is one that choices cannot tell.
    unknown = COMMON._replace(weights=np.array([-9e3, 0.4, -0.6, -3.0]))
    assert importance.importances(unknown, columns, np.ones(4)) == pytest.approx({'maker': 1.0})
    assert importance.wanted(unknown, UNITS, np.ones(4)).endswith('Not known: price.')
    # One effect has the p-value of its own test, and several that of the F distribution.
    (price,) = [logit.p_of_none(COMMON.estimates[0], 40)]
    assert importance.p_of_none(COMMON, [0]) == pytest.approx(price)
    expected = stats.f.sf(((0.4 / 0.1) ** 2 + (0.6 / 0.3) ** 2) / 2, 2, 39)
    assert importance.p_of_none(COMMON, [1, 2]) == pytest.approx(expected)


def test_the_test_of_an_attribute_errs_as_often_as_it_says():
    rng, covariance = np.random.default_rng(0), np.array([[0.04, 0.01], [0.01, 0.02]])
    drawn = rng.multivariate_normal(np.zeros(2), covariance, 2000)
    p = [importance.p_of_none(Common(w, covariance, 2000), [0, 1]) for w in drawn]
    assert 0.035 < np.mean(np.array(p) <= 0.05) < 0.065


def test_what_people_want_is_said_in_words_of_the_better_end():
    said = importance.wanted(COMMON, UNITS, np.array([4.0, 1.0, 1.0, 1.0]))
    assert said == (
        'People want, what counts most first: low price, maker: VW over Ford. Not shown to count: '
        'maker: Seat over Ford.'
    )
    other = COMMON._replace(weights=np.array([0.5, -0.4, 0.0, 1.0]), covariance=np.diag([0.1, 0.1, 0.01, 0.1]) ** 2)
    assert importance.wanted(other, UNITS, np.array([0.1, 1.0, 1.0, 1.0])) == (
        'People want, what counts most first: maker: Ford over VW, high price. Not shown to count: '
        'maker: Seat over Ford.'
    )


def test_an_option_counts_as_offered_once_in_each_choice():
    pairs = []
    for s in range(12):
        # A VW for 2 or 3, a Ford for 4 or 5, or neither; the VW is chosen but in every third choice.
        vw, ford, neither = (2.0 + s % 2, 1.0, 0.0, 0.0), (4.0 + s % 2, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)
        chosen, *others = (neither, vw, ford) if s % 3 == 0 else (vw, ford, neither)
        pairs += [PreferencePair(f'p{s % 4}', chosen, other, str(s)) for other in others]
    data = standardized(from_pairs(pairs, NAMES), UNITS.scale)
    assert offers.alone(data) == {3}
    assert importance.of_values(data, UNITS)[1:] == [
        ['price', '2', '6', '67%'],
        ['', '3', '6', '67%'],
        ['', '4', '6', '0%'],
        ['', '5', '6', '0%'],
        ['maker', 'Ford', '12', '0%'],
        ['', 'VW', '12', '67%'],
    ]
    important, counts = importance.exhibits(data, COMMON, UNITS)
    assert [row[0] for row in important.table[1:]] == ['price', 'maker'] and counts.table[0][0] == 'attribute'
