"""One run at a time in a folder of an object store, which has no locks.

The objects `.pal_jax.lease.000001`, `.000002`, ... are claims, and the last one counts. A claim is created under the
condition that it does not exist yet, which the store checks, so of two runs one has it. Its holder writes it again
every few seconds, and writes at the end that it is released. Whoever finds the last claim released, unchanged for
`silence` seconds, or of a dead process of the same machine, creates the next one. A run whose claim is not the last any
more ends before it writes again.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from pal_jax.run import stores

RELEASED = 'released'
# Claims are renewed so many times in the seconds that end them.
RENEWALS = 4


@contextlib.contextmanager
def claimed(path: Path, silence: float, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the claims of these names, `<path>.<number>`, for as long as the block lasts.

    Args:
      path: in the mirror of a store; the folder is its parent.
      silence: seconds without a renewal after which another process may take over.

    Raises:
      ValueError: another run holds the folder, whose process and host the message names.
    """
    number, text = _last(path)
    mine = _record(secrets.token_hex(4))
    if text is not None and not _is_free(text):
        here, there = _fact(mine, 'host'), _fact(text, 'host')
        if here == there or not _fell_silent(path, silence, log, there):
            raise _in_use(path, number, text)
        number, _ = _last(path)
    claim = _numbered(path, number + 1)
    if not stores.create(claim, mine):
        number, text = _last(path)
        raise _in_use(path, number, text or '')
    for earlier in stores.beginning(path)[:-1]:
        stores.remove(earlier)

    def check() -> None:
        last, written = _last(path)
        if _fact(written or '', 'claim') != _fact(mine, 'claim'):
            raise RuntimeError(
                f'{stores.shown(path.parent)} was taken over by another run (claim {last}); this one ends'
            )

    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(claim, mine, ended, silence / RENEWALS, check), daemon=True)
    renewal.start()
    stores.hold(path.parent, check)
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        stores.hold(path.parent, None)
        # Where the store cannot be reached, silence ends the claim.
        with contextlib.suppress(RuntimeError):
            stores.write(claim, f'{mine}{RELEASED}\n')


def _renew(claim: Path, mine: str, ended: threading.Event, every: float, check: Callable[[], None]) -> None:
    count = 0
    while not ended.wait(every):
        # A store that cannot be reached is tried again; what is lost meanwhile shows at the next save.
        with contextlib.suppress(RuntimeError, ValueError):
            check()
            count += 1
            stores.write(claim, f'{mine}renewed={count}\n')


def _fell_silent(path: Path, silence: float, log: Callable[[str], None], host: str) -> bool:
    """Wait for a claim of another host to end. False where it is still renewed."""
    log(f'{stores.shown(path.parent)} was in use on {host}; this goes on if nothing is heard of it for {silence:.0f} s')
    known, since, began = _last(path), time.monotonic(), time.monotonic()
    while time.monotonic() - since < silence:
        if time.monotonic() - began > 1.5 * silence:
            return False
        time.sleep(min(1.0, silence / 10))
        if (now := _last(path)) != known:
            known, since = now, time.monotonic()
            if now[1] is None or _is_free(now[1]):
                return True
    return True


def _last(path: Path) -> tuple[int, str | None]:
    """The number and the text of the last claim; 0 and None where there is none."""
    names = [name for name in stores.beginning(path.with_name(f'{path.name}.')) if name.suffix[1:].isdigit()]
    return (int(names[-1].suffix[1:]), stores.read(names[-1])) if names else (0, None)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f'{path.name}.{number:06d}')


def _record(token: str) -> str:
    """The text of a claim of this process: what filelock writes of it, and a token."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(path := Path(folder, 'claim')):
        text = path.read_text(encoding='utf-8')
    return f'{text.strip()}\nclaim={token}\n'


def _is_free(text: str) -> bool:
    """True where a claim was released, or its process was on this machine and is dead."""
    if text.endswith(f'{RELEASED}\n'):
        return True
    with tempfile.TemporaryDirectory() as folder:
        # filelock takes over what a dead process of this machine has left.
        path = Path(folder, 'claim')
        path.write_text(text.partition('claim=')[0], encoding='utf-8')
        with contextlib.suppress(Timeout), SoftFileLease(path).acquire(timeout=0.0):
            return True
    return False


def _fact(text: str, name: str) -> str:
    match = re.search(rf'^{name}=(.+)$', text, re.MULTILINE)
    return match[1] if match else 'unknown'


def _in_use(path: Path, number: int, text: str) -> ValueError:
    process, host, claim = _fact(text, 'pid'), _fact(text, 'host'), _numbered(path, number).name
    return ValueError(
        f'{stores.shown(path.parent)} is in use by process {process} on {host}; wait for it or end it, or give another '
        f'--workdir (where it is dead for certain, delete {claim} there)'
    )
