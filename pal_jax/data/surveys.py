"""The columns of surveys, by the names that people give them: the person, the answer and the two sides of a pair."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pal_jax.run.forecast import few_of

# Names of the column of the person in surveys, in small letters and without `_id` or `id`; Qualtrics has ResponseId.
PEOPLE = 'user', 'participant', 'person', 'respondent', 'resp', 'subject', 'worker', 'prolific_pid'
# Names of the column of the answer, in small letters.
ANSWERS = 'choice', 'answer', 'preferred', 'preference'
# Names of the column of the situation in tables with a row for each option, in small letters and without `_id`. The
# first one that a table has counts, as a block or a set may have several questions.
SITUATIONS = 'situation', 'chid', 'obsid', 'choice_set', 'choiceset', 'task', 'question', 'scenario', 'set'
# Answers that take none of the options, in small letters.
NEITHER = 'neither', 'none', 'no choice', 'opt-out', 'optout', 'opt out', '3', 'c'
# Names of the two sides of a pair, in small letters; an answer names a side.
SIDES = ('left', 'right'), ('a', 'b'), ('1', '2')


def person_column(columns: Iterable[str]) -> str | None:
    """The column of the person: `user`, or the first that has a name of `PEOPLE`."""
    # Programs that read a byte order mark as a letter leave it before the name of the first column.
    names = {c: c.lower().strip('\ufeff ').removesuffix('_id') for c in columns}
    known = {*PEOPLE, *(f'{name}id' for name in PEOPLE)}
    if 'user' in names:
        return 'user'
    # An id of Prolific tells people apart better than that of a response does.
    return next((c for of in (known, {'responseid'}) for c, name in names.items() if name in of), None)


def answer_column(columns: Iterable[str]) -> str | None:
    """The column of the answer: `choice`, or the first that has a name of `ANSWERS`."""
    return 'choice' if 'choice' in columns else next((c for c in columns if c.lower() in ANSWERS), None)


def situation_column(columns: Iterable[str]) -> str | None:
    """The column of the situation: the one with the first name of `SITUATIONS`."""
    names = {c.lower().removesuffix('_id'): c for c in columns}
    return next((names[name] for name in SITUATIONS if name in names), None)


def with_user(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose columns of the person and of the answer are called `user` and `choice`, whichever names of `PEOPLE`
    and `ANSWERS` they have. A row that says what was `chosen` needs no answer."""
    new = {person_column(row): 'user'} | ({} if 'chosen' in row else {answer_column(row): 'choice'})
    return {new.get(name, name): value for name, value in row.items()}


def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of a survey with the names that this package reads, see `with_user`.

    The texts in `left` and `right`, in `A` and `B`, or in columns such as `text_A` and `text_B`, become `chosen` and
    `rejected` by the answer.

    Raises:
      ValueError: the answer names no side.
    """
    sides, answered_in = text_columns(row), answer_column(row)
    row = with_user(row)
    if 'chosen' in row or 'choice' not in row or not sides:
        return row
    if empty := [name for name in sides if row[name] is None or not str(row[name]).strip()]:
        raise ValueError(f'{empty[0]} is empty')
    answer = side_of(row['choice'], answered_in or 'choice')
    rest = {name: value for name, value in row.items() if name not in (*sides, 'choice')}
    return {**rest, 'chosen': row[sides[answer]], 'rejected': row[sides[1 - answer]]}


def answers(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The rows of a file without the two that Qualtrics has below the head: the questions, and ids in JSON."""
    first = list(itertools.islice(rows, 2))
    second = first[1][1] if len(first) > 1 else None
    marked = isinstance(second, Mapping) and any(str(cell).startswith('{"ImportId"') for cell in second.values())
    yield from () if marked else first
    yield from rows


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


def given(columns: Iterable[str]) -> str:
    """The words on the fields of a row that lacks one."""
    return f'the header {as_read(columns)}' if is_uncut(columns) else f'its fields are {listed(columns)}'


def listed(columns: Iterable[str]) -> str:
    """The names of columns in one line."""
    return ', '.join(' '.join(str(name).split()) for name in columns)


def is_uncut(columns: Iterable[str]) -> bool:
    """True for columns that a header seems to give whose cells stand between other marks, such as `user|choice`."""
    names = [str(name).strip() for name in columns]
    marks = sum(name.count(mark) for name in names for mark in ';|\t')
    return marks >= len(names) or (len(names) == 1 and bool(re.search(r'\W', names[0])))


def as_read(columns: Iterable[str]) -> str:
    """The words on a header whose cells may be cut wrongly: how it was read, and what may stand between cells."""
    names = list(map(repr, columns))
    cells = f'{len(names)} cells' if len(names) > 1 else '1 cell alone'
    return f'was read as {cells}: {few_of(names)}; separate cells by commas, semicolons or tabs'


def columns_of_side(side: str, columns: Iterable[str]) -> dict[str, str]:
    """The columns of one side of `SIDES` by the names of what they hold: `left_price`, `price_B` or `price1`."""
    # Between a digit and the name there need not be a mark.
    marks = '[_ .:-]*' if side.isdigit() else '[_ .:-]+'
    before, after = (r'.*\D', r'\D.*') if side.isdigit() else ('.+', '.+')
    pattern = re.compile(f'{side}{marks}({after})|({before}){marks}{side}', re.IGNORECASE)
    matches = [(match, column) for column in columns if (match := pattern.fullmatch(column))]
    return {(match[1] or match[2]).strip('_ .:-'): column for match, column in matches}


def plain(answer: Any) -> str:
    """An answer in small letters, without what may stand around the name of an option."""
    return str(answer).strip().lower().removesuffix('.0').removeprefix('option ')


def side_of(answer: Any, column: str = 'choice') -> int:
    """The number of the side that an answer names, 0 or 1. Raises ValueError, with its column, where it names none."""
    word = plain(answer)
    for sides in SIDES:
        if word in sides:
            return sides.index(word)
    shown = 'empty' if answer is None or not str(answer).strip() else repr(answer)
    neither = '; "neither" is an option of its own, see docs/howto/choices.md#a-table' if word in NEITHER else ''
    raise ValueError(f'{column} is {shown}; give left or right, A or B, or 1 or 2{neither}')
