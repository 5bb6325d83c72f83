"""Hidden states of texts in a frozen decoder: a vector for each text or for each token. They are computed once, kept on
disk and memory-mapped.

    table = stored('runs/states', texts, {'source': ..., 'layers': 20}, compute, shape)      # [S, D]

The file's name is a hash of the texts and of `settings`, so other texts or settings are computed anew. The settings
have the hashes of a source that is a folder or a file, but only the name of a hub id. Delete the states where the model
behind the id has changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.data.packing import round_up
from pal_jax.data.texts import Text
from pal_jax.models import bert, decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.run.processes import exchange, share

Pool = Literal['mean', 'last', 'tokens']
C = TypeVar('C', ModelConfig, bert.BertConfig)


def stored(
    folder: str | Path,
    texts: Sequence[Text],
    settings: Mapping[str, Any],
    compute: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    shape: tuple[int, int],
) -> np.ndarray:
    """The memory-mapped table of this shape.

    Where its file does not exist yet, `compute()` gives numbers of rows with their vectors, and the first process
    writes them. All processes need to see the folder.

    Raises:
      RuntimeError: a vector is not finite.
    """
    key = hashlib.sha256(json.dumps([dict(settings), texts], sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f'{key}.npy'
    # The first process decides, so that all compute or none.
    if not exchange('states', path.exists())[0]:
        # The name is one that no other process has.
        partial = path.with_suffix(f'.partial-{uuid.uuid4().hex[:8]}')
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
    # No process reads before the first one has written.
    exchange('states written')
    share(path)
    return np.load(path, mmap_mode='r')


def hidden_states(
    params: Params, cfg: ModelConfig, mesh: Mesh, texts: Sequence[Text], *, pool: Pool = 'mean',
    rows: int = 32, multiple: int = 32,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Numbers of texts with their vectors, in batches of `rows` texts a device, texts of similar length together.

    The vector of a text is the mean of its tokens' states after the final norm, or the state of its last token. With
    `pool='tokens'` every token has a vector, and numbers are those of tokens, counted through all texts. Layers after
    `cfg.layers` are left out.
    """
    params, starts = first_weights(params, cfg), token_starts(texts)
    for numbers, batch in batches(texts, rows * sharding.batch_ways(mesh), multiple):
        vectors = np.asarray(_read(params, *sharding.put_batch(batch, mesh), cfg, mesh, pool))
        if pool != 'tokens':
            yield numbers, vectors[: len(numbers)]
            continue
        for r, i in enumerate(numbers):
            yield starts[i] + np.arange(len(texts[i].tokens)), vectors[r, batch.first[r] : batch.ends[r]]


