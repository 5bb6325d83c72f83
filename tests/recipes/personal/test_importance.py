"""What counts for people: importances of attributes, what is wanted in words, and counts of values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pal_jax.data.comparisons import PreferencePair, from_pairs, standardized
from pal_jax.recipes.personal import importance, logit, offers
from pal_jax.recipes.personal.logit import Common
from tests.recipes.personal.people import apart

NAMES = ('price', 'maker: VW over Ford', 'maker: Seat over Ford', 'neither')
UNITS = logit.units_of(NAMES, np.array([2.0, 1.0, 1.0, 1.0]), alone=frozenset({3}))
COMMON = Common(np.array([-0.5, 0.4, -0.6, -3.0]), np.diag([0.1, 0.1, 0.3, 0.5]) ** 2, 40)


COLUMNS = {
    'price': importance.Column([0], np.array([[1.0], [5.0]])),
    'maker': importance.Column([1, 2], np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])),
}


def test_the_importance_is_the_range_of_the_utility_of_a_column():
    # Prices have 4 units of .5, and makers are from -.6 to .4, with Ford at 0.
    assert importance.importances(COMMON, COLUMNS) == pytest.approx({'price': 2.0 / 3.0, 'maker': 1.0 / 3.0})
    better = COMMON._replace(weights=np.array([-0.5, 0.4, 0.6, -3.0]))
    assert importance.importances(better, COLUMNS) == pytest.approx({'price': 2.0 / 2.6, 'maker': 0.6 / 2.6})
    # A word that only the constant option has, Ford here, is no value of an offer.
    offered = COLUMNS | {'maker': COLUMNS['maker']._replace(values=np.array([[0.0, 1.0], [1.0, 0.0]]))}
    assert importance.importances(better, offered)['maker'] == pytest.approx(0.2 / 2.2)
    # An effect of thousands is one that choices cannot tell; a difference may be known all the same.
    unknown = COMMON._replace(weights=np.array([-9e3, 0.4, -0.6, -3.0]))
    assert importance.importances(unknown, COLUMNS) == pytest.approx({'maker': 1.0})
    common = np.zeros((4, 4))
    common[1:3, 1:3] = 1e6
    tangled = COMMON._replace(covariance=COMMON.covariance + common)
    assert importance.importances(tangled, offered).keys() == {'price', 'maker'}
    assert importance.importances(tangled, COLUMNS).keys() == {'price'}


def test_the_p_value_of_an_attribute_is_that_of_hotelling():
    # One effect has the p-value of its own test.
    assert importance.p_of_none(COMMON, COLUMNS['price']) == pytest.approx(logit.p_of_none(COMMON.estimates[0], 40))
    squares = (0.4 / 0.1) ** 2 + (0.6 / 0.3) ** 2
    expected = stats.f.sf(squares * 38 / (2 * 39), 2, 38)
    assert importance.p_of_none(COMMON, COLUMNS['maker']) == pytest.approx(expected)
    assert importance.p_of_none(COMMON._replace(people=2), COLUMNS['maker']) is None


@pytest.mark.parametrize(('people', 'words'), [(12, 6), (20, 3)])
def test_the_test_of_an_attribute_errs_at_most_as_often_as_it_says(people, words):
    """Choices between two random words of a column without effects, by few people."""
    rng, wrong, trials = np.random.default_rng(0), 0, 120
    values = np.concatenate([np.zeros((1, words)), np.eye(words)])
    column = importance.Column(list(range(words)), values)
    for _ in range(trials):
        pairs = np.array([rng.permutation(words + 1)[:2] for _ in range(12 * people)])
        x = values[pairs[:, 0]] - values[pairs[:, 1]]
        common = logit.of_all(apart(x, np.repeat(np.arange(people), 12)))
        p = importance.p_of_none(common, column)
        assert p is not None and 0.0 <= p <= 1.0
        wrong += p <= 0.05
    assert wrong / trials < 0.1


def survey(weights, maker=('Ford', 'VW', 'Seat'), seed=0, neither=(0.0, 0.0, 0.0, 1.0)):
    """Choices of 30 people between two cars and neither, by a logit."""
    rng, pairs = np.random.default_rng(seed), []
    for s in range(360):
        cars = []
        for _ in range(2):
            word = rng.choice(maker)
            cars.append((float(rng.integers(1, 6)), float(word == 'VW'), float(word == 'Seat'), 0.0))
        if cars[0] == cars[1]:
            continue
        utility = np.array([*cars, neither]) @ weights + rng.gumbel(size=3)
        chosen, *others = np.array([*cars, neither])[np.argsort(-utility)].tolist()
        pairs += [PreferencePair(f'p{s % 30}', tuple(chosen), tuple(other), str(s)) for other in others]
    return from_pairs(pairs, NAMES)


def test_what_people_want_is_said_in_words_of_the_better_end():
    data = survey(np.array([-0.8, 0.0, -1.5, -2.0]))
    units = logit.units_of(NAMES, None, alone=frozenset({3}))
    common = logit.of_all(logit.choices_in(data))
    assert importance.wanted(importance.columns_of(data, units), common, units) == (
        'People want, what counts most first: low price, maker: Ford over Seat. Not shown to count: '
        'maker: VW over Ford.'
    )
    # The first word is that of the constant option alone, which is its constant then.
    data = survey(np.array([-0.8, 2.0, 0.5, 0.0]), maker=('VW', 'Seat'), neither=(0.0, 0.0, 0.0, 0.0))
    assert offers.doubts(data) == []
    common = logit.of_all(logit.choices_in(data))
    units = units._replace(alone=frozenset())
    said = importance.wanted(importance.columns_of(data, units), common, units)
    assert said.startswith('People want, what counts most first: low price, maker: VW.')


def tariffs(flat):
    """Choices between tariffs, some of which are `flat` of a column of 0 and 1, and cost nothing by use."""
    rng, pairs = np.random.default_rng(0), []
    for s in range(300):
        first, second = rng.integers(2, 7, 2).astype(float).tolist()
        by_use = (second, 1.0 - flat, 1.0)
        options = [(0.0, flat, 0.0) if s % 2 else (first, 1.0 - flat, 0.0), by_use]
        utility = [rng.gumbel() + local - price - 3.0 * (of_kind == flat) for price, of_kind, local in options]
        chosen, rejected = options[:: 1 if utility[0] > utility[1] else -1]
        pairs.append(PreferencePair(f'p{s % 30}', chosen, rejected, str(s)))
    return pairs


@pytest.mark.parametrize('flat', [0.0, 1.0])
def test_an_attribute_that_differs_only_together_with_another_is_told_with_both(flat):
    """The effect of some rates, beside other rates at their price of 0, was said to count most."""
    names = 'price', 'flat', 'local'
    data = from_pairs(tariffs(flat), names)
    (tied,) = offers.tied(data)
    assert (tied.ends, tied.partner, tied.value) == (((1, flat, 1.0 - flat),), 0, 0.0)
    assert tied.mean == pytest.approx(data.items[data.items[:, 1] != flat, 0].mean())
    units, common = logit.units_of(names, None), logit.of_all(logit.choices_in(data))
    columns = importance.columns_of(data, units, [tied])
    assert columns['price'].values.ravel().tolist() == [2.0, 6.0]
    first, _, of_both = importance.wanted(columns, common, units, [tied]).partition('Every option with ')
    assert 'flat' not in first and of_both.startswith(f'{"" if flat else "no "}flat has the price 0')
    utility = (2.0 * flat - 1.0) * common.weights[1] - tied.mean * common.weights[0]
    assert f'flat {utility:+.2f} (' in of_both
    important, _ = importance.exhibits(data, columns, common, units, [tied])
    assert important.table[-1][:2] == ['flat', '–'] and len(important.table) == 4
    # Where other rates have this price, too, their effects are beside an offer that was made.
    cheap = PreferencePair('p0', (0.0, 1.0 - flat, 0.0), (3.0, 1.0 - flat, 1.0), 'last')
    assert offers.tied(from_pairs([*tariffs(flat), cheap], names)) == []


def test_a_number_with_many_values_is_counted_by_quarters():
    pairs = [PreferencePair(f'p{k % 4}', (float(k), 0.0, 0.0), (99.0 - k, 1.0, 0.0), str(k)) for k in range(40)]
    units = UNITS._replace(attributes=NAMES[:3], scale=UNITS.scale[:3])
    data = standardized(from_pairs(pairs, NAMES[:3]), units.scale)
    table = importance.of_values(data, importance.columns_of(data, units), units)
    assert table[1:5] == [
        ['price', '0 to 19', '20', '100%'],
        ['', '20 to 39', '20', '100%'],
        ['', '60 to 79', '20', '0%'],
        ['', '80 to 99', '20', '0%'],
    ]
    mostly = from_pairs(
        [PreferencePair('p', (0.0, float(k % 2), 0.0), (1.0 + k, 1.0, 0.0), str(k)) for k in range(20)], NAMES[:3]
    )
    table = importance.of_values(mostly, importance.columns_of(mostly, units), units._replace(scale=np.ones(3)))
    assert table[1] == ['price', '0', '20', '100%']
    # A value of half of all options is one part, and no part is empty.
    assert importance._parts_of(np.array([1, 1, 20, 1, 1, 1, 1, 1, 1])).tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2]


def test_an_option_counts_as_offered_once_in_each_choice():
    pairs = []
    for s in range(12):
        # A VW for 2 or 3, a Ford for 4 or 5, or neither; the VW is chosen but in every third choice.
        vw, ford, neither = (2.0 + s % 2, 1.0, 0.0, 0.0), (4.0 + s % 2, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)
        chosen, *others = (neither, vw, ford) if s % 3 == 0 else (vw, ford, neither)
        pairs += [PreferencePair(f'p{s % 4}', chosen, other, str(s)) for other in others]
    data = standardized(from_pairs(pairs, NAMES), UNITS.scale)
    assert offers.alone(data) == {3}
    assert importance.of_values(data, importance.columns_of(data, UNITS), UNITS)[1:] == [
        ['price', '2', '6', '67%'],
        ['', '3', '6', '67%'],
        ['', '4', '6', '0%'],
        ['', '5', '6', '0%'],
        ['maker', 'Ford', '12', '0%'],
        ['', 'VW', '12', '67%'],
    ]
    important, counts = importance.exhibits(data, importance.columns_of(data, UNITS), COMMON, UNITS)
    assert [row[0] for row in important.table[1:]] == ['price', 'maker'] and counts.table[0][0] == 'attribute'
