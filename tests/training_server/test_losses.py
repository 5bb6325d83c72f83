"""Losses of the training server: formulas, and refusals that name the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.training_server import losses
from pal_jax.training_server.futures import UserFault
from pal_jax.training_server.losses import LOSSES, Datum, LossInputs

LP = jnp.asarray([-1.0, -2.0, -0.5, -3.0])
X = LossInputs(
    weight=jnp.asarray([1.0, -2.0, 0.5, 3.0]),
    old=jnp.asarray([-1.5, -1.0, -0.5, -2.0]),
    low=jnp.full(4, 0.8),
    high=jnp.full(4, 1.2),
    beta=jnp.full(4, 0.1),
    sequence=jnp.full(4, 0.05),
)


def expected(name: str) -> np.ndarray:
    lp, q, a = (np.asarray(x, np.float64) for x in (LP, X.old, X.weight))
    r, m = np.exp(lp - q), np.exp(0.05)
    return {
        'cross_entropy': -a * lp,
        'importance_sampling': -r * a,
        'ppo': -np.minimum(r * a, np.clip(r, 0.8, 1.2) * a),
        'cispo': -np.clip(r, 0.8, 1.2) * lp * a,
        'gspo': -np.minimum(m * a, np.clip(m, 0.8, 1.2) * a),
        'dro': -(lp * a - 0.05 * (lp - q) ** 2),
    }[name]


@pytest.mark.parametrize('name', LOSSES)
def test_losses_are_those_of_the_interface(name):
    np.testing.assert_allclose(LOSSES[name].loss(LP, X), expected(name), rtol=1e-6)


def test_no_gradient_flows_through_the_ratio_of_cispo():
    slope = jax.grad(lambda lp: losses.cispo(lp, X).sum())(LP)
    np.testing.assert_allclose(slope, -jnp.clip(jnp.exp(LP - X.old), 0.8, 1.2) * X.weight, rtol=1e-6)


def test_the_gradient_of_gspo_is_that_of_the_token():
    slope = jax.grad(lambda lp: losses.gspo(lp, X._replace(low=jnp.zeros(4), high=jnp.full(4, 9.0))).sum())(LP)
    np.testing.assert_allclose(slope, -np.exp(0.05) * X.weight, rtol=1e-6)


def test_settings_have_the_defaults_of_the_interface():
    assert losses.form_of('ppo', {'clip_high_threshold': 1.3})[1] == {
        'clip_low_threshold': 0.8,
        'clip_high_threshold': 1.3,
    }


@pytest.mark.parametrize(
    ('name', 'settings', 'named'),
    [
        ('stable_reinforce', {}, 'stable_reinforce'),
        ('ppo', {'clip': 0.2}, 'clip'),
        ('cross_entropy', {'beta': 0.2}, 'beta'),
        ('dro', {}, 'beta'),
        ('gspo', {'clip_low_threshold': 0.8}, 'clip_high_threshold'),
        ('ppo', {'clip_low_threshold': 'low'}, 'clip_low_threshold'),
        ('ppo', {'clip_low_threshold': float('nan')}, 'clip_low_threshold'),
    ],
)
def test_a_loss_that_is_not_known_is_refused_by_name(name, settings, named):
    with pytest.raises(UserFault, match=f'\\b{named}\\b'):
        losses.form_of(name, settings)


GOOD = {'target_tokens': np.arange(3), 'logprobs': np.zeros(3, np.float32), 'advantages': np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ('inputs', 'named'),
    [
        ({'advantages': None}, 'advantages'),
        ({'weights': np.ones(3)}, 'weights'),
        ({'logprobs': np.zeros(2)}, 'logprobs'),
        ({'advantages': np.asarray([1.0, np.nan, 1.0])}, 'advantages'),
        ({'target_tokens': np.asarray([1, 2, 64])}, 'target_tokens'),
        ({'target_tokens': np.zeros((3, 2), int)}, 'target_tokens'),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_datum_and_name(inputs, named):
    bad = {key: value for key, value in (GOOD | inputs).items() if value is not None}
    data = [Datum(np.arange(3), GOOD), Datum(np.arange(3), bad)]
    with pytest.raises(UserFault, match=rf'data\[1\].*{named}'):
        losses.check(data, 'ppo', LOSSES['ppo'], vocab=64, max_len=8)


def test_a_datum_longer_than_the_context_is_refused():
    data = [Datum(np.zeros(9, int), {'target_tokens': np.zeros(9, int)})]
    with pytest.raises(UserFault, match=r'data\[0\].*9 tokens'):
        losses.check(data, 'cross_entropy', LOSSES['cross_entropy'], vocab=64, max_len=8)
