"""A researcher's own table of choices. Errors name the file and all wrong rows.

Items: {"user": "ana", "chosen": [1.5, 0], "rejected": [2, 1]}; items are lists of numbers, or objects of named
    numbers; "situation" names the decision that a row belongs to, "prompt" is the vector of a prompt (PAL-B).
Table with a row for each option: columns user, situation (or another of `surveys.SITUATIONS`), chosen (0 or 1; also
    called choice), and one for each attribute.
Table with a row for each pair: columns user, choice, and two for each attribute; situation is optional. The answers and
    the columns of the two sides may be called left and right, A and B, or 1 and 2: left_price, price_B, price1. Of more
    options (`wide.py`) each attribute has a column for each: price_3, price_C.

A column `group` is the group of the person, such as a region; a table of options may have it as an attribute, too.
Files are those of `records.values`. Numbers may be written as texts; in CSV between semicolons or tabs they may have a
decimal comma. An attribute that has no number in any row has words, and becomes a number for each of its words but the
first: `maker: VW over Ford` is 1 for VW. `records.identity` reads users and situations, `surveys.with_user` finds the
column of the user.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import records, shards, surveys
from pal_jax.data.comparisons import Comparisons, PreferencePair, from_pairs
from pal_jax.data.readers import choices
from pal_jax.recipes.personal.attributes import (
    Attribute,
    column_of,
    columns_of,
    has_comma,
    known_words,
    near_name,
    to_number,
    with_point,
)
from pal_jax.recipes.personal.pal import neither, notes, wide
from pal_jax.run import files
from pal_jax.run.forecast import counted, few_of

LARGEST = float(np.finfo(np.float32).max)
MOST_WORDS = 20  # of an attribute; a column of more is a text or a name
FORMS = (
    'user, situation, chosen and attributes (a row an option), or user, choice, left_<attribute> and '
    'right_<attribute> (a row a pair)'
)
ASKED = 'left_<attribute> and right_<attribute>, a row a pair; or options, a row each, with a column situation'
QUESTION = re.compile(r'[a-z]+_?\d+', re.IGNORECASE)  # a column of a table with a row for each person, such as q12
KEYS = 'user', 'situation', 'chosen'
UNLIKE = *KEYS, 'choice'  # columns that are read, and are no attributes, beside that of the group
CHOSEN = {'1': True, '1.0': True, 'true': True, 'yes': True, '0': False, '0.0': False, 'false': False, 'no': False}


def load(
    path: str | Path,
    *,
    answered: bool = True,
    attributes: Sequence[str] = (),
    group: str = 'group',
    drop: records.Drop | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Comparisons:
    """The choices of a source, which are those of `records.values`.

    Args:
      answered: False where nobody has chosen yet. The row of a pair then needs neither `choice` nor `user`, its left
        side counts as chosen, and JSON lines may have `left` and `right`.
      attributes: those of earlier choices, whose words the table's attributes have.
      group: the column with the groups of people; '': there are none.
      drop: takes a line about wrong rows, which are left out (`records.converted`); None: they are refused.
      log: takes a line about columns that are not read, and words of an attribute that may be the same.

    Raises:
      ValueError: the file is missing or of another kind, or a row is wrong.
    """
    paths = shards.files_of(str(path))
    wrong: records.Wrong = {}
    rows = list(surveys.answers(iter(records.values(str(path), wrong))))
    if not rows and not wrong:
        raise ValueError(f'{path} holds no {"choices" if answered else "pairs"}: it has no rows')
    if group not in ('', 'group'):
        _check_group(path, rows, group)
    if rows and _has_texts(rows[0][1]) and not _option_columns(rows, group):
        raise ValueError(f'{path} has choices between texts; take --config=pal:text')
    if not rows and wrong:
        records.leave_out(wrong, 0, drop)
    if _is_table(rows):
        comma = any(files.format_of(file) == '.csv' and records.delimiter(file) != ',' for file in paths)
        names, pairs = _table(path, rows, answered, comma, attributes, group or 'group', drop, wrong, log)
    else:
        names, pairs = _items(rows, answered, group or 'group', drop)
    if not pairs:
        raise ValueError(f'{path} holds no {"choices" if answered else "pairs"}')
    if group not in ('', 'group') and group in columns_of(names):
        raise ValueError(f'{path}: group={group!r} differs between the options of a choice, so it is of no person')
    if not (answered and group):
        pairs = [dataclasses.replace(pair, group='') for pair in pairs]
    try:
        data = from_pairs(pairs, names)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    notes.log_groups(path, group, data, log)
    return data


def _check_group(path: str | Path, rows: list[records.Row], group: str) -> None:
    """Check that a column other than `group` is one of people's groups.

    Raises:
      ValueError: the file has no such column, has another one that is called group, or says something else in it.
    """
    heads = dict.fromkeys(name for _, row in rows[:1] if isinstance(row, Mapping) for name in row)
    if group not in heads:
        near = near_name(group, heads)
        meant = f'; did you mean {near}?' if near else ''
        raise ValueError(f'{path} has no column group={group!r}{meant}; its columns are {", ".join(heads)}')
    if 'group' in heads:
        raise ValueError(f'{path} has a column group beside group={group!r}; rename it')
    answer = None if 'chosen' in heads else surveys.answer_column(heads)
    if group in (surveys.person_column(heads), answer, *KEYS):
        raise ValueError(f'{path}: group={group!r} says who chose, or which option; name a column of groups of people')


def _has_texts(row: Any) -> bool:
    """True for a choice between texts or messages, which has no situation."""
    if not isinstance(row, Mapping) or 'situation' in row:
        return False
    sides = [value for name, value in row.items() if name.lower() in ('rejected', 'right', 'b')]
    messages = [isinstance(side, list) and any(isinstance(entry, Mapping) for entry in side) for side in sides]
    return any(messages) or any(isinstance(side, str) and not re.fullmatch(r'[-+\d.,eE]*', side) for side in sides)


def _is_table(rows: Sequence[tuple[str, Any]]) -> bool:
    """True for rows of cells, and False where some row has an item, a list or an object. Any file may hold both."""
    cells = [cell for _, row in rows if isinstance(row, Mapping) for cell in row.values()]
    return bool(cells) and not any(isinstance(cell, list | dict) for cell in cells)


def _checked(pair: PreferencePair, first: PreferencePair) -> PreferencePair:
    for side in ('chosen', 'rejected', 'prompt'):
        numbers, expected = getattr(pair, side), first.prompt if side == 'prompt' else first.chosen
        if len(numbers) != len(expected):
            raise ValueError(f'{side} has {len(numbers)} numbers, the first row has {len(expected)}')
        if not all(abs(number) <= LARGEST for number in numbers):
            raise ValueError(f'{side} holds a number that is not finite in float32: {list(numbers)}')
    if pair.chosen == pair.rejected:
        raise ValueError('the two items are identical, so the choice says nothing; delete the row')
    # Items that differ in a file may be the same in float32, in which the model sees them.
    if (np.asarray(pair.chosen, np.float32) == np.asarray(pair.rejected, np.float32)).all():
        raise ValueError(
            f'the items {list(pair.chosen)} and {list(pair.rejected)} are the same in float32, so the choice says '
            'nothing; subtract what all items have in common, or delete the row'
        )
    return pair


def _items(
    rows: list[records.Row], answered: bool, group: str, drop: records.Drop | None
) -> tuple[tuple[str, ...], list[PreferencePair]]:
    """The names of attributes, where items are objects, and the pairs of records of two items."""
    rows = rows if answered else [(place, records.unanswered(row)) for place, row in rows]
    sides = next((row['chosen'] for _, row in rows if isinstance(row, Mapping) and 'chosen' in row), ())
    # The first row names the attributes, and their order.
    names = tuple(sides) if isinstance(sides, Mapping) else ()

    first: list[PreferencePair] = []

    def read(placed: records.Row) -> PreferencePair:
        place, record = placed
        if not isinstance(record, dict) or not {'user', 'chosen', 'rejected'} <= set(record):
            keys = 'user, chosen and rejected' if answered else 'left and right'
            raise ValueError(f'expected an object with {keys}, got {files.short_repr(record)}')
        user, items = records.identity('', record, 'user'), [record['chosen'], record['rejected']]
        if isinstance(items[0], Mapping) != bool(names):
            raise ValueError('some items are lists, and others objects of attributes; give all alike')
        if names:
            if any(not isinstance(item, Mapping) or set(item) != set(names) for item in items):
                raise ValueError(f'expected the attributes {", ".join(names)} in both items')
            items = [[item[name] for name in names] for item in items]
        chosen, rejected, prompt = map(_numbers, (*items, record.get('prompt', ())))
        of = records.known('', record, group)
        first.append(pair := PreferencePair(user, chosen, rejected, _situation(place, record), prompt, of))
        return _checked(pair, first[0])

    return names, records.converted([(row[0], row) for row in rows], read, drop)


def _situation(place: str, row: Mapping[str, Any]) -> str:
    """The id of a row's situation. A row that names none is a situation of its own."""
    return records.identity('', row, 'situation') if 'situation' in row else place


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f'expected a list of numbers, got {files.short_repr(values)}')
    return tuple(map(to_number, values))


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(
    path: str | Path,
    rows: list[records.Row],
    answered: bool,
    comma: bool,
    known: Sequence[str],
    group: str,
    drop: records.Drop | None,
    wrong: records.Wrong,
    log: Callable[[str], None],
) -> tuple[tuple[str, ...], list[PreferencePair]]:
    """The names of attributes and the pairs of a table of options or of pairs; `comma`: numbers may have a decimal
    comma; `group`: the column of people's groups, where the table has one."""
    placed = _objects(rows, wrong)
    placed = wide.to_options(path, placed, group, columns_of(known), drop, log) if answered else placed
    # The first row has the attributes, and others may lack them. Each of several files has its own names of columns.
    header, options = list(placed[0][1]), _option_columns(placed, group) if answered else {}
    named = [(place, surveys.with_user(row)) for place, row in placed]
    if options:
        if (situation := next(iter(options))) != 'situation':
            log(f'{path}: rows of a person with the same {situation} are one choice')
        named = [(place, {options.get(name, name): cell for name, cell in row.items()}) for place, row in named]
    sides = {} if options else _sides(path, [name for name in header if name != group])
    known_columns = dict.fromkeys(itertools.chain.from_iterable(row for _, row in named))
    rows = [(place, {**known_columns, **row}) for place, row in named]
    columns = list(named[0][1])
    # A proper subset leaves a column at least for an attribute.
    if answered and {'user', 'situation', 'chosen'} < set(columns):
        of = {name: (name,) for name in columns if name not in KEYS}
        # A new person's few choices have the attributes of the run, even where they are alike.
        unread = notes.unread_of_options(rows, list(of), columns_of(known))
        of = {name: column for name, column in of.items() if name not in unread}
        unread.pop(group, '')
        read: Callable[..., list[PreferencePair]] = functools.partial(_options, group=group)
        last = neither.words_of_constant(rows, list(of))
        rows, of, blank = neither.recognised(path, rows, of, columns_of(known), log)
    elif sides and (not answered or {'user', 'choice'} <= set(columns)):
        of, unread, last, blank = sides, {}, {}, {}
        read = functools.partial(_pairs, group=group, answer=surveys.answer_column(header) or 'choice')
    else:
        raise ValueError(f'{path}: {_lacking(header, bool(sides), answered)}')
    if '' in of:
        raise ValueError(f'{path}: a column has no name; name the attribute, or delete the column of row numbers')
    cells = {c for names in of.values() for c in names}
    if comma:
        rows = [(place, {c: with_point(x) if c in cells else x for c, x in row.items()}) for place, row in rows]
    values = {name: [str(row[c]).strip() for _, row in rows for c in columns] for name, columns in of.items()}
    words = {name: known_words(name, known) or _words(path, name, x, last.get(name, '')) for name, x in values.items()}
    attributes = [_attribute(path, name, of_name) for name, of_name in words.items()]
    rows = neither.filled(rows, {column: words[name] for name, columns in of.items() for column in columns}, blank)
    if not answered:
        rows = [(place, {**records.unanswered(row), 'choice': 'left'}) for place, row in rows]
    unread |= {c: '' for c in known_columns if c and c not in cells | unread.keys() and c not in (*UNLIKE, group)}
    notes.log_doubts(path, unread, words, values, [place for place, _ in rows], log)
    if answered:
        notes.log_copies(path, rows, log)
    names = tuple(name for attribute in attributes for name in attribute.names)
    pairs = read(path, rows, attributes, of, drop, wrong)
    if drop and answered:
        _tell_of_lost(rows, pairs, drop)
    return names, pairs


