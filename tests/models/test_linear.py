from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models.config import tiny
from pal_jax.models.linear import FEW, LoraWeight, by_output, linear, output_major, quantize

pytestmark = pytest.mark.usefixtures('strict_promotion')

NARROW = dataclasses.replace(tiny(), dtype='bfloat16')


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# Input axes in the three ways the decoder has them: one to two, two to one, one to one; and with no leading axes.
CASES = [((2, 5, 8), (8, 3, 4), 1), ((2, 5, 3, 4), (3, 4, 8), 2), ((2, 5, 8), (8, 6), 1), ((8,), (8, 6), 1)]


@pytest.mark.parametrize(('x_shape', 'w_shape', 'in_dims'), CASES)
def test_value_and_gradients_are_those_of_tensordot(x_shape, w_shape, in_dims) -> None:
    x, w = normal(0, *x_shape), normal(1, *w_shape)
    y, pull = jax.vjp(lambda x, w: linear(x, w, tiny(), in_dims), x, w)
    expected, expected_pull = jax.vjp(lambda x, w: jnp.tensordot(x, w, in_dims), x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(pull(y), expected_pull(y), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('x_shape', 'w_shape', 'in_dims'), CASES)
def test_bfloat16_products_are_close_and_every_layout_runs(x_shape, w_shape, in_dims) -> None:
    """XLA's CPU backend compiles some mixed dots that it then cannot run; this runs all that the decoder uses."""
    x, w = normal(0, *x_shape), normal(1, *w_shape)

    @jax.jit
    def both(dy: jax.Array, x: jax.Array, w: jax.Array):
        y, pull = jax.vjp(lambda x, w: linear(x, w, NARROW, in_dims), x, w)
        return y, *pull(dy)

    y, dx, dw = both(jnp.tensordot(x, w, in_dims), x, w)
    expected, pull = jax.vjp(lambda x, w: jnp.tensordot(x, w, in_dims), x, w)
    for got, want in zip((y, dx, dw), (expected, *pull(expected)), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=0.02 * float(jnp.abs(want).max()))


def test_every_product_takes_narrow_inputs() -> None:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return linear(x, w, NARROW).sum()

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(normal(0, 2, 3, 4), normal(1, 4, 5)).as_text()
    products = [line for line in lowered.splitlines() if 'dot_general' in line]
    assert len(products) == 2  # of the three, the value is not asked for
    for line in products:
        assert line.split(' : ')[-1].split(' -> ')[0].count('bf16') == 2, line


@pytest.mark.parametrize('stored', ['float32', 'bfloat16'])
def test_gradients_have_the_dtype_of_what_they_are_of(stored) -> None:
    cfg = dataclasses.replace(NARROW, act_dtype='bfloat16')
    x, w = normal(0, 2, 3, 4), normal(1, 4, 5).astype(stored)
    dx, dw = jax.grad(lambda x, w: linear(x, w, cfg).sum().astype(jnp.float32), (0, 1))(x, w)
    assert linear(x, w, cfg).dtype == jnp.bfloat16
    assert (dx.dtype, dw.dtype) == (jnp.float32, stored)


@pytest.mark.parametrize('in_dims', [1, 2])
def test_lora_is_the_sum_of_base_and_low_rank(in_dims: int) -> None:
    x, base = (normal(0, 2, 5, 6), normal(1, 6, 3, 4)) if in_dims == 1 else (normal(0, 2, 5, 3, 4), normal(1, 3, 4, 6))
    size = int(np.prod(base.shape[:in_dims]))
    w = LoraWeight(base, normal(2, size, 2), normal(3, 2, base.size // size), 0.5)
    merged = base + 0.5 * (w.a @ w.b).reshape(base.shape)
    np.testing.assert_allclose(linear(x, w, tiny(), in_dims), jnp.tensordot(x, merged, in_dims), rtol=1e-4, atol=1e-4)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r'ends in \(4,\).*starts with \(5,\); check in_dims'):
        linear(jnp.ones((2, 4)), jnp.ones((5, 3)), tiny())


@pytest.mark.parametrize(('x_shape', 'w_shape', 'in_dims'), CASES)
def test_eight_bits_are_off_by_half_a_step_of_their_output_at_most(x_shape, w_shape, in_dims) -> None:
    x, w = normal(0, *x_shape), normal(1, *w_shape)
    w = w.at[..., 0].set(0.0)  # an output without weights has no steps
    small = quantize(w, in_dims)
    inner = tuple(range(in_dims))
    step = np.abs(np.asarray(w)).max(axis=inner) / 127
    assert small.values.dtype == jnp.int8
    assert np.all(np.abs(np.asarray(small.values) * np.asarray(small.scale) - np.asarray(w)) <= step / 2 + 1e-6)
    expected = np.tensordot(np.asarray(x), np.asarray(small.values) * np.asarray(small.scale), in_dims)
    np.testing.assert_allclose(linear(x, small, tiny(), in_dims), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('x_shape', 'w_shape', 'in_dims'), CASES)
def test_a_weight_turned_around_gives_the_same_product(x_shape, w_shape, in_dims) -> None:
    x, w = normal(0, *x_shape), normal(1, *w_shape)
    turned = output_major(w, in_dims)
    assert turned.values.shape == (*w_shape[in_dims:], *w_shape[:in_dims])
    np.testing.assert_allclose(linear(x, turned, tiny(), in_dims), np.tensordot(x, w, in_dims), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(5,), (1, 5), (8, 5), (4, 2, 5), (FEW, 5), (FEW + 1, 5)])
def test_a_product_by_output_is_the_same_whichever_side_the_weight_is_on(shape) -> None:
    x, w = normal(0, *shape), normal(1, 7, 5)
    for dtype, tolerance in (('float32', 1e-5), ('bfloat16', 5e-2)):
        found = by_output(x, w, dtype, 'float32')
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, x @ w.T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('rows', [6, 7])
def test_rows_without_tokens_have_the_same_weight_gradient(rows) -> None:
    x, w = normal(0, rows, 8), normal(1, 8, 5)
    dw = jax.grad(lambda w: jnp.sum(jnp.square(linear(x, w, tiny()))))(w)
    np.testing.assert_allclose(dw, 2 * x.T @ (x @ w), rtol=1e-4, atol=1e-4)
