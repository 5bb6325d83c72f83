from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.learners.training import accumulate
from pal_jax.models import decoder, lora, params
from pal_jax.models.config import LayerKind, ModelConfig, shortest_pattern, tiny
from pal_jax.objectives.logprobs import token_loss
from pal_jax.run.devices import make_mesh
from pal_jax.run.sharding import param_shardings, sharding

pytestmark = pytest.mark.usefixtures('strict_promotion')

CFG = tiny(vocab=64)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, CFG.vocab, (2, 9)), jnp.int32)


@functools.cache
def first() -> params.Params:
    """Weights that most tests share, made by the first that wants them."""
    return params.init(params.decoder_specs(CFG), jax.random.key(0))


def layout(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions, segments and prefix of rows that are one segment."""
    segments = jnp.ones_like(tokens)
    return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape), segments, segments


@functools.partial(jax.jit, static_argnums=1)
def logits(weights: params.Params, cfg: ModelConfig = CFG, tokens: jax.Array = TOKENS) -> jax.Array:
    return decoder.unembed(weights, cfg, decoder.forward(weights, cfg, tokens, *layout(tokens)))


FORWARD = jax.jit(decoder.forward, static_argnums=1)


def loss(weights: params.Params, cfg: ModelConfig = CFG, tokens: jax.Array = TOKENS) -> jax.Array:
    hidden = decoder.forward(weights, cfg, tokens, *layout(tokens))[:, :-1]
    unembed, targets = decoder.unembed_weight(weights, cfg), tokens[:, 1:]
    aux = jnp.full(targets.shape, 1 / targets.size)
    return token_loss(hidden, unembed, targets, aux, lambda lp, w: -lp * w, softcap=cfg.final_softcap, dtype=cfg.dtype)[
        0
    ]


def variant(**changes: Any) -> ModelConfig:
    return dataclasses.replace(CFG, **changes)


def assert_trees_close(got: Any, want: Any, relative: float) -> None:
    """Each leaf within `relative` of the largest value of its counterpart."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=relative * float(jnp.abs(w).max()))


VALUE_AND_GRAD = jax.jit(jax.value_and_grad(loss), static_argnums=1)


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{'unroll': True}, {'remat': 'dots'}, {'unroll': True, 'remat': 'full'}], ids=str)
def test_how_layers_are_run_changes_neither_loss_nor_gradient(changes: dict[str, bool]) -> None:
    assert_trees_close(VALUE_AND_GRAD(first(), variant(**changes)), VALUE_AND_GRAD(first(), CFG), 1e-5)


@pytest.mark.parametrize('unroll', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('act_dtype', [pytest.param('float32', marks=pytest.mark.slow), 'bfloat16'])
def test_bfloat16_is_close_to_float32(unroll: bool, act_dtype: str) -> None:
    cfg = variant(dtype='bfloat16', act_dtype=act_dtype, unroll=unroll)
    hidden = FORWARD(first(), cfg, TOKENS, *layout(TOKENS))
    assert (hidden.dtype, decoder.unembed(first(), cfg, hidden).dtype) == (act_dtype, jnp.float32)
    (value, grads), (narrow, narrow_grads) = VALUE_AND_GRAD(first(), CFG), VALUE_AND_GRAD(first(), cfg)
    np.testing.assert_allclose(narrow, value, rtol=2e-3)
    assert_trees_close(narrow_grads, grads, 0.08)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(narrow_grads))


def test_a_small_step_against_the_gradient_lowers_the_loss_by_its_square() -> None:
    value, grads = VALUE_AND_GRAD(first(), CFG)
    square = sum(float((g * g).sum()) for g in jax.tree.leaves(grads))
    step = 1e-2 / square
    moved = jax.tree.map(lambda w, g: w - step * g, first(), grads)
    np.testing.assert_allclose(float(value - VALUE_AND_GRAD(moved, CFG)[0]), 1e-2, rtol=0.1)


