"""Golden numbers of the RLPA/PLUS specification by id, derived by hand from two short samples.

Sample 1 has four actions and reward 1.5, sample 2 two actions, reward 0.5 and no KL.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.advantages import gae, less_mean, less_others, reward_to_go, standardised, token_rewards
from pal_jax.objectives.kl import adapt_kl, token_kl
from pal_jax.objectives.masked import masked_mean, masked_var, whiten
from pal_jax.objectives.policy import loss_weights, ppo_token_loss, value_token_loss
from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.recipes.rlpa.profiles import to_sample
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.run.optim import make_schedule
from pal_jax.types import Completion, Dialogue, Person, Turn, Verdict

ACTS = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
OK = jnp.array([True, True])
LOGPROB = jnp.array([[-1.0, -0.5, -2.0, -0.1], [-0.7, -0.7, 0.0, 0.0]])
REF = jnp.array([[-1.1, -0.3, -2.05, -0.1], [-0.7, -0.7, 0.0, 0.0]])
VALUES = jnp.array([[0.5, 0.4, 0.3, 0.2], [0.1, 0.3, 0.0, 0.0]])
REWARD = jnp.array([1.5, 0.5])
BETA = 0.01
WIDE = (slice(None), slice(0, 4))


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, np.array(expected, np.float32), atol=tolerance, rtol=tolerance)


def rewards(acts=ACTS, logprob=LOGPROB, ref=REF):
    return token_rewards(REWARD[:, None], BETA * token_kl(logprob, ref, 'k1'), acts, clip=(-10.0, 10.0))[..., 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def advantages(gamma=1.0, lam=0.95):
    return gae(rewards(), VALUES, ACTS, gamma=gamma, lam=lam)


def widen(x, fill):
    wide = np.full((2, 6), fill, x.dtype)
    wide[WIDE] = np.where(ACTS, x, wide[WIDE])
    return wide


def test_g1_k1():
    close(jax.jit(lambda: token_kl(LOGPROB, REF, 'k1'))()[0], [0.1, -0.2, 0.05, 0])


def test_g2_k2_and_k3():
    close(jax.jit(lambda: token_kl(LOGPROB, REF, 'k2'))()[0], [0.005, 0.02, 0.00125, 0])
    close(jax.jit(lambda: token_kl(LOGPROB, REF, 'k3'))()[0], [0.004837, 0.021403, 0.001229, 0])


def test_g3_token_rewards():
    close(jax.jit(rewards)(), [[-0.001, 0.002, -0.0005, 1.5], [0, 0.5, 0, 0]])


def test_g4_g7_gae():
    adv, ret = advantages()
    close(adv, [[0.829786, 0.979775, 1.1345, 1.3], [0.39, 0.2, 0, 0]])
    close(ret, [[1.329786, 1.379775, 1.4345, 1.5], [0.49, 0.5, 0, 0]])


def test_g5_gae_at_lambda_one():
    adv, _ = advantages(1.0, 1.0)
    close(adv[0], [1.0005, 1.1015, 1.1995, 1.3])


def test_g6_gae_discounted():
    adv, ret = advantages(0.9, 0.8)
    close(adv[0], [0.189595, 0.45916, 0.8155, 1.3])
    close(ret[0], [0.689595, 0.85916, 1.1155, 1.5])


@jax.jit
def padded(acts, logprob, ref, values, junk):
    return gae(jnp.where(acts, rewards(acts, logprob, ref), junk), values, acts, gamma=1.0, lam=0.95)


@pytest.mark.parametrize('junk', [7.5, np.nan, np.inf])
def test_g8_values_on_padding_change_nothing(junk):
    wide = widen(ACTS, False), *(widen(x, junk) for x in (LOGPROB, REF, VALUES))
    for actual, expected in zip(padded(*wide, junk), advantages(), strict=True):
        close(actual[WIDE], expected, 1e-6)
        assert not np.any(actual[:, 4:])


def test_g9_whitening():
    adv, _ = advantages()
    close(jax.jit(masked_mean)(adv, ACTS), 0.805677)
    close(np.sqrt(jax.jit(masked_var)(adv, ACTS)), 0.392217)
    expected = [[0.06147, 0.443883, 0.838371, 1.260332], [-1.059815, -1.544241, 0, 0]]
    close(jax.jit(lambda: whiten(adv, ACTS))(), expected)


@functools.partial(jax.jit, static_argnums=1)
def weighed(tokens, agg):
    return jnp.sum(loss_weights(ACTS, OK, agg) * tokens)


def test_g10_policy_loss():
    adv = jax.jit(whiten)(advantages()[0], ACTS)
    moved = np.asarray(LOGPROB) + np.array([[0.3, -0.1, 0, 0.05], [-0.4, 0.1, 0, 0]], np.float32)
    tokens = jax.jit(lambda: ppo_token_loss(moved, LOGPROB, adv, clip=0.2))()
    close(tokens, [[-0.073763, -0.401642, -0.838371, -1.324951], [0.847852, 1.70665, 0, 0]])
    close(weighed(tokens, 'seq_mean'), 0.308785)
    close(weighed(tokens, 'token_mean'), -0.014038)


def test_g11_value_loss():
    new = jnp.array([[0.8, 0.45, 0.3, -0.1], [0.1, 0.6, 0, 0]])
    tokens = jax.jit(lambda: value_token_loss(new, VALUES, advantages()[1], clip=0.2))()
    close(2 * tokens, [[0.396631, 0.864482, 1.28709, 2.56], [0.1521, 0.01, 0, 0]])
    close(weighed(tokens, 'seq_mean'), 0.339525)
    close(weighed(tokens, 'token_mean'), 0.439192)


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        (less_others, [1.066667, -0.933333, 0.133333, -0.266667]),
        (less_mean, [0.8, -0.7, 0.1, -0.2]),
        (standardised, [1.275586, -1.116137, 0.159448, -0.318896]),
    ],
)
def test_g12_group_rewards(shape, expected):
    rewards = np.array([[1.5, 0, 0.8, 0.5, 2, 2, 2, 2]], np.float32).T
    shaped = jax.jit(lambda r: shape(r, jnp.ones(8, bool), 4))(rewards)[:, 0]
    close(shaped[:4], expected)
    np.testing.assert_array_equal(shaped[4:], 0)


def test_g13_reward_to_go():
    close(jax.jit(lambda: reward_to_go(rewards(), ACTS, gamma=1.0))()[0], [1.5005, 1.5015, 1.4995, 1.5])
    close(jax.jit(lambda: reward_to_go(rewards(), ACTS, gamma=0.9))()[0], [1.093895, 1.21655, 1.3495, 1.5])


def test_g14_adaptive_kl():
    adapted = jax.jit(lambda kl: adapt_kl(BETA, kl, target=0.1, n=1024))
    for kl, expected in ((0.12, 0.0102048), (0.05, 0.0097952), (0.105, 0.0100512)):
        close(adapted(np.float32(kl)), expected, 1e-7)


def test_g15_learning_rate():
    schedule = jax.jit(make_schedule(lr=5e-7, total_steps=1000, warmup_ratio=0.03))
    with jax.numpy_dtype_promotion('standard'):  # optax multiplies its integer count with floats
        for step, rate in ((0, 5e-7 / 30), (14, 2.5e-7), (29, 5e-7), (30, 5e-7), (515, 2.75e-7), (1000, 5e-8)):
            np.testing.assert_allclose(schedule(np.int32(step)), rate, rtol=1e-5)


@pytest.mark.parametrize(
    ('tag', 'judged', 'expected'),
    [('<profile>\n', 1.0, 1.428571), ('<profile>\n', 0.0, 0.428571), ('<profile>', 1.0, 0.0)],
)
def test_g16_total_reward_of_three_matches_among_four_facts_and_ten(tag, judged, expected):
    person = Person('someone', tuple(f'slot {i}: value' for i in range(10)))
    text = f'{tag}a: 1\nb: 2\nc: 3\nd: 4</profile>\n\n<response>\nHello</response>'
    sample = to_sample(Dialogue(person, (Turn('user', 'Hello'),)), Completion(text, (), (), 'stop'))
    verdict = Verdict(dict.fromkeys(SCORES, judged))
    reward = make_reward(lambda inferred, golden: [3], lambda dialogues, inferred, replies, seed: [verdict])
    assert reward([sample], 0)[0].reward == pytest.approx(expected, abs=1e-6)


def test_g18_truncated_sample_is_paid_at_its_last_column():
    acts = np.ones((1, 5), bool)
    paid = jax.jit(token_rewards)(np.array([[1.5]], np.float32), np.zeros((1, 5), np.float32), acts)[..., 0]
    np.testing.assert_array_equal(paid, [[0, 0, 0, 0, 1.5]])
    weights = jax.jit(lambda: loss_weights(acts, np.array([True]), 'seq_mean'))()
    assert np.asarray(weights)[0, -1] == pytest.approx(0.2)


# --- the specification of Personalized Soups, I.7-5 to 7 -------------------------------------------------------------

SOUP = {
    'logprob': jnp.array([[-1.0, -2.0, -0.5]]),
    'reference': jnp.array([[-1.2, -1.9, -1.0]]),
    'values': jnp.array([[0.1, 0.2, 0.3]]),
    'new': jnp.array([[-0.8, -2.1, -0.9]]),
    'new_values': jnp.array([[0.5, 0.1, 0.3]]),
    'acts': jnp.ones((1, 3), bool),
}


def soup_advantages():
    kl = token_kl(SOUP['logprob'], SOUP['reference'], 'k1')
    paid = token_rewards(jnp.array([[0.7]]), 0.2 * kl, SOUP['acts'])[..., 0]
    return paid, *gae(paid, SOUP['values'], SOUP['acts'], gamma=1.0, lam=0.95)


def soup_whitened():
    """Ours divides by the population's standard deviation, the published code by the unbiased one."""
    return whiten(soup_advantages()[1], SOUP['acts']) * np.sqrt(2 / 3)


