"""Folders in an object store, `gs://bucket/folder`.

    folder = Path(local('gs://bucket/runs/rlpa'))      # a folder of this machine that mirrors it; its files are read
    target(folder)                                     # the URL, for Orbax and for JAX's compiled programs
    push(folder)                                       # what has changed in the folder becomes whole objects
    pull(folder)                                       # what others have changed is read

A store cannot append to a file, rename a folder or lock a file. So the files of a run are written in the mirror, as in
any folder, and each becomes one whole object whenever the run saves. The mirror is a temporary folder of one process.
It has all files of a run but the arrays of its checkpoints, which Orbax writes to the store itself, compiled programs,
and the weights of models that were exported.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

# A URL by itself, behind `--name=` or the kind of a source (orbax:gs://bucket/run), or in a list with commas.
URL = re.compile(r'(?:(?<=[,=:"])|^)(gs|s3|az)://([^\s,"]*)')
# What the config of a stage has.
PART = re.compile(r'"part_of": "\w')
# The buckets lie below this folder.
ROOT = Path(tempfile.gettempdir()).resolve() / f'pal_jax-{os.getpid()}-{secrets.token_hex(4)}'
MISSING = "gs:// needs gcsfs, which is missing: pip install 'pal_jax[gcs]', or mount the bucket and name that folder"
REFUSED = 'Orbax writes checkpoints to gs:// and to file systems alone; mount the bucket and name that folder'
# Folders of a run that are not mirrored: JAX and Orbax write them, and TensorBoard's files are only written.
UNREAD = 'compiled', 'unreadable', 'tensorboard'
UNWRITTEN = 'compiled', 'unreadable', 'checkpoints'
# The last file of a checkpoint that Orbax writes to a store.
COMMITTED = 'commit_success.txt'
# A report says that a run is finished, and a config that it has begun, so they are written after all other files.
LAST = 'config.json', 'report.html'
# Where both are installed, epath takes TensorFlow for `gs://`, whose wheels have no client of it.
if importlib.util.find_spec('gcsfs'):
    os.environ.setdefault('EPATH_USE_TF', 'false')


class Known(NamedTuple):
    """A file as it was when the mirror and the store agreed on it."""

    generation: str
    changed: int
    size: int


_known: dict[Path, Known] = {}
_pulled: list[Path] = []
# Each raises an error where this process holds a folder of the mirror no more.
_holds: dict[Path, Callable[[], None]] = {}


def local(text: str) -> str:
    """A text with the mirror's folders in the place of URLs. A folder that is named first is read from the store.

    Raises:
      ValueError: checkpoints cannot be written to such a store, a bucket does not exist, or a URL names no folder.
      RuntimeError: a store cannot be reached.
    """
    return URL.sub(_mirrored, text)


def _mirrored(match: re.Match[str]) -> str:
    kind, place = match[1], match[2].strip('/')
    if kind != 'gs':
        raise ValueError(f'{match[0]} is refused: {REFUSED}')
    if '/' not in place:
        raise ValueError(f'{match[0]} names no folder; give one in the bucket, such as gs://{place or "bucket"}/runs/a')
    path = ROOT / place
    if path.name in (*UNREAD, *UNWRITTEN) and not (path.parent / LAST[0]).exists():
        raise ValueError(f'{match[0]}: a folder of this name is a part of a run; give another name')
    if path not in _pulled:
        _pull_first(path)
        # A stage reads what other stages have written beside it.
        config = path / LAST[0]
        if config.is_file() and PART.search(config.read_text(encoding='utf-8', errors='replace')):
            _pull_first(path.parent)
    return str(path)


def _pull_first(path: Path) -> None:
    pull(path)
    _pulled.append(path)


def shown(text: object) -> str:
    """A text with URLs in the place of the mirror's folders."""
    return str(text).replace(f'{ROOT}/', 'gs://')


def check_local(path: Path, what: str) -> None:
    """Raise ValueError where a path is in a store, and its file or folder is changed in place for as long as a command
    runs."""
    if in_store(path):
        raise ValueError(f'{what}={shown(path)} is changed in place, as no store can; give one of a file system')


def in_store(path: str | os.PathLike[str]) -> bool:
    """True where a path is in the mirror of a store."""
    return Path(path).absolute().is_relative_to(ROOT)


def target(path: Path) -> Any:
    """The path in the store that a path of the mirror stands for, as Orbax takes it; any other path as it is."""
    return epath.Path(shown(path)) if in_store(path) else path


def pull(folder: Path) -> None:
    """Read what others have changed in the store below a folder. What was changed here stays."""
    if not in_store(folder):
        return
    objects = _listed(folder)
    mirrored = {path: item for path, item in objects.items() if _is_read(folder, path, objects)}
    stale = {path: item for path, item in mirrored.items() if not path.exists() or not _changed(path)}
    stale = {path: item for path, item in stale.items() if path not in _known or item['generation'] != _known[path][0]}
    if stale:
        with _reached(folder) as files:
            files.get([_key(path) for path in stale], [str(path) for path in stale])
    for path, item in stale.items():
        # Stages are shown in the order in which they were begun.
        os.utime(path, (item['mtime'].timestamp(),) * 2)
        _known[path] = _known_as(path, item)
    for path in [path for path in _known if path.is_relative_to(folder) and path not in objects and not _changed(path)]:
        path.unlink(missing_ok=True)
        del _known[path]


def push_all() -> None:
    """`push` every folder that this process has named. Raises RuntimeError as `push`."""
    for folder in _pulled:
        push(folder)


