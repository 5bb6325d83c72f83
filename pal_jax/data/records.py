"""Records of people's choices between texts, from wherever they lie.

    my.jsonl, my.csv, my.parquet     a record a row
    hf:owner/name/path.parquet       one file of a data set on the hub (huggingface_hub downloads it once)
    tfds:name/config:split           of TensorFlow Datasets, which is imported for this alone

A record has the fields user, chosen and rejected; prompt and group if they are known. Public sets that have them
otherwise are brought into this form by `opinions.py`. Every reader yields the place of a record, for whoever has to say
what is wrong with it, and a batch of rows at a time is in memory.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its fields


class TextChoice(NamedTuple):
    """A person's choice between two texts; `group` is what is known of the person and no model is told."""

    user: str
    prompt: str
    chosen: str
    rejected: str
    group: str = ''


def read(source: str) -> Iterator[TextChoice]:
    """The choices of a source.

    Raises:
      ValueError: there is no such source, or a row is wrong; with the row.
    """
    for place, row in rows(source):
        yield to_choice(place, row)


def to_choice(place: str, row: Mapping[str, Any]) -> TextChoice:
    missing = [name for name in ('user', 'chosen', 'rejected') if row.get(name) in (None, '')]
    if missing:
        raise ValueError(f'{place}: no {" and no ".join(missing)}; its fields are {", ".join(map(str, row))}')
    texts = {name: row.get(name) or '' for name in ('prompt', 'chosen', 'rejected')}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f'{place}: {name} is {str(text)[:40]!r}, give a text')
    if texts['chosen'] == texts['rejected']:
        raise ValueError(f'{place}: chosen and rejected are identical, so the choice says nothing; delete the row')
    return TextChoice(str(row['user']), **texts, group=str(row.get('group') or ''))


def write(path: str | Path, choices: Iterable[TextChoice]) -> int:
    """Choices as JSON lines, and how many there were."""
    count = 0
    with Path(path).open('w', encoding='utf-8') as file:
        for choice in choices:
            count += 1
            file.write(json.dumps({key: value for key, value in choice._asdict().items() if value}) + '\n')
    return count


def rows(source: str) -> Iterator[Row]:
    """Records with their places, whatever their fields are.

    Raises:
      ValueError: there is no such source, or a row cannot be read.
    """
    if source.startswith('hf:'):
        return _hub(source)
    if source.startswith('tfds:'):
        return _tfds(source)
    path = Path(source)
    readers = {'.jsonl': jsonl, '.csv': table, '.parquet': _parquet}
    if path.suffix not in readers:
        raise ValueError(
            f'{source} is no source; give a .jsonl, .csv or .parquet file, hf:owner/name/file or tfds:name'
        )
    if not path.is_file():
        raise ValueError(f'there is no file {source}')
    return readers[path.suffix](path)


def lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """What stands in each line of a file of JSON lines, with its number; empty lines are left out.

    Raises:
      ValueError: there is no such file, or a line is no JSON.
    """
    if not Path(path).is_file():
        raise ValueError(f'{path} is no file; name one of JSON lines')
    with Path(path).open('rb') as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                fault = f'not valid JSON, {error.msg} at column {error.colno}'
                raise ValueError(f'{path}, line {number}: {fault}') from None
            except UnicodeDecodeError as error:
                raise ValueError(f'{path}, line {number}: {error}') from None


def jsonl(path: Path) -> Iterator[Row]:
    """An object a line."""
    for number, record in lines(path):
        if not isinstance(record, dict):
            raise ValueError(f'{path}, line {number}: expected an object, got {str(record)[:40]!r}')
        yield f'{path}, line {number}', record


def table(path: Path, columns: Iterable[str] = ()) -> Iterator[Row]:
    """Rows of a CSV file under its header, which has these columns."""
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(f'{path}: there is no column {", ".join(sorted(missing))}')
        for number, row in enumerate(reader, 2):  # as a spreadsheet counts
            if None in row or None in row.values():
                raise ValueError(f'{path}, row {number}: it has another number of cells than the header')
            yield f'{path}, row {number}', row


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f'{path} is no Parquet file ({error})') from None
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f'{path}, row {number}', row


def _hub(source: str) -> Iterator[Row]:
    found = re.fullmatch(r'hf:([^/]+/[^/]+)/(.+)', source)
    if not found:
        raise ValueError(f'{source} names no file; give hf:owner/name/path, such as hf:me/choices/data/train.parquet')
    from huggingface_hub import hf_hub_download

    return rows(hf_hub_download(found[1], found[2], repo_type='dataset'))


def _tfds(source: str) -> Iterator[Row]:
    import tensorflow_datasets as tfds

    name, _, split = source.removeprefix('tfds:').partition(':')
    try:
        data: Any = tfds.data_source(name, split=split or 'train')
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f'{source}: {str(error).splitlines()[0]}') from None
    for number in range(len(data)):
        record = data[number]
        yield f'{source}, row {number + 1}', {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
