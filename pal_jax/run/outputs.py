"""Outputs: a folder or file that a command writes appears in one piece, and replaces only what this program wrote.

    with whole_folder(Path('my_model'), sources=[Path('runs/a')]) as folder:     # a fresh folder beside my_model
        ...                                                                      # takes its name at the end

A folder is replaced only where this program wrote all files in it: `.pal_jax.json` lists the files with their sizes and
SHA-256 sums. A run, a source, a folder with a further file or a changed file, and a folder without that list are
refused, before any work and once more at the end. A file that the user names is never replaced. A file that the program
names (`evaluation.json` of a run) is replaced where the list of its folder has it.

A write that was killed leaves `.<name>.partial-<8 digits>` beside the place. It blocks nothing and may be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pal_jax.run.files import fresh_beside, write_whole

MARKER, KEYS = '.pal_jax.json', ('size', 'modified', 'sha256')
HINT = 'give another place, or move it away'
RUNS_OWN = 'checkpoints', 'kept'  # folders of a run, which reads every file in them


# --- folders ----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, sources: Iterable[Path] = ()) -> Path:
    """The place of a folder that is to be written, with links followed. `sources` are folders that are read.

    Raises:
      ValueError: the place is a file, a run or a source, or has a file that this program did not write or that somebody
        has changed.
    """
    place = folder.expanduser().resolve()
    for source in sources:
        if source.exists() and source.resolve().is_relative_to(place):
            raise ValueError(f'{folder} would be written over {source}, which is read; give another place')
    _check_reachable(folder, place)
    if place.exists() and not place.is_dir():
        raise ValueError(f'{folder} is a file, a folder is to be written; {HINT}')
    if place.exists() and Path.cwd().is_relative_to(place):
        raise ValueError(f'{folder} is the working directory, or holds it; give another place')
    if (place / 'checkpoints').is_dir():
        raise ValueError(f'{folder} is a run, which has checkpoints; give another place')
    if place.exists() and (foreign := _foreign(place)):
        raise ValueError(f'{folder} exists and {foreign}; {HINT}')
    return place


@contextlib.contextmanager
def whole_folder(folder: Path, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block has ended without an error.

    Raises:
      ValueError: as `check_folder`. At the end of the block the message names the fresh folder, which stays.
    """
    sources = list(sources)
    place = check_folder(folder, sources)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = fresh_beside(place, 'partial')
    partial.mkdir()
    try:
        yield partial
        states = {_name(path, partial): [_state(path)] for path in _files(partial)}
        _write_marker(partial, {name: state for name, state in states.items() if name != MARKER}, whole=True)
    except BaseException:
        shutil.rmtree(partial)
        raise
    try:
        check_folder(folder, sources)
    except ValueError as error:
        raise ValueError(f'{error}. What was made is in {partial}') from None
    if not place.exists() or not any(place.iterdir()):
        partial.rename(place)
        return
    earlier = fresh_beside(place, 'replaced')
    place.rename(earlier)
    partial.rename(place)
    _remove(earlier)


def _foreign(place: Path) -> str:
    """The reason not to replace an existing folder; '' where every file in it is as this program wrote it."""
    if not any(place.iterdir()):
        return ''
    marker = _read_marker(place)
    if not marker['whole']:
        first = min(path.name for path in place.iterdir())
        return f'holds {first}, and no list says that this program wrote all of it'
    folders = {str(parent) for name in marker['files'] for parent in Path(name).parents}
    for path in sorted(place.rglob('*')):
        name = _name(path, place)
        if name in folders and path.is_dir() and not path.is_symlink():
            continue
        if name != MARKER and (why := _not_as_written(path, marker['files'].get(name, ()))):
            return why
    return ''


def _remove(folder: Path) -> None:
    """Delete the files that a folder's list names, then the folder. A file that came later stays, with its folder."""
    written = {*_read_marker(folder)['files'], MARKER}
    for path in _files(folder):
        if _name(path, folder) in written:
            path.unlink()
    with contextlib.suppress(OSError):
        for inner in sorted((path for path in folder.rglob('*') if path.is_dir()), reverse=True):
            inner.rmdir()
        folder.rmdir()


