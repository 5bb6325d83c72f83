"""Standard errors of means over steps, on series whose variance is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from pal_jax.run.summary import first_last_fifth
from pal_jax.run.uncertainty import LEAST, standard_errors


def steps(n, rho, rng):
    """Noise of first order, of innovations with variance 1, long after its start."""
    return lfilter([1.0], [1.0, -rho], rng.normal(size=n + 200))[200:]


def fifth(values):
    rows = [{'step': i, 'phase': 'x', 'reward': value} for i, value in enumerate(values.tolist())]
    return first_last_fifth(rows)


def spread(n, rho, weights):
    """The standard deviation of a weighted sum of such noise."""
    covariance = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / (1 - rho**2) if rho else np.eye(n)
    return np.sqrt(weights @ covariance @ weights)


@pytest.mark.parametrize('n', [24, 60, 200])
@pytest.mark.parametrize('rho', [0.0, 0.5, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(n, rho):
    rng, series, part = np.random.default_rng(n), 100, n // 5
    first, last, whole = np.arange(n) < part, np.arange(n) >= n - part, np.ones(n)
    weights = np.stack([first / part, last / part, (last * 1.0 - first) / part, whole / n])
    drawn = [steps(n, rho, rng) for _ in range(series)]
    errors = np.array([standard_errors(values, weights) for values in drawn])
    inside = np.mean(np.abs(drawn @ weights.T) < 1.96 * errors, axis=0)
    assert np.all(inside >= 0.88), inside
    if rho == 0.9:  # as if steps were independent
        assert np.mean([abs(values.mean()) < 1.96 * values.std(ddof=1) / np.sqrt(n) for values in drawn]) < 0.7
    if n == 200:
        expected = [spread(n, rho, each) for each in weights]
        ratio = np.median(errors, axis=0) / expected  # above 1 where the series tells little of its autocorrelation
        assert np.all((ratio > 0.9) & (ratio < (2.0 if rho == 0.9 else 1.2))), ratio


def test_a_steady_rise_is_no_noise_and_a_curve_that_flattens_is_little():
    rng, place = np.random.default_rng(0), np.arange(48) / 48
    noise = 0.1 * rng.normal(size=48)
    flat, rising, bent = (fifth(noise + rise) for rise in (0.0, 5.0 * place, 0.4 * (1 - np.exp(-6 * place))))
    for name in ('first_se', 'last_se', 'gain_se'):
        assert rising[name] == pytest.approx(flat[name], rel=1e-6)
    assert 0.8 * flat['gain_se'] < bent['gain_se'] < 1.5 * flat['gain_se']
    assert fifth(noise + (place > 0.5))['gain_se'] > 2 * flat['gain_se']  # a leap is no curve that is looked for
    assert rising['gain_in_se'] > 50


@pytest.mark.parametrize('tau', [2.0, 6.0, 15.0])
def test_a_loss_that_falls_fast_and_then_slowly_is_beyond_noise(tau):
    rng, place = np.random.default_rng(0), np.arange(40)
    seen = [fifth(2.0 + 1.5 * np.exp(-place / tau) + 0.2 * rng.normal(size=40))['gain_in_se'] for _ in range(20)]
    assert np.mean(np.array(seen) < -1.96) >= 0.9


def test_white_noise_rarely_looks_like_learning():
    rng = np.random.default_rng(0)
    seen = np.array([fifth(rng.normal(size=40))['gain_in_se'] for _ in range(200)])
    assert np.mean(np.abs(seen) > 1.96) <= 0.05


def test_units_do_not_matter():
    values, whole = steps(40, 0.5, np.random.default_rng(0)), np.full((1, 40), 1 / 40)
    (error,) = standard_errors(values, whole)
    assert standard_errors(3.0 + 1e-3 * values, whole) == [pytest.approx(1e-3 * error, rel=1e-6)]


def test_no_noise_has_no_error_and_a_few_steps_tell_none():
    whole = np.full((1, 24), 1 / 24)
    for values in (np.zeros(24), np.full(24, 0.3), 0.1 * np.arange(24)):
        assert standard_errors(values, whole) == [0.0]
    assert standard_errors(np.ones(LEAST - 1), np.ones((1, LEAST - 1))) is None
    assert standard_errors(np.arange(LEAST) % 2, np.ones((1, LEAST)) / LEAST)[0] > 0


@pytest.mark.parametrize('unit', [1e300, 1e-300])
def test_values_at_the_ends_of_their_range_have_errors(unit):
    values = np.random.default_rng(0).normal(size=20)
    mean = np.full((1, 20), 0.05)
    assert standard_errors(list(unit * values), mean) == pytest.approx([unit * standard_errors(list(values), mean)[0]])
