"""An option that every choice of a table of options has, such as "none of these": its words, and its missing values."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data import records
from pal_jax.recipes.personal import offers
from pal_jax.recipes.personal.attributes import with_point

NEITHER = 'neither'  # the column that a table without one gets


def words_of_constant(rows: Sequence[records.Row], columns: Sequence[str]) -> dict[str, str]:
    """The values in small letters, by columns, that only the option has that every choice of a table has; such as
    "none of these". None where no option, or several, are in all choices."""
    choices = _choices(rows)
    choices_of: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for place, row in rows:
        choices_of.setdefault(tuple(_value_of(row[c]) for c in columns), set()).add(choices[place])
    every = {*choices.values()}
    constant = [option for option, of in choices_of.items() if of == every]
    if len(constant) != 1 or len(every) < offers.LEAST:
        return {}
    others = [{option[i] for option in choices_of if option != constant[0]} for i in range(len(columns))]
    return {c: word for c, word, known in zip(columns, constant[0], others, strict=True) if word not in known}


def recognised(
    path: str | Path,
    rows: list[records.Row],
    of: dict[str, tuple[str, ...]],
    earlier: Collection[str],
    log: Callable[[str], None],
) -> tuple[list[records.Row], dict[str, tuple[str, ...]], dict[str, None]]:
    """The rows and the columns of attributes with a column for "none of these", and the places of its rows, where one
    row of nearly every choice has no values; `earlier` has the columns of earlier choices, and `log` is told."""
    blank = _without_values(rows, list(of), earlier)
    if not blank:
        return rows, of, blank
    row = next(row for place, row in rows if place in blank)
    empty = ', '.join(column for column in of if records.is_missing(row[column]))
    with_column = _marked(rows, list(of), blank)
    added = {NEITHER: (NEITHER,)} if NEITHER in with_column[0][1] else {}
    if earlier and not added.keys() <= set(earlier):
        return rows, of, {}
    column = f' and 1 in the column {NEITHER}' if added else ''
    log(
        f'{path}: one option of every choice has no {empty}: it is read as "none of these", with 0 for numbers, the '
        f'first word for words{"," if column else ""}{column}'
    )
    return with_column, of | added, blank


def _without_values(rows: Sequence[records.Row], columns: Sequence[str], earlier: Collection[str]) -> dict[str, None]:
    """The places of the rows of "none of these", where nearly every choice has one row without a value in any of the
    columns, or in all but one; none in other tables. Few choices are enough after `earlier` ones, or where a column is
    called `NEITHER`."""
    choices = _choices(rows)
    lacks = {place: tuple(c for c in columns if records.is_missing(row[c])) for place, row in rows}
    blank = {place: missing for place, missing in lacks.items() if missing and len(missing) >= len(columns) - 1}
    counts, every = collections.Counter(choices[place] for place in blank), {*choices.values()}
    if len({*blank.values()}) != 1 or len(counts) < offers.NEARLY * len(every):
        return {}
    return dict.fromkeys(blank) if len(every) >= offers.LEAST or earlier or NEITHER in columns else {}


def _marked(rows: Sequence[records.Row], columns: Sequence[str], blank: Container[str]) -> list[records.Row]:
    """The rows with a column `NEITHER`, which is 1 in the `blank` ones and else 0, unless a column has a word, or the
    other of two numbers, that only the blank rows have."""
    for column in columns:
        cells = [(place in blank, row[column]) for place, row in rows]
        of_blank = {_value_of(cell) for is_blank, cell in cells if is_blank and not records.is_missing(cell)}
        others = {_value_of(cell) for is_blank, cell in cells if not is_blank}
        # A price of 0 is no such number: its effect is that of the price.
        if len(of_blank) == 1 and not of_blank & others and (len(others) == 1 or not _is_number(*of_blank)):
            return list(rows)
    return [(place, {**row, NEITHER: '1' if place in blank else row.get(NEITHER, '0')}) for place, row in rows]


def filled(rows: Sequence[records.Row], words: Mapping[str, Sequence[str]], blank: Container[str]) -> list[records.Row]:
    """The rows with a value for each missing one of the `blank` ones: the first of an attribute's words, which is the
    reference, or the number 0."""
    values = {column: of_column[0] if of_column else '0' for column, of_column in words.items()}

    def with_values(row: Mapping[str, Any]) -> dict[str, Any]:
        return {c: values[c] if c in values and records.is_missing(cell) else cell for c, cell in row.items()}

    return [(place, with_values(row) if place in blank else row) for place, row in rows]


def _choices(rows: Sequence[records.Row]) -> dict[str, tuple[str, str]]:
    """The choice of each row, a person and a situation, by the row's place."""
    who = records.first_spelling()
    return {place: (who(str(row['user']).strip()), str(row['situation']).strip()) for place, row in rows}


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _value_of(cell: Any) -> str:
    """A cell as a text that is the same for equal numbers, and for words that differ in capitals alone."""
    text = str(with_point(str(cell).strip())).casefold()
    return f'{float(text):.9g}' if _is_number(text) else text
