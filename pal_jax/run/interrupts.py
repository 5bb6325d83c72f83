"""Ctrl-C, and a reader who closes the pipe, end a command with one line in place of a traceback.

A command imports libraries for seconds before it can catch anything. It uses the standard library alone, for it is the
first thing that a command imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

STATUS = 128 + signal.SIGINT
SAID = 'stopped by Ctrl-C'
UNREAD, CLOSED = 128 + signal.SIGPIPE, 'stopped, since nobody reads the output any more'


def end_plainly() -> None:
    """End the process at a Ctrl-C with `SAID` on stderr and `STATUS`, until `raise_again` is called."""
    # A signal that the process ignores, as in the background of a script, stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Have a Ctrl-C raise KeyboardInterrupt, as it does in every Python program, after `end_plainly`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def until_closed() -> Iterator[None]:
    """End the process with `CLOSED` on stderr and the status `UNREAD` where the reader of its output has gone."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(CLOSED, file=sys.stderr)
        sys.exit(UNREAD)


def _end(*_: object) -> NoReturn:
    os.write(2, f'{SAID}\n'.encode())
    # The process ends at once: a library that is being imported may take a KeyboardInterrupt for a missing package.
    os._exit(STATUS)
