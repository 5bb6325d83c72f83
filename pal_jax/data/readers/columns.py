"""Pairs of vectors that are too many for memory: a folder of arrays, memory-mapped and read a batch at a time.

    items.npy      [S, H] float32, the vectors of all items
    users.npy      [n] int32, the user of each pair, from 0
    chosen.npy     [n] int32, the number of the chosen item
    rejected.npy   [n] int32, the number of the rejected item
    names.txt      the users' names, one a line, all different; without the file users are called by their numbers

`write` takes the pairs in parts, so that they need not be in memory at once.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup, alike, default_names, row_keys
from pal_jax.data.holdouts import normal
from pal_jax.data.records import identity
from pal_jax.run import files
from pal_jax.run.outputs import whole_folder

PAIRS = ('users', 'chosen', 'rejected')
# The number of rows that are checked at once.
CHUNK = 1 << 20
# Errors that numpy raises where the header of an array, which is a literal of Python, is damaged.
HEADER = SyntaxError, TokenError, TypeError, KeyError, OverflowError, MemoryError, RecursionError, NotImplementedError


def write(
    folder: str | Path, items: np.ndarray, parts: Iterable[Sequence[np.ndarray]], count: int, names: Sequence[str] = ()
) -> None:
    """Write a folder of `count` pairs. Each part has three arrays: users, chosen and rejected items, by number.

    Raises:
      ValueError: the parts do not add up to `count`, or the folder exists, see `outputs.check_folder`.
    """
    with whole_folder(Path(folder)) as partial:
        np.save(partial / 'items.npy', np.asarray(items, np.float32))
        columns = [np.lib.format.open_memmap(partial / f'{name}.npy', 'w+', np.int32, (count,)) for name in PAIRS]
        start = 0
        for part in parts:
            end = start + len(part[0])
            if end > count:
                raise ValueError(f'{folder}: the parts have more than the {count} pairs announced')
            for column, values in zip(columns, part, strict=True):
                column[start:end] = values
            start = end
        if start != count:
            raise ValueError(f'{folder}: the parts have {start} of the {count} pairs announced')
        # What is not written yet would be missing when the folder gets its name.
        for column in columns:
            column.flush()
        if names:
            (partial / 'names.txt').write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')


def load(folder: str | Path) -> Comparisons:
    """The pairs of a folder, each a situation of its own. All numbers are checked here, a chunk at a time.

    Raises:
      ValueError: a file is missing or of another form, or a row is wrong. The message names file and row.
    """
    folder = Path(folder)
    items = _mapped(folder / 'items.npy', 2, np.float32)
    users, chosen, rejected = (_mapped(folder / f'{name}.npy', 1, np.int32) for name in PAIRS)
    if not len(users) == len(chosen) == len(rejected):
        raise ValueError(
            f'{folder}: there are {len(users)} users, {len(chosen)} chosen, {len(rejected)} rejected items'
        )
    if not len(users):
        raise ValueError(f'{folder} holds no pairs')
    for start in range(0, len(items), CHUNK):
        _refuse(~np.isfinite(items[start : start + CHUNK]).all(axis=1), start, folder / 'items.npy', 'is not finite')
    # Keys of the rows tell equal items apart without reading them for every pair.
    people, keys = 0, row_keys(items)
    for start in range(0, len(users), CHUNK):
        who, near, far = (np.asarray(column[start : start + CHUNK]) for column in (users, chosen, rejected))
        _refuse(who < 0, start, folder / 'users.npy', 'is no number of a user')
        for name, numbers in (('chosen', near), ('rejected', far)):
            place = folder / f'{name}.npy'
            _refuse((numbers < 0) | (numbers >= len(items)), start, place, f'is none of the {len(items)} items')
        _refuse(np.equal(near, far), start, folder / 'rejected.npy', 'is the chosen item; delete the pair')
        same = alike(items, keys, near, far)
        _refuse(same, start, folder / 'rejected.npy', 'has the same numbers as the chosen item; delete the pair')
        people = max(people, int(who.max()) + 1)
    return Comparisons(
        users=users,
        situations=np.arange(len(users)),
        chosen=Lookup(items, chosen),
        rejected=Lookup(items, rejected),
        prompt=None,
        names=_names(folder / 'names.txt', people),
        attributes=default_names(items.shape[1]),
    )


def _mapped(path: Path, axes: int, dtype: type) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; a folder of pairs has items.npy and {", ".join(PAIRS)}.npy')
    array = np.asanyarray(read_arrays(path, mapped=True))
    if array.ndim != axes or array.dtype != dtype:
        raise ValueError(f'{path} has {array.ndim} axes of {array.dtype}; give {axes} of {np.dtype(dtype)}')
    return array


def read_arrays(path: str | Path, *, mapped: bool = False) -> Any:
    """The array of an .npy file, memory-mapped if `mapped`, or the arrays of an .npz by name. Nothing is unpickled.

    Raises:
      ValueError: there is no such file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise ValueError(f'there is no file {path}')
    try:
        with Path(path).open('rb') as file, warnings.catch_warnings():
            # A header of Python 2 is read all the same.
            warnings.filterwarnings('ignore', 'Reading `.npy`', UserWarning)
            # An .npz is a zip archive, which cannot be mapped.
            zipped = file.read(2) == b'PK'
            file.seek(0)
            if mapped and not zipped:
                return np.lib.format.open_memmap(path, mode='r')
            # The file is opened here, since numpy would leave its own file of a damaged archive open.
            loaded = np.load(file)
            if not mapped and not isinstance(loaded, np.ndarray):
                return dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, *HEADER) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path} is no array that can be read ({reason}); write it again with numpy') from None
    raise ValueError(f'{path} is an {".npz" if mapped else ".npy"}; give an {".npy" if mapped else ".npz"} of arrays')


def _refuse(wrong: Any, start: int, path: Path, what: str) -> None:
    """Raise ValueError, with the first row, where an array of bools for the rows from `start` is anywhere True."""
    if wrong.any():
        raise ValueError(f'{path}, row {start + int(wrong.argmax())} {what}')


def _names(path: Path, people: int) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(map(str, range(people)))
    text = files.read_text(path).strip('\r\n')
    names, line_of = list[str](), dict[str, int]()
    for number, line in enumerate(text.split('\n') if text else (), 1):
        name = identity(f'{path}, line {number}', {'name': line}, 'name')
        if line_of.setdefault(normal(name), number) < number:
            raise ValueError(f'{path}, line {number}: {name!r} is the name in line {line_of[normal(name)]}, too')
        names.append(name)
    # The file may name more people than have a pair.
    if len(line_of) < people:
        raise ValueError(f'{path} has {len(line_of)} names, there are {people} users; give each a line')
    return tuple(names)
