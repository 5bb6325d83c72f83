"""Intervals against the textbook, and by how often they hold what they are of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pal_jax.run import intervals
from pal_jax.run.bootstrap import interval, resampled_means
from pal_jax.run.intervals import Estimate

SIZES = 5, 8, 20
DRAWS = 1500


def coverage(make, truth) -> float:
    """The share of intervals that hold the truth, of those that say anything."""
    drawn = [figure for _ in range(DRAWS) if (figure := make()).low is not None]
    return float(np.mean([figure.low <= truth <= figure.high for figure in drawn]))


@pytest.mark.slow
@pytest.mark.parametrize('n', SIZES)
def test_means_are_held_as_often_as_is_said(n):
    rng, prompts = np.random.default_rng(n), np.repeat(np.arange(n), 4)
    makers = {
        'normal': (lambda: intervals.mean(rng.normal(size=n)), 0.0),
        'of prompts': (
            lambda: intervals.mean(np.repeat(rng.normal(size=n), 4) + rng.normal(size=4 * n), prompts),
            0.0,
        ),
        'accuracies of people': (lambda: intervals.share(rng.beta(14.0, 6.0, size=n)), 0.7),
        'differences': (lambda: intervals.gain(rng.normal(0.05, 0.1, size=n).clip(-1.0, 1.0)), 0.05),
    }
    held = {name: coverage(*maker) for name, maker in makers.items()}
    assert held == pytest.approx(dict.fromkeys(held, 0.95), abs=0.02)

    def of_two():
        return intervals.difference(intervals.mean(rng.normal(size=n)), intervals.mean(2.0 * rng.normal(size=n)))

    assert 0.93 <= coverage(of_two, 0.0) <= 0.98  # that of two means of five is a little too wide


@pytest.mark.slow
@pytest.mark.parametrize('n', SIZES)
def test_shares_and_areas_are_held_at_least_as_often_as_is_said(n):
    """Counts of a few trials have few values, so that exact intervals hold a share more often than 95 % of the time."""
    rng, prompts, unsafe = np.random.default_rng(n), np.repeat(np.arange(n), 4), np.arange(2 * n) < n

    def of_prompts(share):  # answers to one prompt are alike
        return intervals.share(rng.random(4 * n) < np.repeat(rng.beta(4 * share, 4 - 4 * share, size=n), 4), prompts)

    for share in (0.5, 0.98):
        assert coverage(lambda p=share: intervals.share(rng.random(n) < p), share) >= 0.94
        assert coverage(lambda p=share: of_prompts(p), share) >= 0.94
    for apart in (0.0, 2.0):
        area = float(stats.norm.cdf(apart / np.sqrt(2.0)))
        assert coverage(lambda d=apart: intervals.auc(rng.normal(size=2 * n) + d * unsafe, unsafe), area) >= 0.94

    def of_two():
        return intervals.difference(intervals.share(rng.random(n) < 0.7), intervals.share(rng.random(n) < 0.9))

    assert coverage(of_two, -0.2) >= 0.94


@pytest.mark.slow
def test_draws_of_few_people_are_widened_to_students_interval():
    rng, held = np.random.default_rng(0), []
    for _ in range(500):
        values = rng.normal(size=(8, 1))
        low, high = np.ravel(interval(resampled_means(values, draws=400, seed=int(rng.integers(2**31))), 8))
        held.append(low <= 0.0 <= high)
    assert np.mean(held) > 0.925  # .89 by plain quantiles
    assert interval(np.zeros((10, 1)), 1) is None


def test_intervals_are_the_textbooks():
    values = np.array([0.9, 1.4, 2.1, 3.0, 0.2])
    mean = intervals.mean(values)
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert mean == pytest.approx((values.mean(), stats.sem(values), *expected))
    for right in (0, 7, 12):
        exact = stats.binomtest(right, 12).proportion_ci()
        share = intervals.share(np.arange(12) < right)
        assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    # Newcombe 1998, table II, case (a), whose intervals of both shares are Wilson's.
    first, second = (intervals.of_share(hits / n, None, n) for hits, n in ((56, 70), (48, 80)))
    gap = intervals.difference(first, second)
    below = np.hypot(0.8 - first.low, second.high - 0.6)
    assert (gap.value, gap.low) == (pytest.approx(0.2), pytest.approx(0.2 - below))
    assert gap.low == pytest.approx(0.0524, abs=0.012) and gap.high == pytest.approx(0.3339, abs=0.012)


def test_the_area_is_mann_and_whitneys_and_its_error_delongs():
    score = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.9])
    unsafe = np.array([0, 0, 1, 1, 1, 0], bool)
    pairs = (np.sign(score[unsafe][:, None] - score[~unsafe]) + 1.0) / 2.0
    figure = intervals.auc(score, unsafe)
    assert figure.value == pytest.approx(pairs.mean())
    # DeLong et al. 1988 have n - 1 for each kind; by rows as units there is one such factor.
    parts = [np.sum((pairs.mean(axis=k) - pairs.mean()) ** 2) / 9 for k in (0, 1)]
    assert figure.error == pytest.approx(np.sqrt(6 / 5 * sum(parts)))


def test_units_are_prompts_and_weights_say_which_rows_count():
    rng = np.random.default_rng(0)
    values, unsafe = rng.normal(size=50), rng.random(50) < 0.4
    prompts = np.repeat(np.arange(50), 3)
    assert intervals.mean(np.repeat(values, 3), prompts) == pytest.approx(intervals.mean(values))
    assert intervals.auc(np.repeat(values, 3), np.repeat(unsafe, 3), prompts) == pytest.approx(
        intervals.auc(values, unsafe)
    )
    called = values > 0
    assert intervals.share(unsafe, weights=called) == pytest.approx(intervals.share(unsafe[called]))


def test_nothing_is_certain():
    for figure in (
        intervals.share(np.ones(12)),
        intervals.share(np.ones(48), np.repeat(np.arange(12), 4)),
        intervals.auc(np.arange(24.0), np.arange(24) >= 12),
    ):
        assert figure.low == pytest.approx(0.025 ** (1 / 12)) and figure.high == 1.0
    assert intervals.gain(np.ones(12)).low == pytest.approx(2.0 * 0.025 ** (1 / 12) - 1.0)
    # A single value, and a few equal ones without bounds, decide nothing.
    for values in ([3.0], [-1.0] * 4):
        assert intervals.mean(np.array(values)).interval is None
        assert intervals.mean(np.array(values)).place(0.0) is None
    assert intervals.mean(np.full(64, -1.0)).place(0.0) == -1


def test_a_record_keeps_the_figure():
    figure = intervals.mean(np.array([1.0, 2.0, 4.0]))
    assert intervals.from_record(figure.named('cost'), 'cost') == figure
    assert figure.named('cost').keys() == {'cost', 'cost_se', 'cost_interval'}
    assert intervals.from_record({'cost': 1.0, 'cost_interval': None}, 'cost').interval is None
    assert figure.with_error('+.2f') == '+2.33 ± 0.88' and figure.ends('.1f') == '-1.5 to 6.1'


@pytest.mark.parametrize(
    ('error', 'interval', 'form'),
    [
        (0.0412, (None, None), '.3f'),
        (12.3, (None, None), '.0f'),
        (None, (1.0, 1.5), '.2f'),
        (None, (None, None), '.3g'),
    ],
)
def test_a_figure_has_two_digits_of_its_error(error, interval, form):
    assert Estimate(1.25, error, *interval).form == form
