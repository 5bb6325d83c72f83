"""Whose histories PLUS learns from: who tests is nobody to learn from, and the same for every seed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pal_jax.data import records
from pal_jax.data.histories import check_disjoint
from pal_jax.recipes.plus import histories
from pal_jax.recipes.plus.histories import HistoryOptions
from pal_jax.types import Choice

DATA = Path(__file__).parents[4] / 'shared' / 'data'
MADE = HistoryOptions(told=4, held=2, max_words=40, disputed=0.0)


def read(data, **changes):
    return histories.read(data, **{'people': 100, 'tested': 3, 'seed': 0, 'form': 'labelled', 'made': MADE} | changes)


def write(tmp_path, people):
    lines = [
        {'user': f'u{u}', 'prompt': 'Talk.', 'chosen': f'good {u} {i} thing', 'rejected': f'bad {u} {i} thing'}
        for u in range(people)
        for i in range(100, 110)
    ]
    path = tmp_path / 'choices.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines)))
    return f'choices:{path}'


def test_who_tests_is_new_and_the_same_for_every_seed(tmp_path):
    data = write(tmp_path, 20)
    train, tests = read(data)
    assert (len(train), len(tests['test']), len(tests['seen'])) == (17, 3, 3)
    assert not {p.user for p in train} & {p.user for p in tests['test']}
    assert {p.user for p in tests['seen']} <= {p.user for p in train}
    assert read(data, seed=5) == (train, tests)
    fewer, same = read(data, people=8)
    assert fewer == train[:8]
    assert same['test'] == tests['test']


def test_a_person_may_be_learnt_from_more_than_once(tmp_path):
    data, made = write(tmp_path, 20), dataclasses.replace(MADE, told=2, taught=2)
    train, tests = read(data, made=dataclasses.replace(made, each=3))
    once, same = read(data, made=made)
    assert (train[::3], tests) == (once, same)
    assert all(len({p.user for p in train[i : i + 3]}) == 1 for i in range(0, len(train), 3))
    assert {len(p.train) for p in train} == {2}


def test_choices_go_to_who_made_them(tmp_path):
    record = {'user': 'u', 'prompt': 'p', 'chosen': 'a ', 'rejected': 'b'}
    path = tmp_path / 'choices.jsonl'
    path.write_text('\n'.join(map(json.dumps, (record, record | {'user': 'v'}, record | {'chosen': 'c'}))))
    assert histories.by_person(records.read(str(path))) == {
        'u': [Choice('p', 'a', 'b'), Choice('p', 'c', 'b')], 'v': [Choice('p', 'a', 'b')],
    }  # fmt: skip


def test_too_few_people_are_told(tmp_path):
    with pytest.raises(ValueError, match=r'has 4 people with 8 choices apart .* of at most 40 words .*; give five'):
        read(write(tmp_path, 4))


def test_a_source_that_nobody_knows_is_no_file():
    with pytest.raises(ValueError, match="data='vote:town' is unknown; use pets, .* ukp:"):
        read('vote:town')


@pytest.mark.parametrize(
    'name', ['votes:polis_open/nz_taxes', 'votes:polis_open/brexit', 'votes:ccai_polis/ccai', 'ukp:ukpconvarg1']
)
def test_real_people_are_held_apart(name):  # rlpa_plus IV.4-9
    if not DATA.is_dir():
        pytest.skip('the shared data is not beside this checkout')
    kind, _, place = name.partition(':')
    train, tests = read(f'{kind}:{DATA / place}', tested=16)
    assert len(train) >= 70
    assert len(tests['test']) == 16
    for person in (*train, *tests['test']):
        check_disjoint(person, person.user)
        assert len(person.held) == 2
        assert person.context.count('Disliked: ') == 4
    prompts = {c.prompt for person in train for c in (person.reward, *person.train)}
    assert (len(prompts) > 20) == (kind == 'ukp')


def test_disputed_statements_alone_count():
    if not DATA.is_dir():
        pytest.skip('the shared data is not beside this checkout')
    data = f'votes:{DATA / "polis_open" / "nz_taxes"}'
    whole, disputed = (read(data, made=dataclasses.replace(MADE, disputed=share))[0] for share in (0.0, 0.3))
    assert 5 < len(disputed) < len(whole)


def test_one_person_under_two_names_is_on_one_side(tmp_path):
    lines = [
        {'user': user, 'prompt': 'Talk.', 'chosen': f'good {u} {i} thing', 'rejected': f'{bad} {u} {i} thing'}
        for user, bad in (('a', 'bad'), ('b', 'Bad '))
        for u in range(10)
        for i in range(100, 110)
    ]
    for line in lines:
        line['user'] += line['chosen'].split()[1]
    path = tmp_path / 'choices.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines)))
    told = []
    train, tests = read(f'choices:{path}', tested=4, log=told.append)
    sides = [{person.user[1:] for person in side} for side in (train, tests['test'])]
    assert (len(train), len(tests['test'])) == (16, 4)
    assert not sides[0] & sides[1]
    assert '10 people' in told[0]


def test_a_file_of_the_same_people_cannot_be_split(tmp_path):
    record = {
        'context': 'c', 'reward_prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'train_prompt': 'p', 'train_chosen': 'd',
        'train_rejected': 'e', 'eval_prompt': 'p', 'eval_chosen': 'f', 'eval_rejected': 'g',
    }  # fmt: skip
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(json.dumps(record | {'user': str(i), 'context': 'C ' * (1 + i % 2)}) for i in range(10)))
    train, tests = read(str(path))
    assert [len(train), len(tests['test'])] == [5, 5]  # a fifth at most, but one person at least
    path.write_text('\n'.join(json.dumps(record | {'user': str(i)}) for i in range(10)))
    with pytest.raises(ValueError, match=r'people.jsonl: 10 of the same content'):
        read(str(path))
