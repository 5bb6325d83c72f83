"""The files that a run reads from outside its folder. Their hashes when the run began are compared with those of now.

    now = look(config)                                # hashes by key and file
    save(workdir / KEPT, now)                         # when a run begins
    check(load(workdir / KEPT), now, workdir)         # when it goes on, before a weight is read

A folder stands for the files in it, and a run of this package for its config and the sums of its last checkpoint. A
source that is no file here (a hub id, a data set of TFDS, a model inside a package) is not watched.
"""

from __future__ import annotations

import collections
import functools
import glob
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatch
from os.path import exists, isfile  # False, and no error, for a text that is too long for a path
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax

from pal_jax.data.readers import choices, votes
from pal_jax.models.files import packages
from pal_jax.objectives.dpo import PairLoss
from pal_jax.run import made, own, processes, stores
from pal_jax.run.checkpoint import CONFIG, FOLDER, flatten, kept_in
from pal_jax.run.files import write_whole
from pal_jax.run.named_files import KEYS, LISTS
from pal_jax.run.recipe import KEPT
from pal_jax.run.runs import recipe_module

FILE = 'inputs.json'
WORDS = 'embedded', 'rule'  # values of these keys that stand for data of this package, beside those of its methods
ELSEWHERE = 'random:', 'gguf:package:', 'tfds:', 'endpoint:'
WHOLE, BLOCKS, BLOCK = 1 << 28, 64, 1 << 16


class Input(NamedTuple):
    """A file or folder that a config names."""

    # The config's text, such as hf:models/tiny.
    value: str
    # The part of the value before the path, such as hf:.
    kind: str
    # The absolute path.
    path: str
    # The hashes of the files there, by name.
    files: dict[str, str]
    # Changes of an own function since the run began, see `watched`.
    changes: Sequence[str] = ()


Inputs = dict[str, Input]  # the inputs by their keys in the config


def look(config: dict[str, Any]) -> Inputs:
    """The files that a config names under `KEYS`."""
    inputs: Inputs = {}
    recipe = config.get('recipe', '')
    method = recipe if own.is_own(recipe) else recipe.partition('.')[0]
    words = (recipe, *getattr(recipe_module(method), 'MADE', ())) if method else ()
    for key, value in _entries(flatten(config)):
        if (value in words and not own.is_own(value)) or not any(fnmatch(key, pattern) for pattern in KEYS):
            continue
        # A user's own files have an entry each, and so have functions of a Python program.
        if functions := [*own.named_in(value), *own.given_in(value)]:
            for number, (text, file) in enumerate(functions):
                if isinstance(file, str):
                    entry = text, {text: file}
                else:
                    # A method is all of its file; any other function is what it uses of the file.
                    whole = digest(file) if key == 'recipe' else own.digest(file, text.rpartition(':')[2])
                    entry = str(file.absolute()), {file.name: whole}
                inputs[f'{key}.{number}'] = Input(text, '', *entry)
        elif files := _several(value):
            for number, file in enumerate(files):
                inputs[f'{key}.{number}'] = Input(str(file), '', str(file.absolute()), hashes(file))
        elif path := path_of(value):
            inputs[key] = Input(value, value[: -len(_ending(value))], str(path.absolute()), hashes(path))
    return inputs


