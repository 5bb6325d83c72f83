"""Pair losses against numbers worked out in numpy, and their gradients against differences."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.dpo import log_ratios, pair_loss, preference

NEW = np.array([[-1.0, -2.0, 9.0], [-0.5, -0.5, -3.0], [-2.0, 9.0, 9.0], [-1.0, -1.5, 9.0]])
REF = np.array([[-1.5, -2.5, 7.0], [-0.5, -1.0, -1.0], [-1.0, 7.0, 7.0], [-1.5, -1.0, 7.0]])
ACTS = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
# Log-ratios: sums 1.0, -1.5, -1.0, 0.0; means 0.5, -0.5, -1.0, 0.0. So h = [2.5, -1.0] and [1.0, -1.0].


@pytest.mark.parametrize(
    ('loss', 'beta', 'smoothing', 'expected'),
    [
        ('sigmoid', 0.1, 0.0, [0.575939, 0.744397]),  # log(1 + exp(-0.25)), log(1 + exp(0.1))
        ('sigmoid', 1.0, 0.1, [0.328889, 1.213262]),  # 0.9 log(1 + e^-2.5) + 0.1 log(1 + e^2.5), ...
        ('hinge', 0.5, 0.0, [0.0, 1.5]),
        ('ipo', 0.5, 0.0, [0.0, 4.0]),
    ],
)
def test_golden_losses(strict_promotion, loss, beta, smoothing, expected):
    ratios = log_ratios(jnp.asarray(NEW), jnp.asarray(REF), jnp.asarray(ACTS), loss).reshape(-1, 2)
    got = pair_loss(ratios[:, 0] - ratios[:, 1], loss=loss, beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_equal_log_ratios_cost_log_two_and_a_reference_of_nothing_is_left_out():
    ratios = log_ratios(jnp.asarray(NEW), None, jnp.asarray(ACTS), 'sigmoid')
    np.testing.assert_allclose(ratios, [-3.0, -4.0, -2.0, -2.5])
    np.testing.assert_allclose(pair_loss(jnp.zeros(1), loss='sigmoid', beta=0.3), np.log(2.0), rtol=1e-6)


def in_numpy(new, loss, beta):
    ratio = np.where(ACTS, new - REF, 0.0).sum(1) / (ACTS.sum(1) if loss == 'ipo' else 1)
    h = ratio[0::2] - ratio[1::2]
    each = {
        'sigmoid': np.log1p(np.exp(-beta * h)),
        'hinge': np.maximum(0, 1 - beta * h),
        'ipo': (h - 0.5 / beta) ** 2,
    }
    return each[loss].mean()


@pytest.mark.parametrize('loss', ['sigmoid', 'hinge', 'ipo'])
def test_the_gradient_is_that_of_the_loss_and_padding_changes_nothing(loss):
    gradient, metrics = preference(jnp.asarray(NEW), jnp.asarray(REF), jnp.asarray(ACTS), loss=loss, beta=0.3)
    np.testing.assert_allclose(metrics['loss'], in_numpy(NEW, loss, 0.3), rtol=1e-5)
    for place in np.ndindex(NEW.shape):
        step = np.zeros_like(NEW)
        step[place] = 1e-4
        slope = (in_numpy(NEW + step, loss, 0.3) - in_numpy(NEW - step, loss, 0.3)) / 2e-4
        np.testing.assert_allclose(gradient[place], slope, atol=1e-5)
    wide = [np.pad(x, ((0, 2), (0, 3)), constant_values=value) for x, value in ((NEW, np.nan), (REF, 5), (ACTS, 0))]
    padded, other = preference(*map(jnp.asarray, wide), loss=loss, beta=0.3)
    np.testing.assert_allclose(padded[:4, :3], gradient, atol=1e-7)
    assert not np.any(np.asarray(padded)[4:]) and not np.any(np.asarray(padded)[:, 3:])
    for name, value in metrics.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6)


def test_figures_of_the_pairs_and_swapping_them():
    _, metrics = preference(jnp.asarray(NEW), jnp.asarray(REF), jnp.asarray(ACTS), loss='sigmoid', beta=0.5)
    assert float(metrics['accuracy']) == 0.5
    np.testing.assert_allclose(metrics['margin'], 0.5 * (2.5 - 1.0) / 2)
    swap = [1, 0, 3, 2]
    _, other = preference(
        jnp.asarray(NEW[swap]), jnp.asarray(REF[swap]), jnp.asarray(ACTS[swap]), loss='sigmoid', beta=0.5
    )
    np.testing.assert_allclose(other['margin'], -metrics['margin'])
    tied = jnp.zeros((2, 1)), jnp.zeros((2, 1)), jnp.ones((2, 1), bool)
    assert float(preference(*tied, loss='sigmoid', beta=0.5)[1]['accuracy']) == 0.5


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown pair loss 'simpo'"):
        pair_loss(jnp.zeros(1), loss='simpo', beta=0.1)
