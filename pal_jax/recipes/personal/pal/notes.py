"""Notes on a table of choices: the columns that are not read, and rows and words that somebody may not have meant as
they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pal_jax.data import records
from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal.attributes import near_name
from pal_jax.run import files
from pal_jax.run.forecast import counted

# Names of a column that says which of a situation's options a row has, in small letters and without `_id` or `id`.
OPTIONS = 'alt', 'alternative', 'option', 'concept'
PROFILES = 'profileid', 'profile_id'  # of a column that numbers the options of a design, as cbcTools has it
PLACE = re.compile(r'(alt|alternative|option)?[ _-]*(\d+(\.0)?|[a-z])|left|right', re.IGNORECASE)
CODES = 99.0, 999.0, 9999.0, -9.0, -99.0, -999.0, -9999.0  # numbers that surveys have for no answer
FAR = 3.0
MANY = 20  # so many cells for each word of a column make a word doubtful that is in one row alone
GROUPS, PEOPLE = 12, 5  # more groups than this, with a median of fewer people, are doubtful
AMOUNT = re.compile(r'(?P<before>(?:[^\w\s]|[A-Z]{3})?)\s*[-+]?\d[\d.,\s]*(?P<after>\D*)')


def log_doubts(
    path: str | Path,
    unread: Mapping[str, str],
    attributes: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
    places: Sequence[str],
    log: Callable[[str], None],
) -> None:
    """Log the columns that are not read, with the reason where there is one, and doubtful words and numbers.

    `attributes` has the words of each, () for numbers, and `values` its cells, the same number in each row of `places`.
    """
    by_reason: dict[str, list[str]] = {}
    for column, reason in unread.items():
        by_reason.setdefault(reason, []).append(column)
    if by_reason:
        log(f'{path}: not read: {"; ".join(", ".join(columns) + reason for reason, columns in by_reason.items())}')
    for name, words in attributes.items():
        if len(attributes) == 1 and any(' ' in word for word in words):
            log(f'{path}: each text of {name} is an attribute of its own; --config=pal:text reads what the texts say')
        known = set(words)
        spellings = {word for word in values[name] if words and word not in known and word.casefold() in folded(words)}
        if spellings:
            listed = ', '.join(sorted(spellings | {word for word in words if word.casefold() in folded(spellings)}))
            log(f'{path}: {name} has words that differ in capitals alone, which are read as one word: {listed}')
        for place, word in lone_words(values[name], places) if words else ():
            near = near_name(word, (other for other in words if other.casefold() != word.casefold()))
            advice = f'did you mean {near}?' if near else 'check that it is meant so'
            count = counted(len(places), 'row')
            log(f'{place}: {name} has {files.short_repr(word)} in this row alone, of {count}; {advice}')
        if not words and (far := far_value(values[name])):
            place = places[values[name].index(far) // (len(values[name]) // len(places))]
            log(f'{place}: {name} has {far}, ten times any other value and more; check that it is meant so')
        if not words and (codes := codes_of_missing(values[name])):
            log(
                f'{path}: {name} has {", ".join(codes)}, far from all other values: if it stands for no answer, empty '
                'the cell'
            )
        if have_unit(words):
            log(
                f'{path}: {name} has words that look like numbers ({words[0]}, ...): remove the unit to read them as '
                'numbers'
            )


def folded(words: Iterable[str]) -> set[str]:
    """The words without capitals."""
    return {word.casefold() for word in words}


def lone_words(values: Sequence[str], places: Sequence[str]) -> list[tuple[str, str]]:
    """The words of a column that are in one row alone, and its place; none where the column has few cells for each of
    its words."""
    in_a_row = len(values) // max(len(places), 1)
    cells: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        if not records.is_missing(value):
            cells.setdefault(value.casefold(), []).append(number)
    if len(values) < MANY * len(cells):
        return []
    lone = [numbers[0] for numbers in cells.values() if len({number // in_a_row for number in numbers}) == 1]
    return [(places[number // in_a_row], values[number]) for number in lone]


def log_groups(path: str | Path, column: str, data: Comparisons, log: Callable[[str], None]) -> None:
    """Log the groups of people, that a column has many groups of few people, as one of numbers has, and names that may
    be meant as one."""
    if data.groups is None:
        return
    sizes = np.bincount(data.groups[data.groups >= 0], minlength=len(data.group_names))
    people = dict(zip(data.group_names, sizes.tolist(), strict=True))
    count, median = len(people), np.median(sizes)
    without = int(np.sum(data.groups < 0))
    if count <= GROUPS:
        listed = ', '.join(f'{name} ({size})' for name, size in people.items())
        none = f'; {counted(without, "person")} in none, who count in no comparison of groups' if without else ''
        log(f'{path}: {column} has the groups {listed}{none}')
    for name in (name for name in people if people[name] < PEOPLE and name.isalpha()):
        if near := near_name(name, (other for other in people if people[other] > people[name])):
            who = f'the {column} of {counted(people[name], "person")}: {", ".join(_members(data, name))}'
            log(f'{path}: {files.short_repr(name)} is {who}; did you mean {near}?')
    if count > GROUPS and median < PEOPLE:
        are_numbers = all(re.fullmatch(r'[-+]?\d+([.,]\d+)?', name) for name in data.group_names)
        log(
            f'{path}: {column} has {count} different {"numbers" if are_numbers else "words"} as groups, with a median '
            f'of {median:g} {"person" if median == 1 else "people"} in each; a group is meant to have many people: '
            "write classes, such as 18-39, into a column, or take no groups by --config.group=''"
        )


def _members(data: Comparisons, group: str) -> list[str]:
    """The first people of a group."""
    assert data.groups is not None
    members = [data.names[person] for person in np.flatnonzero(data.groups == data.group_names.index(group))]
    return [*members[:3], *(['...'] if len(members) > 3 else [])]


def codes_of_missing(values: Iterable[str]) -> list[str]:
    """The cells of a column of numbers that are a code for no answer, such as 999, and far from all others."""
    numbers = [float(value) for value in values if re.fullmatch(r'[-+]?\d+(\.\d+)?', value)]
    others = [abs(number) for number in numbers if number not in CODES]
    far = {number for number in numbers if number in CODES and others and abs(number) > FAR * max(others)}
    return [f'{number:g}' for number in sorted(far)]


def far_value(values: Sequence[str]) -> str:
    """The largest number of a column where it is in one or two cells alone, at least ten times any other number, and no
    code for no answer; '' for none."""
    sizes = sorted((abs(float(value)), value) for value in {*values} if re.fullmatch(r'[-+]?\d+(\.\d+)?', value))
    if len(sizes) < 3:
        return ''
    (second, _), (largest, far) = sizes[-2:]
    is_far = 0.0 < 10.0 * second <= largest and float(far) not in CODES
    return far if is_far and values.count(far) <= 2 else ''


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
        name = column.lower().removesuffix('id').removesuffix('_')
        numbers = name in OPTIONS and len(values) == 1 and all(map(PLACE.fullmatch, *values))
        if numbers or column.lower() in PROFILES:
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
