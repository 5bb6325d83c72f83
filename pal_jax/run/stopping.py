"""Signals that stop a run after its current step.

SIGTERM and Ctrl-C stop the run; a second one ends the process at once. SIGUSR1 stops it to be started again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from pal_jax.run.forecast import counted
from pal_jax.run.rollcall import GONE

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def exit_status(wish: int) -> int:
    """The exit status of a process that a signal has stopped: 128 + its number, or `rollcall.GONE` for SIGUSR1."""
    return GONE if wish == signal.SIGUSR1 else 128 + wish


def stopped_at(done: int, total: int) -> str:
    """A line that says where a run of `total` steps was stopped after `done` of them, and what is left."""
    if done < total:
        return f'stopped at step {done} of {total}; the same command again goes on'
    return f'stopped with {counted(total, "step")} made, which is all; the same command again evaluates and reports'


class StopListener:
    """A listener for signals in the main thread: `wish` is the number of the signal that came, 0 until then.

    Signals are taken while the `with` block lasts.
    """

    def __init__(self, log: Callable[[str], None]):
        self.wish, self._log = 0, log
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # Python passes a signal to the main thread between two of its bytecodes, and a program that compiles may take
        # minutes between them. The C handler writes the number of a signal to a socket, which a thread here reads, so a
        # second signal ends the process even then.
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd)
        # The closed socket ends the thread.
        self._write.close()
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        while came := self._read.recv(1):
            if came[0] not in SIGNALS:
                continue
            # A second signal ends the process, unless it is SIGUSR1.
            if self.wish in (signal.SIGTERM, signal.SIGINT) and came[0] != signal.SIGUSR1:
                os._exit(exit_status(came[0]))
            # A signal that stops for good counts more than SIGUSR1.
            self.wish = came[0] if self.wish in (0, signal.SIGUSR1) else self.wish
            name = signal.Signals(came[0]).name
            self._log(
                f'{name}: stopping after this step and its checkpoint, or after the last evaluation and the report; a '
                'second one ends the run at once'
            )
