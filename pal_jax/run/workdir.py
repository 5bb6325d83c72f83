"""The folder of a run. One run at a time writes to it, and no other file is taken for a file of the run.

`held(workdir)` locks `.pal_jax.lock` by flock, and by a line in the file that names process and host and changes every
few seconds. A process frees the folder when it ends, by whatever signal. This machine may not see the flock of another
machine. The line of another machine counts for as long as it changes, so the successor of a preempted pod goes on after
a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax

from pal_jax.run import files, processes

LOCK, CONFIG, REPORT = '.pal_jax.lock', 'config.json', 'report.html'
# Files that a run writes into its folder after its config. The lock, compiled/, kept/, an empty checkpoints/, and
# outputs that commands check for themselves, such as export/ and evaluation.json, may be there before.
NAMES = (
    'metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl', 'exhibits.jsonl', 'rollouts.jsonl', 'report.html', 'wandb_id',
    'summary.json', 'learning_curve.png', 'checkpoints', 'unreadable', 'parts', 'pictures', 'tensorboard', 'table.md',
    'verdicts.jsonl',
)  # fmt: skip
BEAT = 10.0  # seconds between changes of the line
SILENCE = 60.0  # seconds without a change after which the line's writer is taken to be dead


def check_workdir(workdir: Path) -> None:
    """Raise ValueError where the folder is not a run's and cannot become one."""
    above = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ValueError(f'--workdir={workdir}: {above} is a file; give a folder')
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f'--workdir={workdir}: {above} cannot be written to; give a folder of yours')
    if (workdir / CONFIG).exists():
        read_run(workdir)
        return
    for path in (workdir / name for name in NAMES):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ValueError(f'{workdir} is no run ({CONFIG} is missing) and has {path.name}; give another --workdir')


def run_folder(run: str | os.PathLike[str]) -> str:
    """The folder of a run that is given as `orbax:<workdir>`, or as the folder itself.

    Raises:
      ValueError: `run` is neither.
    """
    folder = os.fspath(run).removeprefix('orbax:') if isinstance(run, str | os.PathLike) else ''
    if not folder:
        raise ValueError(f'{run!r} is no run; give orbax:<workdir>, or the folder itself')
    return folder


def read_run(workdir: Path) -> dict[str, Any]:
    """The config of the run in a folder. Raises ValueError where there is no config, or it names no recipe."""
    path = workdir / CONFIG
    if not path.is_file():
        stages = sorted(folder.parent.name for folder in workdir.glob(f'*/{CONFIG}'))
        if stages:
            raise ValueError(f'{workdir} has a folder for each stage of a run; name one: {", ".join(stages)}')
        raise ValueError(f'{workdir} is no run of this package: {CONFIG} is missing; name the folder of a run')
    try:
        config = files.read_object(path)
    except ValueError as error:
        raise ValueError(f'{path} is not the config of a run ({error}); name another folder') from None
    if not isinstance(config.get('recipe'), str):
        raise ValueError(f'{path} is not the config of a run: it names no recipe; name another folder')
    return config


@contextlib.contextmanager
def held(
    workdir: Path, *, beat: float = BEAT, silence: float = SILENCE, log: Callable[[str], None] = print
) -> Iterator[None]:
    """Hold the folder for as long as the block lasts. The first of several processes holds it for all.

    Args:
      beat: seconds between changes of the lock's line.
      silence: seconds without a change after which a line of another machine counts no more.

    Raises:
      ValueError: another run holds the folder, whose process and host the message names; or as `check_workdir`.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            check_workdir(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(workdir / LOCK, beat, silence, log))
        processes.exchange('workdir held')
        yield


@contextlib.contextmanager
def _held(path: Path, beat: float, silence: float, log: Callable[[str], None]) -> Iterator[None]:
    ended = threading.Event()
    with path.open('a+', encoding='utf-8') as file:  # closing the file frees the lock
        _wait(file, path, silence, log)
        line = {'process': os.getpid(), 'host': platform.node(), 'machine': _machine(), 'since': time.ctime()}
        os.truncate(path, 0)
        _write(path, line, 0)

        def go_on() -> None:
            count = 0
            while not ended.wait(beat):
                with contextlib.suppress(OSError):
                    _write(path, line, count := count + 1)

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):
                os.truncate(path, 0)


def _wait(file: IO[str], path: Path, silence: float, log: Callable[[str], None]) -> None:
    """Wait until this process has the lock. Raises ValueError where another process holds it."""
    first, start, logged = _read(path), time.monotonic(), False
    while True:
        locked, line = _lock(file), _read(path)
        here = line is None or line['machine'] == _machine()
        if locked is not False and (line is None or (locked and here)):
            return
        silent = time.monotonic() - start > silence
        if line != first or (locked is False and (here or silent)):
            who = f'process {line["process"]} on {line["host"]} since {line["since"]}' if line else 'another process'
            raise ValueError(f'{path.parent} is in use by {who}; wait for it or end it, or give another --workdir')
        if silent:
            return
        if not logged:
            log(f'{path.parent} was in use on {line["host"] if line else "another host"}; this goes on if nothing is '
                f'heard of it for {silence:.0f} s')  # fmt: skip
            logged = True
        time.sleep(min(1.0, silence / 4))


def _lock(file: IO[str]) -> bool | None:
    """True where this process now has the lock, False where another has it, None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _machine() -> str:
    """The name of the running kernel. Containers on one machine share it, and its processes see each other's flock."""
    path = Path('/proc/sys/kernel/random/boot_id')
    return path.read_text(encoding='utf-8').strip() if path.exists() else platform.node()


def _read(path: Path) -> dict[str, Any] | None:
    """The process that has written the line of a lock; None where there is no line."""
    try:
        line = json.loads(path.read_text(encoding='utf-8'))
        return {key: line[key] for key in ('process', 'host', 'machine', 'since', 'beat')}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, line: dict[str, Any], beat: int) -> None:
    """Write the line in place and always at one length, so that a reader never reads half of it."""
    with path.open('r+', encoding='utf-8') as file:
        file.write(json.dumps({**line, 'beat': beat}).ljust(300) + '\n')