def test_later_tokens_change_nothing_before_them() -> None:
    changed = TOKENS.at[:, 6:].set((TOKENS[:, 6:] + 1) % CFG.vocab)
    before, after = logits(first()), logits(first(), CFG, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert float(jnp.abs(before - after)[:, 6:].max()) > 1e-3


def test_padding_changes_nothing() -> None:
    padded = jnp.pad(TOKENS, ((0, 0), (0, 5)), constant_values=7)
    real = (jnp.arange(14)[None] < 9).astype(jnp.int32) * jnp.ones((2, 1), jnp.int32)
    positions = jnp.arange(14)[None] * real
    hidden = FORWARD(first(), CFG, padded, positions, real, real)
    assert bool(jnp.isfinite(hidden).all())
    np.testing.assert_allclose(decoder.unembed(first(), CFG, hidden)[:, :9], logits(first()), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('unroll', [False, True])
def test_completions_that_share_a_prompt_equal_rows_of_their_own(unroll: bool) -> None:
    cfg, prompt = variant(unroll=unroll), [5, 9, 2, 7, 1]
    completions = [[3, 8, 8, 4], [3, 6, 0], [11]]
    row = prompt + [token for completion in completions for token in completion]
    segments = [1] * len(prompt) + [n + 2 for n, c in enumerate(completions) for _ in c]
    positions = list(range(len(prompt))) + [len(prompt) + i for c in completions for i in range(len(c))]
    pad = [0, 0]
    tokens, segments, prefix, positions = (jnp.array([x + pad]) for x in (row, segments, [1] * len(row), positions))
    hidden = FORWARD(first(), cfg, tokens, positions, segments, prefix)
    shared = decoder.unembed(first(), cfg, hidden)[0]
    start = len(prompt)
    for completion in completions:
        alone = logits(first(), cfg, jnp.array([prompt + completion]))[0]
        np.testing.assert_allclose(shared[: len(prompt)], alone[: len(prompt)], atol=1e-5)
        np.testing.assert_allclose(shared[start : start + len(completion)], alone[len(prompt) :], atol=1e-5)
        start += len(completion)


MIXED = variant(
    layers=5, pattern=(LayerKind(3, 'local'), LayerKind()), qk_norm=True, post_norms=True, norm_offset=1.0,
    attn_softcap=2.0, final_softcap=3.0, scale_embed=True, activation='gelu_tanh',
)  # fmt: skip


def test_a_loop_over_layers_keeps_no_second_stack_of_weights() -> None:
    cfg = variant(unroll=False)
    adapters, frozen = lora.split(lora.attach(first(), rank=2, alpha=4.0, targets='all-linear', key=jax.random.key(2)))

    def hidden(adapters: params.Params) -> jax.Array:
        return decoder.forward(lora.join(adapters, frozen), cfg, TOKENS, *layout(TOKENS))

    own = jax.tree.leaves(frozen['layers'])
    places, sizes = {w.unsafe_buffer_pointer() for w in own}, {w.size for w in own if w.ndim > 2}
    kept = [x for x in jax.tree.leaves(jax.vjp(hidden, adapters)[1]) if x.size in sizes]
    assert kept and all(x.unsafe_buffer_pointer() in places for x in kept)


@pytest.mark.slow
def test_a_pattern_with_a_remainder_runs_the_same_however_layers_are_run() -> None:
    weights = params.init(params.decoder_specs(MIXED), jax.random.key(5))
    straight = VALUE_AND_GRAD(weights, dataclasses.replace(MIXED, unroll=True))
    assert_trees_close(VALUE_AND_GRAD(weights, dataclasses.replace(MIXED, remat='full')), straight, 1e-5)
    assert abs(float(loss(weights, dataclasses.replace(MIXED, pattern=(LayerKind(),))) - straight[0])) > 1e-5


def test_kinds_repeat_and_the_shortest_pattern_is_found() -> None:
    local, full = LayerKind(3, 'local'), LayerKind()
    assert MIXED.kinds == (local, full, local, full, local)
    assert shortest_pattern(MIXED.kinds) == MIXED.pattern
    assert shortest_pattern([full] * 4) == (full,)
    assert shortest_pattern([full, full, local]) == (full, full, local)


@pytest.mark.slow
def test_every_parameter_counts() -> None:
    """Biases, norms and an unembedding of its own included: each leaf has a gradient that is not zero."""
    cfg = variant(qkv_bias=True, qk_norm=True, post_norms=True, unit_head=True, tie_embed=False)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(2))
    for path, grad in jax.tree.leaves_with_path(VALUE_AND_GRAD(weights, cfg)[1]):
        assert float(jnp.abs(grad).max()) > 1e-9, jax.tree_util.keystr(path)


def test_rms_norm_against_numpy() -> None:
    x, weight = np.random.default_rng(0).normal(size=(2, 3, 8)), np.linspace(0.5, 2.0, 8)
    got = decoder.rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32), CFG)
    np.testing.assert_allclose(got, x / np.sqrt((x**2).mean(-1, keepdims=True) + CFG.norm_eps) * weight, rtol=1e-5)


