"""What a frozen decoder makes of texts: a vector each, computed once and kept on disk, where it is memory-mapped.

    table = stored('runs/states', texts, {'source': ..., 'layers': 20}, compute)      # [S, D]

The file's name is a hash of the texts and of all that `settings` says, so others are computed anew. Weights that change
under one name are not noticed: delete the file then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.data.packing import round_up
from pal_jax.models import decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.runtime import sharding
from pal_jax.runtime.processes import exchange

Pool = Literal['mean', 'last']


def stored(
    folder: str | Path, texts: Sequence[str], settings: Mapping[str, Any],
    compute: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]], width: int,
) -> np.ndarray:  # fmt: skip
    """The table `[texts, width]`, memory-mapped; where it is not there yet, made of what `compute()` gives, numbers of
    texts with their vectors. Of several processes the first one writes, and all need to see the folder.

    Raises:
      RuntimeError: a vector is not finite.
    """
    key = hashlib.sha256(json.dumps([dict(settings), list(texts)], sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f'{key}.npy'
    if not exchange('states', path.exists())[0]:  # as the first process sees it: all compute, or none
        partial = path.with_suffix(f'.partial{os.getpid()}')
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.lib.format.open_memmap(partial, 'w+', np.float32, (len(texts), width))
        for numbers, vectors in compute():
            if not np.isfinite(vectors).all():
                raise RuntimeError(f'the state of text {texts[numbers[0]][:60]!r} or of one near it is not finite')
            table[numbers] = vectors
        table.flush()
        if jax.process_index() == 0:
            partial.replace(path)
        else:
            partial.unlink()
    exchange('states written')
    return np.load(path, mmap_mode='r')


def hidden_states(
    params: Params, cfg: ModelConfig, mesh: Mesh, texts: Sequence[Sequence[int]], *, pool: Pool = 'mean',
    rows: int = 32, multiple: int = 32,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Numbers of texts and their vectors, `rows` a device at a time, texts of like length together: the mean over a
    text's tokens of the states after the final norm, or that of its last token. Layers past `cfg.layers` are cut."""
    params = {**params, 'layers': jax.tree.map(lambda x: x[: cfg.layers], params['layers'])}
    order = np.argsort([len(text) for text in texts], kind='stable')
    size = rows * sharding.batch_ways(mesh)

    @jax.jit
    def read(params: Params, tokens: Array, lengths: Array) -> Float[Array, 'R D']:
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        exists = place < lengths[:, None]
        segments = exists.astype(jnp.int32)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            states = decoder.forward(params, cfg, tokens, place, segments, segments).astype(jnp.float32)
        counts = exists if pool == 'mean' else place == lengths[:, None] - 1
        total = jnp.einsum('rtd,rt->rd', states, counts.astype(jnp.float32))
        out = total / (lengths[:, None].astype(jnp.float32) if pool == 'mean' else 1.0)
        return jax.lax.with_sharding_constraint(out, sharding.replicated(mesh))

    for start in range(0, len(texts), size):
        numbers = order[start : start + size]
        longest = max(len(texts[i]) for i in numbers)
        tokens = np.zeros((size, round_up(longest, multiple)), np.int32)
        for row, i in zip(tokens, numbers, strict=False):
            row[: len(texts[i])] = texts[i]
        lengths = np.ones(size, np.int32)
        lengths[: len(numbers)] = [len(texts[i]) for i in numbers]
        found = read(params, *sharding.put_batch((tokens, lengths), mesh))
        yield numbers, np.asarray(found)[: len(numbers)]


def first_layers(cfg: ModelConfig, layers: int) -> ModelConfig:
    """The decoder cut off after so many layers, with its final norm behind them; 0: all.

    Raises:
      ValueError: it has fewer.
    """
    if not 0 <= layers <= cfg.layers:
        raise ValueError(f'text.layers={layers} must be between 0 (all) and {cfg.layers}')
    return dataclasses.replace(cfg, layers=layers or cfg.layers)
