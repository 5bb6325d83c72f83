from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.kl import adapt_kl, token_kl

P, Q = jnp.array([0.5, 0.3, 0.15, 0.05]), jnp.array([0.25, 0.25, 0.25, 0.25])
TRUE_KL = float(jnp.sum(P * jnp.log(P / Q)))


@pytest.mark.parametrize('estimator', ['k1', 'k3'])
def test_k1_and_k3_have_the_true_kl_as_their_mean(estimator):
    assert float(jnp.sum(P * token_kl(jnp.log(P), jnp.log(Q), estimator))) == pytest.approx(TRUE_KL, rel=1e-5)


def test_k2_has_the_gradient_of_the_kl():
    logits = jnp.log(P)

    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - jnp.log(Q)))

    def sampled(logits):  # the drawing is not differentiated
        return jnp.sum(P * token_kl(jax.nn.log_softmax(logits), jnp.log(Q), 'k2'))

    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(kl)(logits), atol=1e-6)


def test_k3_is_never_negative_and_zero_at_the_reference():
    d = jnp.linspace(-5, 5, 101)
    assert (token_kl(d, jnp.zeros_like(d), 'k3') >= 0).all()
    assert token_kl(d, d, 'k3').max() == 0


def test_unknown_estimator():
    with pytest.raises(ValueError, match=r"unknown KL estimator 'k4'.*k1, k2, k3"):
        token_kl(P, Q, 'k4')  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(('kl', 'factor'), [(0.1, 1.0), (1e9, 1.02), (0.0, 0.98), (-5.0, 0.98)])
def test_adaptation_is_limited_to_a_fifth_per_horizon(kl, factor):
    coef = adapt_kl(0.5, jnp.float32(kl), target=0.1, n=1000, horizon=10_000)
    assert float(coef) == pytest.approx(0.5 * factor, rel=1e-6)


def test_target_must_be_positive():
    with pytest.raises(ValueError, match='must be positive, got 0'):
        adapt_kl(0.1, jnp.float32(0.1), target=0.0, n=1)
