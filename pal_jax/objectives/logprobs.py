"""Log-probabilities of chosen tokens: the one place where `[.., V]` exists, a chunk of rows at a time.

Letters: `R` rows, `M` states of a row, `D` width, `V` vocabulary. `targets[r, m]` is the token chosen in state
`hidden[r, m]`; nothing is shifted here, and rows may be sharded, so chunks run along `M`. States that do not act
(`acts`) count nothing, and a chunk without an acting state is skipped: acting states should come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pal_jax.objectives.masked import keep
from pal_jax.objectives.rounding import by_tile, exponential, rounded

# A function of log-probs and `aux` that gives losses, elementwise.
PerToken = Callable[[Array, Any], Array]


def token_logprobs(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    targets: Int[Array, 'R M'],
    *,
    acts: Bool[Array, 'R M'] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    dtype: str = 'float32',
    chunk: int = 1024,
) -> tuple[Float[Array, 'R M'], Float[Array, 'R M']]:
    """The log-probability of each target and the entropy of the distribution it is drawn from, in nats, without a
    gradient.

    Where nothing acts they may be anything. Logits are capped to `softcap * tanh(logit / softcap)`, then divided by
    `temperature`. `dtype` is the type of the product's inputs; about `chunk` states have their logits in memory at
    once.
    """
    weight, factor = unembed.astype(dtype), factor_of(temperature)

    def score(states: Array, chosen: Array) -> tuple[Array, Array]:
        centred, weights, total = softmax_parts(_logits(states, weight, softcap), factor)
        entropy = jnp.log(total) - factor * (weights * centred).sum(-1) / total
        return picked_logprob(centred, total, chosen, factor), entropy

    def body(_: None, columns: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        states, chosen, act = columns
        nothing = jnp.zeros(chosen.shape), jnp.zeros(chosen.shape)
        # A chunk of padding alone costs nothing.
        return None, lax.cond(jnp.any(act), score, lambda *_: nothing, states, chosen)

    acts = jnp.ones_like(targets, bool) if acts is None else acts
    columns = _split((hidden, targets, acts), _width(targets, chunk))
    return _join(lax.scan(body, None, columns)[1], targets.shape[1])


def token_loss(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    targets: Int[Array, 'R M'],
    aux: Any,
    per_token: PerToken,
    *,
    acts: Bool[Array, 'R M'] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    dtype: str = 'float32',
    chunk: int = 1024,
    exact: Float[Array, 'R M'] | None = None,
) -> tuple[Float[Array, ''], Float[Array, 'R M']]:
    """The sum of `per_token(logprobs, aux)` over acting states, and the log-probabilities, which carry no gradient.

    `per_token` is elementwise and closes over nothing traced. Masks, weights and advantages go into `aux`, a tree of
    `[R, M]` arrays, and get no gradient. Gradients reach `hidden` and `unembed`. `exact` are the log-probabilities of
    `exact_logprobs`, where the loss is to have those; they are constants.
    """
    acts = jnp.ones_like(targets, bool) if acts is None else acts
    loss, logprobs = _loss(hidden, unembed, targets, acts, aux, exact, per_token, temperature, softcap, dtype, chunk)
    return loss, lax.stop_gradient(logprobs)


def exact_logprobs(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    targets: Int[Array, 'R M'],
    logits: Callable[[Array, Array], Array],
    *,
    tile: int,
    temperature: float = 1.0,
    dtype: str = 'float32',
) -> Float[Array, 'R M']:
    """The log-probabilities of `token_logprobs`, by the instructions of a sampler of `tile` states at a time.

    They carry no gradient. `logits(unembed, hidden)` are the sampler's.
    """

    def score(weight: Array, rows: tuple[Array, Array, Array]) -> Array:
        states, chosen, temperature = rows
        return logprob_at((), (lax.optimization_barrier(logits(weight, states)), chosen, temperature))

    # A sampler divides by temperatures that it is given, so they are no constants here.
    rows = lax.stop_gradient(hidden), targets, jnp.full(targets.shape, temperature)
    return by_tile(score, tile, dtype, lax.stop_gradient(unembed), rows)


def max_z_loss(
    hidden: Float[Array, 'R M D'],
    unembed: Float[Array, 'V D'],
    weight: Float[Array, 'R M'],
    *,
    dtype: str = 'float32',
    chunk: int = 1024,
) -> Float[Array, '']:
    """The weighted sum of the squares of each state's largest logit.

    Added to a loss, it keeps logits from growing (Baichuan 2, Yang et al. 2023, section 2.4, where the weights come to
    2e-4).
    """
    matrix = unembed.astype(dtype)
    columns = _split(hidden, _width(weight, chunk))
    # The largest logit is looked for a chunk at a time, without a gradient; then it is one product of two vectors.
    best = _join(lax.map(lambda states: _logits(states, matrix).argmax(-1), columns), weight.shape[1])
    largest = (hidden.astype(jnp.float32) * unembed[best].astype(jnp.float32)).sum(-1)
    return jnp.sum(weight * jnp.square(keep(largest, weight != 0)))


def _loss_value(
    hidden: Array,
    unembed: Array,
    targets: Array,
    acts: Array,
    aux: Any,
    exact: Array | None,
    per_token: PerToken,
    temperature: float,
    cap: float | None,
    dtype: str,
    chunk: int,
) -> tuple[Array, Array]:
    logprobs, _ = token_logprobs(
        hidden, unembed, targets, acts=acts, temperature=temperature, softcap=cap, dtype=dtype, chunk=chunk
    )
    logprobs = logprobs if exact is None else exact
    return jnp.where(acts, per_token(logprobs, aux), 0.0).sum(), logprobs


def _loss_fwd(
    hidden: Array,
    unembed: Array,
    targets: Array,
    acts: Array,
    aux: Any,
    exact: Array | None,
    per_token: PerToken,
    temperature: float,
    cap: float | None,
    dtype: str,
    chunk: int,
):
    weight, factor = unembed.astype(dtype), factor_of(temperature)
    width = _width(targets, chunk)

    def score(loss: Array, dweight: Array, states: Array, chosen: Array, known: Array | None, act: Array, extra: Any):
        logits = _logits(states, weight, cap)
        centred, weights, total = softmax_parts(logits, factor)
        logprobs = picked_logprob(centred, total, chosen, factor) if known is None else known
        losses, pull = jax.vjp(lambda lp: jnp.where(act, per_token(lp, extra), 0.0), logprobs)
        (slope,) = pull(jnp.ones_like(losses))
        dlogits = _dlogits(weights, total, chosen, slope * factor)
        # The derivative of cap * tanh(x / cap) by x.
        if cap is not None:
            dlogits *= 1.0 - jnp.square(logits / cap)
        dlogits = dlogits.astype(dtype)
        dstates = jnp.einsum('rmv,vd->rmd', dlogits, weight, preferred_element_type=jnp.float32)
        # The output matrix's gradient is summed in float32, whatever the type of the products.
        step = jnp.einsum('rmv,rmd->vd', dlogits, states.astype(dtype), preferred_element_type=jnp.float32)
        return (loss + losses.sum(), dweight + step), (logprobs, dstates.astype(hidden.dtype))

    def skip(loss: Array, dweight: Array, states: Array, chosen: Array, *_: Any):
        return (loss, dweight), (jnp.zeros(chosen.shape), jnp.zeros_like(states))

    def body(carry: tuple[Array, Array], columns: Any):
        return lax.cond(jnp.any(columns[3]), score, skip, *carry, *columns)

    start = jnp.zeros(()), jnp.zeros(unembed.shape, jnp.float32)
    # Missing columns do not act, so what they hold counts nothing.
    columns = *_split((hidden, targets, exact), width), _split(acts, width, mode='constant'), _split(aux, width)
    (loss, dweight), outs = lax.scan(body, start, columns)
    logprobs, dhidden = _join(outs, targets.shape[1])
    return (loss, logprobs), (dhidden, dweight.astype(unembed.dtype))


def _loss_bwd(
    per_token: PerToken,
    temperature: float,
    cap: float | None,
    dtype: str,
    chunk: int,
    saved: tuple[Array, Array],
    cotangents: tuple[Array, ...],
):
    # The gradients are made in the forward pass, where the softmax of a chunk is at hand, so the backward pass only
    # scales them.
    dhidden, dweight = ((x.astype(jnp.float32) * cotangents[0]).astype(x.dtype) for x in saved)
    return dhidden, dweight, None, None, None, None


_loss = jax.custom_vjp(_loss_value, nondiff_argnums=(6, 7, 8, 9, 10))
_loss.defvjp(_loss_fwd, _loss_bwd)


def _logits(states: Array, weight: Array, cap: float | None = None) -> Array:
    logits = jnp.einsum('rmd,vd->rmv', states.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
    return logits if cap is None else cap * jnp.tanh(logits / cap)


# --- log-probabilities of logits, for training and for sampling -----------------------------------------------------


def chosen_logprob(
    logits: Float[Array, '*rows V'], chosen: Int[Array, '*rows'], factor: Float[Array, '*rows'] | float = 1.0
) -> Float[Array, '*rows']:
    """The log-probabilities of tokens under softmax(factor * logits), rounded as in a loss."""
    factor = jnp.asarray(factor, jnp.float32)
    centred, _, total = softmax_parts(logits, factor[..., None] if factor.ndim else factor)
    return picked_logprob(centred, total, chosen, factor)


def logprob_at(_: Any, rows: tuple[Array, Array, Array]) -> Float[Array, '*rows']:
    """The log-probabilities of tokens, of logits `[*rows, V]`, tokens and temperatures `[*rows]`; for `by_tile`."""
    logits, chosen, temperature = rows
    return chosen_logprob(logits, chosen, 1.0 / temperature)


def factor_of(temperature: float) -> Any:
    """The factor of logits at a temperature, rounded as the sampler rounds it."""
    return np.float32(1) / np.float32(temperature)


def softmax_parts(logits: Float[Array, '*rows V'], factor: Any) -> tuple[Array, Array, Array]:
    """`c = logits - max(logits)`, `exp(factor * c)`, and the sum of these over `V`."""
    centred = logits - logits.max(-1, keepdims=True)
    weights = exponential(centred * factor)
    return centred, weights, weights.sum(-1)


def picked_logprob(centred: Array, total: Array, chosen: Array, factor: Any) -> Array:
    """The log-probabilities of tokens, from two results of `softmax_parts`."""
    return rounded(_pick(centred, chosen) * factor) - jnp.log(total)


def _pick(logits: Array, chosen: Array) -> Array:
    return jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]


def _dlogits(weights: Array, total: Array, chosen: Array, slope: Array) -> Array:
    """The gradient of `slope * log softmax(logits)[chosen]` by the logits: `slope * (1[v = chosen] - p[v])`."""
    hit = jnp.arange(weights.shape[-1])[None, None] == chosen[..., None]
    return jnp.where(hit, slope[..., None], 0.0) - weights * (slope / total)[..., None]


def _width(targets: Array, chunk: int) -> int:
    """The number of columns of a chunk: a chunk has about `chunk` states, and a multiple of eight."""
    rows, length = targets.shape
    # Chunks are as equal as they can be, so that the last one has little padding.
    chunks = min(-(-rows * length // chunk), length)
    # A CPU rounds the last rows of a product in bfloat16 otherwise where they are one or two.
    unit = 8 // math.gcd(rows, 8)
    return -(-length // (chunks * unit)) * unit


def _split(tree: Any, width: int, mode: str = 'edge') -> Any:
    """Arrays `[R, M, ...]` as chunks `[chunks, R, width, ...]`."""

    def split(x: Array) -> Array:
        missing = -x.shape[1] % width
        # A zero may be invalid, so missing columns repeat the last one unless `mode` says otherwise.
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _join(tree: Any, length: int) -> Any:
    """The inverse of `_split`."""

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return jax.tree.map(join, tree)
