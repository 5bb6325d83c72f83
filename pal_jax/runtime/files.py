"""Files that appear in one piece."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str, errors: str = 'strict') -> Path:
    """Writes a text as UTF-8 and returns its path: whoever reads finds all of it or what was there before, also where
    the writer is killed. `errors` as `str.encode` has them."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text, encoding='utf-8', errors=errors)
    return temporary.replace(path)
