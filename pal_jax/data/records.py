"""Records of people's choices between texts, from files, the hub or TensorFlow Datasets.

    my.jsonl, my.csv, my.parquet     a record a row; all but the last also compressed, as my.jsonl.gz and my.jsonl.xz
    my.json                          an array of records
    a.jsonl,b.jsonl  my-*.parquet    several files, one after the other; likewise the shards in a folder (`shards.py`)
    hf:owner/name/path.parquet       one file of a data set on the hub (huggingface_hub downloads it once)
    tfds:name/config:split           of TensorFlow Datasets, which is imported for this alone

A record has the fields user, chosen and rejected, and optionally prompt and group; `surveys.named` reads the names and
answers that surveys have. `readers/opinions.py` brings public sets with other fields into this form. Every reader
yields the place of a record, for messages about it. One batch of rows at a time is in memory. Cells of CSV stand
between commas, semicolons or tabs, whichever the header has most of, and rows of empty cells are left out.

Files are UTF-8, with a byte order mark or without, and with any line ends. The id of a person is a text or a whole
number: 1, 1.0, "1" and " 1 " are one person; "01" is another person. Two spellings of an id (`holdouts.normal`: case,
forms of accents and marks, invisible characters) are one person, who is called as written first. A missing value (null,
NaN, an empty text, or the texts nan, NaN, NA, null, NULL, None and <NA>, as programs write it) is no id. Neither are
true, 1.5 or a list. A row without an id is refused.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pal_jax.data import holdouts, shards, surveys, tfds_rows
from pal_jax.run import files
from pal_jax.run.forecast import LISTED, counted, few_of
from pal_jax.run.outputs import whole_file
from pal_jax.types import Choice

T = TypeVar('T')
P = TypeVar('P')
Row = tuple[str, Mapping[str, Any]]  # the place of a row, and its fields
Drop = Callable[[str], None]  # takes a line about wrong rows, which are left out
Wrong = dict[str, list[str]]  # the places of wrong rows, by their faults

MISSING = ('', 'nan', 'NaN', 'NA', 'null', 'NULL', 'None', '<NA>')  # texts that stand for no value
NOBODY = 'nobody'  # the user of pairs that wait for an answer
SEPARATOR = re.compile(r'sep=[,;\t]?', re.IGNORECASE)  # the first line of some CSV files
# What to do with files of other programs.
FOREIGN = {
    **dict.fromkeys(('.xlsx', '.xls', '.ods'), 'save the sheet as CSV (.csv)'),
    **dict.fromkeys(('.sav', '.dta', '.sas7bdat'), 'write it as CSV, in R by haven and write.csv, in pandas by to_csv'),
    **dict.fromkeys(('.rds', '.rdata'), 'write it as CSV, in R by write.csv'),
}
EXACT = 2**53  # beyond this number, some whole numbers are no floats


class WrongRows(ValueError):
    """Rows are wrong that could have been left out."""


def read(source: str, *, answered: bool = True, drop: Drop | None = None) -> Iterator[Choice]:
    """The choices of a source. Pairs that nobody has `answered` are read as `unanswered` reads them.

    Raises:
      ValueError: there is no such source, or rows are wrong, see `converted`.
    """
    wrong: Wrong = {}
    return iter(
        converted(rows(source, wrong), lambda row: to_choice(row if answered else unanswered(row)), drop, wrong)
    )


def to_choice(row: Mapping[str, Any]) -> Choice:
    """The choice of a row. Raises ValueError where a field is missing or no text."""
    row = surveys.named(row)
    missing = [name for name in ('user', 'chosen', 'rejected') if row.get(name) in (None, '')]
    if missing:
        raise ValueError(f'no {" and no ".join(missing)}; {surveys.given(row)}')
    texts = {name: '' if row.get(name) is None else row[name] for name in ('prompt', 'chosen', 'rejected')}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f'{name} is {str(text)[:40]!r}, give a text')
    if texts['chosen'] == texts['rejected']:
        raise ValueError('chosen and rejected are identical, so the choice says nothing; delete the row')
    return Choice(**texts, user=identity('', row, 'user'), group=known('', row, 'group'))


def identity(place: str, row: Mapping[str, Any], name: str) -> str:
    """The id of a person or a thing in a field of a row, see the head of this module.

    `place` is '' where the caller puts the place into the message.

    Raises:
      ValueError: the field is missing, or its value is no id.
    """
    value = row.get(name)
    if isinstance(value, str):
        plain = holdouts.normal(value)
        if plain and not is_missing(value):
            # A column of numbers with a gap in it is written as 1.0, so 1.0 is 1; "01" is another id.
            return plain.partition('.')[0] if re.fullmatch(r'-?\d+\.0+', plain) else value.strip()
    # Beyond `EXACT` a float may stand for several whole numbers.
    elif isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        return str(value)
    fault = f'no {name}' if is_missing(value) or isinstance(value, str) else f'{name!r} is {files.short_repr(value)}'
    at = f'{place}: ' if place else ''
    raise ValueError(f'{at}{fault}; give a text or a whole number that says who or what it is')


def first_spelling() -> Callable[[str], str]:
    """A function of an id that gives the spelling of it that was written first (`holdouts.normal` compares them)."""
    first: dict[str, str] = {}
    return lambda id: first.setdefault(holdouts.normal(id), id)


def spelled(id: str, names: Iterable[str]) -> str:
    """The id as it is spelled among `names`; as it is where none of them is the same id."""
    spellings = {holdouts.normal(name): name for name in names}
    return spellings.get(holdouts.normal(id), id) if id not in spellings.values() else id


def field(place: str, row: Mapping[str, Any], name: str) -> Any:
    """The value of a row's field. Raises ValueError where the field is missing or empty."""
    value = row.get(name)
    # Tables write NaN for a missing value, and NaN alone differs from itself.
    if value is None or value == '' or value != value:
        raise ValueError(f'{place}: no {name}; its fields are {surveys.listed(row)}')
    return value


