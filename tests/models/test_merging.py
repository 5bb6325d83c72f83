"""Merged models: golden numbers, properties, and TIES against a computation of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import lora, merging, params
from pal_jax.models.config import tiny
from pal_jax.models.lora import Adapter

RNG = np.random.default_rng(0)
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
    assert_same_bits(merging.slerp([first, tree(3, dtype=dtype)], [1, 0]), first)


def test_a_mean_is_the_golden_one_and_keeps_the_precision():
    models = [{'w': np.array([1.0, 2.0, 3.0], np.float32) * n} for n in (1, 2, 4)]
    np.testing.assert_allclose(merging.linear(models, [0.5, 0.3, 0.2])['w'], [1.9, 3.8, 5.7], rtol=1e-6)
    assert merging.linear([tree(dtype='bfloat16')] * 2, [0.5, 0.5])['matrix'].dtype == jnp.bfloat16
    for merge in (merging.linear, merging.slerp):
        assert merge([tree(1), tree(2, dtype='bfloat16')], [0, 1])['matrix'].dtype == np.float32


@pytest.mark.parametrize('count', [2, 3, 8])
def test_identical_models_stay_within_two_units_in_the_last_place(count):
    model = tree(4)
    merged = merging.linear([model] * count, [1 / count] * count)
    for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_max_ulp(x, y, maxulp=2)


def test_the_order_of_the_models_does_not_matter():
    models, weights, base = [tree(seed) for seed in range(3)], [0.2, 0.5, 0.3], tree(9)
    for merge in (
        merging.linear,
        lambda xs, ws: merging.task_arithmetic(xs, ws, base, 0.7),
        lambda xs, ws: merging.ties(xs, ws, base, 0.5),
    ):
        assert difference(merge(models[::-1], weights[::-1]), merge(models, weights)) <= 1e-6
    assert difference(merging.slerp(models[1::-1], [0.7, 0.3]), merging.slerp(models[:2], [0.3, 0.7])) <= 1e-6


def test_factors_and_updates_have_different_means():
    """Check 2 of the specification, where B A stands on [out, in]; our weights are [in, out]."""
    a1, b1, a2, b2 = ([[1, 2]], [[1], [0]], [[3, -2]], [[0], [2]])
    adapters = [
        {'w': Adapter(*(np.array(x, np.float32).T[None] for x in pair), scale=32 / 16)} for pair in ((a1, b1), (a2, b2))
    ]
    base = {'w': np.zeros((1, 2, 2), np.float32)}
    mean = merging.linear(adapters, [0.5, 0.5])
    np.testing.assert_array_equal((2 * mean['w'].a @ mean['w'].b)[0].T, [[2, 0], [4, 0]])
    np.testing.assert_array_equal(merging.delta(base, adapters, [0.5, 0.5])['w'][0].T, [[1, 2], [6, -4]])


def test_the_mean_of_updates_is_the_mean_of_merged_models():
    plain = params.init(params.decoder_specs(tiny(vocab=32)), jax.random.key(0))
    adapted = []
    for seed in range(3):
        trainable, frozen = lora.split(
            lora.attach(plain, rank=4, alpha=8.0, targets=('attn/(q|o)', 'down'), key=jax.random.key(seed))
        )
        moved = jax.tree.map(lambda x, s=seed: x + 0.1 * np.cos(np.arange(x.size) + s).reshape(x.shape), trainable)
        adapted.append(lora.join(moved, frozen))
    weights = [0.5, 0.2, 0.3]
    merged = merging.delta(plain, [lora.split(each)[0] for each in adapted], weights)
    expected = merging.linear([lora.merge(each) for each in adapted], weights)
    assert difference(merged, expected) <= 1e-6
    factors = merging.linear([lora.split(each)[0] for each in adapted], weights)
    assert difference(lora.merge(lora.join(factors, plain)), expected) > 1e-3
    one = merging.linear([lora.split(each)[0] for each in adapted], [0, 1, 0])
    jax.tree.map(np.testing.assert_array_equal, one, lora.split(adapted[1])[0])


def ties_by_hand(base, models, weights, k, lambda_):
    """Number by number, sorted, in plain Python."""
    out = []
    tasks = [[float(x) - float(b) for x, b in zip(m, base, strict=True)] for m in models]
    kept = []
    for task in tasks:
        order = sorted(range(len(task)), key=lambda i, task=task: -abs(task[i]))[: int(k * len(task))]
        kept.append([x if i in order else 0.0 for i, x in enumerate(task)])
    for i, origin in enumerate(base):
        positive = sum(w * max(t[i], 0) for w, t in zip(weights, kept, strict=True))
        negative = sum(w * max(-t[i], 0) for w, t in zip(weights, kept, strict=True))
        own = [(w, t[i]) for w, t in zip(weights, kept, strict=True) if (t[i] > 0) == (positive > negative) and t[i]]
        total, mass = sum(w * x for w, x in own), sum(w for w, _ in own)
        out.append(float(origin) + (lambda_ * total / mass if mass else 0.0))
    return np.array(out)


@pytest.mark.parametrize(('k', 'lambda_', 'weights'), [(0.2, 1.0, [1 / 3] * 3), (0.6, 0.4, [0.5, 0.1, 0.4])])
def test_ties_is_that_of_its_paper(k, lambda_, weights):
    base, models = RNG.standard_normal(50).astype(np.float32), RNG.standard_normal((3, 50)).astype(np.float32)
    found = merging.ties(list(models), weights, base, k, lambda_)
    np.testing.assert_allclose(found, ties_by_hand(base, models, weights, k, lambda_), rtol=1e-6, atol=1e-7)
    assert np.abs(found - merging.task_arithmetic(list(models), weights, base, lambda_)).max() > 0.1


def test_task_vectors_are_added_to_the_base():
    base, model = tree(5), tree(6)
    assert difference(merging.task_arithmetic([model], [1], base), model) <= 1e-6
    assert difference(merging.ties([model], [1], base, k=1.0), model) <= 1e-6
    away = merging.task_arithmetic([model], [1], base, lambda_=-1.0)  # forgets what the model has learnt
    assert difference(away, jax.tree.map(lambda b, x: 2 * b - x, base, model)) <= 1e-6


def test_slerp_goes_along_the_arc():
    x, y = np.array([1, 0], np.float32), np.array([0, 2], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(merging.slerp([x, y], [0.5, 0.5]), [half, 2 * half], rtol=1e-6)
    third = merging.slerp([x, y / 2], [2 / 3, 1 / 3])
    np.testing.assert_allclose(third, [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)
    np.testing.assert_allclose(merging.slerp([x, 3 * x], [0.5, 0.5]), 2 * x)  # parallel: the mean
    np.testing.assert_allclose(merging.slerp([x, 0 * x], [0.5, 0.5]), x / 2)


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


def test_bad_settings_of_other_methods():
    with pytest.raises(ValueError, match='weights of at least 0 and k in'):
        merging.ties([tree()] * 2, [1.5, -0.5], tree())
    with pytest.raises(ValueError, match='k=0'):
        merging.ties([tree()] * 2, [0.5, 0.5], tree(), k=0)
    with pytest.raises(ValueError, match='slerp goes from one model to another, got 3'):
        merging.slerp([tree()] * 3, [0.5, 0.25, 0.25])
    adapters = [{'w': Adapter(np.ones((1, 2, 1)), np.ones((1, 1, 2)), 1.0)}, {'w': None}]
    with pytest.raises(ValueError, match='adapters of other weights'):
        merging.delta({'w': np.ones((1, 2, 2))}, adapters, [0.5, 0.5])
