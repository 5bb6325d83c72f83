"""Files in one piece, and files of other people: what is wrong in one is told with file and place."""

from __future__ import annotations

import gzip
import lzma

import pytest

from pal_jax.data import records
from pal_jax.run import files
from pal_jax.run.files import write_whole


def test_a_file_that_cannot_be_written_whole_stays_what_it_was(tmp_path):
    path = write_whole(tmp_path / 'notes.txt', 'ü\n')
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, 'new \ud800')
    assert path.read_text(encoding='utf-8') == 'ü\n'
    write_whole(path, 'new \ud800', 'backslashreplace')
    assert path.read_text(encoding='utf-8') == 'new \\ud800'
    assert [each.name for each in tmp_path.iterdir()] == ['notes.txt']


def read_lines(path):
    with files.open_text(path) as file:
        return ''.join(file)


@pytest.mark.parametrize('read', [files.read_text, read_lines])
@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ('a\nb é'.encode('latin-1'), r'a.txt, line 2: byte 3 of it, 0xe9, is no UTF-8; save'),
        ('ü\n'.encode() * 5000 + b'x\xff\n', r'a.txt, line 5001: byte 2 of it, 0xff'),
        ('{}'.encode('utf-16'), r'a.txt is in UTF-16'),
        ('{}'.encode('utf-16-le'), r'a.txt, line 1: byte 2 of the file is NUL'),
        (gzip.compress(b'{}', mtime=0), r'a.txt is compressed by gzip'),
        (b'PK\x03\x04rest', r'a.txt is a ZIP archive or a spreadsheet'),
    ],
)
def test_what_is_no_text_is_told_by_line_and_byte(tmp_path, read, data, message):
    (tmp_path / 'a.txt').write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / 'a.txt')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('read', [files.read_text, read_lines])
@pytest.mark.parametrize(('name', 'pack'), [('a.jsonl.gz', gzip.compress), ('a.jsonl.xz', lzma.compress)])
def test_packed_files_are_unpacked_by_their_names(tmp_path, read, name, pack):
    path = tmp_path / name
    packed = pack('{"a": "é"}\n'.encode() * 1000)
    path.write_bytes(packed)
    assert read(path) == '{"a": "é"}\n' * 1000
    assert files.format_of(path) == '.jsonl'
    assert [row for _, row in records.rows(str(path))] == [{'a': 'é'}] * 1000
    for damaged in (packed[:-9], b'{}', packed[:20] + b'\xff' * 9 + packed[29:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf'{name} cannot be unpacked'):
            read(path)


@pytest.mark.parametrize('read', [files.read_text, read_lines])
def test_a_mark_of_byte_order_is_no_text_and_no_file_is_told(tmp_path, read):
    (tmp_path / 'a.txt').write_bytes('\ufeffä\r\nb'.encode())
    assert read(tmp_path / 'a.txt') == 'ä\r\nb'
    (tmp_path / 'a.txt').write_bytes(b'')
    assert read(tmp_path / 'a.txt') == ''
    with pytest.raises(ValueError, match='a.txt/b is no file'):
        read(tmp_path / 'a.txt' / 'b')
    with pytest.raises(ValueError, match=f'{tmp_path} is a folder; name a file'):
        read(tmp_path)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{\n "a": 1,\n "b', 'a.json, line 3: not valid JSON, Unterminated string'),
        ('', 'a.json, line 1: not valid JSON, Expecting value'),
        ('[' * 100_000, 'a.json, line 1: lists or objects lie too deep'),
        ('{"a": ' + '9' * 5000 + '}', 'a.json, line 1: not valid JSON, Exceeds the limit'),
        ('{"a": 1, "a": 2}', "a.json, line 1: not valid JSON, the key 'a' has two values"),
        ('{"a": ["\\uD800x"]}', r'a.json, line 1: \\ud800 is half of a surrogate pair'),
        ('[1]', r'a.json must hold a JSON object, got \[1\]'),
    ],
)
def test_what_is_no_object_is_told_by_line(tmp_path, text, message):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        files.read_object(tmp_path / 'a.json')


def test_whole_pairs_equal_twins_and_numbers_of_python_are_json(tmp_path):
    (tmp_path / 'a.json').write_text('\ufeff{"a": "\\ud83d\\ude00", "b": 1, "b": 1, "c": Infinity}', encoding='utf-8')
    assert files.read_object(tmp_path / 'a.json') == {'a': '😀', 'b': 1, 'c': float('inf')}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: [', 'a.yaml: not valid YAML, .* in line 2, column 5'),
        ('a: 1\nb: 2\na: 3', 'a.yaml: not valid YAML, the key a stands twice in line 3, column 1'),
        ('a: !!int ""', 'a.yaml: not valid YAML'),
        ('a: 2001-99-99', 'a.yaml: not valid YAML'),
        ('a: "\\ud800"', 'a.yaml: not valid YAML, a text holds half of a surrogate pair in line 1'),
        ('[' * 5000, 'a.yaml: lists or mappings lie too deep'),
        ('a: \x07', 'a.yaml: not valid YAML'),
        ('? [1]\n: 2', 'a.yaml: not valid YAML'),
    ],
)
def test_what_is_no_yaml_is_told_by_line(tmp_path, text, message):
    (tmp_path / 'a.yaml').write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        files.read_yaml(tmp_path / 'a.yaml')
    assert '\n' not in str(error.value)


def test_yaml_may_name_what_it_stands_in(tmp_path):
    (tmp_path / 'a.yaml').write_text('\ufeffa: &all [1, *all]\nb: &b {x: 1}\nc: {<<: *b, y: 2}', encoding='utf-8')
    assert files.read_yaml(tmp_path / 'a.yaml')['c'] == {'x': 1, 'y': 2}
