"""GPO's transformer over a set (arXiv 2310.11523): golden numbers of its attention, and what its output depends on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal.bench import set_transformer
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer

NET = SetTransformer(4, width=8, maps=2, layers=2, heads=2, hidden=8)


def test_attention_of_one_head_by_golden_numbers():
    tokens = jnp.array([[[1, 0, 1], [0, 1, 0], [1, 1, 0], [-1, 0.5, 0]]])
    heads = tokens[:, :, None]
    context = heads[:, :2]
    out = tokens + set_transformer.attend(heads, context, context, jnp.ones((1, 2), bool))[:, :, 0]
    expected = [[1.5, 1.5, 0.5], [-0.703918, 1.203918, 0.296082]]
    np.testing.assert_allclose(out[0, 2:], expected, atol=2e-6)
    # The weights are those of the third number of the values, for y is 1 and 0.
    for target, row in ((2, [1.735542, 1.735542, 0.264458]), (3, [-1.378488, 1.097785, 0.141981])):
        itself = jnp.array([[True, True, False, False]]).at[0, target].set(True)
        out = tokens + set_transformer.attend(heads, heads, heads, itself)[:, :, 0]
        np.testing.assert_allclose(out[0, target], row, atol=2e-6)


def test_no_context_is_no_attention():
    x = jnp.ones((1, 2, 1, 3))
    assert not set_transformer.attend(x, x, x, jnp.zeros((1, 2), bool)).any()


def test_the_output_of_a_target_depends_on_the_set_alone():
    """Not on the order of the context, nor on other targets, nor on what stands on places that do not exist."""
    rng = np.random.default_rng(0)
    params = set_transformer.init(jax.random.key(0), NET)
    params['head'][1]['w'] = jnp.asarray(rng.normal(size=(8, 1)), jnp.float32)
    context, targets = (jnp.asarray(rng.normal(size=(2, n, 4)), jnp.float32) for n in (5, 3))
    exists = jnp.array([[True] * 5, [True, True, False, False, False]])
    out = set_transformer.apply(params, NET, context, exists, targets)
    assert np.abs(out[0] - out[1]).min() > 1e-3
    order = jnp.array([3, 1, 4, 0, 2])
    changes = {
        'order': (context[:, order], exists[:, order], targets),
        'targets': (context, exists, targets.at[:, 1:].set(7.0)),
        'padding': (context.at[1, 2:].set(jnp.nan), exists, targets),
        'more padding': (jnp.pad(context, ((0, 0), (0, 3), (0, 0))), jnp.pad(exists, ((0, 0), (0, 3))), targets),
    }
    for changed in changes.values():
        again = set_transformer.apply(params, NET, *changed)
        np.testing.assert_allclose(again[:, :1], out[:, :1], atol=2e-6)
    other = set_transformer.apply(params, NET, context.at[:, 0].add(1.0), exists, targets)
    assert np.abs(other - out).max() > 1e-3


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='heads=3'):
        SetTransformer(4, width=8, heads=3)
