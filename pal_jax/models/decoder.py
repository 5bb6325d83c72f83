"""The decoder of every family: pre-norm blocks of grouped attention and a gated network, set by `ModelConfig`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pal_jax.models import soups
from pal_jax.models.attention import Places, attention, rope, summed
from pal_jax.models.config import LayerKind, ModelConfig
from pal_jax.models.linear import (
    LoraWeight,
    SoupWeight,
    by_kernel,
    by_output,
    dropped,
    linear,
    linear_by_row,
    mixed_correction,
)
from pal_jax.models.params import Params, split, unstack
from pal_jax.objectives.rounding import by_tile, rounded
from pal_jax.run.sharding import constrain

# The axes of activations, whose rows are spread over the devices.
ROWS = ('batch', None, None)

Extra = TypeVar('Extra')
Attend = Callable[[Array, Array, Array], tuple[Array, Extra]]


ACTIVATIONS = {'silu': jax.nn.silu, 'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True)}


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, 'R T'],
    positions: Int[Array, 'R T'],
    segments: Int[Array, 'R T'],
    prefix: Int[Array, 'R T'],
) -> Float[Array, 'R T D']:
    """The hidden states after the final norm, in `cfg.act_dtype`, of rows as in `types.TokenBatch`."""
    places = Places(segments, prefix, positions)

    def body(x: Array, layer: Params, kind: LayerKind) -> Array:
        def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return attention(q, k, v, places, places, cfg, kind, causal=True), None

        return constrain(block(layer, cfg, kind, x, positions, attend)[0], ROWS)

    if cfg.remat != 'none':
        body = jax.checkpoint(body, policy=saved(cfg.remat), static_argnums=2)
    x = _run_layers(body, constrain(embed(params, cfg, tokens), ROWS), params['layers'], cfg)
    return final_norm(params, cfg, x)


def saved(remat: str) -> Callable[..., bool]:
    """The checkpoint policy that `remat` names, which says what a layer keeps for the backward pass.

    'none' computes nothing again, 'full' everything, and 'dots' everything except the products with weights. Another
    name, such as `dots_saveable`, is that of a policy in `jax.checkpoint_policies`.

    Raises:
      ValueError: there is no such policy.
    """
    short = {'none': 'everything_saveable', 'full': 'nothing_saveable', 'dots': 'dots_with_no_batch_dims_saveable'}
    name = short.get(str(remat), str(remat))
    if not name.endswith('saveable') or not hasattr(jax.checkpoint_policies, name):
        raise ValueError(f'policy.remat={remat!r}; use none, full, dots, or such as dots_saveable')
    return getattr(jax.checkpoint_policies, name)


def _run_layers(body: Callable[[Array, Params, LayerKind], Array], x: Array, layers: Params, cfg: ModelConfig) -> Array:
    """Run all layers as straight code, or as a scan over whole repetitions of the pattern with straight code after."""

    def straight(x: Array, stack: Params, kinds: Sequence[LayerKind]) -> Array:
        for layer, kind in zip(unstack(stack), kinds, strict=True):
            x = body(x, layer, kind)
        return x

    if cfg.unroll:
        return straight(x, layers, cfg.kinds)
    period = len(cfg.pattern)
    # Weights go in as they are: the scan would keep a reshaped copy for the backward pass.
    if period == 1:
        return lax.scan(lambda x, layer: (body(x, layer, cfg.pattern[0]), None), x, layers)[0]
    # The last repetition of a pattern may be cut, and runs as straight code.
    repeated = cfg.layers // period * period
    stack, *remainder = [layers] if repeated == cfg.layers else split(layers, (repeated, cfg.layers - repeated))
    repetitions = jax.tree.map(lambda w: w.reshape(repeated // period, period, *w.shape[1:]), stack)
    x, _ = lax.scan(lambda x, stack: (straight(x, stack, cfg.pattern), None), x, repetitions)
    return straight(x, remainder[0], cfg.kinds[repeated:]) if remainder else x


def block(
    layer: Params,
    cfg: ModelConfig,
    kind: LayerKind,
    x: Float[Array, 'R T D'],
    positions: Int[Array, 'R T'],
    attend: Attend[Extra],
) -> tuple[Float[Array, 'R T D'], Extra]:
    """One layer's output, and the second result of `attend`.

    `attend(q, k, v)` gets rotated `q [R,T,H,K]` and `k, v [R,T,G,K]`. It returns the attention's output `[R,T,H,K]` and
    any further value, such as a cache.
    """
    q, k, v = by_token(functools.partial(_before, kind), cfg, layer, x, positions)
    out, extra = attend(q, k, v)
    return by_token(_after, cfg, layer, x, out), extra


def by_token(function: Callable[..., Any], cfg: ModelConfig, weights: Any, *rows: Array) -> Any:
    """`function(cfg, weights, *rows)` of arrays `[R, T, ...]`, whose tokens do not read each other."""
    if not cfg.tile:
        return function(cfg, weights, *rows)
    # A tile has one size, so nothing in it depends on how a sum of another size is added up.
    plain, mixture = dataclasses.replace(cfg, exact=False), soups.mixture_of(weights)
    if mixture is not None:
        rows = (*rows, jnp.broadcast_to(mixture[:, None], (*rows[0].shape[:2], mixture.shape[1])))

    def of_tile(weights: Any, rows: tuple[Array, ...]) -> Any:
        if mixture is None:
            return function(plain, weights, *rows)
        return function(plain, soups.mixed(weights, rows[-1][:, 0]), *rows[:-1])

    return by_tile(of_tile, cfg.tile, cfg.dtype, weights, rows)


def _before(kind: LayerKind, cfg: ModelConfig, layer: Params, x: Array, positions: Array) -> tuple[Array, Array, Array]:
    """The rotated queries and keys, and the values, that a layer's attention reads."""
    with jax.named_scope('attention'):
        q, k, v = _project(layer['attn'], cfg, rms_norm(x, layer['norm']['attn'], cfg))
        return rope(q, positions, cfg, kind), rope(k, positions, cfg, kind), v


