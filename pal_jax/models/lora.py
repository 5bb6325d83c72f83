"""Low-rank adapters (LoRA, Hu et al. 2021) on the stacked weights of a decoder, as a change of leaf type.

An adapted tree has a `LoraWeight` in place of an array, and forward code is the same for both. The functions here act
on arrays and on their `ParamSpec`s, so shapes and shardings of an adapted model follow from its specs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn import initializers
from jaxtyping import Array

from pal_jax.models import params as plain
from pal_jax.models.linear import LoraWeight
from pal_jax.models.params import Params, ParamSpec

# The number of input axes of each weight after `L`.
IN_DIMS = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}
# The output matrix `[V, D]`. Its adapter has no axis of layers, and no target but its name puts one on it.
HEAD = 'unembed'


class Adapter(struct.PyTreeNode):
    """The trainable part of a `LoraWeight`, as arrays or as their specs."""

    a: Any  # [L, prod(in), rank], of the output matrix [D, rank]
    b: Any  # [L, rank, prod(out)], of the output matrix [rank, V]
    scale: float = struct.field(pytree_node=False)


def attach(params: Params, *, rank: int, alpha: float, targets: Sequence[str] | str, key: Array) -> Params:
    """The tree with fresh adapters on the weights that `targets` names: 'all-linear' or regular expressions.

    An expression matches the end of a path, from a name on: `attn/(q|v)` matches `layers/attn/q` and `layers/attn/v`,
    `down` matches `layers/mlp/down`, and `mlp/.*` matches all linear weights of the network. The output matrix of a
    model that does not tie it to its embeddings is adapted where `unembed` is among the targets, and by no other one.

    The scale is `alpha / rank`. A fresh adapter changes nothing.

    Raises:
      ValueError: a target names no linear weight, or the rank is below 1.
    """
    specs = jax.tree.map(lambda w: ParamSpec(w.shape, (None,) * w.ndim, initializers.zeros), params)
    # `a` is normal with variance 1 / inputs, and `b` is 0.
    # Adapters are float32 for any precision of the frozen weight.
    return join(plain.init(_adapter_specs(specs, rank, alpha, targets), key), params)


def lora_specs(specs: Params, *, rank: int, alpha: float, targets: Sequence[str] | str) -> Params:
    """The specs of the tree that `attach` makes.

    `a` is sharded as the first input axis of the weight, and `b` as its first output axis. The rank is not sharded.
    """
    return join(_adapter_specs(specs, rank, alpha, targets), specs)


def split(params: Params) -> tuple[Params, Params]:
    """The pair `(trainable, frozen)`: the adapters, None for other weights, and the plain tree below them."""
    trainable = _map(lambda x: Adapter(x.a, x.b, x.scale) if isinstance(x, LoraWeight) else None, params)
    return trainable, base(params)


def join(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    return _map(
        lambda x, adapter: x if adapter is None else LoraWeight(x, adapter.a, adapter.b, adapter.scale),
        frozen,
        trainable,
    )


def is_adapter(x: Any) -> bool:
    """True where a tree of adapters has a leaf."""
    return isinstance(x, Adapter)


def by_row(adapters: Sequence[Params], rank: int) -> Params:
    """The adapters of `R` rows as one tree, whose arrays have an axis `R` before their last two.

    Ranks are padded with zeros to `rank`, and scales are those of this rank.
    """

    def stacked(*parts: Adapter) -> Adapter:
        scale = parts[0].scale * parts[0].a.shape[-1] / rank
        a, b = zip(*(_padded(part, rank, scale) for part in parts), strict=True)
        return Adapter(jnp.stack(a, axis=-3), jnp.stack(b, axis=-3), scale)

    return jax.tree.map(stacked, *adapters, is_leaf=is_adapter)


def _padded(x: Adapter, rank: int, scale: float) -> tuple[Array, Array]:
    """The factors with `rank` columns and rows, and the quotient of both scales folded into `b`."""
    missing, axes = rank - x.a.shape[-1], [(0, 0)] * (x.a.ndim - 2)
    b = x.b if x.scale == scale else x.b * (x.scale / scale)
    return jnp.pad(x.a, (*axes, (0, 0), (0, missing))), jnp.pad(b, (*axes, (0, missing), (0, 0)))


def gradient_of_row(grads: Params, row: int | Array, like: Params) -> Params:
    """The gradient by the adapters `like` of one row, from the gradients by those of `by_row`."""

    def taken(x: Adapter, stacked: Adapter) -> Adapter:
        a, b = (jnp.take(y, row, axis=y.ndim - 3) for y in (stacked.a, stacked.b))
        rank, quotient = x.a.shape[-1], x.scale / stacked.scale
        b = b[..., :rank, :]
        return Adapter(a[..., :rank], b if quotient == 1 else b * quotient, x.scale)

    return jax.tree.map(taken, like, grads, is_leaf=is_adapter)


def with_dropout(params: Params, rate: float, key: Array) -> Params:
    """The adapted tree with a random key for every layer of every adapter, so that adapters drop inputs at `rate`."""
    adapted = [w for w in jax.tree.leaves(params, is_leaf=_is_lora) if _is_lora(w)]
    keys = iter(jax.random.split(key, len(adapted)))

    def dropping(w: Any) -> Any:
        if not _is_lora(w):
            return w
        if _is_head(w):
            return w.replace(key=jax.random.key_data(next(keys)), dropout=rate)
        # Every layer gets a key, so that a scan over layers hands each its own.
        return w.replace(key=jax.random.key_data(jax.random.split(next(keys), w.a.shape[0])), dropout=rate)

    return _map(dropping, params)


def base(params: Params) -> Params:
    """The plain tree without its adapters. It is the reference policy of an adapted actor, and needs no memory."""
    return _map(lambda x: x.base if isinstance(x, LoraWeight) else x, params)


def merge(params: Params) -> Params:
    """The plain tree with the adapters merged into it, in the precision of the frozen weights."""

    def merged(x: Any) -> Any:
        if not isinstance(x, LoraWeight):
            return x
        product = jnp.matmul(x.a, x.b, precision='highest')
        # The output matrix has its outputs first.
        correction = x.scale * (product.T if _is_head(x) else product.reshape(x.base.shape))
        return (x.base.astype(correction.dtype) + correction).astype(x.base.dtype)

    return _map(merged, params)


def _map(fn: Any, tree: Params, *rest: Params) -> Params:
    return jax.tree.map(fn, tree, *rest, is_leaf=lambda x: isinstance(x, (LoraWeight, ParamSpec)))


def _adapter_specs(specs: Params, rank: int, alpha: float, targets: Sequence[str] | str) -> Params:
    if rank < 1:
        raise ValueError(f'lora.rank={rank} must be at least 1, or 0 to train without adapters')
    patterns = _patterns(targets)
    linear = [_path(path) for path, _ in jax.tree.leaves_with_path(specs, is_leaf=plain.is_spec) if _in_dims(path)]
    with_head = HEAD in patterns and HEAD in specs
    linear += [HEAD] if with_head else []
    if absent := [target for target, pattern in patterns.items() if not any(map(pattern.search, linear))]:
        linear_names = ', '.join(linear) or 'none: adapt a decoder, and only once'
        raise ValueError(
            f"LoRA targets {absent} match no linear weight; use 'all-linear' or match some of {linear_names}"
        )

    def adapter(path: Any, spec: ParamSpec) -> Adapter | None:
        if with_head and _path(path) == HEAD:
            return _head_spec(spec, rank, alpha)
        is_target = _in_dims(path) and any(pattern.search(_path(path)) for pattern in patterns.values())
        return _adapter_spec(spec, rank, alpha, _in_dims(path)) if is_target else None

    return jax.tree.map_with_path(adapter, specs, is_leaf=plain.is_spec)


def _adapter_spec(spec: ParamSpec, rank: int, alpha: float, in_dims: int) -> Adapter:
    layers, inputs, outputs = spec.shape[0], spec.shape[1 : 1 + in_dims], spec.shape[1 + in_dims :]
    in_axes, out_axes = spec.axes[1 : 1 + in_dims], spec.axes[1 + in_dims :]
    normal = initializers.normal(1.0 / math.sqrt(math.prod(inputs)))
    # Several axes flattened into one are sharded as the first of them, in the same blocks.
    a = ParamSpec((layers, math.prod(inputs), rank), (spec.axes[0], in_axes[0], None), normal)
    b = ParamSpec((layers, rank, math.prod(outputs)), (spec.axes[0], None, out_axes[0]), initializers.zeros)
    return Adapter(a, b, alpha / rank)


def _head_spec(spec: ParamSpec, rank: int, alpha: float) -> Adapter:
    (outputs, inputs), (out_axis, in_axis) = spec.shape, spec.axes
    a = ParamSpec((inputs, rank), (in_axis, None), initializers.normal(1.0 / math.sqrt(inputs)))
    b = ParamSpec((rank, outputs), (None, out_axis), initializers.zeros)
    return Adapter(a, b, alpha / rank)


def _patterns(targets: Sequence[str] | str) -> dict[str, re.Pattern[str]]:
    listed = ['.*'] if targets == 'all-linear' else [targets] if isinstance(targets, str) else targets
    try:
        return {target: re.compile(f'(?:^|/)(?:{target})$') for target in listed}
    except re.error as error:
        raise ValueError(f'LoRA targets {list(listed)} are no regular expressions: {error.msg}') from None


def _path(path: Any) -> str:
    return '/'.join(_name(path[:i]) for i in range(1, len(path) + 1))


def _in_dims(path: Any) -> int:
    """The number of input axes of a linear weight after `L`; 0 for any other leaf."""
    return IN_DIMS.get(_name(path), 0)


def _name(path: Any) -> str:
    return str(getattr(path[-1], 'key', ''))


def _is_lora(x: Any) -> bool:
    return isinstance(x, LoraWeight)


def _is_head(x: LoraWeight) -> bool:
    """True for the output matrix, the only weight of a whole tree without an axis of layers."""
    return x.a.ndim == 2