def test_soups_5_shaping():
    paid, advantages, returns = jax.jit(soup_advantages)()
    close(paid[0], [-0.04, 0.02, 0.6], 1e-6)
    close(advantages[0], [0.44475, 0.405, 0.3], 1e-6)
    close(returns[0], [0.54475, 0.605, 0.6], 1e-6)
    close(jax.jit(soup_whitened)()[0], [0.822346, 0.290830, -1.113176], 1e-6)


def test_soups_6_losses():
    def losses():
        policy = ppo_token_loss(SOUP['new'], SOUP['logprob'], soup_whitened(), clip=0.2).mean()
        value = value_token_loss(SOUP['new_values'], SOUP['values'], soup_advantages()[2], clip=0.2).mean()
        return policy, value, policy + 0.1 * value

    close(np.exp(np.asarray(SOUP['new']) - np.asarray(SOUP['logprob']))[0], [1.221403, 0.904837, 0.670320], 1e-6)
    close(jax.jit(losses)(), [-0.119809, 0.067488, -0.113061], 1e-6)


def test_soups_7_controller():
    adapted = jax.jit(lambda kl: adapt_kl(0.2, kl, target=6.0, n=16, horizon=10_000))
    for kl, coef in ((9.0, 0.200064), (3.0, 0.199936)):
        close(adapted(np.float32(kl)), coef, 1e-6)