def _after(cfg: ModelConfig, layer: Params, x: Array, out: Array) -> Array:
    """A layer's output, of its input and the output of its attention."""
    norm = layer['norm']
    with jax.named_scope('attention'):
        x = x + _post_norm(linear(out, layer['attn']['o'], cfg, in_dims=2), norm, 'attn_out', cfg)
    with jax.named_scope('mlp'):
        out = _mlp(layer['mlp'], cfg, rms_norm(x, norm['mlp'], cfg))
        return x + _post_norm(out, norm, 'mlp_out', cfg)


def final_norm(params: Params, cfg: ModelConfig, x: Float[Array, 'R T D']) -> Float[Array, 'R T D']:
    """The states from which logits are made."""
    return by_token(lambda cfg, weight, x: rms_norm(x, weight, cfg), cfg, params['final_norm'], x)


def _post_norm(x: Array, norm: Params, name: str, cfg: ModelConfig) -> Array:
    return rms_norm(x, norm[name], cfg) if cfg.post_norms else x


def fuse(layer: Params, cfg: ModelConfig) -> Params:
    """A copy of the layer with fewer and larger products.

    `qkv` [D, G, H/G + 2, K] has the queries, key and value of a group side by side, and `gate_up` [D, 2, F] has both
    halves of the gated network. It is not for a mesh, where the weights would have to be gathered.
    """

    def by_group(*heads: Array) -> Array:
        grouped = [x.reshape(*x.shape[:-2], cfg.kv_heads, -1, cfg.head_dim) for x in heads]
        return jnp.concatenate(grouped, axis=-2)

    attn, mlp = dict(layer['attn']), dict(layer['mlp'])
    for kind in ('', '_bias') if cfg.qkv_bias else ('',):
        attn[f'qkv{kind}'] = by_group(*(attn.pop(f'{name}{kind}') for name in 'qkv'))
    mlp['gate_up'] = jnp.stack([mlp.pop('gate'), mlp.pop('up')], axis=1)
    return {**layer, 'attn': attn, 'mlp': mlp}


def _project(attn: Params, cfg: ModelConfig, x: Array) -> tuple[Array, Array, Array]:
    """The queries [R, T, H, K], keys and values [R, T, G, K] of normalised states."""
    if 'qkv' in attn:
        grouped = _with_bias(attn, 'qkv', linear(x, attn['qkv'], cfg))
        q = grouped[..., :-2, :].reshape(*x.shape[:2], cfg.heads, cfg.head_dim)
        k, v = grouped[..., -2, :], grouped[..., -1, :]
    else:
        q, k, v = (_with_bias(attn, name, linear(x, attn[name], cfg)) for name in 'qkv')
    if cfg.qk_norm:
        q, k = rms_norm(q, attn['q_norm'], cfg), rms_norm(k, attn['k_norm'], cfg)
    return q, k, v


def _with_bias(attn: Params, name: str, x: Array) -> Array:
    bias = attn.get(f'{name}_bias')
    return x if bias is None else x + bias.astype(x.dtype)[None, None]


