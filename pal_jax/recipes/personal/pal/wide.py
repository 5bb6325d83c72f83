"""Tables with a row for each choice among three or more options, or with answers that take no option, as tables with a
row for each option.

A choice among three options has columns such as price_1, price_2 and price_3, or price_A, price_B and price_C. "None of
these" becomes an option without values, which `neither` recognises.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.data import records, surveys
from pal_jax.recipes.personal.attributes import absence
from pal_jax.recipes.personal.pal.neither import NEITHER

# What may number the options of a choice, in columns and in answers.
FAMILIES = (('left', 'right'), tuple(string.ascii_lowercase[:20]), tuple(map(str, range(1, 21))))
AVAILABLE = 'av', 'avail', 'available', 'availability'  # columns that are 0 for an option that a choice does not have
ABSENT = '0', '0.0', 'false', 'no'


class Layout(NamedTuple):
    """The columns of a table with a row for each choice.

    Attributes:
      sides: the numbers of the options in the names of columns.
      columns: for each option, the column of each attribute.
      answer: the column of the answers.
      none: the answers that take none of the options, each with the number after the last option's.
    """

    sides: tuple[str, ...]
    columns: tuple[Mapping[str, str], ...]
    answer: str
    none: Mapping[str, int]


def to_options(
    path: str | Path,
    rows: list[records.Row],
    group: str,
    earlier: Collection[str],
    drop: records.Drop | None,
    log: Callable[[str], None],
) -> list[records.Row]:
    """The rows of options of a table with a row for each choice among three or more, or with answers that take none;
    the rows of another table as they are. `earlier` has the attributes of earlier choices.

    Raises:
      ValueError: an attribute lacks the column of an option. Without `drop` also: the answer of a row names no option,
        or two options are equal.
    """
    header = list(rows[0][1]) if rows else []
    layout = _layout(path, header, group, rows)
    if layout is None or (len(layout.sides) == 2 and not layout.none and NEITHER not in earlier):
        return rows
    has_none = bool(layout.none) or NEITHER in earlier
    of_row = [column for column in (surveys.person_column(header), group) if column in header]
    used = {*of_row, layout.answer, 'situation', *(c for columns in layout.columns for c in columns.values())}
    unread = [column for column in header if column not in used]
    log(
        f'{path}: a row is a choice among {len(layout.sides)} options{" or none of these" if has_none else ""}'
        + (f'; not read: {surveys.listed(unread)}' if unread else '')
    )
    options: list[records.Row] = []
    wrong: records.Wrong = {}
    for place, row in rows:
        answer = row.get(layout.answer)
        if (chosen := _number(answer, layout.none)) is None or chosen >= len(layout.sides) + has_none:
            has = absence(answer) if records.is_missing(answer) else f'is {answer!r}'
            fault = f'{layout.answer} {has}; give one of {", ".join(layout.sides)}'
            wrong.setdefault(fault, []).append(place)
            continue
        of_choice = {c: row.get(c) for c in of_row} | {'situation': row.get('situation', place)}
        of_place = list(_options(place, row, layout, of_choice, chosen, has_none=has_none))
        items = {tuple(map(surveys.plain, {**option, 'chosen': ''}.values())) for _, option in of_place}
        if len(items) < len(of_place):
            wrong.setdefault('two options are equal in all attributes', []).append(place)
        else:
            options += of_place
    # These are counted by themselves: a row is a choice here, and an option further on.
    if wrong:
        records.leave_out(wrong, len(rows) - sum(map(len, wrong.values())), drop)
    return options


def _options(
    place: str, row: Mapping[str, Any], layout: Layout, of_choice: Mapping[str, Any], chosen: int, *, has_none: bool
) -> Iterator[records.Row]:
    """The rows of a choice's options, of which number `chosen` was taken, the last one being none of these."""
    file, _, number = place.rpartition(', ')
    for k, (side, columns) in enumerate(zip(layout.sides, layout.columns, strict=True)):
        cells = {name: row.get(column) for name, column in columns.items()}
        if any(str(cells.pop(name, '')).strip().lower() in ABSENT for name in list(cells) if name.lower() in AVAILABLE):
            continue
        cells |= {NEITHER: 0} if has_none else {}
        yield f'{file}, option {side} of {number}', {**of_choice, 'chosen': int(k == chosen), **cells}
    if has_none:
        cells = {name: '' for name in layout.columns[0] if name.lower() not in AVAILABLE} | {NEITHER: 1}
        yield f'{file}, none of {number}', {**of_choice, 'chosen': int(chosen == len(layout.sides)), **cells}


def _layout(path: str | Path, header: Sequence[str], group: str, rows: Sequence[records.Row]) -> Layout | None:
    """The layout of a table with a row for each choice; None for another table."""
    answer = surveys.answer_column(header)
    if answer is None or 'chosen' in [column.lower() for column in header]:
        return None
    columns = [column for column in header if column not in (group, answer, surveys.person_column(header))]
    for family in FAMILIES:
        of_sides = [surveys.columns_of_side(side, columns) for side in family]
        names = [name for name in of_sides[0] if name in of_sides[1]]
        if not names:
            continue
        count = max(k for k, of_side in enumerate(of_sides, 1) if any(name in of_side for name in names))
        for side, of_side in zip(family, of_sides[:count], strict=False):
            if lacking := next((name for name in names if name not in of_side), None):
                raise ValueError(
                    f'{path}: {of_sides[0][lacking]} and {of_sides[1][lacking]} have no partner for option {side}; add '
                    'the column, or rename columns that are no attributes'
                )
        answers = {surveys.plain(row[answer]) for _, row in rows if not records.is_missing(row.get(answer))}
        none = {word: count for word in surveys.NEITHER if word in answers and (_number(word, {}) or count) >= count}
        of_names = tuple({name: of_side[name] for name in names} for of_side in of_sides[:count])
        return Layout(family[:count], of_names, answer, none)
    return None


def _number(answer: Any, none: Mapping[str, int]) -> int | None:
    """The number of the option that an answer names, from 0; `none` has the numbers of other answers. None where it
    names none."""
    word = surveys.plain(answer)
    if records.is_missing(answer):
        return None
    return none.get(word, next((family.index(word) for family in FAMILIES if word in family), None))
