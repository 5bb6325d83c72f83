"""Packed rows, and attention on them by its definition, for the tests of attention by blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

ROW = (70, 90, 45)  # a prompt and two branches of it


def packed(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Segments, prefixes and positions of two rows: a prompt with its branches, and an opening with two prompts, of
    which the second has a branch; then padding."""
    ids = np.zeros((3, 2, length), np.int32)
    start = 0
    for n, size in enumerate(ROW):
        where = slice(start, start + size)
        ids[0, 0, where], ids[1, 0, where] = n + 1, 1
        ids[2, 0, where] = np.arange(size) + (ROW[0] if n else 0)
        start += size
    place = 0
    for segment, prefix, first, size in ((-1, -1, 0, 60), (1, 1, 60, 30), (3, 3, 60, 50), (4, 3, 110, 30)):
        where = slice(place, place + size)
        ids[0, 1, where], ids[1, 1, where], ids[2, 1, where] = segment, prefix, first + np.arange(size)
        place += size
    return tuple(jnp.asarray(each) for each in ids)


def definition(q, k, v, segments, prefix, positions, *, scale=None, window=None, soft_cap=None, slopes=None):
    """Softmax over all of `[T, T]`."""
    columns, seen = jnp.arange(q.shape[1]), segments[:, None]
    visible = ((seen == segments[:, :, None]) | (seen == prefix[:, :, None]) | (seen == -1)) & (seen != 0)
    visible &= (columns[:, None] >= columns[None])[None]
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None] < window
    visible |= jnp.eye(q.shape[1], dtype=bool)[None]
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2).astype(jnp.float32) for x in (k, v))
    scores = jnp.einsum('rthk,rshk->rhts', q.astype(jnp.float32), k) * (scale or q.shape[3] ** -0.5)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if slopes is not None:
        scores -= slopes[None, :, None, None] * (positions[:, :, None] - positions[:, None])[:, None]
    return jnp.einsum('rhts,rshk->rthk', jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf)), v)


def heads(length: int, size: int, dtype: str = 'float32') -> list[jax.Array]:
    """q, k, v and a cotangent: four heads on two."""
    shapes = [(2, length, count, size) for count in (4, 2, 2, 4)]
    return [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]


def out_and_gradients(attend, q, k, v, cotangent) -> list[np.ndarray]:
    @jax.jit
    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(cotangent.astype(out.dtype))

    return [np.asarray(x, np.float32) for x in both(q, k, v)]
