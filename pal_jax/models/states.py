"""What a frozen decoder makes of texts: a vector each, or one for each of their tokens, computed once and kept on disk,
where it is memory-mapped.

    table = stored('runs/states', texts, {'source': ..., 'layers': 20}, compute, shape)      # [S, D]

The file's name is a hash of the texts and of `settings`, so other texts or settings are computed anew. The settings
have the hashes of a source that is a folder or a file, but only the name of a hub id: delete the states where the model
behind the id has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.data.packing import round_up
from pal_jax.data.texts import Text
from pal_jax.models import decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.runtime import sharding
from pal_jax.runtime.processes import exchange

Pool = Literal['mean', 'last', 'tokens']


def stored(
    folder: str | Path, texts: Sequence[Text], settings: Mapping[str, Any],
    compute: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]], shape: tuple[int, int],
) -> np.ndarray:  # fmt: skip
    """The table of this shape, memory-mapped; where it is not there yet, made of what `compute()` gives, numbers of
    rows with their vectors. Of several processes the first one writes, and all need to see the folder.

    Raises:
      RuntimeError: a vector is not finite.
    """
    key = hashlib.sha256(json.dumps([dict(settings), texts], sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f'{key}.npy'
    if not exchange('states', path.exists())[0]:  # as the first process sees it: all compute, or none
        partial = path.with_suffix(f'.partial-{uuid.uuid4().hex[:8]}')  # of this process alone, on whatever host
        path.parent.mkdir(parents=True, exist_ok=True)
        writes = jax.process_index() == 0
        try:
            table = np.lib.format.open_memmap(partial, 'w+', np.float32, shape) if writes else None
            for numbers, vectors in compute():
                if not np.isfinite(vectors).all():
                    raise RuntimeError(
                        f'row {numbers[0]} of the states of {len(texts)} texts, or one near it, is not finite'
                    )
                if table is not None:
                    table[numbers] = vectors
            if table is not None:
                table.flush()
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    exchange('states written')
    return np.load(path, mmap_mode='r')


def hidden_states(
    params: Params, cfg: ModelConfig, mesh: Mesh, texts: Sequence[Text], *, pool: Pool = 'mean',
    rows: int = 32, multiple: int = 32,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Numbers of texts and their vectors, `rows` a device at a time, texts of like length together: the mean over a
    text's tokens of the states after the final norm, or that of its last token. Of 'tokens' each token's own; numbers
    are then of tokens, counted through all texts. Layers past `cfg.layers` are cut."""
    params = first_weights(params, cfg)
    sequences = [(*text.before, *text.tokens) for text in texts]
    order = np.argsort([len(ids) for ids in sequences], kind='stable')
    size = rows * sharding.batch_ways(mesh)
    starts = token_starts(texts)

    @jax.jit
    def read(params: Params, tokens: Array, first: Array, ends: Array) -> Float[Array, 'R *T D']:
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        segments = (place < ends[:, None]).astype(jnp.int32)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            states = decoder.forward(params, cfg, tokens, place, segments, segments).astype(jnp.float32)
        if pool != 'tokens':
            first = ends - 1 if pool == 'last' else first
            counts = (place >= first[:, None]) & (place < ends[:, None])
            states = jnp.einsum('rtd,rt->rd', states, counts.astype(jnp.float32)) / (ends - first)[:, None]
        return jax.lax.with_sharding_constraint(states, sharding.replicated(mesh))

    for start in range(0, len(texts), size):
        numbers = order[start : start + size]
        longest = max(len(sequences[i]) for i in numbers)
        tokens = np.zeros((size, round_up(longest, multiple)), np.int32)
        first, ends = np.zeros(size, np.int32), np.ones(size, np.int32)
        for r, i in enumerate(numbers):
            tokens[r, : len(sequences[i])] = sequences[i]
            first[r], ends[r] = len(texts[i].before), len(sequences[i])
        found = np.asarray(read(params, *sharding.put_batch((tokens, first, ends), mesh)))
        if pool != 'tokens':
            yield numbers, found[: len(numbers)]
            continue
        for r, i in enumerate(numbers):
            yield starts[i] + np.arange(len(texts[i].tokens)), found[r, first[r] : ends[r]]


def token_starts(texts: Sequence[Text]) -> np.ndarray:
    """Where the tokens of each text begin, counted through all texts."""
    return np.concatenate([[0], np.cumsum([len(text.tokens) for text in texts])[:-1]])


class Frame(NamedTuple):
    """Principal coordinates of vectors: `(x - mean) @ basis`."""

    mean: np.ndarray  # [H]
    basis: np.ndarray  # [H, width]


def frame(table: np.ndarray, width: int, chunk: int = 65536) -> Frame:
    """The `width` principal coordinates of rows about their mean, in units in which their mean square is 1. Reads the
    table, which may lie on disk, a chunk at a time."""
    starts = range(0, len(table), chunk)
    mean = np.sum([table[s : s + chunk].sum(axis=0, dtype=np.float64) for s in starts], axis=0) / len(table)
    centred = (table[s : s + chunk] - mean for s in starts)
    values, vectors = np.linalg.eigh(sum(part.T @ part for part in centred) / len(table))
    return Frame(mean, vectors[:, ::-1][:, :width] / np.sqrt(values[::-1][:width].mean()))


def in_frame(table: np.ndarray, axes: Frame, chunk: int = 65536) -> np.ndarray:
    """Rows by their principal coordinates, read a chunk at a time."""
    parts = (table[s : s + chunk] - axes.mean for s in range(0, len(table), chunk))
    return np.concatenate([(part @ axes.basis).astype(np.float32) for part in parts])


def first_layers(cfg: ModelConfig, layers: int) -> ModelConfig:
    """The decoder cut off after so many layers, with its final norm behind them; 0: all.

    Raises:
      ValueError: it has fewer.
    """
    if not 0 <= layers <= cfg.layers:
        raise ValueError(f'text.layers={layers} must be between 0 (all) and {cfg.layers}')
    return dataclasses.replace(cfg, layers=layers or cfg.layers)


def first_weights(params: Params, cfg: ModelConfig) -> Params:
    """A decoder's weights up to its first `cfg.layers`, without an output matrix of its own."""
    kept = {name: x for name, x in params.items() if name != 'unembed'}
    return {**kept, 'layers': jax.tree.map(lambda x: x[: cfg.layers], params['layers'])}
