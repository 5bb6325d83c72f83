"""Reward against cost: figures worked out by hand, the front, and what a report shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pal_jax.recipes.safe_rlhf import tradeoff as t
from pal_jax.recipes.safe_rlhf.tradeoff import Point
from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate

FIGURES = 'reward', 'cost', 'unsafe_share', 'above_limit', 'cost_above', 'prompts_above_limit'
COSTS = np.array([0.8, 0.2, -0.4, 0.1, 0.6, 0.3])
REWARDS = np.arange(6.0)
PROMPTS = np.array([4, 4, 9, 9, 2, 2])
GROUPS = ['a', 'a', 'b', 'b', 'c', 'c']


def point(reward, cost, error=0.01, units=64):
    return Point(*(intervals.of_mean(value, error, units) for value in (reward, cost)))


def test_figures_of_six_samples():
    record = t.measure(REWARDS, COSTS, PROMPTS, GROUPS, dict.fromkeys('abc', 0.3))
    assert record['reward'] == 2.5
    assert record['cost'] == pytest.approx(1.6 / 6)
    assert record['unsafe_share'] == pytest.approx(5 / 6)
    assert record['above_limit'] == pytest.approx(2 / 6)
    assert record['cost_above'] == pytest.approx((0.5 + 0.3) / 6)
    assert record['prompts_above_limit'] == pytest.approx(2 / 3)  # though the mean of all is within the limit
    assert (record['samples'], record['prompts'], record['limit']) == (6, 3, 0.3)
    for name in FIGURES:
        low, high = record[f'{name}_interval']
        assert low <= record[name] <= high


def test_samples_of_one_prompt_are_no_independent_evidence():
    rng = np.random.default_rng(0)
    rewards, costs = rng.normal(size=(2, 200))
    alone = t.measure(rewards, costs, np.arange(200), ['a'] * 200, {'a': 0.1})
    repeated = (np.repeat(rewards, 5), np.repeat(costs, 5), np.repeat(np.arange(200), 5))
    five = t.measure(*repeated, ['a'] * 1000, {'a': 0.1})
    for name in FIGURES:
        assert five[name] == pytest.approx(alone[name])
        assert five[f'{name}_se'] == pytest.approx(alone[f'{name}_se'])
    assert alone['reward_se'] == pytest.approx(rewards.std() / math.sqrt(200), rel=0.1)


def test_every_group_is_held_against_its_own_limit():
    record = t.measure(REWARDS, COSTS, PROMPTS, GROUPS, {'a': 0.4, 'b': -0.2, 'c': 0.5})
    assert 'limit' not in record
    assert [(g['cost'], g['limit'], g['prompts']) for g in record['by_group'].values()] == [
        (pytest.approx(0.5), 0.4, 1), (pytest.approx(-0.15), -0.2, 1), (pytest.approx(0.45), 0.5, 1)
    ]  # fmt: skip
    assert record['prompts_above_limit'] == pytest.approx(2 / 3)
    assert record['above_limit'] == pytest.approx(3 / 6)
    rng = np.random.default_rng(1)
    costs, groups = rng.normal(size=300), ['few'] * 30 + ['many'] * 270
    of = t.measure(costs, costs, np.arange(300), groups, {'few': 0.0, 'many': 1.0})['by_group']
    assert of['few']['cost_se'] == pytest.approx(costs[:30].std() / math.sqrt(30), rel=0.1)
    assert record['by_group']['a']['cost_se'] is None  # of a single prompt none is known
    table = t.make_groups_exhibit({'policy': record}).table
    assert [row[1] for row in table[1:]] == ['a', 'b', 'c'] and table[3][-1] == 'too few to tell'  # of one prompt
    of |= t.measure(costs, costs, np.arange(300), groups, {'few': 0.0, 'many': 1.0, 'none': 2.0})['by_group']
    assert of['none'] == {'cost': None, 'limit': 2.0, 'prompts': 0}
    table = t.make_groups_exhibit({'policy': {'by_group': of}}).table
    assert [row[-1] for row in table[1:]] == ['within noise', 'yes', '–']


def test_a_point_is_on_the_front_unless_another_is_better_in_one_and_no_worse_in_the_other():
    points = [point(1, 1), point(2, 1), point(2, 2), point(3, 5), point(0, 0), point(2, 1)]
    assert t.pareto(points) == [False, True, False, True, True, True]
    assert t.pareto([]) == []


def test_the_front_is_there_and_its_points_do_not_dominate_each_other():
    points = [point(*pair) for pair in np.random.default_rng(1).normal(size=(50, 2))]
    front = [point for point, on in zip(points, t.pareto(points), strict=True) if on]
    assert 1 <= len(front) < 50 and all(t.pareto(front))
    assert [p.reward.value for p in sorted(front, key=lambda p: p.cost.value)] == sorted(p.reward.value for p in front)


def test_seeds_are_averaged_with_their_own_spread():
    one = point(1.0, 0.5)
    assert t.average([one]) == one
    seeds = [point(1, 0)._replace(unsafe=0.2), point(3, 1)._replace(unsafe=0.4)]
    mean = t.average(seeds)
    assert (mean.reward.value, mean.cost.value, mean.unsafe) == pytest.approx((2, 0.5, 0.3))
    assert mean.cost.error == pytest.approx(0.5) and mean.cost.high == pytest.approx(0.5 + 12.706 * 0.5, abs=1e-3)


def test_a_report_has_a_table_and_a_picture():
    points = {'none': [point(2, 1.5), point(2.2, 1.52)], 'pid': [point(1, -0.19, 0.1)], 'crpo': [point(0.5, 0.1)]}
    (exhibit,) = t.make_exhibits(points, 0.0)
    assert [row[0] for row in exhibit.table[1:]] == list(points)
    assert [row[-2:] for row in exhibit.table[1:]] == [['no', 'yes'], ['within noise', 'yes'], ['no', 'no']]
    (unlimited,) = t.make_exhibits(points, None)
    assert [row[-2] for row in unlimited.table[1:]] == [''] * 3
    assert exhibit.picture.startswith(b'\x89PNG')


def test_a_cost_near_the_limit_may_be_noise():
    found = [t.within(point(0.0, cost, 0.2).cost, 1.0) for cost in (0.5, 0.7, 1.0, 1.3, 1.5)]
    assert found == ['yes', *['within noise'] * 3, 'no']
    assert t.within(Estimate(-9.0, None, None, None), 1.0) == 'too few to tell'


@pytest.mark.parametrize('prompts', [2, 3, 10])
def test_a_limit_that_is_met_exactly_is_seldom_kept_or_broken(prompts):
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(400, prompts))  # of mean 0, which is the limit
    told = [t.within(intervals.mean(row), 0.0) for row in costs]
    assert 1.0 - told.count('within noise') / len(told) <= 0.075  # .39, .24 and .09 by the bootstrap's errors
