"""Log-probabilities of chosen tokens: the one place where `[.., V]` exists, a chunk of rows at a time.

Letters: `R` rows, `M` states of a row, `D` width, `V` vocabulary. `targets[r, m]` is the token chosen in state
`hidden[r, m]`; nothing is shifted here, and rows may be sharded, so chunks run along `M`.
"""

from __future__ import annotations

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

    columns = _split((hidden / temperature, targets), _width(targets, chunk))
    return _join(lax.scan(body, None, columns)[1], targets.shape[1])


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


def _loss_value(
    hidden: Array, unembed: Array, targets: Array, aux: Any, per_token: PerToken, dtype: str, chunk: int
) -> tuple[Array, Array]:
    logprobs, _ = token_logprobs(hidden, unembed, targets, dtype=dtype, chunk=chunk)
    return per_token(logprobs, aux).sum(), logprobs


def _loss_fwd(hidden: Array, unembed: Array, targets: Array, aux: Any, per_token: PerToken, dtype: str, chunk: int):
    weight = unembed.astype(dtype)
    width = _width(targets, chunk)

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
    exists = _split(jnp.ones_like(targets, bool), width, mode='constant')
    columns = *_split((hidden, targets, aux), width), exists
    (loss, dweight), outs = lax.scan(body, start, columns)
    logprobs, dhidden = _join(outs, targets.shape[1])
    return (loss, logprobs), (dhidden, dweight.astype(unembed.dtype))


def _loss_bwd(per_token: PerToken, dtype: str, chunk: int, saved: tuple[Array, Array], cotangents: tuple[Array, Array]):
    dhidden, dweight = ((x.astype(jnp.float32) * cotangents[0]).astype(x.dtype) for x in saved)
    return dhidden, dweight, None, None


_loss = jax.custom_vjp(_loss_value, nondiff_argnums=(4, 5, 6))
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


def _width(targets: Array, chunk: int) -> int:
    """Columns of a chunk: as equal as they can be, with about `chunk` states in each."""
    rows, length = targets.shape
    chunks = min(-(-rows * length // chunk), length)
    return -(-length // chunks)


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
