"""Sampling of tokens from logits. Every row has its own settings and random key, so no row depends on another."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from pal_jax.objectives.logprobs import chosen_logprob, logprob_at
from pal_jax.objectives.rounding import by_tile, exponential

BLOCK = 256
# A lower temperature counts as 0, since logits divided by it would overflow float32.
COLDEST = 1e-5


class LikeliestTokens(NamedTuple):
    """The `K` likeliest tokens of each row, best first."""

    tokens: Int[Array, 'B K']
    logprobs: Float[Array, 'B K']


class SampledTokens(NamedTuple):
    """One token for each row, and its log-probs under both distributions (see `sample`)."""

    token: Int[Array, ' B']
    logprob: Float[Array, ' B']
    policy_logprob: Float[Array, ' B']


def sample(
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    temperature: Float[Array, ' B'],
    top_k: Int[Array, ' B'],
    top_p: Float[Array, ' B'],
    tile: int = 0,
) -> SampledTokens:
    """Draw one token for each row. At a temperature below 1e-5 it is the likeliest one, and the row is greedy.

    `logprob` is that of the distribution drawn from: softmax(logits / temperature), cut by top-k and top-p. For greedy
    rows it is that of softmax(logits). `policy_logprob` is that of softmax(logits) under all settings. Both are
    computed for `tile` rows at a time, where that is not 0 (`rounding.by_tile`).
    """
    greedy, drawn_logits = temperature < COLDEST, drawn_from(logits, temperature, top_k, top_p)
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    tokens = jnp.where(greedy, argmax(logits), inverse_cdf(drawn_logits, uniform)).astype(jnp.int32)
    # The same function of plain logits as in training, so that both round alike.
    kept = jnp.where(drawn_logits == -jnp.inf, -jnp.inf, logits)
    logprob = token_logprob(kept, tokens, jnp.where(greedy, 1.0, temperature), tile)
    return SampledTokens(tokens, logprob, token_logprob(logits, tokens, tile=tile))


def token_logprob(
    logits: Float[Array, 'B V'], tokens: Int[Array, ' B'], temperature: Float[Array, ' B'] | float = 1.0, tile: int = 0
) -> Float[Array, ' B']:
    """The log-probs of tokens under softmax(logits / temperature), for `tile` rows at a time."""
    if not tile:
        return chosen_logprob(logits, tokens, 1.0 / temperature)
    temperatures = jnp.broadcast_to(jnp.float32(temperature), tokens.shape)
    rows = jax.tree.map(lambda x: x[:, None], (logits, tokens, temperatures))
    scores: Any = by_tile(logprob_at, tile, 'float32', (), rows)
    return scores[:, 0]


def drawn_from(
    logits: Float[Array, 'B V'], temperature: Float[Array, ' B'], top_k: Int[Array, ' B'], top_p: Float[Array, ' B']
) -> Float[Array, 'B V']:
    """The logits of the distribution that tokens are drawn from, -inf for tokens that are cut.

    For greedy rows they are the plain logits.
    """
    greedy = temperature < COLDEST
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    # Sorting is slow, and is left out where no row cuts its distribution.
    cut_logits = lax.cond(jnp.any((top_k > 0) | (top_p < 1)), lambda: truncate(scaled, top_k, top_p), lambda: scaled)
    return jnp.where(greedy[:, None], logits, cut_logits)


def likeliest(logits: Float[Array, 'B V'], count: int) -> LikeliestTokens:
    """The `count` likeliest tokens of each row, and their log-probs."""
    top, tokens = lax.top_k(logits, count)
    return LikeliestTokens(tokens, top - log_sum_exp(logits)[:, None])


def argmax(logits: Float[Array, 'B V']) -> Int[Array, ' B']:
    """The index of the largest logit of each row, as `jnp.argmax(axis=-1)` gives it."""
    # On CPU `jnp.argmax` compares entries one by one. Maxima of blocks, which are vectorised, find the block first, and
    # then the entry in it.
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    return block * BLOCK + jnp.argmax(_take(blocks, block), axis=-1)


def log_sum_exp(logits: Float[Array, 'B V']) -> Float[Array, ' B']:
    """The log of the sum of exponentials of each row."""
    top = jnp.max(logits, axis=-1)
    return top + jnp.log(jnp.sum(exponential(logits - top[:, None]), axis=-1))


def truncate(logits: Float[Array, 'B V'], top_k: Int[Array, ' B'], top_p: Float[Array, ' B']) -> Float[Array, 'B V']:
    """The logits, -inf below the `top_k`-th largest one and outside the smallest set with probability `top_p`."""
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    vocab = logits.shape[-1]
    last = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1
    kth = jnp.take_along_axis(ordered, last[:, None], axis=-1)
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    # A token stays if those before it have less than `top_p` in sum, so the first one always stays.
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    count = jnp.sum(before < top_p[:, None], axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, jnp.maximum(count, 1) - 1, axis=-1)
    return jnp.where(logits >= jnp.maximum(kth, threshold), logits, -jnp.inf)


def inverse_cdf(logits: Float[Array, 'B V'], uniform: Float[Array, ' B']) -> Int[Array, ' B']:
    """The token at which the cumulative probability passes `uniform`: first its block of 256, then inside the block."""
    # This needs one uniform number for each row, not a Gumbel number for each token, and no cumulative sum over the
    # whole vocabulary.
    mass = _blocks(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), 0.0)
    blocks = jnp.cumsum(jnp.sum(mass, axis=-1), axis=-1)
    target = uniform * blocks[:, -1]
    block = _first_above(blocks, target)
    inside = jnp.cumsum(_take(mass, block), axis=-1)
    # The target inside the block is less by the mass of the blocks before.
    passed = jnp.where(block > 0, _take(blocks, jnp.maximum(block - 1, 0)), 0.0)
    return block * BLOCK + _first_above(inside, target - passed)


def _first_above(cumulative: Float[Array, 'B N'], target: Float[Array, ' B']) -> Int[Array, ' B']:
    # The second term guards against rounding, so that the index is at most that of the last entry with any mass.
    index = jnp.sum(cumulative <= target[:, None], axis=-1)
    return jnp.minimum(index, jnp.sum(cumulative < cumulative[:, -1:], axis=-1))


def _blocks(x: Float[Array, 'B V'], pad: float) -> Float[Array, 'B N block']:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)), constant_values=pad).reshape(x.shape[0], -1, BLOCK)


def _take(x: Float[Array, 'B N *rest'], index: Int[Array, ' B']) -> Float[Array, 'B *rest']:
    """The entries `x[b, index[b]]` of all rows `b`."""
    index = jnp.expand_dims(index, tuple(range(1, x.ndim)))
    return jnp.take_along_axis(x, index, axis=1)[:, 0]