def text_of(place: str, row: Mapping[str, Any], name: str) -> str:
    """The text in a row's field.

    A list of texts in place of one is refused.

    Raises:
      ValueError: the field is missing, or its value is no text.
    """
    value = field(place, row, name)
    # A list written with its brackets and quotes would tell which side it is on.
    if not isinstance(value, str):
        raise ValueError(f'{place}: {name} is {files.short_repr(value)}; give a text')
    return value


def listed(place: str, row: Mapping[str, Any], name: str) -> list[Any]:
    """The list in a row's field. Raises ValueError where it is none."""
    value = field(place, row, name)
    if not isinstance(value, list | tuple):
        raise ValueError(f'{place}: {name} is {files.short_repr(value)}; give a list')
    return list(value)


def known(place: str, row: Mapping[str, Any], name: str) -> str:
    """The id in an optional field of a row, '' where it is missing. Raises ValueError where its value is no id."""
    return '' if is_missing(row.get(name)) else identity(place, row, name)


def is_missing(value: Any) -> bool:
    """True for null, NaN and the texts that stand for no value."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def unanswered(record: Any) -> Any:
    """A record of two sides that nobody has chosen between yet, as a record in which the first side is chosen.

    The sides may be called left and right, and a user need not be named.
    """
    if not isinstance(record, Mapping):
        return record
    sides = {'left': 'chosen', 'right': 'rejected'}
    renamed = {sides.get(name, name): value for name, value in record.items()}
    return renamed if not is_missing(renamed.get('user')) else {**renamed, 'user': NOBODY}


def write(path: str | Path, choices: Iterable[Choice]) -> int:
    """Write choices as JSON lines, and return their number. Raises ValueError where the file exists."""
    count = 0
    with whole_file(Path(path)) as partial, partial.open('w', encoding='utf-8') as file:
        for choice in choices:
            count += 1
            file.write(json.dumps({key: value for key, value in vars(choice).items() if value}) + '\n')
    return count


def rows(source: str, wrong: Wrong | None = None) -> Iterator[Row]:
    """The records of a source with their places. Their fields are not checked. `wrong`: see `table`.

    Raises:
      ValueError: there is no such source, or a row cannot be read or is no object.
    """
    return map(_row, values(source, wrong))


def _row(placed: tuple[str, Any]) -> Row:
    place, record = placed
    if not isinstance(record, dict):
        raise ValueError(f'{place}: expected an object, got {str(record)[:40]!r}')
    return place, record


def read_all(
    source: str | Path,
    convert: Callable[[Any], T],
    placed: Callable[[str, Wrong], Iterable[tuple[str, Any]]] | None = None,
    drop: Drop | None = None,
) -> list[T]:
    """The results of `convert` for all records of a source as `placed` reads it: `values`, or `rows` for objects alone.

    Raises:
      ValueError: records are wrong, see `converted`, or there is none.
    """
    wrong: Wrong = {}
    results = converted((placed or values)(str(source), wrong), convert, drop, wrong)
    if not results:
        raise ValueError(f'{source} has no rows; write one JSON record a line')
    return results


def converted(
    placed: Iterable[tuple[str, Any]],
    convert: Callable[[Any], T],
    drop: Drop | None = None,
    wrong: Wrong | None = None,
) -> list[T]:
    """The results of `convert` for records that come with their places.

    `drop` takes a line that counts the wrong records, which are left out. `wrong` has rows that could
    not be read, which count as wrong, too.

    Raises:
      ValueError: records are wrong, and there is no `drop`. The message lists each fault with its places.
    """
    faults: Wrong = {}
    results = sorted_out(placed, convert, faults)
    # Rows that cannot be read are known when all have been read.
    if faults := {**(wrong or {}), **faults}:
        leave_out(faults, len(results), drop)
    return results


def sorted_out(placed: Iterable[tuple[P, Any]], convert: Callable[[Any], T], wrong: dict[str, list[P]]) -> list[T]:
    """The results of `convert` for records that come with their places, or other names; those of the wrong ones are
    added to `wrong`, by their faults."""
    results: list[T] = []
    for place, record in placed:
        try:
            results.append(convert(record))
        except ValueError as error:
            wrong.setdefault(str(error), []).append(place)
    return results


def leave_out(wrong: Wrong, right: int, drop: Drop | None) -> None:
    """Tell `drop` of wrong rows beside so many right ones.

    Raises:
      WrongRows: there is no `drop`; another ValueError where all rows are wrong.
    """
    also = {fault: f' (also {few_places(x[1:], x[0])})' if len(x) > 1 else '' for fault, x in wrong.items()}
    listed = [f'{places[0]}: {fault}{also[fault]}' for fault, places in list(wrong.items())[:LISTED]]
    message = '; '.join(listed) + (f'; and {len(wrong) - LISTED} other faults' if len(wrong) > LISTED else '')
    count = sum(map(len, wrong.values()))
    if drop is None:
        # Where all rows are wrong, nothing would be left without them.
        kind = WrongRows if right else ValueError
        raise kind(f'{count} of {count + right} rows are wrong: {message}' if count > 1 else message)
    many = '; warning: have these rows an answer in common, such as "neither"?' if count > 0.1 * right else ''
    drop(f'left out {count} of {counted(count + right, "row")}: {message}{many}')


def few_places(places: Sequence[str], first: str) -> str:
    """The places of rows in words, such as `rows 5, 8 and 7 more`, without the name of the file that `first` is in."""
    start = first.rpartition(' ')[0]
    # Rows of another file are listed with its name.
    numbers = [place.removeprefix(f'{start} ') for place in places]
    unit = start.rpartition(' ')[2] + ('s' if len(numbers) > 1 else '')
    return f'{unit} {few_of(numbers)}'


def values(source: str, wrong: Wrong | None = None) -> Iterator[tuple[str, Any]]:
    """The values of a source with their places; those of JSON may be of any type. `wrong`: see `table`.

    Raises:
      ValueError: there is no such source, or a row cannot be read.
    """
    if source.startswith('hf:'):
        return _hub(source)
    if source.startswith('tfds:'):
        return tfds_rows.read(source)
    # The files of all shards are looked for before the first row is read.
    return itertools.chain.from_iterable([_values(path, wrong) for path in shards.files_of(source)])


def _values(path: Path, wrong: Wrong | None) -> Iterator[tuple[str, Any]]:
    readers = {
        '.csv': functools.partial(table, wrong=wrong),
        '.parquet': _parquet,
        '': _json,
        **dict.fromkeys(('.jsonl', '.ndjson', '.json'), _json),
    }
    if files.format_of(path) not in readers:
        meant = FOREIGN.get(path.suffix.lower(), f'give {shards.READ}, hf:owner/name/file or tfds:name')
        raise ValueError(f'{path} is no source; {meant}')
    if not path.exists():
        on_hub = not path.suffix and len(path.parts) == 2 and not path.parent.exists()
        meant = f'a data set of the hub is hf:{path}/FILE, such as {_example(path)}' if on_hub else 'check the path'
        raise ValueError(f'{path} is no file; {meant}')
    rows = readers[files.format_of(path)](path)
    return surveys.answers(rows) if files.format_of(path) in ('.csv', '.parquet') else rows


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """The values in a file of JSON: of its array, of its lines, or the one object that it holds over several lines."""
    with files.open_text(path) as file:
        start = next((line.strip() for line in file if line.strip()), '')
    # The first line that is not empty tells an array, one object, and JSON lines apart.
    if start.startswith('['):
        parsed = enumerate(files.parse(files.read_text(path), path), 1)
        placed = ((f'{path}, record {number}', record) for number, record in parsed)
    elif start == '{':
        placed = iter([(f'{path}, record 1', files.parse(files.read_text(path), path))])
    else:
        placed = ((f'{path}, line {number}', record) for number, record in lines(path))
    for place, record in placed:
        # An object with lists of rows is a whole data set in one record, as of several splits.
        if isinstance(record, dict) and record and all(map(_holds_rows, record.values())):
            raise ValueError(
                f'{place}: an object with rows in {", ".join(map(repr, record))}; write the rows of one of these as '
                f'{shards.READ}'
            )
        yield place, record


def _holds_rows(value: Any) -> bool:
    """True for a list of objects that are no messages."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(entry, dict) and not entry.keys() & {'role', 'from'} for entry in value)


def lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The number of each line of a file of JSON lines, and its value. Empty lines are left out.

    Raises:
      ValueError: there is no such file, or a line is no JSON.
    """
    with files.open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, files.parse(line.rstrip('\r\n'), path, number)


def without_gaps(value: Any) -> Any:
    """A value of a table without the members of objects that are null, at any depth."""
    # In a table all objects of a column have the same members, and null stands where a row has none. So a call of one
    # tool gets the arguments of all others.
    if isinstance(value, dict):
        return {key: without_gaps(member) for key, member in value.items() if member is not None}
    return [without_gaps(entry) for entry in value] if isinstance(value, list) else value


def table(path: Path, columns: Iterable[str] = (), wrong: Wrong | None = None) -> Iterator[Row]:
    """The rows of a CSV file under its header, with their places. The header must have these columns.

    Rows are counted as a spreadsheet counts them, the header and empty rows included. See `delimiter`. Rows that have
    another number of cells than the header are left out, and added to `wrong`.

    Raises:
      ValueError: the file is not there or no CSV, or, without `wrong`, a row has another number of cells.
    """
    # A cell may be a long text, and Python's limit is 131,072 characters.
    csv.field_size_limit(sys.maxsize)
    header: list[str] = []
    number = right = 0
    uneven: Wrong = {}
    with files.open_text(path) as file:
        cells = csv.reader(file, strict=True, delimiter=delimiter(path))
        try:
            for number, row in enumerate(cells, 1):
                # A spreadsheet writes a row that somebody has emptied as empty cells.
                if not any(cell.strip() for cell in row) or (not header and SEPARATOR.fullmatch(''.join(row))):
                    continue
                # The first row that is not empty is the header.
                if header and len(row) != len(header):
                    # Nobody knows which of its cells are which.
                    fault = f'it has another number of cells than the header, {len(row)} of {len(header)}'
                    uneven.setdefault(fault, []).append(f'{path}, row {number}')
                elif header:
                    right += 1
                    yield f'{path}, row {number}', dict(zip(header, row, strict=True))
                else:
                    header = _header(path, row, columns)
        except csv.Error as error:
            raise ValueError(
                f'{path}, row {number + 1}: not valid CSV, {error}, near line {cells.line_num}; is a quotation mark '
                'missing, or not doubled?'
            ) from None
    # A file without any row lacks the columns, too.
    if not header:
        _header(path, [], columns)
    # Where most rows are so, the cells are cut wrongly.
    if (count := sum(map(len, uneven.values()))) > max(right, 2):
        raise ValueError(
            f'{path}: {count} of {counted(count + right, "row")} have another number of cells than the header, which '
            f'{surveys.as_read(header)}; if numbers have decimal commas, take semicolons or tabs (in R write.csv2)'
        )
    if wrong is not None:
        wrong |= uneven
    elif uneven:
        leave_out(uneven, right, None)


def delimiter(path: Path) -> str:
    """The character between the cells of a CSV file: that of a comma, a semicolon and a tab that its header has most
    of."""
    with files.open_text(path) as file:
        first = list(itertools.islice((line for line in file if line.strip()), 2)) or ['']
    # Excel writes the separator in a line of its own.
    header = re.sub('"[^"]*"', '', ''.join(first) if first[0].lower().startswith('sep=') else first[0])
    return max(',;\t', key=header.count)


def _header(path: Path, names: list[str], columns: Iterable[str]) -> list[str]:
    if missing := set(columns) - set(names):
        raise ValueError(f'{path}: there is no column {", ".join(sorted(missing))}; there are {", ".join(names)}')
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f'{path}: {names.count(twice[0])} columns are called {twice[0]!r}; rename or delete all but one'
        )
    return names


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        # ArrowException is a class of its own, whose subclasses are ValueErrors, TypeErrors, KeyErrors and others.
        file = ParquetFile(path)
        names = list(file.schema_arrow.names)
        batches = file.iter_batches()
    except (ArrowException, ValueError, OSError) as error:
        raise ValueError(f'{path} is no Parquet file ({_first(error)}); write it again') from None
    _header(path, names, ())
    while True:
        try:
            # A file may be damaged in a later part alone, so each batch is read with care.
            batch = next(batches, None)
            batch_rows = [] if batch is None else batch.to_pylist()
        except (ArrowException, ValueError, OSError, OverflowError) as error:
            raise ValueError(
                f'{path}, after row {number}: it cannot be read ({_first(error)}); write it again'
            ) from None
        if batch is None:
            return
        for row in batch_rows:
            number += 1
            yield f'{path}, row {number}', {name: without_gaps(value) for name, value in row.items()}


def _first(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub(source: str) -> Iterator[Row]:
    if not (parts := re.fullmatch(r'hf:([^/]+/[^/]+)/(.+)', source)):
        raise ValueError(f'{source} names no file; give hf:owner/name/FILE{_on_hub(source[3:].strip("/"))}')
    from huggingface_hub import errors, hf_hub_download

    try:
        local = hf_hub_download(parts[1], parts[2], repo_type='dataset')
        # Messages name the source, not the copy on this machine.
        return ((place.replace(local, source), row) for place, row in rows(local))
    except (errors.HFValidationError, OSError) as error:
        raise ValueError(f'{source} cannot be had from the hub ({_first(error)}); check name and network') from None


def _on_hub(name: str) -> str:
    """Words for the files with rows of a data set of the hub, or for an example where the hub tells none."""
    try:
        from huggingface_hub import list_repo_files

        paths = list(map(Path, list_repo_files(name, repo_type='dataset')))
    except Exception as error:  # of the client's transport, which is another library
        return f', such as {_example(name)} (the hub told no files of {name}: {_first(error)})'
    readable = (path for path in paths if files.format_of(path) in ('.parquet', '.jsonl', '.json', '.csv'))
    return f': {few_of([f"hf:{name}/{path}" for path in readable]) or "it has no file of rows"}'


def _example(name: str | Path) -> str:
    """A file of a data set of the hub, as most data sets have one."""
    return f'hf:{name}/data/train-00000-of-00001.parquet'