def _entries(flat: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys and values of a config; those of `LISTS` have a key for each entry, such as texts.0."""
    for key, value in flat.items():
        if key in LISTS and isinstance(value, list | tuple):
            yield from ((f'{key}.{number}', entry) for number, entry in enumerate(value))
        else:
            yield key, value


def _several(value: Any) -> list[Path]:
    """The files of a list with commas or of a glob, by itself or behind `kind:`; empty for any other value."""
    if not isinstance(value, str) or path_of(value) or not set(value) & set(',*?['):
        return []
    *_, names = value.split(':')
    files = [file for name in names.split(',') for file in glob.glob(name.strip(), recursive=True)]
    return sorted(Path(file) for file in files if isfile(file))


def path_of(value: Any) -> Path | None:
    """The path that a value names, by itself or behind `kind:`, as in jester:<folder>; None where nothing is there."""
    if not isinstance(value, str) or value in _made() or value.startswith(ELSEWHERE):
        return None
    return Path(ending) if (ending := _ending(value)) else None


@functools.cache
def _made() -> frozenset[str]:
    """The names of data that are made here, of models inside packages and of losses, which are no files."""
    return frozenset((*WORDS, *choices.TABLES, *made.names(), *packages.DECODERS, *get_args(PairLoss)))


def _ending(value: str) -> str:
    """The path at the end of a value, after as many `kind:` as it takes until a path exists; '' where none does."""
    while value and not (exists(value) or any(exists(f'{value}{part}') for part in votes.PARTS)):
        value = value.partition(':')[2]
    return value


def find(began: Inputs, key: str, value: str) -> str:
    """The source that `value` named when a run began.

    Raises:
      ValueError: the source is at neither path, or has changed.
    """
    if key not in began:
        if path := path_of(value):
            raise ValueError(f'{key}={value!r} was no folder when the run began, and {path.absolute()} is one; move it')
        return value
    then, faults = began[key], []
    # The source is looked for at the path of now, then at that of then.
    for path in dict.fromkeys([path_of(value) or Path(then.path), Path(then.path)]):
        now = hashes(path) if path.exists() else {}
        if not now:
            faults.append(f'{path} is missing')
        elif changed := [name for name, old in then.files.items() if now.get(name) != old]:
            faults.append(f'{path.parent / changed[0]} has changed')
        else:
            return f'{then.kind}{path}'
    raise ValueError(f'{key}={value!r} is needed as it was when the run began, and {", ".join(faults)}; put it back')


def hashes(path: Path) -> dict[str, str]:
    """The hashes of the files at a path, by name, see `digest`."""
    return {file.relative_to(path.parent).as_posix(): digest(file) for file in files_of(path)}


def files_of(path: Path) -> list[Path]:
    """The files that a path stands for.

    They are the file itself, the files of a conversation, the files of a folder that are not hidden, or, for a run, its
    config and the sums of its last checkpoint.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return _votes(path)
    if not (path / FOLDER).is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith('.'))
    last = max((int(step.name) for step in (path / FOLDER).iterdir() if step.name.isdigit()), default=0)
    return [file for file in (path / CONFIG, path / FOLDER / str(last) / 'host' / 'metadata') if file.is_file()]


def _votes(path: Path) -> list[Path]:
    return [file for part in votes.PARTS if (file := Path(f'{path}{part}')).is_file()]


def digest(path: Path) -> str:
    """The hash of a file, over all its bytes or over blocks, see `_digest`."""
    stat = path.stat()
    # A file that has changed has another size or time, so it is hashed anew.
    return _digest(path.absolute(), stat.st_size, stat.st_mtime_ns)


