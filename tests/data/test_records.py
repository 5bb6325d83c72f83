"""People's files as they come out of other programs: who is one person, who is nobody, and what is no file at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pal_jax.data import histories, records, texts
from pal_jax.data.readers import opinions, votes
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.rlpa.people import load_people

PAIR = {'chosen': 'a', 'rejected': 'b'}
NOBODY = [None, float('nan'), '', ' ', 'nan', 'None', '<NA>', True, 1.5, float('inf'), 1e300, [], ['ana'], {'id': 1}]
ONE = [1, 1.0, '1', ' 1 ', '1.0', '1.00']


def lines(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


@pytest.mark.parametrize('value', NOBODY)
def test_nobody_is_no_person(value, tmp_path):
    """In every reader of people; votes and CSV are below."""
    person = tmp_path / 'a.jsonl'
    history = {name: f'{name} {i}' for i, name in enumerate(sum(histories.PARTS.values(), ()))} | {'context': 'c'}
    readers = [
        (lambda: list(records.read(str(person))), {'user': value, **PAIR}),
        (lambda: tables.load(person), {'user': value, 'chosen': [1], 'rejected': [2]}),
        (lambda: texts.read(person, byte_tokenizer(), alone=False), {'user': value, **PAIR}),
        (lambda: histories.load(person), {'user': value, **history}),
        (lambda: load_people(person), {'id': value, 'profile': 'x'}),
    ]
    for read, row in readers:
        lines(person, row)
        with pytest.raises(ValueError, match=r"a\.jsonl, line 1.*(no (user|id)|'(user|id)' is)"):
            read()


def test_a_number_and_its_text_are_one_person(tmp_path):
    path = lines(tmp_path / 'a.jsonl', *({'user': user, **PAIR} for user in (*ONE, '01', '1e0', -1)))
    assert [each.user for each in records.read(str(path))] == ['1'] * len(ONE) + ['01', '1e0', '-1']
    rows = [{'user': user, 'chosen': [k, 1], 'rejected': ['2', k]} for k, user in enumerate(ONE)]
    assert tables.load(lines(path, *rows)).names == ('1',)
    assert texts.read(lines(path, *({'user': u, **PAIR} for u in ONE)), byte_tokenizer(), alone=False).names == ('1',)
    with pytest.raises(ValueError, match="line 2: the id '1' is taken"):
        load_people(lines(path, {'id': '1.0', 'profile': 'x'}, {'id': 1, 'profile': 'y'}))
    (tmp_path / 'a.csv').write_text('user,chosen,rejected\n1.0,a,b\n 1,a,b\n')
    assert {each.user for each in records.read(str(tmp_path / 'a.csv'))} == {'1'}


def test_a_group_that_is_missing_is_none(tmp_path):
    rows = [{'user': 'a', 'group': group, **PAIR} for group in (None, float('nan'), '', 'nan', 'north', 2.0)]
    path = lines(tmp_path / 'a.jsonl', *rows)
    assert [each.group for each in records.read(str(path))] == ['', '', '', '', 'north', '2']
    assert texts.read(lines(path, *rows[:4]), byte_tokenizer(), alone=False).groups.tolist() == [-1]


def test_gaps_in_a_column_of_numbers_make_floats_of_it_but_no_people(tmp_path):
    arrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    path = tmp_path / 'a.parquet'
    columns = {'chosen': ['a', 'a'], 'rejected': ['b', 'b']}
    for users in ([1.0, 2.0], [1, 2], ['1', '2']):
        parquet.write_table(arrow.table({'user': users, **columns}), path)
        assert [each.user for each in records.read(str(path))] == ['1', '2']
    for users in ([1.0, float('nan')], [1, None], ['1', ''], [1.0, 2.0**60]):
        parquet.write_table(arrow.table({'user': users, **columns}), path)
        with pytest.raises(ValueError, match=r"a.parquet, row 2: (no user|'user' is 1.15)"):
            list(records.read(str(path)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='a.parquet is no Parquet file'):
        list(records.read(str(path)))


def test_votes_are_of_somebody_on_something(tmp_path):
    stem = tmp_path / 'town'
    lines(tmp_path / 'town.statements.jsonl', {'comment_id': 1.0, 'text': 'x'}, {'comment_id': '2', 'text': 'y'})
    said = tmp_path / 'town.votes.csv'
    said.write_text('participant,comment_id,vote\n7,1,1\n7.0,2,-1\n')
    (tmp_path / 'town.people.csv').write_text('participant,group\n7,north\n')
    found = votes.read(stem)
    assert (found.names, found.statements.tolist(), found.groups.tolist()) == (('7',), [0, 1], [0])
    for wrong in ('', 'nan'):
        said.write_text(f'participant,comment_id,vote\n7,1,1\n{wrong},2,-1\n')
        with pytest.raises(ValueError, match=r'town.votes.csv, row 3: no participant'):
            votes.read(stem)


@pytest.mark.parametrize('users', [[0, 1.5], [0.0, np.nan], [0, -1], [0, 2**40], [[0, 1]], [0, 1, 0]])
def test_users_of_pictures_are_numbers(tmp_path, users):
    columns = {'prompt': [0, 0], 'chosen': [0, 1], 'rejected': [1, 0]}
    np.savez(tmp_path / 'p.npz', images=np.eye(2), prompts=np.eye(2), users=users, **columns)
    with pytest.raises(ValueError, match=r'p.npz.*users'):
        opinions.pictures(tmp_path / 'p.npz')


# --- CSV ------------------------------------------------------------------------------------------------------------

HEAD = 'user,chosen,rejected\n'


def test_csv_files_of_spreadsheets_are_read(tmp_path):
    """A byte order mark, Windows' and old Macintosh's line ends, empty rows, long cells, and no last line end."""
    long, path = 'x' * 200_000, tmp_path / 'a.csv'
    for end in ('\n', '\r\n', '\r'):
        path.write_bytes(end.join(['\ufeffuser,chosen,rejected', '', 'ü,a,b', f'bo,"{long}",b']).encode())
        assert [(each.user, each.chosen) for each in records.read(str(path))] == [('ü', 'a'), ('bo', long)]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (f'{HEAD}ana,a,b\n\nbo,a'.encode(), 'a.csv, row 4: it has another number of cells than the header, 2 of 3'),
        (f'{HEAD}ana,a,b\nbo,é,b\n'.encode('latin-1'), 'a.csv, line 3: byte 4 of it, 0xe9, is no UTF-8; save'),
        (f'{HEAD}ana,a,b\nbo,"a,b\ncy,a,b\n'.encode(), 'a.csv, row 3: not valid CSV'),
        (b'user,chosen,user\nana,a,b\n', "a.csv: 2 columns are called 'user'"),
        (f'{HEAD}ana,a,b\n'.encode('utf-16'), 'a.csv is in UTF-16'),
        (f'{HEAD},a,b\n'.encode(), 'a.csv, row 2: no user'),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_told_with_its_place(tmp_path, text, message):
    (tmp_path / 'a.csv').write_bytes(text)
    with pytest.raises(ValueError, match=message):
        list(records.read(str(tmp_path / 'a.csv')))


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'chosen': '12', 'rejected': [1, 2]}, "expected a list of numbers, got '12'"),
        ({'chosen': [True], 'rejected': [2]}, 'an item has True; give a number'),
        ({'chosen': ['1_0'], 'rejected': [2]}, "an item has '1_0'"),
        ({'chosen': [10**400], 'rejected': [2]}, 'an item has 10000'),
        ({'chosen': [1e39], 'rejected': [2]}, 'chosen holds a number that is not finite in float32'),
        ({'chosen': [1], 'rejected': [2], 'situation': None}, 'no situation'),
    ],
)
def test_numbers_of_a_table_are_numbers(tmp_path, row, message):
    with pytest.raises(ValueError, match=f'a.jsonl, line 1: {message}'):
        tables.load(lines(tmp_path / 'a.jsonl', {'user': 'ana', **row}))


def test_texts_that_wait_for_an_answer_need_no_user(tmp_path):
    (path := tmp_path / 'a.jsonl').write_text('{"prompt": "Tea?", "left": "yes", "right": "no"}\n')
    (table := tmp_path / 'a.csv').write_text('prompt,left,right\nTea?,yes,no\n')
    pairs = texts.read(path, byte_tokenizer(), alone=False, answered=False)
    assert [pairs.words[i] for i in (*pairs.chosen, *pairs.rejected)] == ['yes', 'no']
    (choice,) = records.read(str(table), answered=False)
    assert (choice.prompt, choice.chosen, choice.rejected) == ('Tea?', 'yes', 'no')
    for read in (lambda: texts.read(path, byte_tokenizer(), alone=False), lambda: list(records.read(str(table)))):
        with pytest.raises(ValueError, match='user'):
            read()
    with pytest.raises(ValueError, match=r'a\.csv, row 2.*user'):
        texts.read(table, byte_tokenizer(), alone=False)


def test_names_of_columns_stay_in_one_line():
    with pytest.raises(ValueError, match='no user; its fields are a b, c$'):
        records.field('row 1', {'a\n b': '1', 'c': '2'}, 'user')
