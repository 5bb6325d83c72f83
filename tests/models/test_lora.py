from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.models import decoder, lora, params, soups
from pal_jax.models.config import tiny
from pal_jax.models.files import peft
from pal_jax.models.linear import LoraWeight, linear
from pal_jax.run.optim import Optimizer

CFG = dataclasses.replace(tiny(vocab=32), qkv_bias=True)
SPECS = params.decoder_specs(CFG)
OPTIONS: dict[str, Any] = {'rank': 3, 'alpha': 6.0, 'targets': 'all-linear'}
IN_DIMS = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}


class Trees(NamedTuple):
    """A plain tree, the same with fresh adapters, and with adapters as training leaves them: `b` is no longer 0."""

    plain: Any
    fresh: Any
    trained: Any


@functools.cache
def trees() -> Trees:
    plain = params.init(SPECS, jax.random.key(0))
    fresh = jax.jit(lambda plain: lora.attach(plain, **OPTIONS, key=jax.random.key(1)))(plain)
    trainable, frozen = lora.split(fresh)

    def moved(x):
        waves = np.sin(np.arange(x.size)).reshape(x.shape)
        return jnp.asarray(2 * np.asarray(x) + 0.1 * waves, jnp.float32)

    return Trees(plain, fresh, lora.join(jax.tree.map(moved, trainable), frozen))


def weights_of(tree):
    return tree['layers']['attn'] | tree['layers']['mlp']


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_target_is_adapted_and_nothing_else():
    adapted = {name for name, w in weights_of(trees().fresh).items() if isinstance(w, LoraWeight)}
    assert adapted == set(IN_DIMS)
    assert not isinstance(trees().fresh['embed'], LoraWeight)


def test_only_named_targets_are_adapted():
    some = lora.lora_specs(SPECS, rank=2, alpha=2.0, targets=('q', 'down'))
    assert {name for name, w in weights_of(some).items() if isinstance(w, LoraWeight)} == {'q', 'down'}


@pytest.mark.parametrize(
    ('targets', 'names'),
    [
        ('attn/(q|v)', {'q', 'v'}),
        (('attn/[qk]', 'down'), {'q', 'k', 'down'}),
        ('mlp/.*', {'gate', 'up', 'down'}),
        ('layers/.*/(o|up)', {'o', 'up'}),
    ],
)
def test_targets_are_patterns_over_the_ends_of_paths(targets, names):
    some = lora.lora_specs(SPECS, rank=2, alpha=2.0, targets=targets)
    assert {name for name, w in weights_of(some).items() if isinstance(w, LoraWeight)} == names


def test_dropout_keeps_the_mean_of_the_correction_and_spares_the_base():
    gate = trees().trained['layers']['mlp']['gate']
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, CFG.width)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def output(key, rate):
        w = lora.with_dropout({'gate': gate}, rate, key)['gate']
        return linear(x, jax.tree.map(lambda leaf: leaf[0], w), CFG)[0, 0]

    keys = jax.random.split(jax.random.key(0), 4000)
    layer = jax.tree.map(lambda leaf: leaf[0], gate)
    base, full = jax.jit(lambda gate: [linear(x, w, CFG)[0, 0] for w in (gate.base, gate)])(layer)
    dropped = np.asarray(jax.jit(jax.vmap(lambda key: output(key, 0.5)))(keys))
    spread = dropped.std(0) / np.sqrt(len(keys))
    assert np.all(np.abs(dropped.mean(0) - full) < 5 * spread)
    assert float(spread.min()) > 0
    np.testing.assert_allclose(output(keys[0], 1.0 - 1e-7), base, atol=1e-5)


def test_every_layer_and_adapter_drops_what_no_other_does():
    tree = jax.jit(lambda tree: lora.with_dropout(tree, 0.1, jax.random.key(0)))(trees().fresh)
    keys = np.concatenate([w.key for w in weights_of(tree).values() if isinstance(w, LoraWeight)])
    assert len(np.unique(keys, axis=0)) == len(IN_DIMS) * CFG.layers
    assert_equal(lora.base(tree), trees().plain)


def test_a_fresh_adapter_has_unit_gain_and_changes_nothing():
    gate = trees().fresh['layers']['mlp']['gate']
    assert gate.scale == 2.0
    assert float(gate.a.std()) == pytest.approx(CFG.width**-0.5, rel=0.1)
    assert not gate.b.any()
    assert_equal(jax.jit(lora.merge)(trees().fresh), trees().plain)


