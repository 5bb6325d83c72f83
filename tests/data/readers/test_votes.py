"""Votes as pairs: from files, with their faults; splits in which what is tested on is new."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pal_jax.data import comparisons
from pal_jax.data.readers import votes
from pal_jax.data.texts import Text, TextPairs, from_votes
from pal_jax.data.tokenizer import byte_tokenizer

POLIS = Path(__file__).parents[4] / 'shared' / 'data' / 'polis_open'

TEXTS = {'7': 'More trees.', '3': 'Fewer cars.', '5': 'Lower taxes.'}
ROWS = [
    ('ana', '7', '1'),
    ('ana', '3', '-1'),
    ('bo', '3', '1'),
    ('bo', '5', '0'),
    ('ana', '5', '-1'),
    ('bo', '7', '-1'),
]


def conversation(folder, rows=ROWS, texts=TEXTS, people='participant,group\nana,1\nbo,\n'):
    stem = folder / 'town'
    body = ''.join(','.join(row) + '\n' for row in rows)
    stem.with_suffix('.votes.csv').write_text('participant,comment_id,vote\n' + body)
    lines = (json.dumps({'comment_id': int(key), 'text': text}) + '\n' for key, text in texts.items())
    stem.with_suffix('.statements.jsonl').write_text(''.join(lines))
    if people:
        stem.with_suffix('.people.csv').write_text(people)
    return stem


def test_a_statement_agreed_with_is_preferred_to_one_disagreed_with(tmp_path):
    found = votes.read(conversation(tmp_path))
    assert found.names == ('ana', 'bo') and found.texts == tuple(TEXTS.values())
    assert found.groups.tolist() == [0, -1]
    users, chosen, rejected = votes.draw_pairs(found, most=10, seed=0)
    said = {tuple(map(int, row)) for row in zip(users, chosen, rejected, strict=True)}
    assert said == {(0, 0, 1), (0, 0, 2), (1, 1, 0)}
    assert len(votes.draw_pairs(found, most=1, seed=0)[0]) == 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rows': [('ana', '7', '2')]}, 'votes.csv, row 2: vote is .2.; give 1'),
        ({'rows': [('ana', '9', '1')]}, "votes.csv, row 2: comment_id '9' is no statement of"),
        ({'rows': [('ana', '7')]}, 'row 2: it has another number of cells'),
        ({'rows': [('ana', '7', '0')]}, 'no agreement and no disagreement'),
        ({'texts': {'7': ' '}}, 'statements.jsonl, line 1: the text is empty'),
        ({'people': 'name\nana\n'}, 'people.csv: there is no column group, participant'),
    ],
)
def test_faults_are_told_with_file_and_row(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        votes.read(conversation(tmp_path, **changes))


def test_a_missing_file_is_told():
    with pytest.raises(ValueError, match=r'there is no file nowhere/town.statements.jsonl; give a conversation'):
        votes.read('nowhere/town')


def test_people_of_one_mind_make_no_pairs(tmp_path):
    found = votes.read(conversation(tmp_path, rows=[('ana', '7', '1'), ('bo', '3', '1')]))
    with pytest.raises(ValueError, match='nobody agreed with one statement and disagreed with another'):
        votes.draw_pairs(found, most=5, seed=0)


def made_up(people=40, items=30, seed=0):
    rng = np.random.default_rng(seed)
    who, what = np.repeat(np.arange(people), items), np.tile(np.arange(items), people)
    agree = rng.random(len(who)) < 0.5
    found = votes.Votes(
        who, what, agree, tuple(f'p{i}' for i in range(people)), tuple(map(str, range(items))), np.zeros(people, int)
    )
    users, chosen, rejected = votes.draw_pairs(found, most=60, seed=seed)
    said = tuple(Text((i,)) for i in range(items))
    pairs = TextPairs(users, chosen, rejected, None, said, found.texts, found.names, found.groups)
    return pairs.in_states(rng.normal(size=(items, 4)).astype(np.float32))


def test_two_statements_of_one_text_are_one(tmp_path):
    found = votes.Votes(
        np.array([0, 0, 0]), np.array([0, 1, 2]), np.array([True, False, False]), ('ana',), ('yes', 'yes', 'no'),
        np.array([-1]),
    )  # fmt: skip
    pairs = from_votes(found, byte_tokenizer(), template='{}', most=9, seed=0)
    assert [pairs.words[s] for s in (*pairs.chosen, *pairs.rejected)] == ['yes', 'no']
    later = found._replace(agree=np.array([False, True, False]))
    assert from_votes(later, byte_tokenizer(), template='{}', most=9, seed=0).chosen.tolist() == [0]


def test_statements_of_the_test_are_new_and_so_are_the_new_people():
    data = made_up()
    parts = comparisons.split_items(data, seed=1, seen=0.8, train=0.5, validation=0.2)
    assert all(len(part) for part in parts)
    items = [set(data.chosen.numbers[part]) | set(data.rejected.numbers[part]) for part in parts]
    train, validation, test, fit, new_test = items
    assert not train & validation and not (train | validation) & test
    assert fit <= train | (set(range(30)) - validation - test) and not fit & (test | new_test)
    people = [set(data.users[part]) for part in parts]
    assert not (people[0] | people[1] | people[2]) & (people[3] | people[4])
    assert people[2] <= people[0] and people[3] == people[4]  # nobody is tested whom nothing is known of
    again = comparisons.split_items(data, seed=1, seen=0.8, train=0.5, validation=0.2)
    assert all(map(np.array_equal, parts, again))
    with pytest.raises(ValueError, match='nobody has choices in all parts at split.seen=1'):
        comparisons.split_items(data, seed=1, seen=1.0, train=0.5, validation=0.2)
    with pytest.raises(ValueError, match='between the 0 of 30 different texts that split.validation=0.01'):
        comparisons.split_items(data, seed=1, seen=0.8, train=0.5, validation=0.01)


@pytest.mark.skipif(not POLIS.exists(), reason='needs ../shared/data/polis_open')
def test_real_votes_are_read():
    found = votes.read(POLIS / 'nz_biodiversity')
    assert len(found.texts) == 277 and len(found.agree) == 15237 + 4357
    assert np.bincount(found.groups + 1).tolist() == [0, 56, 281]  # of 57 and 283; three people only passed


def test_choices_are_of_statements_apart_on_which_people_differ(tmp_path):
    texts = {str(i): f'Statement {i}.' for i in range(6)}
    rows = [('ana', str(i), '1' if i < 4 else '-1') for i in range(6)]
    rows += [('bo', str(i), '1' if i in (0, 4) else '-1') for i in range(6)]
    found = votes.read(conversation(tmp_path, rows, texts))
    everything = votes.to_choices(found, 'Well?', disputed=0.0, seed=0)
    assert {name: len(own) for name, own in everything.items()} == {'ana': 2, 'bo': 2}
    agreed = {'ana': {0, 1, 2, 3}, 'bo': {0, 4}}
    for name, own in everything.items():
        assert {c.prompt for c in own} == {'Well?'}
        assert {c.chosen for c in own} <= {f'Statement {i}.' for i in agreed[name]}
        assert not {c.rejected for c in own} & {f'Statement {i}.' for i in agreed[name]}
        assert len({text for c in own for text in (c.chosen, c.rejected)}) == 4
    disputed = votes.to_choices(found, 'Well?', disputed=0.5, seed=0)
    kept = {text for own in disputed.values() for c in own for text in (c.chosen, c.rejected)}
    assert kept <= {f'Statement {i}.' for i in (1, 2, 3, 4)}  # of 0 and 5 they think alike
    assert {name: len(own) for name, own in disputed.items()} == {'ana': 1, 'bo': 1}


# --- second votes, and Polis' own files -------------------------------------------------------------------------------

LATER = ['1,0,ana,1', '9,0,ana,-1', '2,1,ana,1', '3,0,bo,1', '3,0,bo,1', '3,1,bo,-1', '7,1,ana,0']


def cast(read):
    return sorted(
        (read.names[p], read.texts[s], bool(a))
        for p, s, a in zip(read.people, read.statements, read.agree, strict=True)
    )


def test_the_last_vote_on_a_statement_counts_and_without_times_a_second_one_is_refused(tmp_path):
    stem = conversation(tmp_path, texts={'0': 's0', '1': 's1'}, people='')
    body = ''.join(f'{row}\n' for row in LATER)
    (tmp_path / 'town.votes.csv').write_text(f'timestamp,comment_id,participant,vote\n{body}')
    assert cast(votes.read(stem)) == [('ana', 's0', False), ('bo', 's0', True), ('bo', 's1', False)]
    with pytest.raises(ValueError, match=r"town.votes.csv, row 4: 'ana' judges '7' a second time.*row 2"):
        votes.read(conversation(tmp_path, rows=[('ana', '7', '1'), ('ana', '3', '1'), ('ana', '7', '-1')]))
    twice = [('ana', '7', '1'), ('ana', '7', '1'), ('ana', '3', '-1'), ('ana', '3', '-1.0')]
    users, *_ = votes.draw_pairs(votes.read(conversation(tmp_path, rows=twice)), most=9, seed=0)
    assert len(users) == 1


@pytest.mark.parametrize(
    ('header', 'counts', 'sign'),
    [
        ('timestamp,datetime,comment-id,voter-id,vote', True, 1),
        ('timestamp,datetime,comment-id,voter-id,vote', True, -1),
        ('timestamp,datetime,comment-id,voter-id,vote', False, 1),
        ('created,zid,tid,pid,vote', False, -1),
    ],
)
def test_what_polis_exports_is_read_as_it_is_with_the_sign_that_its_counts_tell(tmp_path, header, counts, sign):
    votes_cast = [(0, 'a', 1), (0, 'b', 1), (1, 'a', -1), (1, 'b', 0), (2, 'a', 1)]
    rows = ''.join(f'{k},x,{s},{person},{sign * vote}\n' for k, (s, person, vote) in enumerate(votes_cast))
    (tmp_path / 'votes.csv').write_text(f'{header}\n{rows}')
    agreed = ('5,0', '0,1', '2,0') if counts else ('0,0', '0,0', '0,0')
    texts = ('"one, two"', 'three', '')
    comments = ''.join(f'1,x,{k},7,{agreed[k]},1,{text}\n' for k, text in enumerate(texts))
    head = 'timestamp,datetime,comment-id,author-id,agrees,disagrees,moderated,comment-body'
    (tmp_path / 'comments.csv').write_text(f'{head}\n{comments}')
    read = votes.read(tmp_path)
    assert cast(read) == [('a', 'one, two', True), ('a', 'three', False), ('b', 'one, two', True)]
    assert read.texts == ('one, two', 'three')
