"""A researcher's own table of choices. Errors name the file and the row.

JSON lines: {"user": "ana", "chosen": [1.5, 0], "rejected": [2, 1]}; items are lists of numbers, or objects of named
    numbers; "situation" names the decision that a row belongs to, "prompt" is the vector of a prompt (PAL-B).
CSV with a row for each option: columns user, situation, chosen (0 or 1), and one for each attribute.
CSV with a row for each pair: columns user, choice (left or right), left_<attribute> and right_<attribute>; situation is
    optional.

Numbers may be written as texts. `records.identity` reads users and situations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import records, shards
from pal_jax.data.comparisons import Comparisons, PreferencePair, from_pairs
from pal_jax.data.readers import choices
from pal_jax.run import files

LARGEST = float(np.finfo(np.float32).max)
FORMS = (
    'user, situation, chosen and attributes (a row an option), or user, choice, left_<attribute> and '
    'right_<attribute> (a row a pair)'
)


def load(path: str | Path, *, answered: bool = True) -> Comparisons:
    """The choices of a source, which are those of `records.values`.

    Args:
      answered: False where nobody has chosen yet. The row of a pair then needs neither `choice` nor `user`, its left
        side counts as chosen, and JSON lines may have `left` and `right`.

    Raises:
      ValueError: the file is missing or of another kind, or a row is wrong.
    """
    kinds = {files.format_of(file) for file in shards.files_of(str(path))}
    rows = list((_csv if kinds == {'.csv'} else _jsonl)(path, answered))
    if not rows:
        raise ValueError(f'{path} holds no {"choices" if answered else "pairs"}')
    _, attributes, first = rows[0]
    data = from_pairs([_checked(pair, place, first) for place, _, pair in rows], attributes)
    # Items that differ in a file may be the same in float32, in which the model sees them.
    if (same := (data.chosen[:] == data.rejected[:]).all(axis=1)).any():
        place, _, pair = rows[int(same.argmax())]
        raise ValueError(
            f'{place}: the items {list(pair.chosen)} and {list(pair.rejected)} are the same in float32, so the choice '
            'says nothing; subtract what all items have in common, or delete the row'
        )
    return data


def _checked(pair: PreferencePair, place: str, first: PreferencePair) -> PreferencePair:
    for side in ('chosen', 'rejected', 'prompt'):
        numbers, expected = getattr(pair, side), first.prompt if side == 'prompt' else first.chosen
        if len(numbers) != len(expected):
            raise ValueError(f'{place}: {side} has {len(numbers)} numbers, the first row has {len(expected)}')
        if not all(abs(number) <= LARGEST for number in numbers):
            raise ValueError(f'{place}: {side} holds a number that is not finite in float32: {list(numbers)}')
    if pair.chosen == pair.rejected:
        raise ValueError(f'{place}: the two items are identical, so the choice says nothing; delete the row')
    return pair


def _jsonl(path: str | Path, answered: bool) -> Iterator[tuple[str, tuple[str, ...], PreferencePair]]:
    names: tuple[str, ...] = ()
    kinds: set[bool] = set()
    for place, line in records.values(str(path)):
        record = line if answered else records.unanswered(line)
        if not isinstance(record, dict) or not {'user', 'chosen', 'rejected'} <= set(record):
            keys = 'user, chosen and rejected' if answered else 'left and right'
            raise ValueError(f'{place}: expected an object with {keys}, got {files.short_repr(line)}')
        user, sides = records.identity(place, record, 'user'), [record['chosen'], record['rejected']]
        kinds.add(isinstance(sides[0], Mapping))
        if len(kinds) > 1:
            raise ValueError(f'{place}: some items are lists, and others objects of attributes; give all alike')
        if isinstance(sides[0], Mapping):
            # The first row names the attributes, and their order.
            names = names or tuple(sides[0])
            if any(not isinstance(side, Mapping) or set(side) != set(names) for side in sides):
                raise ValueError(f'{place}: expected the attributes {", ".join(names)} in both items')
            sides = [[side[name] for name in names] for side in sides]
        chosen, rejected, prompt = (_numbers(values, place) for values in (*sides, record.get('prompt', ())))
        yield place, names, PreferencePair(user, chosen, rejected, _situation(place, record), prompt)


def _situation(place: str, row: Mapping[str, Any]) -> str:
    """The id of a row's situation. A row that names none is a situation of its own."""
    return records.identity(place, row, 'situation') if 'situation' in row else place


