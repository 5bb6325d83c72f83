"""Safetensors files, tensor by tensor. A tensor is read when it is indexed, and written when it is made."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from pal_jax.run.files import read_object

# The number of numbers that are checked at once.
BLOCK = 1 << 20
INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'
DTYPES = {
    'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
    'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write all arrays to a file at once, with the permissions of other files."""
    # The library makes files that only their owner can read, so the mode is that of a plain file.
    path.touch()
    mode = path.stat().st_mode
    save_file(arrays, path, metadata={'format': 'pt'})
    path.chmod(mode)


def check_finite(x: np.ndarray, name: str) -> None:
    """Raise ValueError where a number is NaN or infinite. A block of rows is checked at a time."""
    x = np.atleast_1d(x)
    size = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x) if jnp.issubdtype(x.dtype, jnp.floating) else 0, size):
        rows = x[start : start + size]
        if not _finite(rows):
            place = np.argwhere(~np.isfinite(rows))[0]
            value, place = rows[tuple(place)], [start + int(place[0]), *map(int, place[1:])]
            raise ValueError(
                f'{name} has {value} at {place}; weights have to be finite: take an earlier or whole model'
            )


def _finite(x: np.ndarray) -> bool:
    # The bits of bfloat16 are checked, which takes a third of the time of np.isfinite.
    if x.dtype == jnp.bfloat16:
        return not x.size or (x.view(np.uint16) & 0x7FFF).max() < 0x7F80
    return bool(np.isfinite(x).all())


class TensorLike(Protocol):
    """An array, or a tensor in a file that is read when it is indexed with slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class StoredTensor:
    """A tensor in a safetensors file. Indexing reads the values that are asked for."""

    def __init__(self, file: Any):
        self._file = file
        self.shape: tuple[int, ...] = tuple(file.get_shape())
        self.dtype: np.dtype = jnp.dtype(DTYPES[file.get_dtype()])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._file[index]


class TensorSpec(NamedTuple):
    """The shape and dtype of a tensor, which a file has before the values."""

    shape: tuple[int, ...]
    dtype: np.dtype


def files(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model, by the tensor's name.

    Raises:
      ValueError: there are no safetensors, or they cannot be read.
    """
    if (folder / INDEX).exists():
        shards = read_object(folder / INDEX).get('weight_map')
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise ValueError(f'{folder / INDEX} has no weight_map of tensors and their files; download it again')
        return {name: folder / file for name, file in shards.items()}
    path = folder / SINGLE
    if not path.exists() and (shards := sorted(folder.glob('model-*-of-*.safetensors'))):
        return _without_index(shards)
    if not path.exists():
        raise ValueError(f'no {SINGLE} in {folder}; give the folder of a model, or orbax:{folder} of a run')
    return dict.fromkeys(names(path), path)


def _without_index(shards: list[Path]) -> dict[str, Path]:
    """The file of every tensor of shards that have no index. Raises ValueError where one is missing or has a name of
    another one."""
    parts = [re.fullmatch(r'model-(\d+)-of-(\d+)', path.stem) for path in shards]
    numbers = [tuple(map(int, part.groups())) for part in parts if part]
    # Without an index the names alone say whether all shards are there.
    if numbers != [(k + 1, len(shards)) for k in range(len(shards))]:
        raise ValueError(f'{shards[0].parent} has {len(shards)} shards such as {shards[0].name}; get those missing')
    file_of: dict[str, Path] = {}
    for path in shards:
        for name in names(path):
            if file_of.setdefault(name, path) != path:
                raise ValueError(f'{path} has {name}, which {file_of[name].name} has, too; download the model again')
    return file_of


def names(path: Path) -> list[str]:
    """The names of the tensors in a file."""
    with open_tensors(path) as f:
        return list(f.keys())


def stored(path: Path, name: str) -> StoredTensor:
    """A tensor of a file. Raises ValueError where the file has no tensor of this name, or as `check_kinds`."""
    with open_tensors(path) as f:
        try:
            file = f.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f'{path} has no tensor {name} ({error}); download it again') from None
        _check_kind(path, name, file.get_dtype())
        return StoredTensor(file)


def check_kinds(path: Path) -> None:
    """Raise ValueError where a tensor of a file is quantised, or of a kind of numbers that numpy does not have."""
    with open_tensors(path) as f:
        for name in list(f.keys()):
            _check_kind(path, name, f.get_slice(name).get_dtype())


def _check_kind(path: Path, name: str, kind: str) -> None:
    """Raise ValueError for a weight of quantised numbers, and for kinds of numbers that numpy does not have."""
    # The scales of quantised weights stand in other tensors.
    if kind not in DTYPES or (name.endswith(('weight', 'bias')) and kind[0] in 'IUB' and kind != 'BF16'):
        raise ValueError(
            f'{path}: {name} is of {kind}, and quantised weights are not read; save the model in bfloat16 or float32, '
            'or take a GGUF file of it'
        )


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name. Raises ValueError where the file cannot be read, or as `check_kinds`."""
    check_kinds(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} cannot be read ({error}); download it again') from error


def open_tensors(path: Path) -> Any:
    """An open safetensors file. Raises ValueError where it cannot be read."""
    try:
        return safe_open(path, 'numpy')
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} cannot be read ({error}); download it again') from error


def write(path: Path, kinds: Mapping[str, TensorSpec], make: Callable[[str], np.ndarray]) -> None:
    """Write a safetensors file of the tensors `make(name)`. Each is made when those before it are on the disk."""
    # The library safetensors writes a file from all its tensors at once. Here the header comes first, from shapes
    # alone, and one tensor is in memory at a time.
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    codes, end = {jnp.dtype(name): code for code, name in DTYPES.items()}, 0
    for name, kind in kinds.items():
        start, end = end, end + math.prod(kind.shape) * kind.dtype.itemsize
        header[name] = {'dtype': codes[kind.dtype], 'shape': kind.shape, 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    # Spaces align the values that follow.
    text += b' ' * (-len(text) % 8)
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name, kind in kinds.items():
            x = make(name)
            assert (x.shape, x.dtype) == kind, f'{name} is {x.dtype}{x.shape}, announced was {kind}'
            file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
