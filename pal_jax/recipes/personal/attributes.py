"""The attributes of items: words as numbers, the columns of the two sides of a pair, numbers as files have them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records, surveys
from pal_jax.run import files


class Attribute(NamedTuple):
    """An attribute of a table: a number, or one of `words`, which are numbers as the head of `tables.py` says.

    Words that differ in capitals alone are the same.
    """

    name: str
    words: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the attribute's numbers."""
        return tuple(f'{self.name}: {word} over {self.words[0]}' for word in self.words[1:]) or (self.name,)

    def numbers(self, value: Any, column: str = '') -> tuple[float, ...]:
        """The numbers of a value. Raises ValueError, with the name of the column, where it is none, or a word that is
        unknown."""
        if not self.words:
            return (to_number(value, column or self.name),)
        spelled = {word.casefold(): word for word in self.words}
        if (word := spelled.get(str(value).strip().casefold())) is None:
            name = column or self.name
            if records.is_missing(value):
                raise ValueError(f'{name} {absence(value)}')
            raise ValueError(f'{name} has {files.short_repr(value)}; give one of {", ".join(self.words)}')
        return tuple(float(word == other) for other in self.words[1:])


def in_order(attributes: Sequence[str]) -> list[str]:
    """The attributes by which an item is given, with the words that each may have: `seat (none, window)`."""
    shown: dict[str, None] = {}
    for attribute in attributes:
        name, colon, _ = attribute.partition(': ')
        words = known_words(name, attributes) if colon else ()
        shown[f'{name} ({", ".join(words)})' if words else attribute] = None
    return list(shown)


def columns_of(attributes: Iterable[str]) -> dict[str, None]:
    """The names of attributes as a table has them: one column for all words of an attribute."""
    return dict.fromkeys(map(column_of, attributes))


def column_of(attribute: str) -> str:
    """The column of a table that an attribute is read from."""
    return attribute.partition(': ')[0] if ' over ' in attribute else attribute


def lacking(missing: str, given: Iterable[str], attributes: Sequence[str]) -> str:
    """The words for an attribute that is missing among the `given` ones, which may have it by a name that is almost its
    own."""
    (name, *_), has, known = columns_of([missing]), columns_of(given), columns_of(attributes)
    near = near_name(name, has.keys() - known.keys())
    meant = f'; did you mean {name} where it says {near}?' if near else ''
    return f'no {name!r}; give {", ".join(in_order(attributes))}; it has {", ".join(has) or "nothing"}{meant}'