@pytest.mark.parametrize('unroll', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(unroll: bool) -> None:
    cfg = variant(unroll=unroll)
    adapted = lora.attach(first(), rank=2, alpha=4.0, targets='all-linear', key=jax.random.key(3))
    np.testing.assert_allclose(logits(adapted, cfg), logits(first(), cfg), atol=1e-6)
    trainable, frozen = lora.split(adapted)
    grads = jax.jit(jax.grad(lambda t: loss(lora.join(t, frozen), cfg)))(trainable)
    assert all(float(jnp.abs(adapter.b).max()) > 0 for adapter in jax.tree.leaves(grads, is_leaf=is_adapter))
    assert all(float(jnp.abs(adapter.a).max()) == 0 for adapter in jax.tree.leaves(grads, is_leaf=is_adapter))


def is_adapter(x: Any) -> bool:
    return isinstance(x, lora.Adapter)


@pytest.mark.parametrize('unroll', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'sizes', [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 4, 2), (8, 1, 1)))], ids=str
)
def test_a_sharded_step_equals_an_unsharded_one(sizes: tuple[int, int, int], unroll: bool) -> None:
    cfg, mesh = variant(unroll=unroll), make_mesh(*sizes)
    tokens = jax.random.randint(jax.random.key(4), (8, 9), 0, cfg.vocab)
    spread = jax.device_put(first(), param_shardings(params.decoder_specs(cfg), mesh))
    rows = jax.device_put(tokens, sharding(mesh, ('batch', None)))
    assert_trees_close(VALUE_AND_GRAD(spread, cfg, rows), VALUE_AND_GRAD(first(), cfg, tokens), 1e-4)


@pytest.mark.slow
def test_a_fused_layer_computes_the_same():
    cfg = dataclasses.replace(CFG, qkv_bias=True, qk_norm=True)
    specs = params.decoder_specs(cfg)
    layer = params.unstack(jax.tree.map(lambda x: x + 0.1, params.init(specs, jax.random.key(3))['layers']))[0]
    x = jax.random.normal(jax.random.key(4), (2, 5, cfg.width))
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    outs = [
        decoder.block(each, cfg, LayerKind(), x, positions, lambda q, k, v: (q, (k, v)))
        for each in (layer, decoder.fuse(layer, cfg))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *outs)


@pytest.mark.slow
def test_layers_that_are_left_over_of_a_pattern_add_their_gradients_too():
    pattern = (LayerKind(window=4), LayerKind())
    cfg = dataclasses.replace(tiny(vocab=32), layers=3, pattern=pattern)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    row = jnp.arange(8)[None]

    def loss(weights, cfg):
        return jnp.sum(jnp.square(decoder.forward(weights, cfg, row, row, jnp.ones_like(row), jnp.ones_like(row)))), 0

    before = jax.tree.map(jnp.ones_like, weights)
    scanned, straight = (
        jax.jit(lambda weights, cfg=cfg: accumulate(lambda w: loss(w, cfg), weights, before)[1])(weights)
        for cfg in (cfg, dataclasses.replace(cfg, unroll=True))
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), scanned, straight)
    assert float(jnp.abs(scanned['layers']['mlp']['up'][2] - 1).max()) > 1e-3
