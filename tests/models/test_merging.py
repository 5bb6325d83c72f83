"""Merged models: golden numbers and properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import lora, merging, params
from pal_jax.models.config import tiny
from pal_jax.models.lora import Adapter

SIZES = {'matrix': (37, 11), 'vector': (5,), 'stack': (2, 8, 3)}


def tree(seed: int = 0, scale: float = 1.0, dtype: str = 'float32'):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(jnp.dtype(dtype)) for name, shape in SIZES.items()}


def assert_same_bits(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8)), found, expected)


def difference(found, expected) -> float:
    """The largest, relative to the largest value."""
    return max(
        float(np.abs(np.subtract(x, y, dtype=np.float64)).max() / np.abs(y).max())
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_1_0_0_are_the_first_model_bit_by_bit(dtype):
    first, broken = tree(1, dtype=dtype), jax.tree.map(lambda x: np.full_like(x, jnp.nan), tree(2, dtype=dtype))
    first['vector'][0] = -0.0
    assert_same_bits(merging.linear([first, broken, broken], [1, 0, 0]), first)
    assert_same_bits(merging.linear([broken, first], [0, 1]), first)


def test_a_mean_is_the_golden_one_and_keeps_the_precision():
    models = [{'w': np.array([1.0, 2.0, 3.0], np.float32) * n} for n in (1, 2, 4)]
    np.testing.assert_allclose(merging.linear(models, [0.5, 0.3, 0.2])['w'], [1.9, 3.8, 5.7], rtol=1e-6)
    assert merging.linear([tree(dtype='bfloat16')] * 2, [0.5, 0.5])['matrix'].dtype == jnp.bfloat16
    assert merging.linear([tree(1), tree(2, dtype='bfloat16')], [0, 1])['matrix'].dtype == np.float32


@pytest.mark.parametrize('count', [2, 3, 8])
def test_identical_models_stay_within_two_units_in_the_last_place(count):
    model = tree(4)
    merged = merging.linear([model] * count, [1 / count] * count)
    for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_max_ulp(x, y, maxulp=2)


def test_the_order_of_the_models_does_not_matter():
    models, weights = [tree(seed) for seed in range(3)], [0.2, 0.5, 0.3]
    assert difference(merging.linear(models[::-1], weights[::-1]), merging.linear(models, weights)) <= 1e-6


def test_factors_and_updates_have_different_means():
    """Check 2 of the specification, where B A stands on [out, in]; our weights are [in, out]."""
    a1, b1, a2, b2 = ([[1, 2]], [[1], [0]], [[3, -2]], [[0], [2]])
    adapters = [
        {'w': Adapter(*(np.array(x, np.float32).T[None] for x in pair), scale=32 / 16)} for pair in ((a1, b1), (a2, b2))
    ]
    mean = merging.linear(adapters, [0.5, 0.5])
    np.testing.assert_array_equal((2 * mean['w'].a @ mean['w'].b)[0].T, [[2, 0], [4, 0]])
    updates = [(0.5 * x['w'].scale, x['w'].a[0], x['w'].b[0]) for x in adapters]
    np.testing.assert_array_equal(merging.UpdatedMatrix(np.zeros((2, 2), np.float32), updates)[:].T, [[1, 2], [6, -4]])


def test_one_weight_of_1_is_that_adapter_bit_by_bit():
    plain = params.init(params.decoder_specs(tiny(vocab=32)), jax.random.key(0))
    each = [
        lora.split(lora.attach(plain, rank=4, alpha=8.0, targets=('attn/(q|o)', 'down'), key=jax.random.key(seed)))[0]
        for seed in range(3)
    ]
    jax.tree.map(np.testing.assert_array_equal, merging.linear(each, [0, 1, 0]), each[1])


@pytest.mark.parametrize(
    ('models', 'weights', 'message'),
    [
        ([tree(), tree()], [0.5, 0.4], r'2 weights with sum 0.9 for 2 models; give one each, with sum 1'),
        ([tree(), tree()], [1.0], r'1 weights with sum 1 for 2 models'),
        ([tree(), tree()], [float('nan'), 1.0], r'sum nan'),
        ([tree(), {'matrix': tree()['matrix']}], [0.5, 0.5], 'built differently'),
        ([tree(), {'matrix': tree()['matrix']}], [0.5, 0.5], r"number 1 has \['stack'\], number 2 has not"),
        ([{'w': np.ones((2, 4))}, {'w': np.ones((2, 8))}], [0.5, 0.5], r"\['w'\] has shapes \(2, 4\) and \(2, 8\)"),
        (
            [Adapter(np.ones((1, 2, 2)), np.ones((1, 2, 2)), s) for s in (1.0, 2.0)],
            [0.5, 0.5],
            'adapters of one base and scale',
        ),
        (
            [{'q': Adapter(np.ones((1, 2, 2)), np.ones((1, 2, 2)), s)} for s in (1.0, 1.0, 2.0)],
            [0.5, 0.25, 0.25],
            r"\['q'\] has scale 1.0 in number 1 and 2.0 in number 3",
        ),
    ],
)
def test_what_cannot_be_merged(models, weights, message):
    with pytest.raises(ValueError, match=message):
        merging.linear(models, weights)
