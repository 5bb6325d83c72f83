"""The folder of a run. One run at a time writes to it, and no other file is taken for a file of the run.

`held(workdir)` holds `.pal_jax.lease`, a file of filelock that names process and host and is renewed every few seconds.
A process that ends by whatever signal leaves it to the next one on its machine at once. In an object store a claim
takes its place, see `claims`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from filelock import SoftFileLease, Timeout

from pal_jax.run import claims, files, processes, stores

LEASE, CONFIG, REPORT, PARTS = '.pal_jax.lease', 'config.json', 'report.html', 'parts'
# Files that a run writes into its folder after its config. The lease, compiled/, kept/, an empty checkpoints/, and
# outputs that commands check for themselves, such as export/ and evaluation.json, may be there before.
NAMES = (
    'metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl', 'exhibits.jsonl', 'rollouts.jsonl', 'report.html', 'wandb_id',
    'summary.json', 'learning_curve.png', 'checkpoints', 'unreadable', PARTS, 'pictures', 'tensorboard', 'table.md',
    'verdicts.jsonl', 'people.csv', 'effects.csv', 'covariance.csv', 'mixed_logit.json',
)  # fmt: skip
# Seconds without a renewal after which the holder of a lease is taken to be dead.
SILENCE = 60.0


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
    return files.at_home(folder)


def read_run(workdir: Path) -> dict[str, Any]:
    """The config of the run in a folder. Raises ValueError where there is no config, or it names no recipe."""
    path = workdir / CONFIG
    if not path.is_file():
        if stages := sorted(folder.name for folder in stage_folders(workdir)):
            raise ValueError(f'{workdir} has a folder for each stage of a run; name one: {", ".join(stages)}')
        raise ValueError(f'{workdir} is no run of this package: {CONFIG} is missing; name the folder of a run')
    try:
        config = files.read_object(path)
    except ValueError as error:
        raise ValueError(f'{path} is not the config of a run ({error}); name another folder') from None
    if not isinstance(recipe := config.get('recipe'), str):
        raise ValueError(f'{path} is not the config of a run: it names no recipe; name another folder')
    renamed = importlib.import_module('pal_jax.recipes').RENAMED
    return config | {'recipe': renamed.get(recipe, recipe)}


def stage_folders(workdir: Path) -> list[Path]:
    """The folders of the stages in a folder that is no run itself, in the order in which they were begun."""
    if (workdir / CONFIG).exists():
        return []
    return [path.parent for path in sorted(workdir.glob(f'*/{CONFIG}'), key=lambda path: path.stat().st_mtime)]


@contextlib.contextmanager
def held(workdir: Path, *, silence: float = SILENCE, log: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the folder for as long as the block lasts.

    Args:
      silence: seconds without a renewal after which a lease of another machine counts no more.

    Raises:
      ValueError: another run holds the folder, whose process and host the message names; or as `check_workdir`.
    """
    with contextlib.ExitStack() as stack:
        # The first of several processes holds the folder for all.
        if jax.process_index() == 0:
            check_workdir(workdir)
            # A run that is refused before it has written anything leaves no empty folders.
            for folder in reversed([path for path in (workdir, *workdir.parents) if not path.exists()]):
                stack.callback(_remove_empty, folder)
            workdir.mkdir(parents=True, exist_ok=True)
            leased = claims.claimed if stores.in_store(workdir) else _leased
            stack.enter_context(leased(workdir.absolute() / LEASE, silence, log))
        processes.exchange('workdir held')
        # A run that has just ended may have written since the folder was named.
        stores.pull(workdir.absolute())
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _leased(path: Path, silence: float, log: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
    lease, (process, host) = SoftFileLease(path, lease_duration=silence), _holder(path)
    with contextlib.suppress(Timeout):
        return lease.acquire(timeout=0.0)
    with SoftFileLease(probe := files.fresh_beside(path, 'partial'), lease_duration=silence):
        # The host is named as filelock writes it, with the namespace of a container.
        here = _holder(probe)[1]
    # Only silence tells that a process on another machine is dead.
    if host != here:
        log(f'{path.parent} was in use on {host}; this goes on if nothing is heard of it for {silence:.0f} s')
        # The lease of another machine counts for as long as it is renewed, so the successor of a preempted pod goes on
        # after a minute.
        with contextlib.suppress(Timeout):
            return lease.acquire(timeout=1.5 * silence)
    raise ValueError(
        f'{path.parent} is in use by process {process} on {host}; wait for it or end it, or give another --workdir '
        f'(where it is dead for certain, delete {path.name} there)'
    )


def _holder(path: Path) -> tuple[str, str]:
    """The process and the host that a lease names, or words for them where it names none."""
    text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    lines = dict(re.findall(r'^(pid|host)=(.+)$', text, re.MULTILINE))
    return lines.get('pid', 'unknown'), lines.get('host', 'another host')