def _attribute(path: str | Path, name: str, words: tuple[str, ...]) -> Attribute:
    """An attribute. Raises ValueError where its numbers would not be known as those of its column."""
    attribute = Attribute(name, words)
    if any(column_of(number) != name for number in attribute.names):
        raise ValueError(f"{path}: column {name!r} holds ': ', which stands before words of attributes; rename it")
    return attribute


def _tell_of_lost(rows: Sequence[records.Row], pairs: Sequence[PreferencePair], drop: records.Drop) -> None:
    """Tell `drop` of the people whose rows are all left out."""
    who, people = records.first_spelling(), dict[str, None]()
    for _, row in rows:
        # A row without an id is wrong, and is told already.
        with contextlib.suppress(ValueError):
            people[who(records.identity('', row, 'user'))] = None
    left = {who(pair.user) for pair in pairs}
    if lost := [name for name in people if name not in left]:
        drop(f'left out {counted(len(lost), "person")} without a choice that is left: {few_of(lost)}')


def _option_columns(rows: Sequence[records.Row], group: str) -> dict[str, str]:
    """The columns of the situation and of the answer in a table with a row for each option, with the names that this
    package reads; none in another table. A column `choice` is such an answer where it has both 0 and 1."""
    rows = [(place, row) for place, row in rows if isinstance(row, Mapping)]
    columns = [column for column in rows[0][1] if column != group] if rows else []
    situation, small = surveys.situation_column(columns), {column.lower(): column for column in columns}
    answer = small.get('chosen')
    if answer is None and (choice := small.get('choice')):
        cells = [row.get(choice) for _, row in rows]
        said = {CHOSEN.get(str(cell).strip().lower()) for cell in cells if not records.is_missing(cell)}
        answer = choice if said == {True, False} else None
    return {situation: 'situation', answer: 'chosen'} if situation and answer else {}


