from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pal_jax.objectives import advantages as adv
from pal_jax.objectives.advantages import (
    ESTIMATORS,
    Discounts,
    EstimatorInputs,
    less_mean,
    less_others,
    scale_negative,
    standardised,
)

gae, reward_to_go, token_rewards = map(jax.jit, (adv.gae, adv.reward_to_go, adv.token_rewards))
SHAPES = {'rloo': less_others, 'reinforce_baseline': less_mean, 'group_norm': standardised, 'dr_grpo': less_mean}
GROUPED = list(SHAPES)
B, A, N = 8, 6, 4


def buffer(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, A + 1, B)
    return {
        'reward': rng.normal(size=B).astype(np.float32),
        'kl': rng.normal(0, 0.1, (B, A)).astype(np.float32),
        'values': rng.normal(size=(B, A)).astype(np.float32),
        'acts': np.arange(A) < lengths[:, None],
        'ok': np.ones(B, bool),
    }


@functools.partial(jax.jit, static_argnames=('estimator', 'n', 'constants'))
def jitted(reward, kl, values, acts, ok, *, estimator, n, kl_coef, constants):
    rollout = EstimatorInputs(
        rewards=reward[:, None], penalty=kl_coef * kl, values=None if values is None else values[..., None],
        acts=acts & ok[:, None], ok=ok, role=jnp.zeros(ok.shape, jnp.int32), n=n,
    )  # fmt: skip
    advantages, returns = ESTIMATORS[estimator](rollout, constants)
    return advantages, returns[..., 0]


def compute(data, estimator, *, n=N, kl_coef=0.1, gamma=0.9, lam=0.8):
    constants = Discounts(gamma, lam)
    return jitted(**jax.tree.map(jnp.asarray, data), estimator=estimator, n=n, kl_coef=kl_coef, constants=constants)


@functools.partial(jax.jit, static_argnames=('n', 'estimator'))
def shape_rewards(reward, n, estimator, ok=None):
    ok = jnp.ones(reward.shape, bool) if ok is None else ok
    return SHAPES[estimator](reward[:, None], ok, n)[:, 0]


def assert_same(actual, expected, tolerance=1e-5):
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


# --- against plain Python loops -------------------------------------------------------------------------------------


def looped_gae(rewards, values, length, gamma, lam):
    advantages, later, next_value = np.zeros(len(rewards)), 0.0, 0.0
    for t in reversed(range(length)):
        delta = rewards[t] + gamma * next_value - values[t]
        advantages[t] = later = delta + gamma * lam * later
        next_value = values[t]
    return advantages


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_equals_a_loop(seed, gamma, lam):
    data = buffer(seed)
    acts, values = data['acts'], data['values']
    rewards = np.where(acts, data['kl'], 0)
    expected = [looped_gae(r, v, m.sum(), gamma, lam) for r, v, m in zip(rewards, values, acts, strict=True)]
    advantages, returns = gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(acts), gamma=gamma, lam=lam)
    assert_same((advantages, returns), (expected, np.where(acts, expected + values, 0)))


@pytest.mark.parametrize('gamma', [1.0, 0.7])
def test_gae_at_lambda_one_is_return_minus_value(gamma):
    data = buffer(0)
    advantages, returns = gae(data['kl'], data['values'], data['acts'], gamma=gamma, lam=1.0)
    to_go = reward_to_go(data['kl'], data['acts'], gamma=gamma)
    assert_same((advantages, returns), (np.where(data['acts'], to_go - data['values'], 0), to_go))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_group_statistics_equal_numpy_over_the_ok_samples(seed):
    rng = np.random.default_rng(seed)
    reward, ok = rng.normal(size=(2, 5)), rng.random((2, 5)) < 0.7
    dirty = jnp.asarray(np.where(ok, reward, np.nan).reshape(-1), jnp.float32)
    for estimator in GROUPED:
        shaped = np.asarray(shape_rewards(dirty, 5, estimator, jnp.asarray(ok.reshape(-1)))).reshape(2, 5)
        for row, r, kept in zip(shaped, reward, ok, strict=True):
            np.testing.assert_allclose(row[kept], _shaped(r[kept], estimator), rtol=1e-4, atol=1e-5)
            assert not row[~kept].any()


def _shaped(r: np.ndarray, estimator: str) -> np.ndarray:
    if len(r) < 2:
        return np.zeros_like(r)
    if estimator == 'rloo':
        return np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))])
    centred = r - r.mean()
    return centred / (r.std(ddof=1) + 1e-9) if estimator == 'group_norm' else centred


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('estimator', list(ESTIMATORS))
def test_padding_and_what_stands_on_it_change_nothing(estimator):
    data = buffer(1)
    expected = compute(data, estimator)
    acts = np.pad(data['acts'], ((0, 0), (0, 3)))
    for junk in (3.0, np.nan, np.inf):
        padded = {k: np.where(acts, np.pad(data[k], ((0, 0), (0, 3))), junk) for k in ('kl', 'values')}
        actual = compute(data | padded | {'acts': acts}, estimator)
        assert_same([x[:, :A] for x in actual], expected)
        assert not any(np.any(x[:, A:]) for x in actual)


