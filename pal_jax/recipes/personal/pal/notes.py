"""Notes on a table of choices: the columns that are not read, and rows and words that somebody may not have meant as
they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from pal_jax.data import records
from pal_jax.run.forecast import counted

# Names of a column that says which of a situation's options a row has, in small letters and without `_id`.
OPTIONS = 'alt', 'alternative', 'option'
PLACE = re.compile(r'(alt|alternative|option)?[ _-]*(\d+(\.0)?|[a-z])|left|right', re.IGNORECASE)
AMOUNT = re.compile(r'(?P<before>(?:[^\w\s]|[A-Z]{3})?)\s*[-+]?\d[\d.,\s]*(?P<after>\D*)')


def log_doubts(
    path: str | Path, unread: Mapping[str, str], attributes: Mapping[str, Sequence[str]], log: Callable[[str], None]
) -> None:
    """Log the columns that are not read, with the reason where there is one, and doubtful words of attributes."""
    by_reason: dict[str, list[str]] = {}
    for column, reason in unread.items():
        by_reason.setdefault(reason, []).append(column)
    if by_reason:
        log(f'{path}: not read: {"; ".join(", ".join(columns) + reason for reason, columns in by_reason.items())}')
    for name, words in attributes.items():
        if len(attributes) == 1 and any(' ' in word for word in words):
            log(f'{path}: each text of {name} is an attribute of its own; --config=pal:text reads what the texts say')
        if len({word.lower() for word in words}) < len(words):
            log(f'{path}: {name} has words that differ in capitals alone: {", ".join(words)}')
        if have_unit(words):
            log(
                f'{path}: {name} has words that look like numbers ({words[0]}, ...): remove the unit to read them as '
                'numbers'
            )


def have_unit(words: Sequence[str]) -> bool:
    """True for numbers that all have the same unit, such as 14,9 € and 20 €."""
    amounts = [AMOUNT.fullmatch(word) for word in words]
    return len({amount and amount.groups() for amount in amounts}) == 1 and any(amounts)


def unread_of_options(
    rows: Sequence[records.Row], columns: Sequence[str], earlier: Container[str] = ()
) -> dict[str, str]:
    """The columns of a table with a row for each option that are no attributes, and the reason; none where no column
    would be left, or no situation has two options. Attributes of `earlier` choices stay."""
    situations: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for _, row in rows:
        cells = {column: str(row[column]).strip() for column in columns}
        situations.setdefault((str(row['user']).strip(), str(row['situation']).strip()), []).append(cells)
    reasons = {}
    for column in (column for column in columns if column and column not in earlier):
        values = {frozenset(cells[column] for cells in options) for options in situations.values()}
        if all(len(same) == 1 for same in values):
            reasons[column] = ' (the same for all options of a choice)'
        elif column.lower().removesuffix('_id') in OPTIONS and len(values) == 1 and all(map(PLACE.fullmatch, *values)):
            reasons[column] = ' (numbers the options; rename it if it is an attribute)'
    several = any(len(options) > 1 for options in situations.values())
    return reasons if several and len(reasons) < len(columns) else {}


def log_copies(path: str | Path, rows: Sequence[records.Row], log: Callable[[str], None]) -> None:
    """Log the rows that are equal to an earlier row in every cell."""
    seen: set[tuple[str, ...]] = set()
    copies = []
    for place, row in rows:
        cells = tuple(str(cell).strip() for cell in row.values())
        if cells in seen:
            copies.append(place)
        seen.add(cells)
    if copies:
        are, them = ('is an exact copy', 'it') if len(copies) == 1 else ('are exact copies', 'them')
        log(
            f'{path}: {counted(len(copies), "row")} {are} of another row of the same person: '
            f'{records.few_places(copies, copies[0])}; drop {them} if this is a mistake'
        )
