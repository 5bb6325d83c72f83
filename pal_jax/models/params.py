"""Descriptions of parameters. Initial values, abstract tree and shardings all derive from the same `ParamSpec`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pal_jax.models.config import ModelConfig

Params = dict[str, Any]


class ParamSpec(NamedTuple):
    """Shape, logical axes (see `run.sharding.RULES`) and initial value of one parameter."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[..., Array]


def is_spec(x: Any) -> bool:
    """True for a `ParamSpec`, which is a leaf of a tree of specs."""
    return isinstance(x, ParamSpec)


def decoder_specs(cfg: ModelConfig) -> Params:
    """The specs of every parameter of a decoder. Layers are stacked on the first axis."""
    L, D, H, G, K, F = cfg.layers, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp
    dense, zeros = jax.nn.initializers.normal(0.02), jax.nn.initializers.zeros
    # A norm starts as the identity.
    identity = jax.nn.initializers.constant(1.0 - cfg.norm_offset)
    attn = {
        'q': ParamSpec((L, D, H, K), ('layers', 'width', 'heads', None), dense),
        'k': ParamSpec((L, D, G, K), ('layers', 'width', 'kv_heads', None), dense),
        'v': ParamSpec((L, D, G, K), ('layers', 'width', 'kv_heads', None), dense),
        'o': ParamSpec((L, H, K, D), ('layers', 'heads', None, 'width'), dense),
    }
    if cfg.qkv_bias:
        attn['q_bias'] = ParamSpec((L, H, K), ('layers', 'heads', None), zeros)
        attn['k_bias'] = ParamSpec((L, G, K), ('layers', 'kv_heads', None), zeros)
        attn['v_bias'] = ParamSpec((L, G, K), ('layers', 'kv_heads', None), zeros)
    if cfg.qk_norm:
        attn |= {name: ParamSpec((L, K), ('layers', None), identity) for name in ('q_norm', 'k_norm')}
    mlp = {
        'gate': ParamSpec((L, D, F), ('layers', 'width', 'mlp'), dense),
        'up': ParamSpec((L, D, F), ('layers', 'width', 'mlp'), dense),
        'down': ParamSpec((L, F, D), ('layers', 'mlp', 'width'), dense),
    }
    norms = ('attn', 'mlp', 'attn_out', 'mlp_out') if cfg.post_norms else ('attn', 'mlp')
    norm = {name: ParamSpec((L, D), ('layers', None), identity) for name in norms}
    specs = {
        'embed': ParamSpec((cfg.vocab, D), ('vocab', 'width'), dense),
        'layers': {'attn': attn, 'mlp': mlp, 'norm': norm},
        'final_norm': ParamSpec((D,), (None,), identity),
    }
    if not cfg.tie_embed:
        specs['unembed'] = ParamSpec((cfg.vocab, D), ('vocab', 'width'), dense)
    return specs


def init(specs: Params, key: Array, dtype: str = 'float32') -> Params:
    """The initial values for a tree of specs. The same key gives the same values on every mesh."""
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([spec.init(k, spec.shape, dtype) for spec, k in zip(leaves, keys, strict=True)])


def abstract(specs: Params, dtype: str = 'float32') -> Params:
    """The shapes and dtypes of a tree of specs, without values."""
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype), specs, is_leaf=is_spec)


def unstack(tree: Params) -> list[Params]:
    """The `L` trees of layers in a tree with leaves `[L, ...]`."""
    layers = jax.tree.leaves(tree)[0].shape[0]
    # The gradient of a split is one concatenation, where that of indexing would be `L` padded sums.
    return [jax.tree.map(lambda x: x.reshape(x.shape[1:]), part) for part in split(tree, (1,) * layers)]


def split(tree: Params, sizes: Sequence[int]) -> list[Params]:
    """Trees with `sizes` layers each, cut from leaves `[L, ...]`."""
    leaves, treedef = jax.tree.flatten(tree)
    # jax cannot add the gradients of slices into references, so `lax.split` cuts the leaves.
    columns = [lax.split(leaf, sizes) for leaf in leaves]
    return [treedef.unflatten(part) for part in zip(*columns, strict=True)]


def cast(params: Params, dtype: Any) -> Params:
    """The tree with every floating leaf in another precision."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
