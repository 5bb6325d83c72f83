"""The one reader of rows: kinds of files, several files, and what is said of files that are of no kind."""

from __future__ import annotations

import gzip
import json

import pytest

from pal_jax.data import histories, records
from pal_jax.judges.problems import read_problems
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.rlpa.people import load_people
from pal_jax.run import inputs

ROW = {'question': 'one\u2028line', 'answer': '#### 18'}
TEXT = json.dumps(ROW, ensure_ascii=False)
PARTS = sum(histories.PARTS.values(), ())
HISTORY = {name: f'{name} of it' for name in PARTS} | {'context': 'c', 'user': 'a\u2028b'}
READERS = {  # every reader of rows, a row for it that has U+2028, and what came of the row
    'problems': (lambda path: read_problems(path, 'gsm8k'), ROW),
    'chats': (lambda path: records.read_all(path, dict), ROW),
    'histories': (histories.load, HISTORY),
    'people': (load_people, {'profile': 'a\u2028b', 'id': 1}),
    'choices': (lambda path: list(records.read(path)), {'user': 'a', 'chosen': 'x\u2028', 'rejected': 'y'}),
    'tables': (lambda path: tables.load(path).names, {'user': 'a\u2028b', 'chosen': [1], 'rejected': [2]}),
}


@pytest.mark.parametrize('reader', READERS)
def test_every_reader_reads_every_kind_of_file(reader, tmp_path):
    read, row = READERS[reader]
    line = json.dumps(row, ensure_ascii=False)
    forms = {
        'a.jsonl': line.encode() + b'\n',
        'bom.jsonl': b'\xef\xbb\xbf' + line.encode(),
        'crlf.JSONL': b'\r\n' + line.encode() + b'\r\n',
        'a.jsonl.gz': gzip.compress(line.encode()),
        'array.json': f'[{line}]'.encode(),
        'array.jsonl': f'[\n{line}\n]'.encode(),
        'pretty.jsonl': json.dumps(row, indent=1).encode(),
    }
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
    results = [read(str(tmp_path / name)) for name in forms]
    assert len(results[0]) == 1
    assert all(result == results[0] for result in results) or reader == 'people'
    assert [len(result) for result in results] == [1] * len(forms)


def test_problems_and_chats_are_read_from_tables_too(tmp_path):
    arrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    parquet.write_table(arrow.Table.from_pylist([ROW]), tmp_path / 'a.parquet')
    (tmp_path / 'a.csv').write_text('question,answer\n"one\u2028line",#### 18\n')
    for name in ('a.parquet', 'a.csv'):
        assert read_problems(tmp_path / name, 'gsm8k') == [('one\u2028line', '18')]
        assert records.read_all(tmp_path / name, dict) == [ROW]


def test_several_files_are_read_in_order(tmp_path):
    for k in range(3):
        (tmp_path / f'train-{k}-of-3.jsonl').write_text(json.dumps({'k': k}))
    names = [str(tmp_path / f'train-{k}-of-3.jsonl') for k in (2, 0)]
    assert [row['k'] for _, row in records.rows(','.join(names))] == [2, 0]
    assert [row['k'] for row in records.read_all(tmp_path, dict)] == [0, 1, 2]
    assert [row['k'] for _, row in records.rows(str(tmp_path / 'train-*.jsonl'))] == [0, 1, 2]
    watched = inputs.look({'data': {'train': str(tmp_path / 'train-*.jsonl'), 'test': f'choices:{",".join(names)}'}})
    assert sorted(watched) == ['data.test.0', 'data.test.1', 'data.train.0', 'data.train.1', 'data.train.2']
    (tmp_path / 'train-1-of-3.jsonl').unlink()
    with pytest.raises(ValueError, match='has 2 of 3 files'):
        records.rows(str(tmp_path))
    (tmp_path / 'test.jsonl').write_text('{}')  # a part for tests is no shard of the part for training
    with pytest.raises(ValueError, match=r'several sets, test.jsonl, train-2-of-3.jsonl'):
        records.rows(str(tmp_path))


@pytest.mark.parametrize(
    ('name', 'text', 'named'),
    [
        ('a.json', json.dumps({'data': [ROW]}, indent=1), "record 1: .*'data'.*JSON lines .*CSV .*Parquet"),
        ('a.json', json.dumps({'data': [ROW]}), "line 1: .*'data'.*JSON lines"),
        ('a.jsonl', json.dumps({'train': [ROW], 'test': [ROW]}), "'train', 'test'.*JSON lines"),
        ('a.tsv', 'question\tanswer\nq\t#### 1\n', 'a.tsv is no source; give JSON lines'),
        ('a.arrow', 'ARROW1', 'a.arrow is no source; give JSON lines'),
        ('saved/data.arrow', 'ARROW1', 'saved was written by save_to_disk'),
        ('none/readme.md', '', 'no file of rows; name files of JSON lines'),
    ],
)
def test_a_valid_file_of_a_kind_that_is_not_read_is_not_called_broken(tmp_path, name, text, named):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for read in (lambda p: read_problems(p, 'gsm8k'), lambda p: records.read_all(p, dict), load_people, histories.load):
        with pytest.raises(ValueError, match=named):
            read(path if path.parent == tmp_path else path.parent)