@pytest.mark.parametrize('estimator', list(ESTIMATORS))
def test_order_of_groups_and_of_samples_in_them_does_not_matter(estimator):
    data = buffer(2)
    order = np.array([6, 4, 7, 5, 1, 0, 3, 2])
    shuffled = compute({k: v[order] for k, v in data.items()}, estimator)
    assert_same(shuffled, [x[order] for x in compute(data, estimator)])


@pytest.mark.parametrize('estimator', list(ESTIMATORS))
def test_failed_samples_get_zeros_and_leave_no_trace(estimator):
    data = buffer(3)
    data['ok'] = np.arange(B) != 5
    results = []
    for junk in (0.0, 100.0, np.nan):
        dirty = {k: data[k].copy() for k in ('reward', 'kl', 'values')}
        for x in dirty.values():
            x[5] = junk
        results.append(compute(data | dirty, estimator))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert not any(np.any(x[5]) for x in results[0])
    assert all(np.any(x[4]) for x in results[0])


@pytest.mark.parametrize('estimator', GROUPED)
@pytest.mark.parametrize('n', [3, 7])
def test_constant_groups_are_exactly_zero(estimator, n):
    reward = np.repeat(np.array([0.0, 0.1, -1 / 3, 1e6], np.float32), n)
    np.testing.assert_array_equal(shape_rewards(reward, n, estimator), np.zeros(4 * n))


@pytest.mark.parametrize('estimator', GROUPED)
def test_groups_without_any_verdict_give_zeros(estimator):
    data = buffer(4) | {'reward': np.full(B, np.nan, np.float32), 'ok': np.zeros(B, bool)}
    assert not any(np.any(x) for x in compute(data, estimator))


@pytest.mark.parametrize('estimator', list(ESTIMATORS))
def test_advantages_are_whitened_unless_the_estimator_keeps_their_scale(estimator):
    data = buffer(5)
    advantages = np.asarray(compute(data, estimator)[0])[data['acts']]
    whitened = abs(advantages.mean()) < 1e-5 and abs(advantages.std() - 1) < 1e-4
    assert whitened == (estimator not in ('group_norm', 'dr_grpo'))


def test_without_kl_the_grouped_advantage_is_the_shaped_reward_at_every_token():
    data = buffer(6)
    advantages, returns = compute(data, 'group_norm', kl_coef=0.0, gamma=1.0)
    shaped = np.asarray(shape_rewards(jnp.asarray(data['reward']), N, 'group_norm'))
    assert_same((advantages, returns), [np.where(data['acts'], shaped[:, None], 0)] * 2)


def test_negative_scale_touches_negative_advantages_only():
    data = buffer(7)
    plain = np.asarray(compute(data, 'group_norm')[0])
    damped = jax.jit(scale_negative)(plain, 0.2)
    np.testing.assert_allclose(damped, np.where(plain < 0, 0.2 * plain, plain), rtol=1e-6)
    np.testing.assert_allclose(scale_negative(jnp.array([-2.0, 0.0, 3.0]), 0.5), [-1, 0, 3])


def test_reward_is_clipped():
    acts, kl = np.array([[True, True, False]]), np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(token_rewards(jnp.array([[99.0]]), 0 * kl, acts)[..., 0], [[0, 10, 0]])
    low = token_rewards(jnp.array([[-9.0]]), 0 * kl, acts, clip=(-2.0, 2.0))
    np.testing.assert_array_equal(low[..., 0], [[0, -2, 0]])


def test_a_sample_without_actions_is_paid_nothing():
    assert not token_rewards(jnp.array([[1.0]]), jnp.ones((1, 3)), jnp.zeros((1, 3), bool)).any()


def test_statistics_span_all_devices():
    data = buffer(9)
    mesh = jax.make_mesh((min(B, jax.device_count()),), ('data',), axis_types=(AxisType.Auto,))
    spread = {k: jax.device_put(v, NamedSharding(mesh, PartitionSpec('data'))) for k, v in data.items()}
    assert_same(compute(spread, 'gae'), compute(data, 'gae'))


# --- channels, roles and arrays of environments ----------------------------------------------------------------------


def test_a_penalty_comes_off_the_reward_and_onto_the_cost():
    acts = jnp.array([[True, True, False]])
    given = jnp.array([[3.0, 60.0]]), jnp.array([[0.5, 1.0, 9.0]]), acts
    paid = token_rewards(*given, clip=(-50.0, 50.0), signs=(-1.0, 1.0))
    np.testing.assert_array_equal(paid[0], [[-0.5, 0.5], [2.0, 51.0], [0.0, 0.0]])


def test_channels_are_estimated_apart():
    data, other = buffer(0), buffer(1)
    both = [np.stack([data[name], other[name]], axis=-1) for name in ('kl', 'values')]
    together = gae(*both, data['acts'], gamma=0.9, lam=0.8)
    for channel, each in enumerate((data, other)):
        alone = gae(each['kl'], each['values'], data['acts'], gamma=0.9, lam=0.8)
        assert_same([x[..., channel] for x in together], alone, 1e-6)


