"""Splits of entries into training and test, which keep entries of the same content on one side.

Entries are rows, people or questions. Contents are compared in a form (`normal`) in which Unicode's compatibility
forms, case, quotation marks, dashes and white space are made alike and invisible characters are taken out. So no
content is learnt that is tested in another spelling. Facts of profiles, ids of people and refusals are compared in this
form, too.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_ALIKE = str.maketrans(
    dict.fromkeys('`´‘’‚‛‹›ʹʻʼʽˈ′‵❛❜ꞌ', "'")
    | dict.fromkeys('“”„‟«»″〝〞〟❝❞', '"')
    | dict.fromkeys('\u2010\u2011‒–—―−⁃﹘﹣－', '-')
)
_CONTROL = re.compile('[\x00-\x08\x0e-\x1b\x7f]')
_UNSEEN = re.compile(  # letters and marks without a shape: joiners, fillers and selectors of variants
    '[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]'
)

# Why no row can be tested on, behind the file.
ONE_PROMPT = ' has only one distinct prompt, so no row can be kept for testing; add rows with other prompts'
# Why tests are fewer than asked for.
FIFTH = 'a fifth at most is kept for testing, and at least one; give more, or a file of tests'


# Facts and ids are compared again and again.
@functools.lru_cache(maxsize=1024)
def normal(text: str) -> str:
    """The text in the form in which texts are compared.

    It is in lower case and in Unicode's compatibility forms, with straight quotation marks, with hyphens for dashes and
    minus signs, with single spaces and none at its ends, and without characters that nobody sees, such as a soft hyphen
    or a space of no width.
    """
    if text.isascii():
        # In ASCII, control characters are the only ones that nobody sees.
        text = _CONTROL.sub('', text)
    else:
        text = unicodedata.normalize('NFKC', _UNSEEN.sub('', text.translate(_ALIKE)))
        text = ''.join(c for c in text if c.isspace() or unicodedata.category(c) not in ('Cc', 'Cf'))
    # Folding the case may bring up characters that have a compatibility form or are alike again.
    return ' '.join(unicodedata.normalize('NFKC', text.casefold()).translate(_ALIKE).split())


def joint_content(parts: Iterable[str]) -> str:
    """The content of several texts. Their order makes no difference, and a text that occurs twice counts once."""
    return '\n'.join(sorted(set(map(normal, parts))))


def held_out(contents: Sequence[str], most: int, *, last: bool = False, seed: int = 0) -> list[bool]:
    """A bool for each entry, True for the entries that are kept for testing.

    They are a fifth of the entries, at most `most`, and at least one content. Entries of one content stay together.
    Contents are drawn at random, or with `last` those whose first entry comes last.

    Raises:
      ValueError: all entries have the same content.
    """
    sizes = Counter(contents)
    if len(sizes) < 2:
        raise ValueError(f'{len(contents)} of the same content; none can be tested on that is not learnt')
    # The hash of content and seed depends neither on the order nor on the number of entries.
    order = list(sizes)[::-1] if last else sorted(sizes, key=lambda content: _drawn(content, seed))
    room, tested = max(min(most, len(contents) // 5), 1), set[str]()
    for content in order:
        # A content with more entries than there is room for is not drawn.
        if sizes[content] <= room:
            tested.add(content)
            room -= sizes[content]
    # Where every content is larger than the room, the smallest one is tested.
    tested = tested or {min(order, key=sizes.__getitem__)}
    return [content in tested for content in contents]


def fewer(key: str, asked: int, had: int, why: str = FIFTH) -> str:
    """A warning below a line on entries, where there are fewer than a setting asks for, and why; '' else."""
    return f'\nwarning: {key}={asked} became {had}, since {why}' if had < asked else ''


def repeats(contents: Sequence[str]) -> int:
    """The number of entries that have the content of an earlier entry."""
    return len(contents) - len(set(contents))


def strangers(contents: Sequence[str], order: Iterable[int] | None = None) -> list[int] | None:
    """The index of an entry with another content for each entry; None where all contents are the same.

    Every index occurs once, unless more than half of the entries have the same content.
    """
    order = list(range(len(contents)) if order is None else order)
    number = {content: k for k, content in enumerate(dict.fromkeys(contents[i] for i in order))}
    if len(number) < 2:
        return None
    row = sorted(order, key=lambda i: number[contents[i]])
    # Entries of one content are neighbours in the row, so a shift by the largest content leads to another one.
    shift, others = max(Counter(contents).values()), list(order)
    for place, i in enumerate(row):
        # Where all contents differ, the shift is 1, so an entry gets the next one in `order`, and the last entry the
        # first.
        following = (row[(place + shift + k) % len(row)] for k in range(len(row)))
        others[i] = next(j for j in following if contents[j] != contents[i])
    return others


def _drawn(content: str, seed: int) -> bytes:
    return hashlib.sha256(f'{seed}\n{content}'.encode(errors='surrogatepass')).digest()
