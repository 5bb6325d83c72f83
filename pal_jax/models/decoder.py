"""One decoder for every family: pre-norm blocks of grouped rotary attention and a gated SiLU network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.attention import attention, rope
from pal_jax.models.config import ModelConfig
from pal_jax.models.linear import linear
from pal_jax.models.params import Params, unstack

Extra = TypeVar('Extra')
Attend = Callable[[Array, Array, Array], tuple[Array, Extra]]


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, 'R T'],
    positions: Int[Array, 'R T'],
    visible: Bool[Array, 'R T T'],
) -> Float[Array, 'R T D']:
    """Hidden states after the final norm, in `cfg.act_dtype`. `visible` (see `attention.visibility`) is causal."""

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        return attention(q, k, v, visible, cfg, causal=True), None

    def body(x: Array, layer: Params) -> tuple[Array, None]:
        return block(layer, cfg, x, positions, attend)

    body = jax.checkpoint(body) if cfg.remat else body
    x = embed(params, cfg, tokens)
    if cfg.unroll:
        for layer in unstack(params['layers']):
            x, _ = body(x, layer)
    else:
        x, _ = lax.scan(body, x, params['layers'])
    return rms_norm(x, params['final_norm'], cfg)


def block(
    layer: Params, cfg: ModelConfig, x: Float[Array, 'R T D'], positions: Int[Array, 'R T'], attend: Attend[Extra]
) -> tuple[Float[Array, 'R T D'], Extra]:
    """One layer. `attend(q, k, v)` gets rotated `q [R,T,H,K]`, `k, v [R,T,G,K]`, and returns what they attended to
    and anything it wants kept (a cache, or nothing), which `block` hands on."""
    attn, norm = layer['attn'], layer['norm']
    with jax.named_scope('attention'):
        q, k, v = _project(attn, cfg, rms_norm(x, norm['attn'], cfg))
        out, extra = attend(rope(q, positions, cfg), rope(k, positions, cfg), v)
        x = x + linear(out, attn['o'], cfg, in_dims=2)
    with jax.named_scope('mlp'):
        return x + _mlp(layer['mlp'], cfg, rms_norm(x, norm['mlp'], cfg)), extra


def _project(attn: Params, cfg: ModelConfig, x: Array) -> tuple[Array, ...]:
    heads = [linear(x, attn[name], cfg) for name in 'qkv']
    if not cfg.qkv_bias:
        return tuple(heads)
    return tuple(h + attn[f'{name}_bias'].astype(h.dtype)[None, None] for name, h in zip('qkv', heads, strict=True))


def _mlp(mlp: Params, cfg: ModelConfig, x: Array) -> Array:
    return linear(jax.nn.silu(linear(x, mlp['gate'], cfg)) * linear(x, mlp['up'], cfg), mlp['down'], cfg)


def rms_norm(x: Float[Array, '... D'], weight: Float[Array, ' D'], cfg: ModelConfig) -> Float[Array, '... D']:
    """`x / rms(x) * weight` over the last axis, in float32 inside (Zhang & Sennrich 2019)."""
    wide = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + cfg.norm_eps)
    scale = jnp.expand_dims(weight.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * inverse * scale).astype(x.dtype)


def embed(params: Params, cfg: ModelConfig, tokens: Int[Array, 'R T']) -> Float[Array, 'R T D']:
    """Token embeddings in `cfg.act_dtype`."""
    with jax.named_scope('embed'):
        return params['embed'][tokens].astype(cfg.act_dtype)


def unembed_weight(params: Params) -> Float[Array, 'V D']:
    """The output matrix: its own, or the embedding where they are tied."""
    return params.get('unembed', params['embed'])


def unembed(params: Params, cfg: ModelConfig, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
    """Logits in float32. For losses use `objectives.logprobs`, which never holds all of them."""
    with jax.named_scope('unembed'):
        weight = unembed_weight(params).astype(cfg.dtype)
        return jnp.einsum('...d,vd->...v', hidden.astype(cfg.dtype), weight, preferred_element_type=jnp.float32)
