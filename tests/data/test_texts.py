"""Pairs of texts: from files, with their faults; each text once in a batch; the tokens a pair is judged by."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pal_jax.data import comparisons, records, texts
from pal_jax.data.texts import Spans, Text, TextPairs
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes.personal.panel import Trial, in_words
from pal_jax.types import Choice

TOKENIZER = byte_tokenizer()
RECORDS = [
    {'user': 'ana.1', 'prompt': 'Q1?', 'chosen': ' yes', 'rejected': ' no', 'group': 'north'},
    {'user': 'bo', 'prompt': 'Q1?', 'chosen': ' no', 'rejected': ' yes'},
    {'user': 'ana.1', 'prompt': 'Q2?', 'chosen': ' no', 'rejected': ' well'},
]


def write(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def test_replies_are_read_alone_or_after_their_prompt_and_each_text_once(tmp_path):
    path = write(tmp_path / 'a.jsonl', RECORDS)
    alone, after = (texts.read(path, TOKENIZER, alone=flag) for flag in (True, False))
    assert alone.names == ('ana.1', 'bo') and (alone.groups.tolist(), alone.group_names) == ([0, -1], ('north',))
    for pairs in (alone, after):
        assert pairs.users.tolist() == [0, 1, 0]
        assert pairs.prompt is not None and pairs.prompt[0] == pairs.prompt[1] != pairs.prompt[2]
        assert pairs.chosen[0] == pairs.rejected[1]
    assert alone.rejected[0] == alone.chosen[2]  # ' no' is one text, whatever was asked
    assert after.rejected[0] != after.chosen[2]
    assert len(alone.texts) == 5 and len(after.texts) == 6
    stop = TOKENIZER.stop_ids[0]
    no = tuple(TOKENIZER.encode(' no'))
    assert alone.texts[alone.chosen[1]] == Text((*no, stop))
    assert after.texts[after.chosen[1]] == Text((*no, stop), tuple(TOKENIZER.encode('Q1?')))
    assert alone.words[alone.chosen[1]] == ' no' and alone.words[alone.prompt[2]] == 'Q2?'


def test_choices_from_elsewhere_are_those_of_a_file(tmp_path):
    path = write(tmp_path / 'a.jsonl', RECORDS)
    found = texts.from_choices(records.read(str(path)), TOKENIZER, alone=False, template='{}', name='here')
    jax.tree.map(np.testing.assert_array_equal, found, texts.read(path, TOKENIZER, alone=False))
    with pytest.raises(ValueError, match='here has no choices'):
        texts.from_choices([], TOKENIZER, alone=False, template='{}', name='here')
    with pytest.raises(ValueError, match="here, choice 1: 'chosen' and 'rejected' are the same"):
        texts.from_choices([Choice('', 'x', 'x', 'ana')], TOKENIZER, alone=False, template='{}', name='here')


def test_messages_stand_for_texts_and_statements_need_no_prompt(tmp_path):
    said = {key: [{'role': 'assistant', 'content': key}] for key in ('chosen', 'rejected')}
    chat = {'user': 'ana', 'prompt': [{'role': 'user', 'content': 'Q?'}], **said}
    found = texts.read(write(tmp_path / 'a.jsonl', [chat]), TOKENIZER, alone=False)
    assert found.chat and found.texts[found.chosen[0]].before == tuple(TOKENIZER.chat(chat['prompt']))
    said, asked = texts.to_reply(TOKENIZER, 'Q?', 'chosen', chat=True, alone=False)
    assert said == found.texts[found.chosen[0]] and asked == found.texts[found.prompt[0]]
    found = texts.read(
        write(tmp_path / 'b.jsonl', [{'user': 'bo', 'chosen': 'x', 'rejected': 'yy'}]), TOKENIZER, alone=True
    )
    assert found.prompt is None and found.texts == (
        Text(tuple(TOKENIZER.encode('x'))),
        Text(tuple(TOKENIZER.encode('yy'))),
    )


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'chosen': 'a', 'rejected': 'b'}, 'line 2: the person is missing or empty'),
        ({'user': 'ana', 'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, 'line 2: .* are the same; delete the row'),
        ({'user': 'ana', 'prompt': 'q', 'chosen': 'a'}, 'line 2: rejected is missing or empty'),
        ({'user': 'ana', 'chosen': ' ', 'rejected': 'b'}, 'line 2: a text is empty'),
        ({'user': 'ana', 'chosen': 'a', 'rejected': 'b'}, 'row 2 has no prompt, others have one'),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path, record, message):
    with pytest.raises(ValueError, match=f'a.jsonl.*{message}'):
        texts.read(write(tmp_path / 'a.jsonl', [RECORDS[0], record]), TOKENIZER, alone=False)


@pytest.mark.parametrize('pool', ['mean', 'last'])
def test_packed_texts_name_the_columns_of_their_own_tokens(pool):
    rng = np.random.default_rng(0)
    said = [Text(tuple(rng.integers(1, 99, n).tolist())) for n in (1, 7, 30, 2)]
    said += [Text(tuple(rng.integers(1, 99, n).tolist()), (5, 6, 7)) for n in (4, 1, 9)]
    packed = texts.pack(said, pool, ways=2, micro_rows=1, row_tokens=32)
    for i, text in enumerate(said):
        row, place = packed.rows[i], packed.places[i]
        columns = packed.batch.states[row, place][packed.batch.acts[row, place]]
        expected = text.tokens if pool == 'mean' else text.tokens[-1:]
        assert packed.batch.tokens[row, columns].tolist() == list(expected)
        seen = [packed.batch.prefix[row, columns[-1]], packed.batch.segments[row, columns[-1]]]
        theirs = np.isin(packed.batch.segments[row], seen)
        read = packed.batch.tokens[row][theirs & (np.arange(len(theirs)) <= columns[-1])].tolist()
        assert read == [*text.before, *text.tokens]


def test_prompts_are_split_where_there_are_some():
    people, asked = np.arange(40).repeat(20), np.tile(np.arange(20), 40)
    said = tuple(Text((i,)) for i in range(22))
    yes, no = np.full(800, 20), np.full(800, 21)
    words = tuple(map(str, range(22)))
    pairs = TextPairs(people, yes, no, asked, said, words, tuple(map(str, range(40))), np.full(40, -1))
    parts = comparisons.split_items(pairs.in_states(np.eye(22, 4)), seed=0, seen=0.8, train=0.5, validation=0.2)
    train, validation, test, fit, new_test = (set(asked[part]) for part in parts)
    assert (len(train), len(validation), len(test)) == (10, 4, 6)
    assert not train & validation and not (train | validation) & test and fit == train and new_test == test
    alike = pairs._replace(prompt=np.zeros(800, int))
    with pytest.raises(ValueError, match='1 prompt'):
        comparisons.split_items(alike.in_states(np.eye(22, 4)), seed=0, seen=0.8, train=0.5, validation=0.2)


def test_unused_pairs_and_people_who_are_left_out_are_told():
    """40 people chose 14 times each between 128 texts, in random pairs."""
    rng, people = np.random.default_rng(0), np.arange(40).repeat(14)
    chosen = rng.integers(128, size=560)
    said, names = tuple(Text((i,)) for i in range(256)), tuple(map(str, range(40)))
    pairs = TextPairs(
        people, chosen, (chosen + 1 + rng.integers(127, size=560)) % 128, None, said, tuple(map(str, range(256))),
        names, np.full(40, -1),
    )  # fmt: skip

    def told(pairs):
        data = pairs.in_states(np.eye(256, 4))
        parts = comparisons.split_items(data, seed=0, seen=0.8, train=0.5, validation=0.2)
        left = 40 - len(np.unique(people[np.concatenate(parts)]))
        return in_words(data, Trial(parts, data.users, 0, False)), left, 560 - sum(map(len, parts))

    words, left, unused = told(pairs)
    assert left > 10 and f'{left} of 40 people' in words and f'{unused} pairs are unused' in words
    assert f'\nwarning: {unused / 560:.0%} of the pairs' in words
    # Both texts of a pair with a prompt are in the part of the prompt.
    words, left, unused = told(pairs._replace(prompt=128 + chosen))
    assert unused < 100 and 'warning' not in words


def test_a_text_in_other_clothes_is_the_same_text():
    """40 people chose among 20 statements, each of which stands there twice, with other white space and case."""
    rng, words = (
        np.random.default_rng(0),
        tuple(f'Statement {i}' if k else f' statement  {i}' for k in (0, 1) for i in range(20)),
    )
    people, chosen = np.arange(40).repeat(100), rng.integers(40, size=4000)
    rejected = (chosen + rng.integers(1, 20, size=4000)) % 40
    said, names = tuple(Text((i,)) for i in range(40)), tuple(map(str, range(40)))
    for prompt in (None, chosen):
        pairs = TextPairs(people, chosen, rejected, prompt, said, words, names, np.full(40, -1))
        data = pairs.in_states(np.eye(40, 4))
        parts = comparisons.split_items(data, seed=0, seen=0.8, train=0.5, validation=0.2)
        sides = (chosen,) if prompt is not None else (chosen, rejected)
        train, validation, test, *_ = ({int(i) % 20 for side in sides for i in side[part]} for part in parts)
        assert not train & validation and not (train | validation) & test
        assert comparisons.repeats(data) == 20


def test_a_prompt_that_stands_in_the_replies_is_known_by_its_words(tmp_path):
    asked = [{'role': 'user', 'content': 'Why?'}]
    record = {'user': 'a', **{k: [*asked, {'role': 'assistant', 'content': k}] for k in ('chosen', 'rejected')}}
    (tmp_path / 'a.jsonl').write_text(json.dumps(record))
    pairs = texts.read(tmp_path / 'a.jsonl', TOKENIZER, alone=False)
    assert pairs.prompt is not None and pairs.words[pairs.prompt[0]] == 'Why?'


USER, BOT, OTHER = (
    {'role': role, 'content': text} for role, text in (('user', 'Q?'), ('assistant', 'a'), ('assistant', 'b'))
)


@pytest.mark.parametrize(
    'record',
    [
        {'instruction': 'Q?', 'chosen': 'a', 'rejected': 'b'},
        {'conversations': [{'from': 'human', 'value': 'Q?'}], 'chosen': {'from': 'gpt', 'value': 'a'},
         'rejected': {'from': 'gpt', 'value': 'b'}},
        {'input': {'messages': [USER]}, 'preferred_output': [BOT], 'non_preferred_output': [OTHER]},
        {'prompt': [USER], 'chosen': [{**BOT, 'content': [{'type': 'text', 'text': 'a'}]}], 'rejected': OTHER},
    ],
)  # fmt: skip
def test_pairs_of_every_format_are_the_same_texts(record):
    expected = texts.to_said(
        {'user': 'ana', 'prompt': [USER], 'chosen': [BOT], 'rejected': [OTHER]}, TOKENIZER, alone=True
    )
    assert texts.to_said({'user': 'ana', **record}, TOKENIZER, alone=True) == expected
    assert expected.prompt and (expected.prompt[1], expected.chosen[1], expected.rejected[1]) == ('Q?', 'a', 'b')


def test_statements_of_a_table_have_a_prompt_that_holds_nothing():
    record = {'user': 'ana', 'chosen': 'x', 'rejected': 'y'}
    assert texts.to_said({**record, 'prompt': None}, TOKENIZER, alone=True) == texts.to_said(
        record, TOKENIZER, alone=True
    )


def test_spans_hold_both_sides_and_count_the_tokens_that_differ():
    left, right = Text((2, 10, 11, 12, 13)), Text((2, 10, 11, 20))  # psoups_pal II.9-5: the span is columns 3 and 4
    table, starts = np.arange(9.0)[:, None], np.array([0, 5])
    for weighting, expected in (('mean', [0.5, 0.5]), ('cumulative', [1 / 3, 2 / 3]), ('only_last', [0.0, 1.0])):
        spans = Spans(table, starts, (left, right), weighting)
        a, b, weight = spans.take(np.array([[0, 1]]), np.array([[1, 0]]))
        assert a.shape == (1, 2, 16, 1) and weight.shape == (1, 2, 16)
        np.testing.assert_allclose(weight[0, :, 3:5], [expected, expected], atol=1e-6)
        np.testing.assert_allclose(weight.sum(-1), 1.0, atol=1e-6)
        assert a[0, 0, :6, 0].tolist() == [0, 1, 2, 3, 4, 4] and b[0, 0, :6, 0].tolist() == [5, 6, 7, 8, 8, 8]


def test_pairs_of_replicas_that_are_not_read_yet_are_each_of_their_own_table():
    table = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    index = np.array([[0, 2, 1, 3], [3, 3, 0, 1]])
    pairs = texts.Replicas(table, np.array([4, 0, 2, 1])).at(index)
    assert pairs.shape == (2, 4, 3)
    wanted = np.stack([table[r][np.array([4, 0, 2, 1])[index[r]]] for r in range(2)])
    np.testing.assert_array_equal(pairs[:, 1:3], wanted[:, 1:3])
    np.testing.assert_array_equal(pairs[:, 1:3, 2:], wanted[:, 1:3, 2:])