def _numbers(values: Any, place: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f'{place}: expected a list of numbers, got {files.short_repr(values)}')
    return tuple(_number(value, place) for value in values)


def _number(value: Any, place: str) -> float:
    try:
        # Python takes True and 1_0 for numbers, too.
        if isinstance(value, bool) or '_' in str(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of hundreds of digits
        raise ValueError(f'{place}: expected a list of numbers, got {files.short_repr(value)}') from None


def _csv(path: str | Path, answered: bool) -> Iterator[tuple[str, tuple[str, ...], PreferencePair]]:
    rows = list(records.rows(str(path)))
    if not rows:
        return
    columns = set(rows[0][1])
    # A column left_x alone may be an attribute; with right_x it is the side of a pair.
    sides = any(f'right_{c[5:]}' in columns for c in columns if c.startswith('left_'))
    # A proper subset leaves a column at least for an attribute.
    if {'user', 'situation', 'chosen'} < columns:
        yield from _options(rows)
    elif sides and not answered:
        yield from _pairs([(place, {**records.unanswered(row), 'choice': 'left'}) for place, row in rows])
    elif sides and {'user', 'choice'} < columns:
        yield from _pairs(rows)
    else:
        forms = FORMS if answered else 'left_<attribute> and right_<attribute>, a row a pair'
        raise ValueError(f'{path}: its columns are {", ".join(sorted(columns))}; give {forms}')


def _pairs(rows: list[records.Row]) -> Iterator[tuple[str, tuple[str, ...], PreferencePair]]:
    names = tuple(key[5:] for key in rows[0][1] if key.startswith('left_')) if rows else ()
    for place, row in rows:
        if row['choice'] not in ('left', 'right'):
            raise ValueError(f'{place}: choice is {row["choice"]!r}; give left or right')
        left, right = (_numbers([row.get(f'{side}_{name}') for name in names], place) for side in ('left', 'right'))
        chosen, rejected = (left, right) if row['choice'] == 'left' else (right, left)
        user = records.identity(place, row, 'user')
        yield place, names, PreferencePair(user, chosen, rejected, _situation(place, row))


def _options(rows: list[records.Row]) -> Iterator[tuple[str, tuple[str, ...], PreferencePair]]:
    names = tuple(key for key in rows[0][1] if key not in ('user', 'situation', 'chosen')) if rows else ()
    situations: dict[tuple[str, str], list[tuple[str, choices.Option]]] = {}
    if '' in names:
        raise ValueError(f'{rows[0][0]}: a column has no name; name the attribute, or delete the column of row numbers')
    # One user may be spelled in several ways, and a situation must not fall apart by that.
    who = records.first_spelling()
    for place, row in rows:
        if row['chosen'] not in ('0', '1'):
            raise ValueError(f'{place}: chosen is {row["chosen"]!r}; give 0 or 1')
        option = row['chosen'] == '1', _numbers([row[name] for name in names], place)
        key = who(records.identity(place, row, 'user')), _situation(place, row)
        situations.setdefault(key, []).append((place, option))
    for (user, key), placed in situations.items():
        (place, _), options = placed[0], [option for _, option in placed]
        count = sum(was_chosen for was_chosen, _ in options)
        if count != 1 or len(options) < 2:
            raise ValueError(f'{place}: situation {key!r} of {user!r} has {count} chosen of {len(options)} options')
        # A choice among several options is a pair with each option that was not chosen.
        for pair in choices.pairs([(user, key, options)]):
            yield place, names, pair
