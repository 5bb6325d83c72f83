"""Log-probabilities of chosen tokens: the one place where `[.., V]` exists, a chunk of rows at a time.

Letters: `R` rows, `M` states of a row, `D` width, `V` vocabulary. `targets[r, m]` is the token chosen in state
`hidden[r, m]`; nothing is shifted here, and rows may be sharded, so chunks run along `M`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

PerToken = Callable[[Array, Any], Array]  # (logprobs, aux) -> losses, elementwise


def token_logprobs(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    targets: Int[Array, 'R M'],
    *,
    temperature: float = 1.0,
    dtype: str = 'float32',
    chunk: int = 1024,
) -> tuple[Float[Array, 'R M'], Float[Array, 'R M']]:
    """Log-probability of each target and entropy of the distribution it is drawn from, in nats; not for gradients.

    Logits are divided by `temperature`. `dtype` is that of the product's inputs; about `chunk` states have their
    logits in memory at once.
    """
    weight = unembed.astype(dtype)

    def body(_: None, columns: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        states, chosen = columns
        logits = _logits(states, weight)
        shift, weights, total = _softmax_parts(logits)
        log_total = jnp.log(total) + shift
        entropy = log_total - (weights * logits).sum(-1) / total
        return None, (_pick(logits, chosen) - log_total, entropy)

    length = targets.shape[1]
    columns = _split((hidden / temperature, targets), _columns(*targets.shape, chunk))
    return _join(lax.scan(body, None, columns)[1], length)


def token_loss(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    targets: Int[Array, 'R M'],
    aux: Any,
    per_token: PerToken,
    *,
    temperature: float = 1.0,
    dtype: str = 'float32',
    chunk: int = 1024,
) -> tuple[Float[Array, ''], Float[Array, 'R M']]:
    """`sum(per_token(logprobs, aux))` and the log-probabilities, which carry no gradient.

    `per_token` is elementwise and closes over nothing traced; masks, weights, advantages go into `aux`, a tree of
    `[R, M]` arrays, and get no gradient. Gradients reach `hidden` and `unembed`. They are made in the forward pass,
    where the softmax of a chunk is at hand, so the backward pass only scales them.
    """
    loss, logprobs = _loss(hidden / temperature, unembed, targets, aux, per_token, dtype, chunk)
    return loss, lax.stop_gradient(logprobs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(hidden: Array, unembed: Array, targets: Array, aux: Any, per_token: PerToken, dtype: str, chunk: int):
    logprobs, _ = token_logprobs(hidden, unembed, targets, dtype=dtype, chunk=chunk)
    return per_token(logprobs, aux).sum(), logprobs


def _loss_fwd(hidden: Array, unembed: Array, targets: Array, aux: Any, per_token: PerToken, dtype: str, chunk: int):
    weight = unembed.astype(dtype)
    length, width = targets.shape[1], _columns(*targets.shape, chunk)
    real = jnp.ones_like(targets, bool)

    def body(carry: tuple[Array, Array], columns: Any):
        loss, dweight = carry
        states, chosen, extra, exists = columns
        logits = _logits(states, weight)
        shift, weights, total = _softmax_parts(logits)
        logprobs = _pick(logits, chosen) - shift - jnp.log(total)
        losses, pull = jax.vjp(lambda lp: jnp.where(exists, per_token(lp, extra), 0.0), logprobs)
        (slope,) = pull(jnp.ones_like(losses))
        dlogits = _dlogits(weights, total, chosen, slope).astype(dtype)
        dstates = jnp.einsum('rmv,vd->rmd', dlogits, weight, preferred_element_type=jnp.float32)
        step = jnp.einsum('rmv,rmd->vd', dlogits, states.astype(dtype), preferred_element_type=jnp.float32)
        return (loss + losses.sum(), dweight + step), (logprobs, dstates.astype(hidden.dtype))

    start = jnp.zeros(()), jnp.zeros(unembed.shape, jnp.float32)
    columns = _split((hidden, targets, aux), width) + (_split(real, width, mode='constant'),)
    (loss, dweight), outs = lax.scan(body, start, columns)
    logprobs, dhidden = _join(outs, length)
    return (loss, logprobs), (dhidden, dweight.astype(unembed.dtype))


def _loss_bwd(per_token: PerToken, dtype: str, chunk: int, saved: tuple[Array, Array], cotangents: tuple[Array, Array]):
    dhidden, dweight = saved
    scale = cotangents[0]
    return (dhidden * scale).astype(dhidden.dtype), (dweight * scale).astype(dweight.dtype), None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _logits(states: Array, weight: Array) -> Array:
    return jnp.einsum('rmd,vd->rmv', states.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def _softmax_parts(logits: Array) -> tuple[Array, Array, Array]:
    """Maximum, `exp(logits - maximum)` and its sum over `V`.

    The exponentials are written out before they are summed: inside a reduction XLA's CPU backend computes them one
    by one.
    """
    shift = logits.max(-1)
    weights = lax.optimization_barrier(jnp.exp(logits - shift[..., None]))
    return shift, weights, weights.sum(-1)


def _pick(logits: Array, chosen: Array) -> Array:
    return jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]


def _dlogits(weights: Array, total: Array, chosen: Array, slope: Array) -> Array:
    """Gradient of `slope * log softmax(logits)[chosen]`: `slope * (1[v = chosen] - p[v])`."""
    hit = jnp.arange(weights.shape[-1])[None, None] == chosen[..., None]
    return jnp.where(hit, slope[..., None], 0.0) - weights * (slope / total)[..., None]


def _columns(rows: int, length: int, chunk: int) -> int:
    """Columns of a chunk: as equal as they can be, with about `chunk` states in each."""
    chunks = -(-rows * length // chunk)
    return -(-length // min(chunks, length))


def _split(tree: Any, width: int, mode: str = 'edge') -> Any:
    """`[R, M, ...]` to `[chunks, R, width, ...]`; short of columns, the last is repeated (a zero may not be valid)."""

    def split(x: Array) -> Array:
        missing = -x.shape[1] % width
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _join(tree: Any, length: int) -> Any:
    """The inverse of `_split`."""

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return jax.tree.map(join, tree)
