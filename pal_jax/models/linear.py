"""Products of activations and weights. This module decides the precision of every matrix product of the decoder."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int8, UInt32

from pal_jax.models.config import ModelConfig
from pal_jax.objectives.rounding import rounded

# The number of rows above which both orders of a product are equally fast.
FEW = 64
# The lowest rank of an exact product with an adapter.
RANK = 32


class LoraWeight(struct.PyTreeNode):
    """A frozen weight and its low-rank correction (Hu et al. 2021): `base + scale * a @ b`.

    With a `key`, the inputs of the correction are dropped with probability `dropout`. A stack of layers has a leading
    axis `L` on all arrays. With a further axis `R` on `a` and `b`, every row of activations has a correction of its own
    (see `lora.by_row`).
    """

    base: Float[Array, '...']  # [*in, *out]
    a: Float[Array, '...']  # [prod(in), rank]
    b: Float[Array, '...']  # [rank, prod(out)]
    scale: float = struct.field(pytree_node=False)
    key: UInt32[Array, '... 2'] | None = None  # the data of a random key
    dropout: float = struct.field(pytree_node=False, default=0.0)


class SoupWeight(struct.PyTreeNode):
    """A weight with `K` adapters of rank `r`, which each row of activations mixes with weights of its own.

    For `kind` 'factors' it is `base + s (sum_k m_k A_k) (sum_k m_k B_k)`, as P-Soups merges. For 'delta' it is `base +
    sum_k m_k s_k A_k B_k`. Without a mixture it is the base. A stack of layers has a leading axis `L` on `base`, `a`
    and `b`.
    """

    base: Any  # [*in, *out], or its layout for decoding
    a: Float[Array, '...']  # [prod(in), K * r]
    b: Float[Array, '...']  # [K * r, prod(out)]
    scales: tuple[float, ...] = struct.field(pytree_node=False)  # K
    kind: Literal['factors', 'delta'] = struct.field(pytree_node=False)
    mixture: Float[Array, 'B K'] | None = None


class Int8Weight(struct.PyTreeNode):
    """A weight in eight bits, `values * scale`, with a scale for each output (Dettmers et al. 2022, section 2)."""

    values: Int8[Array, '...']  # [*in, *out]
    scale: Float[Array, '...']  # [*out]


class OutputMajor(struct.PyTreeNode):
    """A weight with its output axes first, which is faster on a CPU for few rows, see `by_output`."""

    values: Float[Array, '...']  # [*out, *in]


def output_major(w: Float[Array, '...'], in_dims: int = 1) -> OutputMajor:
    """The weight `w [*in, *out]` with its output axes first."""
    return OutputMajor(jnp.moveaxis(w, range(in_dims), range(-in_dims, 0)))


def quantize(w: Float[Array, '...'], in_dims: int = 1) -> Int8Weight:
    """The weight `w [*in, *out]` in eight bits, rounded to 255 steps between the extremes of each output."""
    inner = tuple(range(in_dims))
    scale = jnp.max(jnp.abs(w), axis=inner, keepdims=True).astype(jnp.float32) / 127
    # An output of zeros alone has no scale to divide by.
    values = jnp.round(w / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return Int8Weight(values, scale.reshape(w.shape[in_dims:]))


def linear(
    x: Float[Array, '...'],
    w: Array | LoraWeight | SoupWeight | Int8Weight | OutputMajor,
    cfg: ModelConfig,
    in_dims: int = 1,
) -> Float[Array, '...']:
    """The product `[..., *out]` of `x [..., *in]` and `w [*in, *out]`, in `cfg.act_dtype`, with inputs in `cfg.dtype`.

    Raises:
      ValueError: the last `in_dims` axes of `x` are not the first of `w`.
    """
    if isinstance(w, LoraWeight):
        inputs = x if w.key is None else dropped(x, w.key, w.dropout)
        # The correction is computed by its two thin factors, which are never multiplied with each other.
        low = linear_by_row(inputs.reshape(*x.shape[: x.ndim - in_dims], -1), w.a, cfg)
        correction = w.scale * _from_low(low, w.b, cfg)
        correction = rounded(correction) if cfg.exact else correction
        frozen = linear(x, w.base, cfg, in_dims)
        return frozen + correction.reshape(frozen.shape)
    if isinstance(w, SoupWeight):
        frozen = linear(x, w.base, cfg, in_dims)
        if w.mixture is None:
            return frozen
        return frozen + mixed_correction(x.reshape(*x.shape[: x.ndim - in_dims], -1), w, cfg).reshape(frozen.shape)
    if isinstance(w, Int8Weight):
        # The scale belongs to an output, so it can wait until after the product.
        out = linear(x, w.values, cfg, in_dims)
        return (out * jnp.expand_dims(w.scale, tuple(range(x.ndim - in_dims)))).astype(out.dtype)
    if isinstance(w, OutputMajor):
        return _output_major_product(x, w.values, cfg, in_dims)
    rows, inner, out = x.shape[: x.ndim - in_dims], x.shape[x.ndim - in_dims :], w.shape[in_dims:]
    if inner != w.shape[:in_dims]:
        raise ValueError(f'x ends in {inner} but the weight {w.shape} starts with {w.shape[:in_dims]}; check in_dims')
    flat = x.reshape(*rows, math.prod(inner))
    return product(flat, w, cfg.dtype, cfg.act_dtype, by_kernel(cfg)).reshape(*rows, *out)


def linear_by_row(x: Float[Array, 'R T I'], w: Float[Array, '...'], cfg: ModelConfig) -> Float[Array, 'R T O']:
    """The product with `w [I, O]`, or of each row with its own of `w [R, I, O]`."""
    if w.ndim == 2:
        return linear(x, w, cfg)
    return jax.vmap(lambda row, weight: linear(row, weight, cfg))(x, w)


def mixed_correction(x: Float[Array, 'B *T I'], w: SoupWeight, cfg: ModelConfig) -> Array:
    """The correction [B, *T, prod(out)] of the mixed adapters, by one product with all `a` and one with all `b`."""
    assert w.mixture is not None
    low, count = linear(x, w.a, cfg), len(w.scales)
    parts = jnp.split(low, count, axis=-1)
    mixture = jnp.expand_dims(w.mixture.astype(low.dtype), tuple(range(1, x.ndim - 1)))
    shares = jnp.split(mixture, count, axis=-1)
    # The parts are added up one by one, since a reduction is slow on a CPU.
    if w.kind == 'factors':
        shared = [share * part for share, part in zip(shares, parts, strict=True)]
        mean = sum(map(rounded, shared) if cfg.exact else shared)
        parts = [w.scales[0] * mean] * count
    else:
        parts = [scale * part for scale, part in zip(w.scales, parts, strict=True)]
    mixed = jnp.concatenate([share * part for share, part in zip(shares, parts, strict=True)], axis=-1)
    return _from_low(mixed, w.b, cfg)


def _from_low(low: Float[Array, '... r'], b: Float[Array, '... O'], cfg: ModelConfig) -> Array:
    """The product with an adapter's second factor `b [r, O]`, or of each row with its own of `b [R, r, O]`."""
    if cfg.exact:
        # A CPU multiplies few rows of a lower rank otherwise than many.
        missing = 0, max(RANK - b.shape[-2], 0)
        low = jnp.pad(low, ((0, 0),) * (low.ndim - 1) + (missing,))
        b = jnp.pad(b, ((0, 0),) * (b.ndim - 2) + (missing, (0, 0)))
    return linear_by_row(low, b, cfg)


def dropped(x: Array, key: Array, rate: float) -> Array:
    """The inputs with a share `rate` of them 0 and the others larger, so that their mean stays."""
    keep = jax.random.bernoulli(jax.random.wrap_key_data(key), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def _output_major_product(x: Array, w: Array, cfg: ModelConfig, in_dims: int) -> Array:
    rows, out = x.shape[: x.ndim - in_dims], w.shape[: w.ndim - in_dims]
    flat = x.reshape(*rows, -1), w.reshape(math.prod(out), -1)
    return by_output(*flat, cfg.dtype, cfg.act_dtype).reshape(*rows, *out)


def by_kernel(cfg: ModelConfig) -> bool:
    """True where the products of an exact tile are `tile_product`, without which a TPU adds up in no fixed order."""
    return cfg.tile > 0 and cfg.attention == 'splash'


def by_output(
    x: Float[Array, '... I'], w: Float[Array, 'O I'], dtype: str, out_dtype: str, kernel: bool = False
) -> Float[Array, '... O']:
    """The product `x @ w.T`, with `kernel` by `tile_product`."""
    narrow, w, rows = x.astype(dtype), w.astype(dtype), math.prod(x.shape[:-1])
    if kernel:
        from pal_jax.models.tile_product import tile_product

        out = tile_product(narrow.reshape(rows, -1), w, out_dtype, by_output=True)
        return out.reshape(*x.shape[:-1], -1)
    if jax.default_backend() != 'cpu' or dtype != 'float32' or not 1 < rows <= FEW:
        contract = (((x.ndim - 1,), (1,)), ((), ()))
        return lax.dot_general(narrow, w, contract, preferred_element_type=out_dtype)
    # On a CPU, a few rows of float32 take two thirds of the time where the weight is on the left. Without the barrier
    # XLA would turn the product around again.
    turned = lax.dot_general(w, narrow.reshape(rows, -1), (((1,), (1,)), ((), ())), preferred_element_type=out_dtype)
    return lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)


