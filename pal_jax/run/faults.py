"""Errors that a person can act on: one line, and an exit status."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


class Fault(Exception):
    """A wrong input, or a failure outside the program such as a full disk. It is shown as one line.

    `code` is the exit status: 2 for a wrong input, 1 for a failure.
    """

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


def faults(call: Callable, *args, **kwargs):
    """The result of `call(...)`, whose errors become faults.

    A ValueError ends the program with exit status 2, a RuntimeError or OSError with 1.
    """
    try:
        return call(*args, **kwargs)
    except (ValueError, RuntimeError, OSError) as error:
        # PAL_JAX_TRACEBACK=1 in the environment lets the errors through, so that Python shows where they come from.
        if os.environ.get('PAL_JAX_TRACEBACK'):
            raise
        wrong_input = isinstance(error, ValueError)
        hint = '' if wrong_input or explained(error) else ' (PAL_JAX_TRACEBACK=1 shows where)'
        raise Fault(one_line(error) + hint, 2 if wrong_input else 1) from error


def explained(error: Exception) -> bool:
    """True of a RuntimeError of this package without another error behind it, whose message says what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error) is RuntimeError and not error.__cause__ and Path(frames[-1].filename).is_relative_to(PACKAGE)


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    # An OSError's first argument is its number; of a KeyError, `str` is quoted.
    message = str(error.args[0] if error.args and not isinstance(error, OSError) else error)
    # A library may have put a traceback into the message, whose last line says what happened.
    if 'Traceback (most recent call last)' in message:
        message = message.strip().splitlines()[-1].partition(': ')[2]
    return ' '.join(message.split())