def push(folder: Path) -> None:
    """Write to the store what has changed below a folder since it was read or written, each file as one object.

    Raises:
      RuntimeError: the store cannot be reached, or another run has taken over the folder.
    """
    if not in_store(folder) or not folder.exists():
        return
    below = [folder] if folder.is_file() else sorted(folder.rglob('*'))
    changed = [p for p in below if p.is_file() and _is_written(p.relative_to(folder)) and _changed(p)]
    # A report is removed when its run goes on. Another file that is missing was not removed by this program.
    gone = [path for path in _known if path.is_relative_to(folder) and path.name == LAST[1] and not path.exists()]
    if not changed and not gone:
        return
    for held, check in _holds.items():
        if held.is_relative_to(folder) or folder.is_relative_to(held):
            check()
    with _reached(folder) as files:
        for path in gone:
            del _known[path]
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(_key(path))
        others = [path for path in changed if path.name not in LAST]
        for part in (others, *([path for path in changed if path.name == name] for name in LAST)):
            # The time is read first: a file that changes while it is written is written once more.
            known = {path: _known_as(path, {'generation': ''}) for path in part}
            if part:
                files.put([str(path) for path in part], [_key(path) for path in part])
            _known.update(known)
    objects = _listed(folder)
    for path in changed:
        _known[path] = _known[path]._replace(generation=objects[path]['generation'])


def rename(folder: Path, new: Path) -> None:
    """Move a folder of the disk or, object by object, one of the store that a path of the mirror stands for."""
    if in_store(folder):
        with _reached(folder) as files:
            files.mv(_key(folder), _key(new), recursive=True)
    else:
        new.parent.mkdir(exist_ok=True)
        folder.rename(new)


def _is_read(folder: Path, path: Path, objects: dict[Path, Any]) -> bool:
    """True where a file below the folder that was named belongs in the mirror."""
    place = path.relative_to(folder)
    if any(part.startswith('.') or part in UNREAD for part in place.parts):
        return False
    parts = path.relative_to(folder.parent).parts
    if 'checkpoints' not in parts:
        # Weights of an exported model are read where their own folder is named.
        return len(place.parts) < 2 or not re.fullmatch(r'model.*\.safetensors', path.name)
    # Of a whole checkpoint its host item is read, by which the run is known to have it.
    step = folder.parent.joinpath(*parts[: parts.index('checkpoints') + 2])
    return step / COMMITTED in objects and path.parent == step / 'host'


def _is_written(place: Path) -> bool:
    """True where a file at a place below the folder that is pushed is to be an object of the store."""
    return not any(part.startswith('.') or part in UNWRITTEN for part in place.parts)


def _changed(path: Path) -> bool:
    return path.exists() and (path not in _known or _known[path][1:] != _known_as(path, {'generation': ''})[1:])


def _known_as(path: Path, item: dict[str, Any]) -> Known:
    stat = path.stat()
    return Known(str(item['generation']), stat.st_mtime_ns, stat.st_size)


def _key(path: Path) -> str:
    """The bucket and name of the object of a path."""
    return path.relative_to(ROOT).as_posix()


def _listed(folder: Path) -> dict[Path, Any]:
    """The objects in the store below a folder, or the one of this name, by their paths in the mirror."""
    with _reached(folder) as files:
        items: dict[str, Any] = files.find(_key(folder), detail=True)
    objects = {ROOT / name: item for name, item in items.items() if not name.endswith('/')}
    return {path: item for path, item in objects.items() if path.is_relative_to(folder)}


@functools.cache
def _filesystem() -> Any:
    import fsspec
    from fsspec.config import conf

    # What other processes have written is seen.
    conf.setdefault('gcs', {})['use_listings_cache'] = False
    try:
        files = fsspec.filesystem('gcs')
    except ImportError:
        raise ValueError(MISSING) from None
    # Nobody else reads what is in the mirror.
    ROOT.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
    return files


@contextlib.contextmanager
def _reached(path: Path) -> Iterator[Any]:
    """The file system of the store. Its errors become RuntimeErrors that name the URL."""
    files = _filesystem()
    try:
        yield files
    except FileNotFoundError:
        raise ValueError(f'{shown(path)}: there is no bucket of this name; make it, or give another') from None
    # Credentials, HTTP and time-outs have errors of several libraries.
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f'{shown(path)} cannot be reached ({why}); check the bucket, its permissions and the credentials'
        ) from error


# --- single objects ---------------------------------------------------------------------------------------------------


def create(path: Path, text: str) -> bool:
    """Write an object that must not exist yet; False where it does. Of several writers one succeeds."""
    with _reached(path) as files:
        try:
            # The store checks generation 0, that is, no object.
            files.pipe_file(_key(path), text.encode(), mode='create')
        except FileExistsError:
            return False
    return True


def write(path: Path, text: str) -> None:
    """Write an object in the place of what it was."""
    with _reached(path) as files:
        files.pipe_file(_key(path), text.encode())


def read(path: Path) -> str | None:
    """The text of an object; None where there is none."""
    with _reached(path) as files:
        try:
            return files.cat_file(_key(path)).decode()
        except FileNotFoundError:
            return None


def remove(path: Path) -> None:
    """Delete an object, if it is there."""
    with _reached(path) as files, contextlib.suppress(FileNotFoundError):
        files.rm_file(_key(path))


def beginning(path: Path) -> list[Path]:
    """The objects whose names begin as a path does, in the order of their names."""
    with _reached(path) as files:
        names = files.find(_key(path.parent), prefix=path.name)
    return sorted(ROOT / name for name in names)


def hold(folder: Path, check: Callable[[], None] | None) -> None:
    """Have `push` call `check` before it writes into a folder, or None no more."""
    if check:
        _holds[folder] = check
    else:
        _holds.pop(folder, None)