def _multiply(x: Array, w: Array, dtype: str, out_dtype: str, kernel: bool = False) -> Array:
    """The product `[..., prod(out)]` of `x [..., I]` and `w [*in, *out]`, where `I` is `prod(in)`."""
    narrow, matrix = x.astype(dtype), _matrix(w, x.shape[-1], dtype)
    if kernel:
        from pal_jax.models.tile_product import tile_product

        return tile_product(narrow.reshape(-1, x.shape[-1]), matrix, out_dtype).reshape(*x.shape[:-1], -1)
    return lax.dot_general(narrow, matrix, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=out_dtype)


def _matrix(w: Array, size: int, dtype: str) -> Float[Array, 'I O']:
    return w.astype(dtype).reshape(size, -1)


def _multiply_fwd(x: Array, w: Array, dtype: str, out_dtype: str, _: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    """The product, and the arrays for its backward pass."""
    narrow = x.astype(dtype)
    # The weight is kept unchanged, so that a scan over layers reads its stack again and keeps no second one.
    # A pass for a gradient needs no order of its sums.
    return _multiply(narrow, w, dtype, out_dtype), (narrow, w, jnp.empty((), x.dtype))


def _multiply_bwd(
    dtype: str, out_dtype: str, _: bool, saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The gradients by input and weight, whose products all have inputs in `dtype`."""
    x, w, like = saved
    # Autodiff would multiply a wide cotangent with a narrow weight, at the speed of the wide one.
    dy = dy.astype(dtype)
    rows = tuple(range(x.ndim - 1))
    matrix = _matrix(w, x.shape[-1], dtype)
    dx = lax.dot_general(dy, matrix, (((dy.ndim - 1,), (1,)), ((), ())), preferred_element_type=out_dtype)
    # The weight's gradient contracts rows and tokens as they are. Rows alone are split into two halves, since a 2-D dot
    # misses XLA's fast path on CPU.
    if rows == (0,) and x.shape[0] % 2 == 0:
        x, dy, rows = x.reshape(2, -1, x.shape[1]), dy.reshape(2, -1, dy.shape[1]), (0, 1)
    dw = lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(like.dtype), dw.astype(w.dtype).reshape(w.shape)


product = jax.custom_vjp(_multiply, nondiff_argnums=(2, 3, 4))
product.defvjp(_multiply_fwd, _multiply_bwd)
