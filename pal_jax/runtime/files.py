"""Paths as people write them, and files that appear in one piece."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

HOME = re.compile(r'(?:(?<=[,=:])|^)~[\w.-]*(?=[/,:]|$)')


def at_home(text: str) -> str:
    """A text with `~` as a shell has it, also where shells leave it: behind `--name=` or the kind of a source
    (`hf:~/model`), and in a list with commas. A `~name` that is no user's stays."""
    return HOME.sub(lambda found: os.path.expanduser(found[0]), text)


def write_whole(path: Path, text: str, errors: str = 'strict') -> Path:
    """Writes a text as UTF-8 and returns its path: whoever reads finds all of it or what was there before, also where
    the writer is killed. `errors` as `str.encode` has them."""
    temporary = fresh_beside(path, 'partial')
    try:
        temporary.write_text(text, encoding='utf-8', errors=errors)
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fresh_beside(path: Path, what: str) -> Path:
    """A path in the folder of another, hidden, that nobody has: `.<name>.<what>-<8 digits>`."""
    return path.with_name(f'.{path.name}.{what}-{secrets.token_hex(4)}')
