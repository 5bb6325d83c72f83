"""Ctrl-C ends a command with one line and exit status 130 in place of a traceback.

A command imports libraries for seconds before it can catch anything. It uses the standard library alone, for it is the
first thing that a command imports.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

STATUS = 128 + signal.SIGINT
SAID = 'stopped by Ctrl-C'


def end_plainly() -> None:
    """End the process at a Ctrl-C with `SAID` on stderr and `STATUS`, until `raise_again` is called.

    The process ends at once: a library that is being imported may take a KeyboardInterrupt for a missing package. A
    signal that the process ignores, as in the background of a script, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Have a Ctrl-C raise KeyboardInterrupt, as it does in every Python program, after `end_plainly`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> NoReturn:
    os.write(2, f'{SAID}\n'.encode())
    os._exit(STATUS)