def _objects(rows: Sequence[tuple[str, Any]], wrong: records.Wrong) -> list[records.Row]:
    """The rows that are objects; others are added to `wrong`."""
    for place, row in rows:
        if not isinstance(row, Mapping):
            wrong.setdefault(f'expected an object, got {files.short_repr(row)}', []).append(place)
    return [(place, row) for place, row in rows if isinstance(row, Mapping)]


def _lacking(columns: Sequence[str], has_sides: bool, answered: bool) -> str:
    """The words that say what a table with these columns lacks."""
    if surveys.is_uncut(columns):
        return f'the header {surveys.as_read(columns)} (pandas reads others by sep=)'
    given = f'the columns are {", ".join(columns)}'
    person, by_person = (
        surveys.person_column(columns),
        'docs/howto/choices.md turns a row per person into rows of answers',
    )
    has_options = 'chosen' in [column.lower() for column in columns]
    if answered and person is None and (has_sides or has_options):
        meant = next((f', as {c} may be' for c in columns if c.lower() == 'id'), '')
        return f'no column says who chose{meant}; call it one of {", ".join(surveys.PEOPLE)}; {given}'
    if answered and sum(bool(QUESTION.fullmatch(c)) for c in columns) > 1 and not surveys.answer_column(columns):
        return f'no column says which side was chosen; {given}; {by_person}'
    if answered and has_sides:
        return f'no column says which side was chosen; call it one of {", ".join(surveys.ANSWERS)}; {given}'
    if answered and has_options and surveys.situation_column(columns) is None:
        return f'no column says which rows are one choice; call it one of {", ".join(surveys.SITUATIONS)}; {given}'
    return f'{given}; give {FORMS if answered else ASKED}'