def test_adapters_differ_between_weights_and_follow_the_key():
    attn = trees().fresh['layers']['attn']
    assert not np.array_equal(attn['q'].a, attn['k'].a)
    q = {'q': trees().plain['layers']['attn']['q']}
    attach = jax.jit(lambda key: lora.attach(q, rank=2, alpha=2.0, targets='q', key=key)['q'].a)
    np.testing.assert_array_equal(attach(jax.random.key(1)), attach(jax.random.key(1)))
    assert not np.array_equal(attach(jax.random.key(1)), attach(jax.random.key(2)))


def test_adapters_are_float32_on_a_narrow_base():
    plain = trees().plain  # no values of a trace
    narrow = jax.eval_shape(lambda: lora.attach(params.cast(plain, jnp.bfloat16), **OPTIONS, key=jax.random.key(1)))
    q = narrow['layers']['attn']['q']
    assert (q.base.dtype, q.a.dtype, q.b.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert jax.eval_shape(lora.merge, narrow)['layers']['attn']['q'].dtype == jnp.bfloat16


def test_base_is_the_plain_tree():
    assert_equal(lora.base(trees().trained), trees().plain)
    assert_equal(lora.base(trees().plain), trees().plain)


def test_join_undoes_split():
    tree = trees().trained
    trainable, frozen = lora.split(tree)
    assert_equal(lora.join(trainable, frozen), tree)
    assert_equal(frozen, trees().plain)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each)) for each in (trainable, trees().plain, tree)]
    assert sizes[0] + sizes[1] == sizes[2]


def test_merged_weights_compute_what_the_adapted_ones_do():
    @jax.jit
    def outputs(trained, plain):
        return {name: of_name(name, trained, lora.merge(trained), plain) for name in IN_DIMS}

    def of_name(name, *trees):
        first = [jax.tree.map(lambda x: x[0], weights_of(tree)[name]) for tree in trees]
        shape = 2, 5, *first[-1].shape[: IN_DIMS[name]]
        x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        return [linear(jnp.asarray(x), w, CFG, IN_DIMS[name]) for w in first]

    for name, rows in outputs(trees().trained, trees().plain).items():
        adapted, merged, plain = map(np.asarray, rows)
        np.testing.assert_allclose(adapted, merged, atol=1e-4, err_msg=name)
        assert np.abs(adapted - plain).max() > 1e-2, name


def test_training_moves_adapters_only():
    optimizer = Optimizer('adamw', lr=0.1, total_steps=3, warmup_ratio=0.0, weight_decay=0.1)
    trainable, frozen = lora.split(trees().fresh)
    state = jax.jit(optimizer.init)(trainable)

    @jax.jit
    @jax.numpy_dtype_promotion('standard')  # optax multiplies its integer count with floats
    def step(trainable, state):
        def loss(trainable):
            return sum(jnp.mean((w - 1.0) ** 2) for w in jax.tree.leaves(lora.merge(lora.join(trainable, frozen))))

        updates, state = optimizer.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    after, _ = step(trainable, state)
    assert jax.tree.structure(after) == jax.tree.structure(trainable)
    assert all(jnp.any(x.b != 0) for x in jax.tree.leaves(after, is_leaf=lambda x: isinstance(x, lora.Adapter)))
    assert_equal(lora.base(lora.join(after, frozen)), trees().plain)


def test_specs_describe_the_adapted_tree():
    specs = lora.lora_specs(SPECS, **OPTIONS)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees().fresh)
    assert jax.tree.structure(params.abstract(specs)) == jax.tree.structure(trees().fresh)
    assert params.abstract(specs) == shapes
    assert lora.base(specs) == SPECS