# Stages of one run read the same files.
@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open('rb') as file:
        # A file of up to `WHOLE` bytes is hashed whole.
        if size <= WHOLE:
            return hashlib.file_digest(file, 'sha256').hexdigest()
        # For a larger file, its size and `BLOCKS` blocks evenly apart are hashed. So weights and columns of many
        # gigabytes take a moment, and a change of single bytes between the blocks is not noticed.
        hasher = hashlib.sha256(str(size).encode())
        for block in range(BLOCKS):
            file.seek((size - BLOCK) * block // (BLOCKS - 1))
            hasher.update(file.read(BLOCK))
        return hasher.hexdigest()


def save(folder: Path, inputs: Inputs) -> None:
    """Write the inputs of a run that begins, or that goes on with a function that has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps({key: entry._asdict() for key, entry in inputs.items()}, indent=2) + '\n')


def load(folder: Path) -> Inputs | None:
    """The inputs of a run when it began, or when a function was last changed; None where its folder has no such file.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        text = stores.local(path.read_text(encoding='utf-8'))
        entries = {key: Input(**entry) for key, entry in json.loads(text).items()}
        return {key: entry._replace(changes=(*entry.changes,)) for key, entry in entries.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'{path} cannot be read ({error}); copy the folder of the run again') from None


def mended(workdir: Path) -> dict[str, int]:
    """The number of changes of each own function since a run began, by its key; nothing of functions without."""
    entries = load(folder) if (folder := kept_in(workdir)) else None
    counts = collections.Counter[str]()
    for key, entry in (entries or {}).items():
        counts[without_number(key)] += len(entry.changes)
    return {key: count for key, count in counts.items() if count}


def watched(config: dict[str, Any], workdir: Path, log: Callable[[str], None], changed: Collection[str] = ()) -> Inputs:
    """The files that a run of this config reads, the same in all its processes.

    An own function under a key of `changed` may be another one than before; the run's folder keeps that it has changed.

    Raises:
      ValueError: another process reads other files, or a file has changed since the run began, see `check`.
    """
    now = look(config)
    first, *others = processes.exchange('inputs', {key: entry.files for key, entry in now.items()})
    for number, theirs in enumerate(others, 1):
        if differing := [key for key in sorted(first.keys() | theirs.keys()) if first.get(key) != theirs.get(key)]:
            raise ValueError(f'process {number} reads another {differing[0]} than process 0; give all the same files')
    before = compare(now, workdir, log, changed)
    now = {key: entry._replace(changes=_changes(before.get(key), entry)) for key, entry in now.items()}
    if changed and jax.process_index() == 0 and (folder := kept_in(workdir)):
        save(folder, before | now)
    return now


def _changes(before: Input | None, now: Input) -> tuple[str, ...]:
    """The changes of an input since its run began, as lines."""
    if before is None:
        return ()
    hashes_of = (
        (name, old, now.files.get(name, '')) for name, old in before.files.items() if not _is_same(now, name, old)
    )
    return (*before.changes, *(f'{name}, sha256 {old[:8]} -> {new[:8]}' for name, old, new in hashes_of))


def _is_same(now: Input, name: str, old: str) -> bool:
    """True where a file, or a function in it, has the hash that it had before."""
    if now.files.get(name, '') == old:
        return True
    # Runs of earlier versions have the hash of the whole file of a function.
    return bool(own.NAMED.fullmatch(now.value)) and isfile(now.path) and digest(Path(now.path)) == old


def compare(now: Inputs, workdir: Path, log: Callable[[str], None] = print, changed: Collection[str] = ()) -> Inputs:
    """Compare the inputs of a run now with those before, if it has begun. Raises ValueError as `check` does.

    Returns:
      The inputs before; none of a run that begins.
    """
    if not (folder := kept_in(workdir)):
        return {}
    if (before := load(folder)) is None:
        log(f'{folder / FILE} is missing, so it is not known whether the files that {workdir} reads have changed')
        return {}
    check(before, now, workdir, changed)
    return before


def check_shared(now: Inputs, run: Path) -> None:
    """Compare inputs with those of another run when it began, for the keys that have the same value in both configs.

    Raises:
      ValueError: see `check`.
    """
    began = load(run / KEPT) or {}
    shared = [key for key, then in began.items() if key in now and now[key].value == then.value]
    check({key: began[key] for key in shared}, {key: now[key] for key in shared}, run)


def without_number(key: str) -> str:
    """The config's key of an input that is one of several under it: `reward.function` of `reward.function.0`."""
    return re.sub(r'\.\d+$', '', key)


def check(before: Inputs, now: Inputs, run: Path, changed: Collection[str] = ()) -> None:
    """Compare the inputs of a run now with those before. Own functions under the keys `changed` may be others.

    Raises:
      ValueError: a file has changed or is gone. The message names its key and the file.
    """
    for key, (value, _, path, files, _) in before.items():
        if key not in now:
            # A model's source that is missing is no change: where its weights are needed, `find` looks for it and names
            # it.
            if not key.endswith('source') and not value.startswith(own.PYTHON):
                raise ValueError(f'{key}={value!r} is not there; it was {path} when {run} began: put it back')
            continue
        named, place = without_number(key), Path(now[key].path).parent
        if named in changed and own.is_own(value):
            continue
        # Further files in a folder are no change.
        for name, old in files.items():
            if not _is_same(now[key], name, old):
                new = now[key].files.get(name, '')
                function = value.rpartition(':')[2] if own.NAMED.fullmatch(value) else ''
                subject = f'{function} of {place / name}, or code that it uses,' if function else place / name
                how = f'has other content than {run} began with (sha256 {old[:8]} -> {new[:8]})' if new else 'is gone'
                mended = f', or go on with what it is now by --changed={named}' if own.is_own(value) else ''
                raise ValueError(f'{named}={value!r}: {subject} {how}; restore it, or give another --workdir{mended}')
    # A run of an earlier version has no digests of some functions.
    if new := [key for key in now if key not in before and not own.is_own(now[key].value)]:
        entry = now[new[0]]
        raise ValueError(
            f'{without_number(new[0])}={entry.value!r} was no file when {run} began, and {entry.path} is one; give '
            'another --workdir'
        )