def test_a_discount_of_zero_ends_an_episode_and_a_bootstrap_stands_for_what_comes_after():
    rng = np.random.default_rng(0)
    rewards, values, bootstrap = rng.normal(size=(2, 6)), rng.normal(size=(2, 6)), rng.normal(size=2)
    gammas = np.where(rng.random((2, 6)) < 0.3, 0.0, 0.9)
    expected = np.zeros((2, 6))
    for row in range(2):
        later, following = 0.0, bootstrap[row]
        for t in reversed(range(6)):
            delta = rewards[row, t] + gammas[row, t] * following - values[row, t]
            expected[row, t] = later = delta + gammas[row, t] * 0.8 * later
            following = values[row, t]
    arrays = [np.asarray(x, np.float32) for x in (rewards, values, gammas, bootstrap)]
    acts = np.ones((2, 6), bool)
    advantages, returns = gae(*arrays[:2], acts, gamma=arrays[2], lam=0.8, bootstrap=arrays[3])
    assert_same((advantages, returns), (expected, expected + values))


def test_roles_are_whitened_apart():
    data, whiten = buffer(4), jax.jit(adv.whiten, static_argnames='roles')
    role = np.arange(B, dtype=np.int32) % 2
    rollout = EstimatorInputs(data['reward'][:, None], data['kl'], None, data['acts'], data['ok'], role, N)
    moved = (data['values'] + 5.0 * role[:, None]).astype(np.float32)
    white = np.asarray(whiten(moved, rollout, roles=2))
    for each in range(2):
        alone = jax.tree.map(lambda x, each=each: x[each::2] if isinstance(x, np.ndarray) else x, rollout)
        expected = whiten(moved[each::2], alone)
        np.testing.assert_allclose(white[each::2], expected, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('samples', 'n', 'estimator', 'message'),
    [
        (4, 1, 'rloo', 'got n=1; use n >= 2'),
        (5, 2, 'group_norm', '5 rewards do not form groups of n=2'),
    ],
)
def test_bad_groups(samples, n, estimator, message):
    with pytest.raises(ValueError, match=message):
        shape_rewards(jnp.zeros(samples), n, estimator)


def test_gae_needs_values():
    with pytest.raises(ValueError, match="'gae' needs values, got None"):
        compute(buffer(8) | {'values': None}, 'gae')


# --- several rewards, each by itself (GDPO) -------------------------------------------------------------------------


def apart(parts, weights, n, floor=0.0, ok=None):
    """Advantages of samples by their parts, which are columns; the sum in channel 0 is nonsense, for it must not
    count."""
    size, acts = len(parts), np.ones((len(parts), 1), bool)
    rewards = np.concatenate([np.full((size, 1), 9.0), parts], axis=1).astype(np.float32)
    rollout = rewards, np.zeros((size, 1), np.float32), None, acts, np.ones(size, bool) if ok is None else np.array(ok)
    role = np.zeros(size, np.int32)
    estimate = jax.jit(
        lambda *arrays: adv.GDPO(weights, floor).estimate(EstimatorInputs(*arrays, role, n), Discounts())
    )
    advantages, returns = estimate(*rollout)
    np.testing.assert_array_equal(returns[..., 0], advantages)
    return np.asarray(advantages)[:, 0]


def test_gdpo_golden():
    r1, r2 = [[1, 0, 1, 0], [0, 0, 1, 0]], [[1, 1, 0, 0], [0.2, 0.4, 0.4, 1]]
    parts = np.stack([np.ravel(r1), np.ravel(r2)], axis=1)
    expected = [1.306168, -0.435389, 0.435389, -1.306168, -0.93807, -0.647844, 1.363079, 0.222834]
    np.testing.assert_allclose(apart(parts, (1.0, 0.5), 4), expected, atol=2e-5)


def test_gdpo_takes_small_differences_for_noise_and_ignores_units():
    noise = np.array([[0.80], [0.81], [0.82], [0.79]])
    divided = jax.jit(adv.GDPO((1.0,), 0.1)._divided, static_argnums=2)
    z = divided(noise.astype(np.float32), np.ones(4, bool), 4)
    np.testing.assert_allclose(z[:, 0], [-0.05, 0.05, 0.15, -0.15], atol=2e-4)
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(8, 2))
    np.testing.assert_allclose(apart(parts, (1.0, 2.0), 4), apart(parts * [1, 100] + 5, (1.0, 2.0), 4), atol=2e-2)


def test_gdpo_gives_a_missing_part_the_lowest_z_and_leaves_failed_samples_out():
    parts = np.array([[1.0], [0.0], [np.nan], [0.5], [np.nan], [np.nan], [np.nan], [np.nan]])
    advantages = apart(parts, (1.0,), 4)
    assert np.isfinite(advantages).all()
    assert advantages[2] == advantages[1] == advantages[:4].min() and len(set(advantages[4:])) == 1
    failed = apart(np.array([[1.0], [0.0], [7.0], [0.5]]), (1.0,), 4, ok=[True, True, False, True])
    assert failed[2] == 0 and failed[:2].sum() + failed[3] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match='1 parts, and there are 2 weights'):
        apart(parts, (1.0, 1.0), 4)