@pytest.mark.parametrize(
    ('name', 'a', 'b'),
    [
        ('q', ('layers', 'width', None), ('layers', None, 'heads')),
        ('o', ('layers', 'heads', None), ('layers', None, 'width')),
        ('gate', ('layers', 'width', None), ('layers', None, 'mlp')),
        ('down', ('layers', 'mlp', None), ('layers', None, 'width')),
    ],
)
def test_factors_are_sharded_as_the_axes_of_their_weight(name, a, b):
    weight = weights_of(lora.lora_specs(SPECS, **OPTIONS))[name]
    assert (weight.a.axes, weight.b.axes) == (a, b)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'targets': ['q', 'query']},
            r"LoRA targets \['query'\] match no linear weight; use 'all-linear' or match some of layers/attn/k",
        ),
        ({'targets': 'attn/(q'}, 'are no regular expressions: missing'),
        ({'rank': 0}, 'rank=0 must be at least 1'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lora.attach(trees().plain, **OPTIONS | options, key=jax.random.key(0))


def test_attaching_twice_is_an_error():
    with pytest.raises(ValueError, match='match some of none: adapt a decoder, and only once'):
        lora.attach(trees().fresh, **OPTIONS, key=jax.random.key(0))


# --- the output matrix ------------------------------------------------------------------------------------------------

UNTIED = dataclasses.replace(CFG, tie_embed=False)


@functools.cache
def with_head(targets: Any = ('unembed',)) -> Any:
    plain = params.init(params.decoder_specs(UNTIED), jax.random.key(0))
    return lora.attach(plain, rank=3, alpha=6.0, targets=targets, key=jax.random.key(1))


def test_the_output_matrix_is_adapted_by_its_name_alone():
    assert isinstance(with_head()['unembed'], LoraWeight)
    assert not isinstance(with_head('all-linear')['unembed'], LoraWeight)
    with pytest.raises(ValueError, match='unembed'):
        lora.attach(trees().plain, rank=3, alpha=6.0, targets=['unembed'], key=jax.random.key(1))


def test_logits_of_an_adapted_output_matrix_are_those_of_the_merged_one():
    head = with_head()['unembed']
    head = head.replace(b=0.1 * jax.random.normal(jax.random.key(2), head.b.shape))
    tree, hidden = {**with_head(), 'unembed': head}, jax.random.normal(jax.random.key(3), (5, UNTIED.width))
    inputs, weight = decoder.output_layer(tree, UNTIED, hidden)
    np.testing.assert_allclose(inputs @ weight.T, hidden @ lora.merge(tree)['unembed'].T, rtol=1e-4, atol=1e-5)


def test_dropout_of_the_output_matrix_drops_its_inputs():
    tree = lora.with_dropout(with_head(), 0.5, jax.random.key(4))
    hidden = jnp.ones((64, UNTIED.width))
    low = decoder.output_layer(tree, UNTIED, hidden)[0][:, UNTIED.width :]
    assert np.unique(np.asarray(low), axis=0).shape[0] > 1


def test_an_adapter_on_the_output_matrix_is_written_and_read(tmp_path):
    trainable, frozen = lora.split(with_head(('attn/q', 'unembed')))
    peft.save(trainable, UNTIED, 'base', tmp_path / 'adapter')
    assert_equal(lora.split(peft.attach(frozen, UNTIED, tmp_path / 'adapter'))[0], trainable)


def heads() -> list[Any]:
    """Two trees whose output matrices have trained adapters."""
    tree, waves = with_head(), jnp.sin(jnp.arange(3 * 32.0)).reshape(3, 32)
    return [{**tree, 'unembed': tree['unembed'].replace(b=factor * waves)} for factor in (0.1, -0.2)]


def test_a_row_has_the_logits_of_its_own_output_matrix():
    both, hidden = heads(), jax.random.normal(jax.random.key(3), (2, 5, UNTIED.width))
    expected = np.stack([x @ lora.merge(tree)['unembed'].T for x, tree in zip(hidden, both, strict=True)])
    trainable, frozen = [lora.split(tree)[0] for tree in both], lora.split(both[0])[1]
    # Ranks are padded, and scales stay.
    inputs, weight = decoder.output_layer(lora.join(lora.by_row(trainable, 4), frozen), UNTIED, hidden)
    np.testing.assert_allclose(inputs @ weight.T, expected, rtol=1e-4, atol=1e-5)
    soup = soups.mixed(soups.stack(frozen, trainable, 'delta'), jnp.eye(2))
    np.testing.assert_allclose(decoder.unembed(soup, UNTIED, hidden), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_row_is_that_of_its_own_adapters():
    trainable, frozen = zip(*map(lora.split, heads()), strict=True)
    hidden = jax.random.normal(jax.random.key(3), (2, 5, UNTIED.width))

    def squares(adapters: Any, states: Any) -> Any:
        inputs, weight = decoder.output_layer(lora.join(adapters, frozen[0]), UNTIED, states)
        return jnp.sum(jnp.square(inputs @ weight.T))

    stacked = jax.grad(squares)(lora.by_row(trainable, 4), hidden)
    own = jax.grad(squares)(trainable[1], hidden[1:])
    taken = lora.gradient_of_row(stacked, 1, trainable[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), taken, own)