def _words(path: str | Path, name: str, values: Iterable[Any], last: str = '') -> tuple[str, ...]:
    """The words of a column in the order of the alphabet; none where a value is a number, or all are missing. The
    `last` word, in small letters, stands at the end, so it is never the reference.

    Raises:
      ValueError: the column has one word alone, too many for an attribute, or numbers with decimal commas.
    """
    said = [str(value).strip() for value in values if not records.is_missing(value)]
    if said and all(map(has_comma, said)):
        raise ValueError(
            f'{path}: {name} has {said[0]!r}; write numbers with a point, or separate the cells of a CSV file by '
            'semicolons'
        )
    for word in said:
        try:
            to_number(word)
        except ValueError:
            continue
        # Where one value is a number the column has numbers, and words in it are wrong.
        return ()
    # Of spellings that differ in capitals alone the most frequent one counts.
    count = collections.Counter(said)
    spelled: dict[str, str] = {}
    for word in sorted(count, key=lambda word: (-count[word], word)):
        spelled.setdefault(word.casefold(), word)
    words = tuple(sorted(spelled.values(), key=lambda word: (word.casefold() == last, word)))
    if said and not 2 <= len(words) <= MOST_WORDS:
        advice = (
            'remove the unit' if notes.have_unit(words) else 'delete the column, and for texts take --config=pal:text'
        )
        raise ValueError(
            f'{path}: column {name} has {len(words)} different words, such as {files.short_repr(words[0])}; an '
            f'attribute has 2 to {MOST_WORDS}; {advice}'
        )
    return words


