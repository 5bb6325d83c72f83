"""Outputs: a folder or file that a command writes appears in one piece, and takes no other one's place.

    with whole_folder(Path('my_model'), sources=[Path('runs/a')]) as folder:     # a fresh folder beside my_model
        ...                                                                      # takes its name at the end

A folder or file that exists is refused, before any work and once more at the end. What a run makes anew is not: a
folder in the run's own, such as `export/`, is replaced where it has no other files than the new one, and so is a file
that the program has named (`evaluation.json`).

A write that was killed leaves `.<name>.partial-<8 digits>` beside the place. It blocks nothing and may be deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pal_jax.run.files import fresh_beside

HINT = 'give another place, or move it away'
# Folders of a run, which reads every file in them.
RUNS_OWN = 'checkpoints', 'kept'
# A list of files that earlier versions left in their folders.
EARLIER = '.pal_jax.json'


def check_folder(folder: Path, sources: Iterable[Path] = ()) -> Path:
    """The place of a folder that is to be written, with links followed. `sources` are folders that are read.

    Raises:
      ValueError: the place is a file, a source, the working directory or a folder with anything in it. One in the
        folder of a run, which is no run itself, may exist.
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
    names = sorted(path.name for path in place.iterdir()) if place.exists() else ()
    if names and (_is_run(place) or not _is_run(place.parent)):
        raise ValueError(f'{folder} exists and holds {names[0]}, and a folder that is there is not replaced; {HINT}')
    return place


@contextlib.contextmanager
def whole_folder(folder: Path, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block has ended without an error.

    Raises:
      ValueError: as `check_folder`, or a folder of a run has further files. At the end of the block the message names
        the fresh folder, which stays.
    """
    sources = list(sources)
    place = check_folder(folder, sources)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = fresh_beside(place, 'partial')
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    try:
        check_folder(folder, sources)
        if further := _names(place) - _names(partial) - {EARLIER}:
            raise ValueError(f'{folder} has {min(further)}, which the new one has not; {HINT}')
    except ValueError as error:
        raise ValueError(f'{error}. What was made is in {partial}') from None
    # The earlier folder goes aside before the new one takes its name, so no reader finds a mixture.
    if place.exists() and any(place.iterdir()):
        earlier = fresh_beside(place, 'replaced')
        place.rename(earlier)
        partial.rename(place)
        shutil.rmtree(earlier)
    else:
        partial.rename(place)


def check_file(path: Path, *, named_here: bool = False) -> Path:
    """The place of a file that is to be written, with links followed.

    Raises:
      ValueError: the folder does not exist, or the file does. A file that the program has `named_here` may exist, but
        not in the folder of somebody's model.
    """
    place = path.expanduser().resolve()
    if not place.parent.is_dir():
        raise ValueError(f'{path}: there is no folder {path.parent}; make it, or give another place')
    _check_reachable(path, place)
    if place.is_dir():
        raise ValueError(f'{path} is a folder, a file is to be written; give the name of a file')
    # A config.json beside the place may be that of somebody's model.
    model = (place.parent / 'config.json').is_file() and not _is_run(place.parent)
    if place.exists() and (model or not named_here):
        raise ValueError(f'{path} exists, and a file that is there is not replaced; {HINT}')
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
    partial.replace(place)


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


def _is_run(folder: Path) -> bool:
    return (folder / 'config.json').is_file() and (folder / 'checkpoints').is_dir()


def _names(folder: Path) -> set[str]:
    """The files, empty folders and links in a folder and in those below it, by their paths from there."""
    paths = folder.rglob('*') if folder.is_dir() else ()
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }
