"""Which rows are learnt and which are tested on: no prompt stands on both sides, in whatever clothes."""

from __future__ import annotations

import functools
import json

import jax
import pytest

from pal_jax.data import rows
from pal_jax.data.holdouts import fewer, held_out, normal
from pal_jax.data.readers import formats
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes import dpo, sft
from pal_jax.recipes.scorer import reward
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from tests import configs

TOKENIZER = byte_tokenizer()
GATHER = functools.partial(reward.gather, replies=2, length=1000)


def write(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path)


def pair(question, chosen='yes', rejected='no'):
    said = {key: [{'role': 'assistant', 'content': text}] for key, text in (('chosen', chosen), ('rejected', rejected))}
    return {'prompt': [{'role': 'user', 'content': question}], **said}


def chat(question, answer='yes'):
    return {'messages': [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]}


def make(method, path, **changes):
    changes = {'data.train': path, 'data.test_rows': 64} | changes
    recipe, key, extra = {
        'sft': (sft, 'completion', ()), 'dpo': (dpo, 'chosen', ()), 'reward': (reward, 'chosen', (GATHER,))
    }[method]  # fmt: skip
    return rows.make_rows(
        configs.load(method, **changes), TOKENIZER, recipe.to_group, key, 1 if method == 'sft' else 2, *extra
    )


def asked(groups):
    """What is asked in each group, as it is compared."""
    found = (TOKENIZER.decode(group.prompt).split('user\n')[-1].split('<|im_end|>')[0] for group in groups)
    return [normal(text) for text in found]


METHODS = pytest.mark.parametrize(
    ('method', 'record'), [('sft', chat), ('dpo', pair), ('reward', pair)], ids=['sft', 'dpo', 'reward']
)


@METHODS
def test_a_prompt_is_learnt_or_tested_on_in_whatever_clothes(tmp_path, method, record):
    forms = '{}', '  {}', '{}\n', '{}'
    lines = [
        record(forms[k % 4].format(f'Question  {i}' if k == 1 else f'QUESTION {i}'), f'answer {i} {k}')
        for k in range(5)
        for i in range(40)
    ]
    found = make(method, write(tmp_path / 'a.jsonl', lines))
    train, test = asked(found.train), asked(found.test)
    assert (len(train), len(test), found.moved) == (160, 40, 160)
    assert not set(train) & set(test) and len(set(test)) == 8
    assert '160 rows to learn from, 40 to test on' in found.told and '160 rows with the prompt' in found.told
    again = make(method, write(tmp_path / 'b.jsonl', lines[::-1]))
    assert sorted(asked(again.test)) == sorted(test)  # the order says nothing
    more = make(method, write(tmp_path / 'c.jsonl', [*lines, record('Another')]))
    assert set(asked(more.test)) == set(test)  # nobody else changes sides


@METHODS
def test_one_prompt_alone_cannot_be_held_out(tmp_path, method, record):
    path = write(tmp_path / 'a.jsonl', [record('Why?', f'so {i}') for i in range(10)])
    with pytest.raises(ValueError, match=r'data.train=.*a.jsonl .*data.test=FILE'):
        make(method, path)


@pytest.mark.parametrize('method', ['dpo', 'reward'])
def test_a_pair_and_its_mirror_stand_on_one_side(tmp_path, method):
    lines = [pair(f'{i}', *sides) for i in range(20) for sides in (('a', 'b'), ('a', 'b'), ('b', 'a'))]
    found = make(method, write(tmp_path / 'a.jsonl', lines))
    assert not set(asked(found.train)) & set(asked(found.test))
    assert len(found.test) == 12  # of 60 a fifth


@METHODS
def test_what_a_test_file_asks_is_not_learnt(tmp_path, method, record):
    path = write(tmp_path / 'a.jsonl', [record(f'Question {i}') for i in range(10)])
    test = write(tmp_path / 'test.jsonl', [record(f' question  {i}') for i in range(7, 12)])
    found = make(method, path, **{'data.test': test})
    assert (len(found.train), len(found.test), found.moved) == (7, 5, 3)
    assert not set(asked(found.train)) & set(asked(found.test))
    with pytest.raises(ValueError, match='all prompts of data.train=.*a.jsonl are in data.test=.*a.jsonl'):
        make(method, path, **{'data.test': path})


@METHODS
def test_made_people_ask_nothing_in_the_test_that_others_ask(method, record):
    found = make(method, 'oracle', **{'oracle.people': 20, 'oracle.rounds': 2})
    assert not {tuple(group.prompt) for group in found.train} & {tuple(group.prompt) for group in found.test}
    assert (len(found.train), len(found.test), found.moved) == (36, 4, 4)  # all begin with the same words
    with pytest.raises(ValueError, match='oracle.rounds'):
        make(method, 'oracle', **{'oracle.rounds': 1})


@METHODS
def test_a_name_that_nobody_makes_up_is_refused_with_those_that_are(method, record):
    with pytest.raises(ValueError, match="data.train='oracl' .*oracle, recall"):
        make(method, 'oracl')


@METHODS
def test_a_run_begins_with_a_line_about_it(tmp_path, method, record):
    path, told = write(tmp_path / 'a.jsonl', [record(f'{i % 5}') for i in range(10)]), []
    recipe = {'sft': sft, 'dpo': dpo, 'reward': reward}[method]
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    # `:smoke` asks for 3 test rows, and nobody asks for the 64 of a default.
    for changes in ({}, {'data.test_rows': 64}):
        changes = {'data.train': path, 'export': False, **changes}
        recipe.make(configs.load(method, **changes), Context(mesh, log=told.append))
    split = '8 rows to learn from, 2 to test on, which have other prompts (5 rows with the prompt of another row)'
    assert told == [split + fewer('data.test_rows', 3, 2), split] and 'warning: data.test_rows=3 became 2' in told[0]


def test_passes_that_have_no_effect_are_told(tmp_path):
    path = write(tmp_path / 'a.jsonl', [chat(f'{i}?') for i in range(5)])
    assert 'data.epochs=3 has no effect' in make('sft', path, **{'total_steps': 6, 'data.epochs': 3.0}).told
    assert 'has no effect' not in make('sft', path, **{'total_steps': 0, 'data.epochs': 3.0}).told


def test_the_system_prompt_of_all_rows_is_kept(tmp_path):
    system = {'role': 'system', 'content': 'You are a pirate.'}
    rows_of = [{'messages': [system, *chat(f'{i}?')['messages']]} for i in range(5)]
    path = write(tmp_path / 'a.jsonl', rows_of)
    assert make('sft', path).system == 'You are a pirate.'
    assert make('sft', write(tmp_path / 'b.jsonl', [*rows_of, chat('6?')])).system == ''
    changes = {'data.train': path, 'export': False}
    context = Context(devices.make_mesh(devices=jax.devices()[:1]))
    sft.make(configs.load('sft', **changes), context).plan.keep(tmp_path / 'kept')
    assert (tmp_path / 'kept' / 'system.txt').read_text() == 'You are a pirate.'


def test_prompts_that_no_chat_template_writes_are_told(tmp_path):
    plain = [{'prompt': f'{i}?', 'chosen': 'yes', 'rejected': 'no'} for i in range(5)]
    of_texts = make('dpo', write(tmp_path / 'a.jsonl', plain))
    assert f'5 prompts are {rows.PLAIN}' in of_texts.told
    mixed = make('dpo', write(tmp_path / 'b.jsonl', [*plain[:2], *(pair(f'{i}?') for i in range(5, 9))]))
    assert f'2 prompts are {rows.PLAIN}' in mixed.told
    of_messages = make('sft', write(tmp_path / 'c.jsonl', [chat(f'{i}?') for i in range(5)]))
    assert rows.PLAIN not in of_messages.told
    written = [{'prompt': f'<|im_start|>user\n{i}?<|im_end|>\n', 'completion': 'yes'} for i in range(5)]
    assert rows.PLAIN not in make('sft', write(tmp_path / 'd.jsonl', written)).told


@pytest.mark.parametrize('method', ['sft', 'dpo', 'reward'])
def test_texts_are_learnt_as_chats(tmp_path, method):
    plain = {f'{i}?': {'prompt': f'{i}?', 'chosen': 'yes', 'rejected': 'no'} for i in range(5)}
    if method == 'sft':
        plain['5?'] = {'prompt': '5?', 'completion': 'yes', 'chosen': None, 'rejected': None}
    of_texts = make(method, write(tmp_path / 'a.jsonl', list(plain.values())), chat=True)
    of_messages = make(method, write(tmp_path / 'b.jsonl', [pair(prompt) for prompt in plain]))
    assert (of_texts.train, of_texts.test) == (of_messages.train, of_messages.test)
    assert rows.PLAIN not in of_texts.told


@pytest.mark.parametrize('record', [
    {'chosen': 'It is blue.', 'rejected': 'It is red.'},
    {'prompt': '<|im_start|>user\n?<|im_end|>\n', 'chosen': 'yes', 'rejected': 'no'},
])  # fmt: skip
def test_texts_that_are_no_chats_are_refused_as_chats(tmp_path, record):
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: .*'prompt'.* leave"):
        make('dpo', write(tmp_path / 'a.jsonl', [record, pair('1?')]), chat=True)


def test_pairs_that_are_imitated_are_told(tmp_path):
    path = write(tmp_path / 'a.jsonl', [*(pair(f'{i}') for i in range(5)), *(chat(f'{i}') for i in range(5, 9))])
    assert f'5 rows of the file are {rows.OF_PAIRS}' in make('sft', path).told
    alone = write(tmp_path / 'b.jsonl', [pair(f'{i}') for i in range(5)])
    assert rows.OF_PAIRS not in make('dpo', alone).told


def test_fewer_to_test_on_than_a_setting_asks_for_are_told_with_the_reason():
    assert 'eval.people=50 became 2, since a fifth at most' in fewer('eval.people', 50, 2)
    assert 'limit=9 became 2, since a.jsonl has no more' in fewer('limit', 9, 2, 'a.jsonl has no more')
    assert fewer('eval.people', 2, 2) == ''


def test_the_same_answer_twice_is_no_pair(tmp_path):
    path = write(tmp_path / 'a.jsonl', [pair('a'), pair('b', 'same', 'same')])
    with pytest.raises(ValueError, match=r'a.jsonl, line 2: the chosen and the rejected reply are the same'):
        make('dpo', path)


def test_contents_are_drawn_by_their_hash_and_no_more_than_there_is_room_for():
    contents = [f'{i % 30}' for i in range(60)]
    tested = held_out(contents, 7)
    assert sum(tested) == 6
    assert {c for c, held in zip(contents, tested, strict=True) if held}.isdisjoint(
        c for c, held in zip(contents, tested, strict=True) if not held
    )
    assert held_out(contents, 7, seed=1) != tested
    assert held_out(['a'] * 9 + ['b'], 64) == [False] * 9 + [True]
    assert held_out(['a'] * 3 + ['b'] * 4, 1) == [True] * 3 + [False] * 4  # one at least, the smallest
    assert held_out(['a', 'b', 'c', 'b', 'd', 'a'], 1, last=True) == [False] * 4 + [True, False]


@pytest.mark.parametrize('clothes', ['don’t\u200b  go', '\ufeffDon\u2018t go', "do\u00adn't\u00a0go\u200d"])
def test_marks_that_nobody_sees_and_quotes_make_no_other_content(clothes):
    assert normal(clothes) == normal("don't go")


def test_an_empty_system_prompt_and_ids_of_calls_make_no_other_prompt():
    def asked(*messages):
        return formats.imitated({'messages': [*messages, {'role': 'assistant', 'content': 'b'}]}).content

    user = {'role': 'user', 'content': 'a'}
    assert asked({'role': 'system', 'content': ' '}, user) == asked(user)
    systems = [{'role': role, 'content': 'be kind'} for role in ('system', 'developer')]
    assert asked(systems[0], user) == asked(systems[1], user) != asked(user)

    def called(**ids):
        call = {'function': {'name': 'f', 'arguments': '{"x": 1}'}, **({'id': '7'} if ids else {})}
        before = [user, {'role': 'assistant', 'tool_calls': [call]}, {'role': 'tool', 'content': '1', **ids}]
        return formats.imitated({'prompt': before, 'completion': [{'role': 'assistant', 'content': 'b'}]}).content

    assert called() == called(tool_call_id='7')
