"""Places of tokens in packed rows, and which of them a token sees: by token and by block of tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pal_jax.types import OPENING

# The score of a hidden key is finite, so that a difference of two of them is 0 and not NaN.
MASKED = -1e30


class Places(NamedTuple):
    """The segments, prefixes and positions of tokens, which decide the keys that a query sees (`types.TokenBatch`)."""

    segments: Int[Array, 'R T']
    prefix: Int[Array, 'R T']
    positions: Int[Array, 'R T']

    def padded(self, missing: int) -> Places:
        """The places with `missing` further columns of padding."""
        return Places(*(jnp.pad(x, ((0, 0), (0, missing))) for x in self))


class Scoring(NamedTuple):
    """The static settings by which products of queries and keys become scores.

    scale: the factor of the products. window: a token sees tokens less than so many positions before it.
    soft_cap: bounds scores by `cap * tanh(score / cap)`. alibi: scores fall with distance, see `alibi_slopes`.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False


def one_sequence(positions: Int[Array, 'R T']) -> Places:
    """The places of rows that have one segment each."""
    segments = jnp.ones_like(positions)
    return Places(segments, segments, positions)


def visible(queries: Places, keys: Places, window: int | None = None) -> Bool[Array, 'R T S']:
    """The mask `[r, t, s]`, True where query `t` sees key `s`.

    A query sees keys of its own segment, of its prefix and of the row's opening, at its own position and less than
    `window` positions before it.
    """
    # Padding, segment 0, sees padding, so every softmax has something to sum.
    apart, segments = distance(queries, keys), keys.segments[:, None]
    related = (
        (segments == queries.segments[:, :, None]) | (segments == queries.prefix[:, :, None]) | (segments == OPENING)
    )
    earlier = related & (apart >= 0)
    return earlier if window is None else earlier & (apart < window)


def distance(queries: Places, keys: Places) -> Int[Array, 'R T S']:
    """The positions by which each query is behind each key."""
    return queries.positions[:, :, None] - keys.positions[:, None]


def alibi_slopes(heads: int) -> Float[np.ndarray, ' H']:
    """The slope `[H]` by which each head's scores fall with distance (Press et al. 2022)."""
    power = 1 << (heads.bit_length() - 1)
    # Slopes are a geometric sequence where the heads are a power of two. The heads beyond a power have every other
    # slope of the next power.
    exponents = [*range(2, 2 * power + 1, 2), *range(1, 2 * power, 2)][:heads]
    return np.exp2(-4.0 * np.array(exponents) / power).astype(np.float32)


def blocks_seen(
    queries: Places, keys: Places, sizes: tuple[int, int], window: int | None, causal: bool
) -> Bool[Array, 'R n m']:
    """False where no query of block `n` sees a key of block `m`, told by the extremes of the places in them.

    `sizes` are the tokens of a block of queries and of one of keys, which divide the lengths. Padding is left out. With
    `causal`, queries and keys are the same tokens and no query sees a column after its own.
    """
    (segment, prefix, position), (other, _, other_position) = _extremes(queries, sizes[0]), _extremes(keys, sizes[1])
    related = _meet(segment, other) | _meet(prefix, other) | (other[0] == OPENING)[:, None]
    # A block of padding alone is seen by nothing.
    real = (other[0] != 0) | (other[1] != 0)
    seen = related & real[:, None] & (position[1][:, :, None] >= other_position[0][:, None])
    if window is not None:
        seen &= position[0][:, :, None] - other_position[1][:, None] < window
    if not causal:
        return seen
    first, start = np.arange(seen.shape[1])[:, None] * sizes[0], np.arange(seen.shape[2])[None] * sizes[1]
    # Blocks of columns that begin after the last query are not seen, and those with the queries' own columns always
    # are.
    begun = start < first + sizes[0]
    return (seen | (first < start + sizes[1])[None]) & begun[None]


def blocks_whole(queries: Places, keys: Places, sizes: tuple[int, int], window: int | None) -> Bool[Array, 'R n m']:
    """True where every query of block `n` is known to see every key of block `m`, by the extremes of their places."""
    (segment, prefix, position), (other, _, other_position) = _extremes(queries, sizes[0]), _extremes(keys, sizes[1])

    def all_of(ours: tuple[Array, Array]) -> Bool[Array, 'R n m']:
        return (ours[0][:, :, None] == other[1][:, None]) & (ours[1][:, :, None] == other[0][:, None])

    # A block of queries has one segment, which is that of all keys, or all its queries see the segment of all keys.
    related = all_of(segment) | all_of(prefix) | (other[1] == OPENING)[:, None]
    whole = related & (other[0] != 0)[:, None] & (position[0][:, :, None] >= other_position[1][:, None])
    return whole if window is None else whole & (position[1][:, :, None] - other_position[0][:, None] < window)


def _extremes(places: Places, size: int) -> list[tuple[Array, Array]]:
    """The least and the largest segment, prefix and position of each block, `[R, blocks]` each."""
    blocks = [x.reshape(len(x), -1, size) for x in places]
    return [(x.min(-1), x.max(-1)) for x in blocks]


def _meet(ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> Bool[Array, 'R n m']:
    """True where two ranges have a number in common."""
    return (ours[0][:, :, None] <= theirs[1][:, None]) & (theirs[0][:, None] <= ours[1][:, :, None])


def round_up(length: int, multiple: int) -> int:
    """The least multiple that is at least `length`."""
    return -(-length // multiple) * multiple
