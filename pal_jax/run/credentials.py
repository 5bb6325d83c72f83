"""Secrets out of the environment: tokens of servers and keys of endpoints."""

from __future__ import annotations

import os


def secret(variable: str) -> str:
    """The secret in an environment variable, without the white space around it; '' where the variable is not set.

    Raises:
      ValueError: the variable holds white space alone, or a character within that no header may hold.
    """
    text = os.environ.get(variable, '')
    # Files and shells leave a newline at the end of a secret, which no header may hold.
    bare = text.strip()
    if text and not bare:
        raise ValueError(f'{variable} holds white space alone; set it to a secret, or unset it')
    # The message tells nothing of the secret.
    if not (bare.isascii() and bare.isprintable()):
        raise ValueError(f'{variable} holds a character that is no printable ASCII, so no header can carry it')
    return bare
