"""Logits to tokens. Every row has its own settings and its own random key, so no row depends on another."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

BLOCK = 256
COLDEST = 1e-5  # a lower temperature is 0: divided by it, logits leave float32


class Likeliest(NamedTuple):
    """The `K` likeliest tokens of each row, best first."""

    tokens: Int[Array, 'B K']
    logprobs: Float[Array, 'B K']


class Sampled(NamedTuple):
    token: Int[Array, ' B']
    logprob: Float[Array, ' B']
    policy_logprob: Float[Array, ' B']


def sample(
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    temperature: Float[Array, ' B'],
    top_k: Int[Array, ' B'],
    top_p: Float[Array, ' B'],
) -> Sampled:
    """Draws one token a row; at a temperature below 1e-5 the likeliest one.

    `logprob` is that of the distribution drawn from: softmax(logits / temperature), cut by top-k and top-p; of the
    plain one for greedy rows. `policy_logprob` is that of softmax(logits), whatever the settings.
    """
    greedy, drawn = temperature < COLDEST, drawn_from(logits, temperature, top_k, top_p)
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    tokens = jnp.where(greedy, argmax(logits), inverse_cdf(drawn, uniform)).astype(jnp.int32)
    return Sampled(tokens, logprob_of(drawn, tokens), logprob_of(logits, tokens))


def drawn_from(
    logits: Float[Array, 'B V'], temperature: Float[Array, ' B'], top_k: Int[Array, ' B'], top_p: Float[Array, ' B']
) -> Float[Array, 'B V']:
    """Logits of the distribution that tokens are drawn from, -inf where they are cut; the plain ones of greedy rows."""
    greedy = temperature < COLDEST
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    drawn = lax.cond(jnp.any((top_k > 0) | (top_p < 1)), lambda: truncate(scaled, top_k, top_p), lambda: scaled)
    return jnp.where(greedy[:, None], logits, drawn)


def likeliest(logits: Float[Array, 'B V'], count: int) -> Likeliest:
    """The `count` likeliest tokens of each row, and their log-probs."""
    top, tokens = lax.top_k(logits, count)
    return Likeliest(tokens, top - log_sum_exp(logits)[:, None])


def logprob_of(logits: Float[Array, 'B V'], tokens: Int[Array, ' B']) -> Float[Array, ' B']:
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - log_sum_exp(logits)


def argmax(logits: Float[Array, 'B V']) -> Int[Array, ' B']:
    """As `jnp.argmax(axis=-1)`, which on CPU goes one by one, by maxima, which are vectorised: first the block, then
    inside it."""
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    return block * BLOCK + jnp.argmax(_take(blocks, block), axis=-1)


def log_sum_exp(logits: Float[Array, 'B V']) -> Float[Array, ' B']:
    """As `jax.nn.logsumexp`, with the exponentials written out before they are summed (vectorised on CPU)."""
    top = jnp.max(logits, axis=-1)
    return top + jnp.log(jnp.sum(lax.optimization_barrier(jnp.exp(logits - top[:, None])), axis=-1))


def truncate(logits: Float[Array, 'B V'], top_k: Int[Array, ' B'], top_p: Float[Array, ' B']) -> Float[Array, 'B V']:
    """-inf below the `top_k`-th largest logit and outside the smallest set of tokens with probability `top_p`."""
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    vocab = logits.shape[-1]
    last = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1
    kth = jnp.take_along_axis(ordered, last[:, None], axis=-1)
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    kept = jnp.sum(before < top_p[:, None], axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(logits >= jnp.maximum(kth, threshold), logits, -jnp.inf)


def inverse_cdf(logits: Float[Array, 'B V'], uniform: Float[Array, ' B']) -> Int[Array, ' B']:
    """The token at which the cumulative probability passes `uniform`: first its block of 256, then inside the block.

    One uniform number a row instead of a Gumbel number a token, and no cumulative sum over the whole vocabulary.
    """
    mass = _blocks(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), 0.0)
    blocks = jnp.cumsum(jnp.sum(mass, axis=-1), axis=-1)
    target = uniform * blocks[:, -1]
    block = _first_above(blocks, target)
    inside = jnp.cumsum(_take(mass, block), axis=-1)
    passed = jnp.where(block > 0, _take(blocks, jnp.maximum(block - 1, 0)), 0.0)
    return block * BLOCK + _first_above(inside, target - passed)


def _first_above(cumulative: Float[Array, 'B N'], target: Float[Array, ' B']) -> Int[Array, ' B']:
    # The second term guards against rounding: never past the last entry that has any mass.
    index = jnp.sum(cumulative <= target[:, None], axis=-1)
    return jnp.minimum(index, jnp.sum(cumulative < cumulative[:, -1:], axis=-1))


def _blocks(x: Float[Array, 'B V'], pad: float) -> Float[Array, 'B N block']:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)), constant_values=pad).reshape(x.shape[0], -1, BLOCK)


def _take(x: Float[Array, 'B N *rest'], index: Int[Array, ' B']) -> Float[Array, 'B *rest']:
    """`x[b, index[b]]` of every row."""
    index = jnp.expand_dims(index, tuple(range(1, x.ndim)))
    return jnp.take_along_axis(x, index, axis=1)[:, 0]