def items_of(
    row: Mapping[str, Any],
    attributes: Sequence[str],
    shared: Mapping[str, float] = MappingProxyType({}),
    constant: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """The items of a row of a table by their attributes: the two sides of a pair, or one option. Other columns are left
    out. `shared` has values of attributes that an item may leave out, and `constant` those of an option that may leave
    out all but one. Raises ValueError where another attribute is missing, or a number is none."""
    names = columns_of(attributes)
    items = []
    for side in sides_of(row, names):
        if constant and _is_constant({name: row[side[name]] for name in names if name in side}, attributes, constant):
            items.append(in_words(dict(zip(attributes, constant, strict=True))))
            continue
        item = {
            name: row[column] if known_words(name, attributes) else to_number(row[column], column)
            for name, column in side.items()
            if name in names and not (name in shared and records.is_missing(row[column]))
        }
        missing = [name for name in names if name not in item]
        # A column that is almost called so may be meant.
        others = [column.casefold() for column in side if column not in names]
        left_out = {name: shared[name] for name in missing if name in shared and not near_name(name.casefold(), others)}
        if item and (unknown := [name for name in missing if name not in left_out]):
            raise ValueError(f'it has {lacking(unknown[0], side, attributes)}')
        items.append({**item, **left_out} if item else item)
    return items


def _is_constant(cells: Mapping[str, Any], attributes: Sequence[str], constant: Sequence[float]) -> bool:
    """True where an option's cells by column are those of the `constant` one, "none of these": at most one has a value,
    which it has, too, and the others are empty."""
    given = {name: cell for name, cell in cells.items() if not records.is_missing(cell)}
    # Any other option that all choices have, as what people do today, has values that are worth writing.
    if len(given) == len(cells) or len(given) > 1 or np.count_nonzero(constant) != 1:
        return False
    numbers = dict(zip(attributes, constant, strict=True))
    known = [Attribute(name, known_words(name, attributes)) for name in given]
    return all(a.numbers(given[a.name]) == tuple(numbers[name] for name in a.names) for a in known)


def sides_of(row: Mapping[str, Any], names: Mapping[str, None]) -> list[dict[str, str]]:
    """The columns of both sides of a pair, or of one option, by the names that they have in it."""
    by_side = ([surveys.columns_of_side(side, list(row)) for side in sides] for sides in surveys.SIDES)
    option = [{name: name for name in row}]
    return next((both for both in by_side if names.keys() & both[0].keys() & both[1].keys()), option)


def with_points(path: str, rows: list[records.Row], attributes: Sequence[str]) -> list[records.Row]:
    """The rows of a file, with a point in numbers of the attributes that have a decimal comma, which CSV has between
    semicolons or tabs."""
    names = columns_of(attributes)
    numeric = {c for _, row in rows[:1] for side in sides_of(row, names) for name, c in side.items() if name in names}
    comma = files.format_of(Path(path)) == '.csv' and Path(path).is_file() and records.delimiter(Path(path)) != ','
    converted = ((place, {c: with_point(x) if c in numeric else x for c, x in row.items()}) for place, row in rows)
    return list(converted) if comma else rows


def with_numbers(item: Mapping[str, Any], attributes: Sequence[str]) -> Mapping[str, Any]:
    """An item with the numbers of its words, where `attributes` have them. Raises ValueError for an unknown word."""
    numbers = {}
    for name, value in item.items():
        known = Attribute(str(name), known_words(str(name), attributes))
        numbers |= dict(zip(known.names, known.numbers(value), strict=True)) if known.words else {name: value}
    return numbers


def in_words(item: Mapping[str, float]) -> dict[str, Any]:
    """An item of float32 numbers as its file has it, with words in place of their numbers."""
    shown: dict[str, Any] = {}
    for name, number in item.items():
        attribute, colon, word = name.partition(': ')
        chosen, over, first = word.rpartition(' over ')
        if not (colon and over) or number not in (0, 1):
            digits = float(f'{number:.7g}')
            shown[name] = int(digits) if digits.is_integer() else digits
        # The first word has no number of its own: it is the one that is left.
        elif number or attribute not in shown:
            shown[attribute] = chosen if number else first
    return shown


def known_words(name: str, attributes: Sequence[str]) -> tuple[str, ...]:
    """The words of an attribute, the first one first, as the names of its numbers have them (`Attribute.names`)."""
    start = f'{name}: '
    words = [a.removeprefix(start).rpartition(' over ') for a in attributes if a.startswith(start) and ' over ' in a]
    return (words[0][2], *(word for word, _, _ in words)) if words else ()


def near_name(name: str, others: Iterable[str]) -> str:
    """One of the other names that differs in a letter or two, or ''."""
    return next(iter(difflib.get_close_matches(name, others, 1, 0.75)), '')


def to_number(value: Any, name: str = 'an item') -> float:
    """A number. Raises ValueError, with the name of the attribute, where the value is none."""
    try:
        # Python takes True and 1_0 for numbers, too.
        if isinstance(value, bool) or '_' in str(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of hundreds of digits
        point = ', with a point before its decimals' if has_comma(value) else ''
        has = f'has {files.short_repr(value)}; give a number{point}'
        fault = absence(value) if records.is_missing(value) else has
        raise ValueError(f'{name} {fault}') from None


def absence(value: Any) -> str:
    """The words for a value that is missing (`records.is_missing`)."""
    has_text = isinstance(value, str) and value.strip()
    return f'is {value.strip()!r}, which stands for no value' if has_text else 'is empty'


def has_comma(value: Any) -> bool:
    """True for a text that is a number with a decimal comma."""
    return isinstance(value, str) and bool(re.fullmatch(r'\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*', value))


def with_point(value: Any) -> Any:
    """A number with a decimal comma as Python writes it; everything else as it is."""
    return value.replace(',', '.') if has_comma(value) else value
