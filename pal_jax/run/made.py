"""Data that a method makes up, for whoever names it in the place of a file.

The file `recipes/<method>/made/<name>.py` makes up what `<name>` stands for. Its function `records(settings, key)`
yields the records of one made-up person after the other, in the format of files.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A maker takes a run's settings and the key of the good answer.
Maker = Callable[[Any, str], Iterator[list[dict[str, Any]]]]
ROOT = Path(__file__).parents[1]


def names(root: Path = ROOT) -> dict[str, str]:
    """The modules that make up data, by the names of the data.

    Raises:
      ValueError: two methods have data of one name.
    """
    files: dict[str, Path] = {}
    for file in sorted(root.glob('recipes/*/made/[!_]*.py')):
        if (other := files.setdefault(file.stem, file)) is not file:
            raise ValueError(f'{other} and {file} make up data of one name; rename one')
    return {name: '.'.join((root.name, *file.relative_to(root).with_suffix('').parts)) for name, file in files.items()}


def maker(key: str, name: str) -> Maker | None:
    """The function that makes up the records that a key of the config names; None where it names a file.

    Raises:
      ValueError: it is a word that names neither.
    """
    known = names()
    if name in known:
        return importlib.import_module(known[name]).records
    if name.isidentifier() and not Path(name).exists():
        raise ValueError(f'{key}={name!r} is neither a file nor made up by a method; use a file, or {", ".join(known)}')
    return None
