from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives.logprobs import token_logprobs, token_loss

pytestmark = pytest.mark.usefixtures('strict_promotion')

R, M, D, V = 2, 7, 6, 11


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


HIDDEN, UNEMBED, WEIGHTS = normal(0, R, M, D), normal(1, V, D), normal(2, R, M)
TARGETS = jnp.asarray(np.random.default_rng(3).integers(0, V, (R, M)), jnp.int32)
OLD = jnp.asarray(-2.0 + 0.5 * np.asarray(normal(4, R, M)))


def plain_logprobs(
    hidden: jax.Array, unembed: jax.Array, temperature: float = 1.0, softcap: float | None = None
) -> jax.Array:
    logits = jnp.einsum('rmd,vd->rmv', hidden, unembed)
    logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits) / temperature
    return jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[..., None], axis=-1)[..., 0]


def weighted(logprobs: jax.Array, weights: jax.Array) -> jax.Array:
    return -weights * logprobs


def clipped(logprobs: jax.Array, aux: dict[str, jax.Array]) -> jax.Array:
    """PPO's surrogate: not linear in the log-probability, and flat where it is clipped."""
    ratio = jnp.exp(logprobs - aux['old'])
    return -jnp.minimum(ratio * aux['advantage'], jnp.clip(ratio, 0.8, 1.2) * aux['advantage'])


CASES = {'cross-entropy': (weighted, WEIGHTS), 'ppo': (clipped, {'old': OLD, 'advantage': WEIGHTS})}


@pytest.mark.parametrize(('chunk', 'temperature'), [(1, 0.7), (4, 1.0), (6, 0.7), (1024, 1.0)])
def test_logprobs_and_entropy_against_numpy(chunk: int, temperature: float) -> None:
    evaluate = jax.jit(functools.partial(token_logprobs, temperature=temperature, chunk=chunk))
    got, entropy = evaluate(HIDDEN, UNEMBED, TARGETS)
    logits = np.asarray(HIDDEN, np.float64) @ np.asarray(UNEMBED, np.float64).T / temperature
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, np.log(np.take_along_axis(p, np.asarray(TARGETS)[..., None], -1))[..., 0], 1e-5)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('chunk', 'temperature', 'softcap'), [(4, 1.0, None), (1024, 0.7, None), (4, 0.7, 1.5), (1024, 1.0, 1.5)]
)
@pytest.mark.parametrize('case', CASES)
def test_loss_and_gradients_are_those_of_plain_autodiff(
    case: str, chunk: int, temperature: float, softcap: float | None
) -> None:
    per_token, aux = CASES[case]
    how = {'temperature': temperature, 'softcap': softcap}

    def ours(hidden: jax.Array, unembed: jax.Array):
        return token_loss(hidden, unembed, TARGETS, aux, per_token, chunk=chunk, **how)

    def plain(hidden: jax.Array, unembed: jax.Array) -> jax.Array:
        return per_token(plain_logprobs(hidden, unembed, **how), aux).sum()

    (loss, logprobs), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(HIDDEN, UNEMBED)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain, (0, 1)))(HIDDEN, UNEMBED)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    plainly = jax.jit(functools.partial(plain_logprobs, **how))(HIDDEN, UNEMBED)
    np.testing.assert_allclose(logprobs, plainly, rtol=1e-5, atol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gradient_by_finite_differences() -> None:
    @jax.jit
    def loss(hidden: jax.Array, unembed: jax.Array) -> jax.Array:
        return token_loss(hidden, unembed, TARGETS, WEIGHTS, weighted, temperature=1.3, chunk=4)[0]

    start, step = [np.asarray(x) for x in (HIDDEN, UNEMBED)], 1e-2
    grads = [np.asarray(g) for g in jax.jit(jax.grad(loss, (0, 1)))(*start)]
    for seed in range(3):
        along = [np.asarray(x) for x in (normal(10 + seed, R, M, D), normal(20 + seed, V, D))]
        slope = sum(float((g * d).sum()) for g, d in zip(grads, along, strict=True))
        ahead, behind = (
            float(loss(*(x + np.float32(s) * d for x, d in zip(start, along, strict=True)))) for s in (step, -step)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=5e-3, atol=5e-3)


def test_without_gradients_the_loss_is_the_same() -> None:
    def both(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_loss(hidden, UNEMBED, TARGETS, WEIGHTS, weighted, chunk=4)

    loss, logprobs = jax.jit(both)(HIDDEN)
    (again, logprobs_again), _ = jax.jit(jax.value_and_grad(both, has_aux=True))(HIDDEN)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    np.testing.assert_allclose(logprobs, logprobs_again, rtol=1e-6)


def test_masked_tokens_reach_neither_loss_nor_gradient() -> None:
    mask = jnp.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0]], jnp.float32)

    def loss(hidden: jax.Array, unembed: jax.Array, targets: jax.Array) -> jax.Array:
        return token_loss(hidden, unembed, targets, mask, weighted, chunk=4)[0]

    value_and_grads = jax.jit(jax.value_and_grad(loss, (0, 1)))
    elsewhere = np.where(mask[..., None] > 0, HIDDEN, np.float32(9.0)), np.where(mask > 0, TARGETS, 0)
    value, grads = value_and_grads(HIDDEN, UNEMBED, TARGETS)
    other, other_grads = value_and_grads(elsewhere[0], UNEMBED, elsewhere[1])
    np.testing.assert_allclose(value, other, rtol=1e-6)
    np.testing.assert_allclose(grads[1], other_grads[1], rtol=1e-5, atol=1e-6)
    assert not np.asarray(grads[0])[np.asarray(mask) == 0].any()