def sentence_vectors(
    weights: bert.Weights, cfg: bert.BertConfig, mesh: Mesh, texts: Sequence[Text], *, rows: int = 16,
    multiple: int = 16,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Numbers of texts with their vectors by an encoder of sentences, in batches as `hidden_states` has them.

    A text that is longer than the encoder's positions loses the beginning of what is read before it, and then its end.
    """
    shortened = [_shortened(text, cfg.max_len) for text in texts]
    for numbers, batch in batches(shortened, rows * sharding.batch_ways(mesh), multiple):
        vectors = bert.embed(weights, cfg, *sharding.put_batch(batch, mesh))
        yield numbers, np.asarray(jax.device_put(vectors, sharding.replicated(mesh)))[: len(numbers)]


def _shortened(text: Text, longest: int) -> Text:
    """The text with at most `longest` tokens, of which the first and the last stay."""
    tokens, before = text
    tokens = tokens if len(tokens) <= longest else (*tokens[: longest - 1], tokens[-1])
    room = longest - len(tokens)
    before = before if len(before) <= room else (*before[:1], *before[len(before) - room + 1 :]) if room else ()
    return Text(tokens, before)


class Rows(NamedTuple):
    """Texts in rows, one a row: their tokens after what is read before them, the place of the first token whose state
    counts, and that after the last one. Rows without a text end after one token."""

    tokens: np.ndarray  # [R, T]
    first: np.ndarray  # [R]
    ends: np.ndarray  # [R]


def batches(texts: Sequence[Text], size: int, multiple: int) -> Iterator[tuple[np.ndarray, Rows]]:
    """The numbers of texts with their rows, `size` texts at once, padded to a multiple of so many tokens."""
    sequences = [(*text.before, *text.tokens) for text in texts]
    # Texts of similar length together have little padding.
    order = np.argsort([len(ids) for ids in sequences], kind='stable')
    for start in range(0, len(texts), size):
        numbers = order[start : start + size]
        longest = max(len(sequences[i]) for i in numbers)
        tokens = np.zeros((size, round_up(longest, multiple)), np.int32)
        first, ends = np.zeros(size, np.int32), np.ones(size, np.int32)
        for r, i in enumerate(numbers):
            tokens[r, : len(sequences[i])] = sequences[i]
            first[r], ends[r] = len(texts[i].before), len(sequences[i])
        yield numbers, Rows(tokens, first, ends)


# The function is compiled here, so that one program reads all texts of a length.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _read(
    params: Params, tokens: Array, first: Array, ends: Array, cfg: ModelConfig, mesh: Mesh, pool: Pool
) -> Float[Array, 'R *T D']:
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    segments = (place < ends[:, None]).astype(jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        states = decoder.forward(params, cfg, tokens, place, segments, segments).astype(jnp.float32)
    if pool != 'tokens':
        first = ends - 1 if pool == 'last' else first
        counts = (place >= first[:, None]) & (place < ends[:, None])
        states = jnp.einsum('rtd,rt->rd', states, counts.astype(jnp.float32)) / (ends - first)[:, None]
    return jax.lax.with_sharding_constraint(states, sharding.replicated(mesh))


def token_starts(texts: Sequence[Text]) -> np.ndarray:
    """The number of each text's first token, `[texts]`, counted through all texts."""
    return np.concatenate([[0], np.cumsum([len(text.tokens) for text in texts])[:-1]])


class Frame(NamedTuple):
    """The axes of principal coordinates, which are `(x - mean) @ basis` for a vector x."""

    mean: np.ndarray  # [H]
    basis: np.ndarray  # [H, width]


def frame(table: np.ndarray, width: int, chunk: int = 65536) -> Frame:
    """The axes of the first `width` principal coordinates of rows, in units in which their mean square is 1."""
    # The table may lie on disk, so it is read a chunk at a time.
    starts = range(0, len(table), chunk)
    mean = np.sum([table[s : s + chunk].sum(axis=0, dtype=np.float64) for s in starts], axis=0) / len(table)
    centred = (table[s : s + chunk] - mean for s in starts)
    values, vectors = np.linalg.eigh(sum(part.T @ part for part in centred) / len(table))
    return Frame(mean, vectors[:, ::-1][:, :width] / np.sqrt(values[::-1][:width].mean()))


def in_frame(table: np.ndarray, axes: Frame, chunk: int = 65536) -> np.ndarray:
    """The principal coordinates of rows, which are read a chunk at a time."""
    parts = (table[s : s + chunk] - axes.mean for s in range(0, len(table), chunk))
    return np.concatenate([(part @ axes.basis).astype(np.float32) for part in parts])


def first_layers(cfg: C, layers: int) -> C:
    """The model with its first `layers` layers (0: all), followed by its final norm, if it has one.

    Raises:
      ValueError: the model has fewer layers.
    """
    if not 0 <= layers <= cfg.layers:
        raise ValueError(f'text.layers={layers} must be between 0 (all) and {cfg.layers}')
    return dataclasses.replace(cfg, layers=layers or cfg.layers)


def first_weights(params: Params, cfg: ModelConfig) -> Params:
    """The weights of a decoder's first `cfg.layers` layers, its embedding and its final norm."""
    kept = {name: x for name, x in params.items() if name != 'unembed'}
    return {**kept, 'layers': jax.tree.map(lambda x: x[: cfg.layers], params['layers'])}
