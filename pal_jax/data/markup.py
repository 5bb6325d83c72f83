"""Control tokens that are written out in a text, such as `<|im_end|>` in a user's question, as plain text.

A chat template is a program, and its result is one text in which a user's `<|im_end|>` looks like the template's own.
So that both can be told apart, a `SHIELD` is put into the user's before the template sees it. Where the result is
encoded, it is cut there, and no piece holds the token whole. A template that trims, splits or quotes texts still does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Code points that stand for no character. The first of them in a text itself is written with the second.
_POINT = '\ufdd0'
SHIELD, _OWN = f'{_POINT}\ufdd1', f'{_POINT}\ufdd2'

Shield = Callable[[str], str]


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the first character of each of the tokens in a text, also where they overlap."""
    endings: dict[str, list[str]] = {}
    for token in sorted(tokens):
        endings.setdefault(token[0], []).append(re.escape(token[1:]))
    starts = (f'{re.escape(first)}(?={"|".join(others)})' for first, others in endings.items())
    return re.compile('|'.join(starts) or r'(?!)')


def make_shield(tokens: Collection[str], normalized: Collection[str] = (), normal: Shield | None = None) -> Shield:
    """A function that puts shields into a text so that none of the tokens is whole in it.

    `normalized` are the tokens that are looked for in a text as `normal` writes it. White space and single characters
    are not cut.
    """
    # Some vocabularies have white space and single characters as tokens of their own.
    tokens = {token for token in tokens if len(token) > 1 and not token.isspace()}
    pattern, firsts, longest = pattern_of(tokens), {token[0] for token in tokens}, max(map(len, tokens), default=0)
    written_otherwise = pattern_of(map(normal, normalized)) if normal and normalized else None

    def shield(text: str) -> str:
        cuts = {start.end() for start in pattern.finditer(text)}
        # A text that ends within a token has a shield at its end, since other text may follow and complete it.
        for at in range(max(len(text) - longest, 0), len(text) - 1):
            if text[at] in firsts and any(token.startswith(text[at:]) for token in tokens):
                cuts.add(len(text))
        shielded = _cut(text, sorted(cuts))
        # A text with a token written otherwise, as by letters of full width, is cut between all its characters.
        if written_otherwise and normal and any(map(written_otherwise.search, map(normal, pieces(shielded)))):
            return _cut(text, range(1, len(text)))
        return shielded

    return shield


def _cut(text: str, cuts: Sequence[int]) -> str:
    """The text with shields at these places."""
    parts = (text[start:end] for start, end in itertools.pairwise((0, *cuts, len(text))))
    return SHIELD.join(part.replace(_POINT, _OWN) for part in parts)


def pieces(text: str) -> list[str]:
    """The parts of a text between its shields, as they were written."""
    return [piece.replace(_OWN, _POINT) for piece in text.split(SHIELD)]


def shielded(value: Any, shield: Shield) -> Any:
    """A copy of a value of JSON with shields in its texts at any depth, as in a tool call; keys of objects have some,
    too."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {shield(key) if isinstance(key, str) else key: shielded(item, shield) for key, item in value.items()}
    return [shielded(item, shield) for item in value] if isinstance(value, list | tuple) else value


def controls(tokens: Iterable[str], template: str) -> Iterator[str]:
    """The added tokens of a vocabulary that are no words: tokens in brackets, and those that its template writes."""
    bracketed = re.compile(r'[<\[{◁].+[>\]}▷]', re.DOTALL)
    return (token for token in tokens if bracketed.fullmatch(token) or (token in template and not token.isalnum()))