def test_gradient_scales_with_what_follows_and_logprobs_carry_none() -> None:
    def loss(hidden: jax.Array) -> jax.Array:
        return token_loss(hidden, UNEMBED, TARGETS, WEIGHTS, weighted)[0]

    def and_more(hidden: jax.Array) -> jax.Array:
        value, logprobs = token_loss(hidden, UNEMBED, TARGETS, WEIGHTS, weighted)
        return 3.0 * value + logprobs.sum()

    plain = np.asarray(jax.jit(jax.grad(loss))(HIDDEN))
    np.testing.assert_allclose(jax.jit(jax.grad(and_more))(HIDDEN), 3.0 * plain, rtol=1e-6)


def test_a_tied_embedding_gets_both_gradients() -> None:
    tokens = np.roll(TARGETS, 1, axis=1)

    def ours(embed: jax.Array) -> jax.Array:
        return token_loss(jnp.tanh(embed[tokens]), embed, TARGETS, WEIGHTS, weighted)[0]

    def plain(embed: jax.Array) -> jax.Array:
        return -(WEIGHTS * plain_logprobs(jnp.tanh(embed[tokens]), embed)).sum()

    expected = jax.jit(jax.grad(plain))(UNEMBED)
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(UNEMBED), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('chunk', [4, 1024])
def test_a_frozen_unembedding_costs_no_product(chunk: int) -> None:
    def loss(hidden: jax.Array, unembed: jax.Array) -> jax.Array:
        return token_loss(hidden, unembed, TARGETS, WEIGHTS, weighted, chunk=chunk)[0]

    def products(wanted: tuple[int, ...]) -> int:
        return jax.jit(jax.grad(loss, wanted)).lower(HIDDEN, UNEMBED).compile().as_text().count(' dot(')

    assert products((0,)) < products((0, 1))


def test_bfloat16_is_close_and_sums_in_float32() -> None:
    def loss(hidden: jax.Array, unembed: jax.Array, dtype: str):
        return token_loss(hidden, unembed, TARGETS, WEIGHTS, weighted, dtype=dtype, chunk=4)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    (_, wide_logprobs), wide = grad(HIDDEN, UNEMBED, 'float32')
    (narrow_value, logprobs), narrow = grad(HIDDEN.astype(jnp.bfloat16), UNEMBED, 'bfloat16')
    assert logprobs.dtype == narrow_value.dtype == jnp.float32
    assert (narrow[0].dtype, narrow[1].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(logprobs, wide_logprobs, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(narrow_value, -np.sum(np.asarray(WEIGHTS) * np.asarray(logprobs)), rtol=1e-5)
    for got, want in zip(narrow, wide, strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03 * float(jnp.abs(want).max()))


def test_the_full_vocabulary_is_held_a_chunk_at_a_time() -> None:
    """No value of the compiled gradient is as large as all logits together."""
    hidden, targets = normal(0, R, 64, D), jnp.zeros((R, 64), jnp.int32)

    def loss(hidden: jax.Array) -> jax.Array:
        return token_loss(hidden, UNEMBED, targets, jnp.ones((R, 64)), weighted, chunk=16)[0]

    text = jax.jit(jax.grad(loss)).lower(hidden).as_text()
    assert f'tensor<{R}x8x{V}xf32>' in text
    assert f'tensor<{R}x64x{V}xf32>' not in text
    assert f'tensor<8x{R}x8x{V}xf32>' not in text
