"""The columns of surveys, by the names that people give them: the person, the answer and the two sides of a pair."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Names of the column of the person in surveys, in small letters and without `_id`.
PEOPLE = 'user', 'participant', 'person', 'respondent', 'subject', 'worker', 'prolific_pid'
# Names of the column of the answer, in small letters.
ANSWERS = 'choice', 'answer', 'preferred', 'preference'
# Names of the two sides of a pair, in small letters; an answer names a side.
SIDES = ('left', 'right'), ('a', 'b'), ('1', '2')


def with_user(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose columns of the person and of the answer are called `user` and `choice`, whichever names of `PEOPLE`
    and `ANSWERS` they have. A row that says what was `chosen` needs no answer."""
    new = {}
    if 'user' not in row:
        new[next((name for name in row if name.lower().removesuffix('_id') in PEOPLE), '')] = 'user'
    if not {'choice', 'chosen'} & row.keys():
        new[next((name for name in row if name.lower() in ANSWERS), '')] = 'choice'
    return {new.get(name, name) if name else name: value for name, value in row.items()}


def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of a survey with the names that this package reads, see `with_user`.

    The texts in `left` and `right`, in `A` and `B`, or in columns such as `text_A` and `text_B`, become `chosen` and
    `rejected` by the answer.

    Raises:
      ValueError: the answer names no side.
    """
    row = with_user(row)
    sides = text_columns(row)
    if 'chosen' in row or 'choice' not in row or not sides:
        return row
    answer = side_of(row['choice'])
    rest = {name: value for name, value in row.items() if name not in (*sides, 'choice')}
    return {**rest, 'chosen': row[sides[answer]], 'rejected': row[sides[1 - answer]]}


def text_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """The two columns of a pair's sides that are called as in `SIDES`, or else the only two that end or begin so;
    () without such."""
    lower = {name.lower(): name for name in columns}
    for sides in SIDES:
        if lower.keys() >= {*sides}:
            return tuple(lower[side] for side in sides)
    for sides in SIDES:
        left, right = (columns_of_side(side, columns) for side in sides)
        if len(both := [name for name in left if name in right]) == 1:
            return left[both[0]], right[both[0]]
    return ()


def columns_of_side(side: str, columns: Iterable[str]) -> dict[str, str]:
    """The columns of one side of `SIDES` by the names of what they hold: `left_price`, `price_B` or `price1`."""
    # Between a digit and the name there need not be a mark.
    marks = '[_ .:-]*' if side.isdigit() else '[_ .:-]+'
    before, after = (r'.*\D', r'\D.*') if side.isdigit() else ('.+', '.+')
    pattern = re.compile(f'{side}{marks}({after})|({before}){marks}{side}', re.IGNORECASE)
    matches = [(match, column) for column in columns if (match := pattern.fullmatch(column))]
    return {(match[1] or match[2]).strip('_ .:-'): column for match, column in matches}


def side_of(answer: Any) -> int:
    """The number of the side that an answer names, 0 or 1. Raises ValueError where it names none."""
    plain = str(answer).strip().lower().removesuffix('.0')
    for sides in SIDES:
        if plain in sides:
            return sides.index(plain)
    raise ValueError(f'choice is {answer!r}; give left or right, A or B, or 1 or 2')
