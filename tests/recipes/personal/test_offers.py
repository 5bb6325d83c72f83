"""The ranges and scales of a table's options, without an option that everybody always has."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.data.comparisons import PreferencePair, from_pairs
from pal_jax.recipes.personal import offers


def survey(situations=12, neither=True):
    """Two offers of price 2 to 6 a situation, of which the cheaper one is chosen, and in every third one neither."""
    rng, pairs = np.random.default_rng(0), []
    for s in range(situations):
        prices = sorted((float(x), 0.0) for x in 2 + 4 * rng.random(2))
        chosen, *rejected = [*prices, (0.0, 1.0)] if neither else prices
        if neither and s % 3 == 0:
            chosen, rejected = (0.0, 1.0), prices
        pairs += [PreferencePair(f'p{s % 2}', chosen, other, str(s)) for other in rejected]
    return from_pairs(pairs, ('price', 'neither'))


def test_an_option_of_every_choice_widens_no_range_and_no_deviation():
    data = survey()
    np.testing.assert_array_equal(offers.constant_option(data), [0.0, 1.0])
    prices = data.items[data.items[:, 1] == 0.0][:, 0].astype(float)
    np.testing.assert_allclose(offers.scales(data), [prices.std(), 1.0])
    assert offers.ranges(data) == [(pytest.approx(prices.min()), pytest.approx(prices.max())), (0.0, 1.0)]
    assert 'one option is in every choice (price 0, neither 1), and was chosen in 33% of them' in offers.described(data)


def test_an_option_without_a_column_of_its_own_and_attributes_that_say_the_same_are_doubts():
    data = survey()
    assert offers.doubts(data) == [] and offers.alone(data) == {1}
    prices = data._replace(chosen=data.chosen[:, :1], rejected=data.rejected[:, :1], attributes=('price',))
    (said,) = offers.doubts(prices)
    assert 'neither' in said and 'warning' in said
    # A third column is 1 for all offers, so it follows from the second one.
    wide = {
        side: np.column_stack([getattr(data, side), 1 - getattr(data, side)[:, 1]]) for side in ('chosen', 'rejected')
    }
    (said,) = offers.doubts(data._replace(**wide, attributes=('price', 'neither', 'offer')))
    assert 'neither and offer cannot be told apart' in said
    # A column that never varies is no such doubt.
    flat = {side: np.column_stack([getattr(data, side), np.ones(len(data.users))]) for side in ('chosen', 'rejected')}
    assert offers.doubts(data._replace(**flat, attributes=('price', 'neither', 'one'))) == []


def test_an_option_that_a_choice_or_two_lack_is_a_doubt():
    data = survey(situations=24)
    chosen, rejected = data.chosen.copy(), data.rejected.copy()
    # In the second choice, which chose an offer, somebody has typed 7 for "neither".
    wrong = (data.situations == data.situations[2]) & (rejected[:, 1] == 1.0)
    rejected[wrong, 1] = 7.0
    (said, *_) = offers.doubts(data._replace(chosen=chosen, rejected=rejected))
    assert 'price 0, neither 1' in said and 'all but 1 choice,' in said and 'is of p1' in said
    assert offers.constant_option(data._replace(rejected=rejected)) is None


@pytest.mark.parametrize('data', [survey(neither=False), survey(situations=6)], ids=['none', 'few'])
def test_other_tables_are_described_by_all_options(data):
    assert offers.constant_option(data) is None and 'every choice' not in offers.described(data)
    np.testing.assert_allclose(offers.scales(data)[0], data.items[:, 0].astype(float).std())


def test_labels_that_every_choice_has_are_no_constant_option():
    labels = np.eye(3)
    pairs = [PreferencePair('a', tuple(labels[0]), tuple(other), str(s)) for s in range(12) for other in labels[1:]]
    assert offers.constant_option(from_pairs(pairs)) is None
