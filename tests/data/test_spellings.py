"""One normal form for all comparisons of texts: facts of profiles, ids of people, refusals and what is held out."""

from __future__ import annotations

import json
import unicodedata

import pytest

from pal_jax.data import histories, records, texts
from pal_jax.data.holdouts import normal
from pal_jax.data.readers import columns, opinions, votes
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.judges.refusals import is_refusal
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.rlpa.people import load_people
from pal_jax.recipes.rlpa.profiles import match_exactly, mentions, parse_facts

SAME = [
    ("mom's", 'mom’s'), ("mom's", 'momʼs'), ("mom's", 'mom´s'), ("mom's", 'mom＇s'), ('"a"', '“a”'), ('"a"', '«a»'),
    ('Café', unicodedata.normalize('NFD', 'Café')), ('CAFÉ', 'café'), ('Straße', 'STRASSE'), ('ﬁve', 'five'),
    ('a', 'a\u200b'), ('a', '\ufeffa'), ('ab', 'a\u00adb'), ('a', 'a\ufe0f'), ('a', 'a\u2060'), ('ab', 'a\x00b'),
    ('twenty-one', 'twenty–one'), ('-3', '−3'), ('a b', 'a\u00a0 \tb '), ('Ǆ', 'ǆ'), ('ΐ', '\u03b9\u0308\u0301'),
]  # fmt: skip
OTHER = [('a', 'b'), ('cafe', 'café'), ('moms', "mom's"), ('ab', 'a b'), ('1', '01')]
IDS = ['Café', unicodedata.normalize('NFD', 'Café'), 'Café\u200b', 'CAFÉ ']  # one person


@pytest.mark.parametrize(('left', 'right'), SAME)
def test_two_spellings_are_one_text(left, right):
    assert normal(left) == normal(right)
    assert normal(normal(left)) == normal(left)
    assert match_exactly([[f'pet: {left}']], [[f'pet: {right}']]) == [1]
    assert mentions(f'So, {left} it is', right)
    assert len(parse_facts(f'- {left}\n- {right}')) <= 1


@pytest.mark.parametrize(('left', 'right'), OTHER)
def test_two_texts_stay_two(left, right):
    assert normal(left) != normal(right)
    assert match_exactly([[f'pet: {left}']], [[f'pet: {right}']]) == [0]


def test_every_reader_takes_two_spellings_of_an_id_for_one_person_called_as_written_first(tmp_path):
    def lines(name, rows):
        (tmp_path / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
        return str(tmp_path / name)

    pairs = lines('a.jsonl', [{'user': id, 'chosen': 'x', 'rejected': 'y'} for id in IDS])
    assert texts.read(pairs, byte_tokenizer(), alone=False).names == ('Café',)
    assert {choice.user for choice in opinions.read(f'choices:{pairs}')} == {'Café'}
    table = lines('t.jsonl', [{'user': id, 'chosen': [k + 1], 'rejected': [0]} for k, id in enumerate(IDS)])
    assert tables.load(table).names == ('Café',)
    (tmp_path / 'o.csv').write_text(
        'user,situation,chosen,x\n' + ''.join(f'{id},{k // 2},{1 - k % 2},{k}\n' for k, id in enumerate(IDS))
    )
    assert tables.load(tmp_path / 'o.csv').names == ('Café',)
    parts = {name: f'{name} of it' for name in sum(histories.PARTS.values(), ())}
    rows = [{'user': id, 'context': 'c', **parts} for id in IDS]
    assert [[one.user for one in person] for person in histories.load(lines('h.jsonl', rows))] == [['Café'] * 4]
    with pytest.raises(ValueError, match='line 2: the id .* is taken'):
        load_people(lines('p.jsonl', [{'id': id, 'profile': 'x'} for id in IDS]))
    (tmp_path / 'names.txt').write_text('\n'.join(IDS))
    with pytest.raises(ValueError, match='line 2: .* is the name in line 1'):
        columns._names(tmp_path / 'names.txt', 2)
    lines('v.statements.jsonl', [{'comment_id': k, 'text': f's{k}'} for k in range(4)])
    (tmp_path / 'v.votes.csv').write_text(
        'participant,comment_id,vote\n' + ''.join(f'{id},{k},1\n' for k, id in enumerate(IDS))
    )
    (tmp_path / 'v.people.csv').write_text(f'participant,group\n{IDS[1]},north\n')
    read = votes.read(tmp_path / 'v')
    assert (read.names, read.groups.tolist()) == (('Café',), [0])
    (tmp_path / 'ratings.csv').write_text('user,joke,rating\n' + ''.join(f'{id},{k},{k}\n' for k, id in enumerate(IDS)))
    lines('jokes.jsonl', [{'joke': k, 'text': f'j{k}'} for k in range(4)])
    assert {choice.user for choice in opinions.read(f'jester:{tmp_path}')} == {'Café'}


def test_an_id_is_found_in_another_spelling_and_one_that_nobody_sees_is_none():
    assert records.spelled(IDS[1], ['Bo', 'Café']) == 'Café'
    assert records.spelled('ana', ['Ana', 'ana']) == 'ana'
    assert records.spelled('eve', ['Ana']) == 'eve'
    with pytest.raises(ValueError, match="'user' is '.u200b'|no user"):
        records.identity('', {'user': '\u200b'}, 'user')


@pytest.mark.parametrize('mark', "'’ʼ`´＇‘")
def test_a_refusal_is_one_with_every_apostrophe(mark):
    assert is_refusal(f'I can{mark}t help with that.')
    assert is_refusal(f'I\u00a0can{mark}t\u200b help with that.')
    assert not is_refusal(f'You{mark}re right, here is how it works.')
