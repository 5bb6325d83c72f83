"""What is kept for testing is not learnt in other clothes: rows, people and questions are told apart by their content.

Content is compared after Unicode's compatibility forms, case and white space are made alike (`normal`). Whatever has
the same content stands on one side of a split.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence


def normal(text: str) -> str:
    """The text in lower case, in Unicode's compatibility forms, with single spaces and none at its ends."""
    return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def together(parts: Iterable[str]) -> str:
    """The content of several texts whose order says nothing; a text that is there twice counts once."""
    return '\n'.join(sorted(set(map(normal, parts))))


def held_out(contents: Sequence[str], most: int, *, last: bool = False, seed: int = 0) -> list[bool]:
    """Which of some entries are kept for testing: a fifth of them, `most` at most, of one content at least.

    Entries of one content stay together. Contents are drawn by a hash of their own and of `seed`, so that neither the
    order of entries nor the number of them says who is drawn; or the `last` ones are, by where each stands first.
    A content with more entries than there is room for is not drawn.

    Raises:
      ValueError: all entries have the same content.
    """
    sizes = Counter(contents)
    if len(sizes) < 2:
        raise ValueError(f'{len(contents)} of the same content; none can be tested on that is not learnt')
    order = list(sizes)[::-1] if last else sorted(sizes, key=lambda content: _drawn(content, seed))
    room, kept = max(min(most, len(contents) // 5), 1), set[str]()
    for content in order:
        if sizes[content] <= room:
            kept.add(content)
            room -= sizes[content]
    kept = kept or {min(order, key=sizes.__getitem__)}
    return [content in kept for content in contents]


def repeats(contents: Sequence[str]) -> int:
    """How many entries have the content of an earlier one."""
    return len(contents) - len(set(contents))


def strangers(contents: Sequence[str], order: Iterable[int] | None = None) -> list[int] | None:
    """For each entry the number of one of other content; None where all have the same.

    Each stands for one other, unless more than half have the same content. Where all contents differ it is the next
    entry, in `order` and round and round.
    """
    order = list(range(len(contents)) if order is None else order)
    number = {content: k for k, content in enumerate(dict.fromkeys(contents[i] for i in order))}
    if len(number) < 2:
        return None
    row = sorted(order, key=lambda i: number[contents[i]])
    shift, found = max(Counter(contents).values()), list(order)
    for place, i in enumerate(row):
        following = (row[(place + shift + k) % len(row)] for k in range(len(row)))
        found[i] = next(j for j in following if contents[j] != contents[i])
    return found


def _drawn(content: str, seed: int) -> bytes:
    return hashlib.sha256(f'{seed}\n{content}'.encode(errors='surrogatepass')).digest()