def _sides(path: str | Path, columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The columns of the two sides of each attribute, such as left_price and right_price, or price1 and price2.

    Raises:
      ValueError: a column of one side has none of the other one.
    """
    for sides in surveys.SIDES:
        left, right = (surveys.columns_of_side(side, columns) for side in sides)
        if both := [name for name in left if name in right]:
            lonely = {name: (left | right)[name] for name in left.keys() ^ right.keys()}
            near = {name: near_name(name, lonely.keys() & (right if name in left else left).keys()) for name in lonely}
            # A digit ends many names, such as wave1, so there only two names that are almost one are a mistake.
            if sides[0] == '1':
                lonely = {name: column for name, column in lonely.items() if near[name]}
            if lonely:
                name, column = min(lonely.items())
                meant = f'; is {lonely[near[name]]} meant for the other side?' if near[name] else ''
                raise ValueError(f'{path}: column {column} has no partner on the other side; mend or rename it{meant}')
            return {name: (left[name], right[name]) for name in both}
    return {}


def _pairs(
    path: str | Path,
    rows: list[records.Row],
    attributes: Sequence[Attribute],
    of: Mapping[str, tuple[str, ...]],
    drop: records.Drop | None,
    wrong: records.Wrong,
    *,
    group: str,
    answer: str,
) -> list[PreferencePair]:
    """The pairs of rows that have two sides each; `group` and `answer` are columns of the file."""
    # 1 is the left side where answers are 1 and 2, and the right one where they are 0 and 1.
    if any(str(row['choice']).strip() in ('0', '0.0') for _, row in rows):
        raise ValueError(f'{path}: {answer} is 0 in some rows; write left and right, A and B, or 1 and 2')

    def read(placed: records.Row) -> PreferencePair:
        place, row = placed
        side = surveys.side_of(row['choice'], answer)
        chosen, rejected = (
            tuple(n for a in attributes for n in a.numbers(row[of[a.name][k]], of[a.name][k])) for k in (side, 1 - side)
        )
        user = records.identity('', row, 'user')
        pair = PreferencePair(user, chosen, rejected, _situation(place, row), group=records.known('', row, group))
        return _checked(pair, pair)

    return records.converted([(row[0], row) for row in rows], read, drop, wrong)


def _options(
    path: str | Path,
    rows: list[records.Row],
    attributes: Sequence[Attribute],
    of: Mapping[str, tuple[str, ...]],
    drop: records.Drop | None,
    wrong: records.Wrong,
    *,
    group: str,
) -> list[PreferencePair]:
    """The pairs of rows that have one option each: the chosen option with each other option of its situation."""
    # One user may be spelled in several ways, and a situation must not fall apart by that.
    who = records.first_spelling()
    groups: dict[tuple[str, str], str] = {}
    key_of: dict[str, tuple[str, str]] = {}

    def read(placed: records.Row) -> tuple[str, choices.Option]:
        place, row = placed
        key = key_of[place] = who(records.identity('', row, 'user')), _situation(place, row)
        chosen = CHOSEN.get(str(row['chosen']).strip().lower())
        if chosen is None:
            raise ValueError(f'the answer (chosen) of a row of an option is {row["chosen"]!r}; give 0 or 1')
        numbers = tuple(n for a in attributes for n in a.numbers(row[of[a.name][0]]))
        of_person = '' if group in of else records.known('', row, group)
        if groups.setdefault(key, of_person) != of_person:
            raise ValueError(f'{group} differs between the options of a choice, so it says no group of people')
        return place, (chosen, numbers)

    wrong = dict(wrong)
    situations: dict[tuple[str, str], list[tuple[str, choices.Option]]] = {}
    for place, option in records.sorted_out([(row[0], row) for row in rows], read, wrong):
        situations.setdefault(key_of[place], []).append((place, option))
    # What is left of a choice with a wrong row, whose person and situation can be read, is not judged before the row is
    # mended or left out.
    unfinished = set() if drop else {key_of[place] for place in itertools.chain(*wrong.values()) if place in key_of}

    def paired(key: tuple[str, str]) -> list[PreferencePair]:
        user, name = key
        options = [option for _, option in situations[key]]
        count = sum(was_chosen for was_chosen, _ in options)
        if count != 1 or len(options) < 2:
            copied = ' (rows may be duplicated)' if len(set(options)) < len(options) else ''
            raise ValueError(f'situation {name!r} of {user!r} has {count} chosen of {len(options)} options{copied}')
        if len({values for _, values in options}) < len(options):
            raise ValueError(f'situation {name!r} of {user!r} has options that are equal in all attributes')
        # A choice among several options is a pair with each option that was not chosen.
        pairs = choices.pairs([(user, name, options)])
        return [_checked(pair, pair) for pair in (dataclasses.replace(pair, group=groups[key]) for pair in pairs)]

    faults: dict[str, list[tuple[str, str]]] = {}
    judged = [(key, key) for key in situations if key not in unfinished]
    pairs = itertools.chain.from_iterable(records.sorted_out(judged, paired, faults))
    # All rows of a choice are wrong together.
    for fault, keys in faults.items():
        wrong[fault] = [*wrong.get(fault, ()), *(place for key in keys for place, _ in situations[key])]
    if wrong:
        places = {*itertools.chain(*wrong.values())}
        records.leave_out(wrong, sum(place not in places for place, _ in rows), drop)
    return list(pairs)
