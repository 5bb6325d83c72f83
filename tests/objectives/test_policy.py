from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.masked import keep
from pal_jax.objectives.policy import (
    explained_variance,
    kl_token_loss,
    loss_weights,
    policy_metrics,
    ppo_token_loss,
    value_token_loss,
)

ACTS = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
OK = jnp.array([True, True, True, False, True])
AGGREGATIONS = ['seq_mean', 'token_mean', 'micro_token_mean', 'constant']
MICRO_BATCHES = [slice(0, 1), slice(1, 3), slice(3, 5)]  # unequal, with unequal numbers of tokens


@functools.partial(jax.jit, static_argnums=2, static_argnames='micro')
def weights_of(acts, ok, agg, micro=4):
    return loss_weights(acts, ok, agg, length=4, micro=micro)


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    per_sample = np.array([1 / 3, 1.0, 1 / 4, 0.0, 0.0]) / 3
    np.testing.assert_allclose(weights_of(ACTS, OK, 'seq_mean'), np.where(ACTS, per_sample[:, None], 0), rtol=1e-6)
    counted = (np.asarray(ACTS) & np.asarray(OK)[:, None]).astype(np.float32)
    np.testing.assert_allclose(weights_of(ACTS, OK, 'token_mean'), counted / 8, rtol=1e-6)
    np.testing.assert_allclose(weights_of(ACTS, OK, 'constant'), counted / 12, rtol=1e-6)
    pairs = np.array([4.0, 4.0, 4.0, 4.0, 1.0])[:, None] * 2  # groups of 4, 4 and 0 tokens: two count
    np.testing.assert_allclose(weights_of(ACTS, OK, 'micro_token_mean', micro=2), counted / pairs, rtol=1e-6)


def test_a_mean_of_micro_batches_is_that_of_all_tokens_where_they_have_as_many():
    acts, ok = np.ones((6, 3), bool), np.ones(6, bool)
    for micro in (1, 2, 3, 6, 100):
        weights = weights_of(acts, ok, 'micro_token_mean', micro=micro)
        np.testing.assert_allclose(weights, weights_of(acts, ok, 'token_mean'), rtol=1e-6)
    unequal = weights_of(ACTS, OK, 'micro_token_mean', micro=1)
    np.testing.assert_allclose(unequal, weights_of(ACTS, OK, 'seq_mean'), rtol=1e-6)


@pytest.mark.parametrize('agg', AGGREGATIONS)
def test_weights_ignore_padding_columns_and_rows(agg):
    wide = np.pad(ACTS, ((0, 2), (0, 3)))
    weights = np.asarray(weights_of(wide, np.pad(OK, (0, 2), constant_values=True), agg))
    np.testing.assert_allclose(weights[:5, :4], weights_of(ACTS, OK, agg), rtol=1e-6)
    assert float(weights.sum()) == pytest.approx(float(weights[:5, :4].sum()))


@pytest.mark.parametrize('agg', AGGREGATIONS)
def test_no_usable_sample_gives_zero_weights(agg):
    np.testing.assert_array_equal(weights_of(ACTS, np.zeros(5, bool), agg), np.zeros(ACTS.shape))


@jax.jit
@jax.value_and_grad
def minibatch_loss(logprob, old, advantage, weights):
    return jnp.sum(weights * ppo_token_loss(logprob, old, advantage, clip=0.2))


@pytest.mark.parametrize('agg', AGGREGATIONS)
def test_micro_batches_add_up_to_the_minibatch(agg):
    arrays = [np.asarray(x) for x in (*draw(0, 3, 5, 4), weights_of(ACTS, OK, agg))]
    value, gradient = minibatch_loss(*arrays)
    values, gradients = zip(*(minibatch_loss(*(x[rows] for x in arrays)) for rows in MICRO_BATCHES), strict=True)
    np.testing.assert_allclose(sum(values), value, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ('agg', 'length', 'message'), [('mean', 4, "unknown aggregation 'mean'"), ('constant', None, 'length, got None')]
)
def test_bad_aggregation(agg, length, message):
    with pytest.raises(ValueError, match=message):
        loss_weights(ACTS, OK, agg, length=length)


# --- token losses ---------------------------------------------------------------------------------------------------


GRADIENT = jax.jit(jax.grad(functools.partial(ppo_token_loss, clip=0.2)))


@pytest.mark.parametrize(
    ('ratio', 'advantage', 'slope'),
    [(1.1, 1, -1.1), (1.3, 1, 0), (0.7, 1, -0.7), (1.1, -1, 1.1), (1.3, -1, 1.3), (0.7, -1, 0), (1.25, 1, 0)],
)
def test_the_clip_stops_the_gradient_only_where_it_would_lead_further_away(ratio, advantage, slope):
    gradient = GRADIENT(np.float32(np.log(ratio)), np.float32(0), np.float32(advantage))
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_clip_high_opens_the_upper_side_alone():
    loss = functools.partial(ppo_token_loss, old_logprob=jnp.zeros(2), clip=0.2, clip_high=0.5)
    ratio = jnp.array([1.4, 0.5])
    np.testing.assert_allclose(loss(jnp.log(ratio), advantage=jnp.ones(2)), [-1.4, -0.5], rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.log(ratio), advantage=-jnp.ones(2)), [1.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.log(jnp.array([1.9, 1.9])), advantage=jnp.ones(2)), [-1.5, -1.5], rtol=1e-6)