# --- files ------------------------------------------------------------------------------------------------------------


def check_file(path: Path, *, named_here: bool = False) -> Path:
    """The place of a file that is to be written, with links followed.

    `named_here` says that the program has named the file.

    Raises:
      ValueError: the folder does not exist, or the file does. A file that the program has named may exist where the
        list of its folder has it unchanged.
    """
    place = path.expanduser().resolve()
    if not place.parent.is_dir():
        raise ValueError(f'{path}: there is no folder {path.parent}; make it, or give another place')
    _check_reachable(path, place)
    if place.is_dir():
        raise ValueError(f'{path} is a folder, a file is to be written; give the name of a file')
    if not place.exists():
        return place
    if not named_here:
        raise ValueError(f'{path} exists, and a file that is there is not replaced; {HINT}')
    if why := _not_as_written(place, _read_marker(place.parent)['files'].get(place.name, ())):
        raise ValueError(f'{path} exists and {why}; {HINT}')
    return place


@contextlib.contextmanager
def whole_file(path: Path, *, named_here: bool = False) -> Iterator[Path]:
    """The path of a fresh file that becomes `path` when the block has ended without an error.

    Raises:
      ValueError: as `check_file`. At the end of the block the message names the fresh file, which stays.
    """
    place = check_file(path, named_here=named_here)
    partial = fresh_beside(place, 'partial')
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    try:
        check_file(path, named_here=named_here)
    except ValueError as error:
        raise ValueError(f'{error}. What was made is in {partial}') from None
    if named_here:  # the list comes first: a process killed between leaves the earlier file, which the list has, too
        marker = _read_marker(place.parent)
        states = [*marker['files'].get(place.name, [])[-1:], _state(partial)]
        _write_marker(place.parent, marker['files'] | {place.name: states}, whole=marker['whole'])
    partial.replace(place)


# --- the list ---------------------------------------------------------------------------------------------------------


def _check_reachable(path: Path, place: Path) -> None:
    """Raise ValueError where no file or folder can be made at a place, or a run would take it for a part of itself.

    `path` is the path that the user gave, and `place` the same path with links followed.
    """
    for folder in place.parents:
        if folder.name in RUNS_OWN and (folder.parent / 'config.json').is_file():
            raise ValueError(f'{path} would be among the {folder.name} of the run {folder.parent}; give another place')
    above = next((folder for folder in place.parents if folder.exists()), place)
    if not above.is_dir():
        raise ValueError(f'{path}: {above} is a file; give a place in a folder')
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f'{path}: {above} cannot be written to; give a place in a folder of yours')


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if path.is_file()]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _state(path: Path) -> dict[str, Any]:
    """The size, time of modification and SHA-256 sum of a file, by `KEYS`."""
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    stat = path.stat()
    return dict(zip(KEYS, (stat.st_size, stat.st_mtime_ns, digest), strict=True))


def _not_as_written(path: Path, states: Sequence[dict[str, Any]] = ()) -> str:
    """The difference between a file and the `states` that its folder's list has of it; '' where it equals one of them.

    A file with another time of modification is hashed, since it may be a copy.
    """
    if not states or not path.is_file() or path.is_symlink():
        return f'{path.name} is not of this program'
    stat = path.stat()
    alike = [state for state in states if state['size'] == stat.st_size]
    if any(state['modified'] == stat.st_mtime_ns for state in alike):
        return ''
    same = alike and _state(path)['sha256'] in [state['sha256'] for state in alike]
    return '' if same else f'{path.name} was changed since this program wrote it'


def _read_marker(folder: Path) -> dict[str, Any]:
    """The list of a folder, which has the states of each file by name.

    A list that is missing or cannot be read counts as empty, so that nothing in the folder is replaced.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding='utf-8'))
        files = {
            name: [{key: state[key] for key in KEYS} for state in states] for name, states in marker['files'].items()
        }
        return {'whole': marker['whole'] is True, 'files': files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {'whole': False, 'files': {}}


def _write_marker(folder: Path, files: dict[str, Any], *, whole: bool) -> None:
    text = json.dumps({'written by': 'pal_jax', 'whole': whole, 'files': files}, indent=2) + '\n'
    write_whole(folder / MARKER, text)