def _mlp(mlp: Params, cfg: ModelConfig, x: Array) -> Array:
    if 'gate_up' in mlp:
        halves = linear(x, mlp['gate_up'], cfg)
        gate, up = halves[..., 0, :], halves[..., 1, :]
    else:
        gate, up = linear(x, mlp['gate'], cfg), linear(x, mlp['up'], cfg)
    return linear(_gated(gate, up, cfg.activation), mlp['down'], cfg)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _gated(gate: Array, up: Array, activation: str) -> Array:
    """The gated product."""
    # The inputs alone are kept for the backward pass, since the product is cheap to compute again.
    return ACTIVATIONS[activation](gate) * up


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x: Float[Array, '... D'], weight: Float[Array, ' D'], cfg: ModelConfig) -> Float[Array, '... D']:
    """The root-mean-square norm over the last axis (Zhang & Sennrich 2019), computed in float32.

    It is `x / rms(x) * (weight + cfg.norm_offset)`.
    """
    wide = x.astype(jnp.float32)
    # Squares of half precision would overflow or lose digits, so the mean is taken in float32.
    squares = jnp.square(wide)
    # How a CPU's reduction adds up depends on the number of rows.
    total = summed(rounded(squares)) if cfg.exact else squares.sum(-1, keepdims=True)
    inverse = lax.rsqrt(total / x.shape[-1] + cfg.norm_eps)
    scale = jnp.expand_dims(weight.astype(jnp.float32) + cfg.norm_offset, tuple(range(x.ndim - 1)))
    return (wide * inverse * scale).astype(x.dtype)


def embed(params: Params, cfg: ModelConfig, tokens: Int[Array, 'R T']) -> Float[Array, 'R T D']:
    """The embeddings of tokens in `cfg.act_dtype`, scaled if `cfg.scale_embed`."""
    with jax.named_scope('embed'):
        x = constrain(params['embed'], ('vocab', None))[tokens].astype(cfg.act_dtype)
        return x * math.sqrt(cfg.width) if cfg.scale_embed else x


def unembed_weight(params: Params, cfg: ModelConfig) -> Float[Array, 'V D']:
    """The output matrix, which is the embedding where the two are tied. Its rows have length 1 if `cfg.unit_head`."""
    weight = params.get('unembed', params['embed'])
    if not cfg.unit_head:
        return weight
    wide = weight.astype(jnp.float32)
    return (wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)).astype(weight.dtype)


def output_layer(
    params: Params, cfg: ModelConfig, hidden: Float[Array, '... D']
) -> tuple[Float[Array, '... I'], Float[Array, 'V I']]:
    """The inputs and the weight of the product that gives the logits.

    They are the hidden states and the output matrix. Where the matrix has an adapter of rank `r`, `I` is `D + r`: the
    inputs end in `scale * hidden @ a`, and the weight ends in `b` transposed. With an adapter for each of `R` rows, `I`
    is `D + R * r`: a row has its product in the columns of its own adapter, and zeros in the others.
    """
    weight = params.get('unembed')
    if not isinstance(weight, LoraWeight):
        return hidden, unembed_weight(params, cfg)
    inputs = hidden if weight.key is None else dropped(hidden, weight.key, weight.dropout)
    low, b = weight.scale * linear_by_row(inputs, weight.a, cfg), weight.b
    if b.ndim == 3:
        blocks = jnp.eye(len(b), dtype=low.dtype)[:, None, :, None]
        low, b = (blocks * low[:, :, None]).reshape(*low.shape[:2], -1), b.reshape(-1, b.shape[-1])
    # One product has the logits of both, so the loss over chunks of them knows no adapters.
    base = unembed_weight({'embed': weight.base}, cfg)
    return jnp.concatenate([hidden, low.astype(hidden.dtype)], -1), jnp.concatenate([base, b.T], -1)


def unembed(params: Params, cfg: ModelConfig, hidden: Float[Array, 'R T D']) -> Float[Array, 'R T V']:
    """The logits in float32. Losses use `objectives.logprobs`, which never holds all of them."""
    with jax.named_scope('unembed'):
        weight = params.get('unembed', params['embed'])
        head = soups.on_base(lambda plain: unembed_weight({'embed': plain}, cfg), weight)
        return by_token(logits_of, cfg, head, hidden)


def logits_of(cfg: ModelConfig, weight: Float[Array, 'V D'] | SoupWeight, hidden: Array) -> Array:
    """The logits of hidden states by an output matrix."""
    logits = by_output(hidden, soups.plain(weight), cfg.dtype, 'float32', by_kernel(cfg))
    if isinstance(weight, SoupWeight) and weight.mixture is not None:
        logits += mixed_correction(hidden, weight, cfg).astype(logits.dtype)
    return logits if cfg.final_softcap is None else cfg.final_softcap * jnp.tanh(logits / cfg.final_softcap)