def test_reinforce_is_ratio_one():
    logprob, advantage = draw(0, 6), draw(1, 6)
    loss = lambda lp: ppo_token_loss(lp, jax.lax.stop_gradient(lp), advantage, clip=0.2).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logprob), -np.asarray(advantage), rtol=1e-6)


def test_value_clip_stops_the_critic_that_has_moved_far_enough():
    slope = jax.jit(jax.vmap(jax.grad(functools.partial(value_token_loss, clip=0.2))))
    value, old, ret = jnp.array([0.1, 0.5, 0.5]), jnp.zeros(3), jnp.array([1.0, 1.0, 0.1])
    np.testing.assert_allclose(slope(value, old, ret), [-0.9, 0.0, 0.4], rtol=1e-6)


def test_no_clip_is_half_the_squared_error():
    value, ret = np.asarray(draw(0, 6)), np.asarray(draw(1, 6))
    np.testing.assert_allclose(value_token_loss(value, value - 3, ret, clip=np.inf), (value - ret) ** 2 / 2, rtol=1e-6)


LOSSES = {
    'ppo': lambda x, y, z: ppo_token_loss(x, y, z, clip=0.2, clip_high=0.3),
    'value': lambda x, y, z: value_token_loss(x, y, z, clip=0.2),
    'k2': lambda x, y, z: kl_token_loss(x, y, 'k2'),
    'k3': lambda x, y, z: kl_token_loss(x, y, 'k3'),
}


@pytest.mark.parametrize('name', LOSSES)
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        x, y, z = np.random.default_rng(3).normal(0, 0.4, (3, 40))
        step = 1e-6
        loss = jax.jit(LOSSES[name])
        numeric = (np.asarray(loss(x + step, y, z)) - np.asarray(loss(x - step, y, z))) / (2 * step)
        exact = np.asarray(jax.jit(jax.grad(lambda x: LOSSES[name](x, y, z).sum()))(x))
        np.testing.assert_allclose(exact, numeric, atol=1e-6)
        assert np.abs(exact).max() > 0.1


@pytest.mark.parametrize('name', LOSSES)
def test_inputs_kept_by_the_mask_make_loss_and_gradient_blind_to_padding(name):
    weights = weights_of(ACTS, OK, 'token_mean')

    @jax.jit
    @jax.value_and_grad
    def loss(x, y, z):
        return jnp.sum(weights * LOSSES[name](*(keep(array, ACTS) for array in (x, y, z))))

    clean = [np.asarray(draw(seed, 5, 4)) for seed in range(3)]
    expected, expected_gradient = loss(*clean)
    for junk in (np.nan, np.inf, -1e30):
        value, gradient = loss(*(np.where(ACTS, x, np.float32(junk)) for x in clean))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, np.where(ACTS, expected_gradient, 0), rtol=1e-6)


def test_k1_is_refused_as_a_loss():
    with pytest.raises(ValueError, match=r"'k1' has no use as a loss.*use k2 or k3"):
        kl_token_loss(jnp.zeros(1), jnp.zeros(1), 'k1')


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_an_unmoved_policy_are_zero():
    logprob = np.where(ACTS, draw(0, 5, 4), np.float32(np.nan))
    metrics = jax.jit(functools.partial(policy_metrics, clip=0.2))(logprob, logprob, ACTS)
    assert {k: float(v) for k, v in metrics.items()} == {'clip_fraction': 0, 'approx_kl': 0, 'ratio_deviation': 0}


def test_metrics_by_hand():
    moved = jnp.log(jnp.array([[1.0, 1.3, 0.5, 9.0]]))
    acts = jnp.array([[True, True, True, False]])
    metrics = jax.jit(functools.partial(policy_metrics, clip=0.2, clip_high=0.4))(moved, jnp.zeros((1, 4)), acts)
    ratio = np.array([1.0, 1.3, 0.5])
    assert float(metrics['clip_fraction']) == pytest.approx(1 / 3)
    assert float(metrics['approx_kl']) == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-5)
    assert float(metrics['ratio_deviation']) == pytest.approx(0.5)


def test_explained_variance():
    returns, explained = np.where(ACTS, draw(0, 5, 4), np.float32(np.nan)), jax.jit(explained_variance)
    zeros = np.zeros((5, 4), np.float32)
    assert float(explained(returns, returns, ACTS)) == pytest.approx(1)
    assert float(explained(zeros, returns, ACTS)) == pytest.approx(0, abs=1e-6)
    assert float(explained(-returns, returns, ACTS)) == pytest.approx(-3, rel=1e-5)
    assert float(explained(returns, zeros + 1, ACTS)) == 0
