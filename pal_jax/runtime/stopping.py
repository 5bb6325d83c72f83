"""Signals as a wish: the run stops at the next boundary of a step.

SIGTERM and Ctrl-C stop it; a second one ends the process at once. SIGUSR1 stops it to be started again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from pal_jax.runtime.rollcall import GONE

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def exit_status(wish: int) -> int:
    """Of a process that a signal has stopped: as the shell gives it, or `rollcall.GONE` to be started again."""
    return GONE if wish == signal.SIGUSR1 else 128 + wish


class Stopping:
    """While its `with` block lasts, `wish` is the number of the signal that came, 0 until then. For the main thread.

    Python hands signals to the main thread between two of its steps, which may be minutes into a program that compiles.
    What is read here is written by the C handler, so a second signal is obeyed even then.
    """

    def __init__(self, log: Callable[[str], None]):
        self.wish, self._log = 0, log
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = [signal.signal(each, lambda *_: None) for each in SIGNALS]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._fd)
        self._write.close()  # ends the thread
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        while came := self._read.recv(1):
            if came[0] not in SIGNALS:
                continue
            if self.wish in (signal.SIGTERM, signal.SIGINT) and came[0] != signal.SIGUSR1:
                os._exit(exit_status(came[0]))
            self.wish = came[0] if self.wish in (0, signal.SIGUSR1) else self.wish
            name = signal.Signals(came[0]).name
            self._log(f'{name}: stopping after this step and its checkpoint; a second one ends the run at once')
