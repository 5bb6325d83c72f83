"""Public sets of people's opinions: real records where they are, and fixtures of their form."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pal_jax.data import records
from pal_jax.data.readers import opinions
from pal_jax.data.readers.opinions import Rating
from pal_jax.types import Choice

SHARED = Path(__file__).parents[4] / 'shared' / 'data'


def real(name):
    return pytest.mark.skipif(
        not (SHARED / name).is_dir(), reason=f'there is no shared/data/{name} beside the checkout'
    )


def lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


# --- real records -----------------------------------------------------------------------------------------------------


@real('ukpconvarg1')
def test_arguments_are_chosen_as_the_judgements_say():
    found = list(opinions.arguments(SHARED / 'ukpconvarg1'))
    judgements, said = (
        [json.loads(line) for line in (SHARED / 'ukpconvarg1' / f'{name}.jsonl').read_text().splitlines()]
        for name in ('judgements', 'arguments')
    )
    decided = [each for each in judgements if each['choice'] != 'equal']
    assert len({each.user for each in found}) == len({each['worker'] for each in decided}) <= 454
    assert len(decided) - len(found) <= 0.01 * len(decided)  # the same text under two ids
    said = {row['id']: row for row in said}
    first = decided[0]
    wanted, other = (first['arg1'], first['arg2'])[:: 1 if first['choice'] == 'a1' else -1]
    assert found[0].user == first['worker']
    assert (found[0].chosen, found[0].rejected) == (said[wanted]['text'], said[other]['text'])
    assert said[wanted]['stance'] in found[0].prompt


@pytest.mark.parametrize(
    ('source', 'people', 'prompts'),
    [
        pytest.param('ukp:ukpconvarg1', 400, 20, marks=real('ukpconvarg1')),
        pytest.param('jester:jester5k', 1400, 1, marks=real('jester5k')),
        pytest.param('personas:anthropic_persona/persona.jsonl', 200, 1000, marks=real('anthropic_persona')),
    ],
)
def test_sets_are_opened_by_name(source, people, prompts):
    kind, _, where = source.partition(':')
    assert opinions.is_source(source) and not opinions.is_source('electricity')
    found = list(opinions.read(f'{kind}:{SHARED / where}'))
    assert len({each.user for each in found}) >= people and len({each.prompt for each in found}) >= prompts
    assert max(Counter(each.user for each in found).values()) <= 80
    assert all(each.chosen != each.rejected for each in found)


@real('jester5k')
def test_jokes_that_a_person_rated_higher_are_chosen():
    ratings, jokes = opinions.jester(SHARED / 'jester5k')
    assert (len(ratings), len(jokes), len({each.user for each in ratings})) == (107_787, 100, 1500)
    some = [each for each in ratings if each.user in {r.user for r in ratings[:500]}]
    found = list(opinions.rated(some, jokes, gap=3.0, most=20, seed=0))
    worth = {(each.user, jokes[each.item]): each.value for each in some}
    assert all(worth[each.user, each.chosen] - worth[each.user, each.rejected] >= 3 for each in found)
    assert max(Counter(each.user for each in found).values()) == 20


@real('anthropic_persona')
def test_people_who_hold_a_persona_answer_as_it_does():
    held = ['desire-for-acquiring-power', 'interest-in-art', 'interest-in-math']
    path = SHARED / 'anthropic_persona' / 'persona.jsonl'
    every = [json.loads(line) for line in path.read_text().splitlines()]
    known = {each['behavior'] for each in every}
    held = [each for each in held if each in known] or sorted(known)[:3]
    found = list(opinions.personas(path, held, users=6, pairs=40, seed=0))
    assert Counter(each.user for each in found) == {f'p{i}': 40 for i in range(6)}
    assert [each.group for each in found[::40]] == [held[i % len(held)] for i in range(6)]
    answers = {(row['behavior'], row['question']): row['answer_matching_behavior'] for row in every}
    assert all(answers[each.group, each.prompt] == each.chosen != each.rejected for each in found)
    assert 0.2 < np.mean([each.chosen.strip() == 'Yes' for each in found]) < 0.8
    with pytest.raises(ValueError, match="'no-such-persona' has 0 statements of 40"):
        list(opinions.personas(path, ['no-such-persona'], users=1, pairs=40, seed=0))


@real('pal_summary_uids')
def test_the_workers_who_like_it_short_are_among_those_of_the_published_lists():
    unseen = json.loads((SHARED / 'pal_summary_uids' / 'summary_unseen_uids.json').read_text())
    assert len(unseen) == 31
    assert sum(each.startswith(opinions.SHORT) for each in unseen) == 9


# --- fixtures ---------------------------------------------------------------------------------------------------------


def summary_row(worker, left, right, policy='sup4'):
    both = [{'text': left, 'policy': policy}, {'text': right, 'policy': 'sup1'}]
    return {'worker': worker, 'info': {'post': 'a flatmate'}, 'summaries': both}


@pytest.fixture
def tldr(tmp_path):
    """Twelve workers: w0 has most rows. w3, w4 and w5 like it short; so does one unseen worker."""
    train = [summary_row(f'w{i}', 'short', 'much longer') for i in range(12) for _ in range(20 - i)]
    train += [summary_row('w11', 'short', 'much longer', 'ppo_xl')] * 100  # by another policy: they do not count
    test = [summary_row(f'w{i}', 'much longer', 'short') for i in range(3)]
    test += [summary_row('7FbjqRA8xyz', 'one', 'three')] * 100 + [summary_row('w11', 'one', 'three')] * 120
    test += [summary_row('w10', 'one', 'three')] * 99 + [summary_row('w3', 'even', 'ever')]
    return lines(tmp_path / 'train.jsonl', train), lines(tmp_path / 'validation.jsonl', test)


def test_summaries_are_labelled_by_length_for_those_who_like_it_long_or_short(tldr):
    found = opinions.summaries(*tldr)
    assert Counter(each.user for each in found.train) == {f'w{i}': 20 - i for i in range(10)}
    assert {each.user for each in found.train if each.group == 'short'} == {'w3', 'w4', 'w5'}
    assert {(each.group, each.chosen) for each in found.train} == {('short', ' short'), ('long', ' much longer')}
    assert {each.user for each in found.test} == {'w0', 'w1', 'w2', 'w3'}
    tie = next(each for each in found.test if each.user == 'w3')
    assert (tie.chosen, tie.rejected) == (' ever', ' even')  # equally long: the second
    assert Counter((each.user, each.chosen) for each in found.unseen) == {
        ('7FbjqRA8xyz', ' one'): 100,
        ('w11', ' three'): 120,
    }
    assert found.train[0].prompt == 'Human: a flatmate Assistant:'


def test_the_published_counts_of_summaries(request):
    """Give the two files of comparisons as PAL_JAX_TLDR=train.jsonl,validation.jsonl."""
    import os

    if not (given := os.environ.get('PAL_JAX_TLDR')):
        pytest.skip('PAL_JAX_TLDR names no files of openai/summarize_from_feedback')
    found = opinions.summaries(*given.split(','))
    counts = [5245, 2920, 2437, 2366, 2200, 2126, 1824, 1606, 1366, 1209]
    by_worker = Counter(each.user for each in found.train)
    assert sorted(by_worker.values(), reverse=True) == counts
    assert (len(found.train), len(found.test), len({each.user for each in found.unseen})) == (23_299, 4_921, 31)
    short = (sum(each.group == 'short' for each in part) for part in (found.train, found.test))
    assert tuple(short) == (6_692, 1_550)


def test_films_in_both_forms(tmp_path):
    genres = ['0'] * 19
    genres[5] = genres[14] = '1'
    (tmp_path / 'u.data').write_text('1\t7\t5\t0\n1\t8\t2\t0\n')
    film = '|'.join(['7', 'Fargo (1996)', '', '', '', *genres])
    other = '|'.join(['8', 'Heat (1995)', '', '', '', *['0'] * 18, '1'])
    (tmp_path / 'u.item').write_text(f'{film}\n{other}\n', encoding='latin-1')
    ratings, films = opinions.movielens(tmp_path)
    assert ratings == [Rating('1', '7', 5.0), Rating('1', '8', 2.0)]
    assert films == {'7': 'Fargo (1996) (Comedy, Romance)', '8': 'Heat (1995) (Western)'}
    assert list(opinions.rated(ratings, films, gap=3, most=5, seed=0)) == [Choice('', films['7'], films['8'], '1')]
    assert not list(opinions.rated(ratings, films, gap=3.5, most=5, seed=0))
    (tmp_path / 'ml-100k.inter').write_text('user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t4\t0\n')
    columns = 'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n'
    (tmp_path / 'ml-100k.item').write_text(f'{columns}7\tFargo\t1996\tComedy Romance\n')
    assert opinions.movielens(tmp_path) == ([Rating('1', '7', 4.0)], {'7': 'Fargo (Comedy Romance)'})


def said(turn, role, content, **more):
    return {'turn': turn, 'role': role, 'content': content, **more}


def test_replies_that_people_went_on_with_are_chosen_after_all_that_was_said(tmp_path):
    history = [
        said(0, 'user', 'Hello'),
        said(0, 'model', 'Hi!', if_chosen=True),
        said(0, 'model', 'Yes?', if_chosen=False),
        said(0, 'model', 'Hi!', if_chosen=False),  # the same words again are no choice
        said(1, 'user', 'Why?'),
        said(1, 'model', 'No.', if_chosen=False),
        said(1, 'model', 'Because.', if_chosen=True),
        said(2, 'user', 'Bye'),
        said(2, 'model', None, if_chosen=True),  # it failed, and nothing was chosen
        said(2, 'model', 'Bye.', if_chosen=False),
    ]
    lines(tmp_path / 'conversations.jsonl', [{'user_id': 'user0', 'conversation_history': history}])
    assert list(opinions.read(f'prism:{tmp_path}')) == [
        Choice('Hello', 'Hi!', 'Yes?', 'user0'),
        Choice('Hello\n\nHi!\n\nWhy?', 'Because.', 'No.', 'user0'),
    ]


SILENT = json.dumps({'user_id': 'u', 'conversation_history': [said(0, 'model', 'Hi', if_chosen=True)]})
UNSAID = {'arguments.jsonl': '{"id": 1, "debate": "d", "stance": "s"}', 'judgements.jsonl': ''}
NO_SUMMARIES = {'train.jsonl': '{"summaries": [1, 2], "info": "x"}', 'validation.jsonl': ''}


@pytest.mark.parametrize(
    ('source', 'files', 'message'),
    [
        ('personas:p.jsonl', {'p.jsonl': ''}, 'p.jsonl has no statements'),
        ('jester:.', {'ratings.csv': 'user,joke,rating\n', 'jokes.jsonl': ''}, '0 ratings that are all alike'),
        ('ukp:.', UNSAID, 'line 1: no text'),
        ('prism:.', {'conversations.jsonl': SILENT}, 'line 1: turn 0 has no message of the user'),
        ('prism:.', {'conversations.jsonl': '{"user_id": "u", "conversation_history": [1]}'}, "a message is '1'"),
        ('tldr:.', NO_SUMMARIES, 'line 1: give two summaries and info as objects'),
    ],
)
def test_what_is_wrong_in_a_set_is_one_line(tmp_path, monkeypatch, source, files, message):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(opinions.read(source))


def test_pictures_are_vectors_with_prompts(tmp_path):
    rng = np.random.default_rng(0)
    images, prompts = (rng.standard_normal((n, 4)).astype(np.float32) for n in (6, 2))
    columns = {'users': [0, 1, 1], 'prompt': [0, 1, 0], 'chosen': [0, 2, 4], 'rejected': [1, 3, 5]}
    path = tmp_path / 'pick.npz'
    np.savez(path, images=images, prompts=prompts, names=['ana', 'bo'], **columns)
    data = opinions.pictures(path)
    assert data.names == ('ana', 'bo')
    np.testing.assert_array_equal(data.chosen[:], images[[0, 2, 4]])
    np.testing.assert_array_equal(data.prompt, prompts[[0, 1, 0]])
    for wrong, message in (
        ({'chosen': [0, 9, 4]}, 'chosen, row 1 is 9, there are 6'),
        ({'rejected': [0, 3, 5]}, 'row 0 has one image twice'),
        ({'images': np.where(np.arange(6)[:, None] == 3, images[2], images)}, 'row 1 has one image twice'),
        ({'images': np.where(images == images[3, 1], np.inf, images)}, 'images, row 3 is not finite'),
    ):
        np.savez(path, **{'images': images, 'prompts': prompts, **columns, **wrong})
        with pytest.raises(ValueError, match=message):
            opinions.pictures(path)
    np.savez(path, images=images)
    with pytest.raises(ValueError, match='has no array prompts, users'):
        opinions.pictures(path)


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'choice': 'a3', 'arg1': 1, 'arg2': 2, 'worker': 'w'}, "line 1: choice is 'a3'; give a1, a2 or equal"),
        ({'choice': 'a1', 'arg1': 1, 'arg2': 9, 'worker': 'w'}, "line 1: argument '9' is not in arguments.jsonl"),
        ({'choice': 'a1', 'arg1': 1, 'arg2': 2}, 'line 1: no worker'),
    ],
)
def test_what_is_wrong_in_judgements_is_told_with_its_row(tmp_path, row, message):
    lines(tmp_path / 'arguments.jsonl', [{'id': i, 'debate': 'd', 'stance': 's', 'text': f't{i}'} for i in (1, 2)])
    lines(tmp_path / 'judgements.jsonl', [row])
    with pytest.raises(ValueError, match=message):
        list(opinions.arguments(tmp_path))


# --- records from anywhere --------------------------------------------------------------------------------------------

CHOICES = [Choice('which?', 'this', 'that', 'ana'), Choice('', 'a', 'b', 'bo', 'north')]


@pytest.mark.parametrize('kind', ['jsonl', 'csv', 'parquet'])
def test_records_are_the_same_from_every_kind_of_file(tmp_path, kind):
    import csv

    import pyarrow
    from pyarrow import parquet

    path = tmp_path / f'choices.{kind}'
    if kind == 'jsonl':
        assert records.write(path, CHOICES) == 2
    elif kind == 'csv':
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, [*vars(CHOICES[0])])
            writer.writeheader()
            writer.writerows(vars(each) for each in CHOICES)
    else:
        parquet.write_table(pyarrow.Table.from_pylist([vars(each) for each in CHOICES]), path)
    assert list(records.read(str(path))) == CHOICES


def test_a_file_of_the_hub_is_one_of_its_data_sets(tmp_path, monkeypatch):
    import huggingface_hub

    path, asked = tmp_path / 'train.jsonl', []
    records.write(path, CHOICES)

    def download(repo, name, repo_type):
        asked.append((repo, name, repo_type))
        return str(path)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    assert list(records.read('hf:me/choices/data/train.jsonl')) == CHOICES
    assert asked == [('me/choices', 'data/train.jsonl', 'dataset')]
    monkeypatch.setattr(huggingface_hub, 'list_repo_files', lambda *_, **__: ['README.md', 'data/train.parquet'])
    with pytest.raises(ValueError, match='hf:me/choices names no file.*: hf:me/choices/data/train.parquet$'):
        list(records.read('hf:me/choices'))

    def unreachable(*_, **__):
        raise OSError('no network')

    monkeypatch.setattr(huggingface_hub, 'list_repo_files', unreachable)
    with pytest.raises(ValueError, match=r'hf:me/choices names no file.*no network'):
        list(records.read('hf:me/choices'))
    with pytest.raises(ValueError, match=r'me/choices is no file; .*hf:me/choices/FILE'):
        list(records.read('me/choices'))


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.txt', '', 'is no source; give JSON lines'),
        ('a.jsonl', '{"user": 1}\n', 'line 1: no chosen and no rejected'),
        ('a.jsonl', '{"user": "x", "chosen": "a", "rejected": "b"}\n{\n', 'line 2: not valid JSON'),
        ('a.jsonl', '1\n', 'line 1: expected an object'),
        ('a.jsonl', '{"user": "x", "chosen": "a", "rejected": "a"}\n', 'line 1: chosen and rejected are identical'),
        ('a.jsonl', '{"user": "x", "chosen": 1, "rejected": "a"}\n', "line 1: chosen is '1', give a text"),
        ('a.csv', 'user,chosen,rejected\nx,a\n', 'row 2: it has another number of cells'),
        ('a.parquet', 'no', 'is no Parquet file'),
    ],
)
def test_what_is_wrong_in_records_is_told_with_its_row(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(records.read(str(tmp_path / name)))


def test_records_of_tensorflow_datasets_are_texts(monkeypatch):
    """Its module is stood in for: importing it takes seconds and its sets need a network."""
    import sys
    import types

    asked = []

    def data_source(name, split):
        asked.append((name, split))
        if name == 'nothing':
            raise ValueError('no such set\nand more lines')
        return [{key: value.encode() for key, value in vars(each).items()} for each in CHOICES]

    core = types.SimpleNamespace(DatasetNotFoundError=KeyError)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', types.SimpleNamespace(data_source=data_source, core=core))
    assert list(records.read('tfds:me/choices:test')) == CHOICES
    assert asked == [('me/choices', 'test')]
    with pytest.raises(ValueError, match='tfds:nothing: no such set$'):
        list(records.read('tfds:nothing'))
