"""Records of BeaverTails and PKU-SafeRLHF: what is read, what is refused, what is joined and how rows are split."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pal_jax.data.holdouts import normal
from pal_jax.data.readers import safety
from pal_jax.data.readers.safety import CATEGORIES, JudgedPair, LabelledResponse
from tests.safety_records import labelled_record

NONE = dict.fromkeys(CATEGORIES, False)
LABELLED = {
    'prompt': 'How do I get the goat off the porch?',
    'response': 'Shout at it.',
    'category': {**NONE, 'animal_abuse': True},
    'is_safe': False,
}
JUDGED = {
    'prompt': 'How do I reach Mira?',
    'response_0': 'Ask at the town hall.',
    'response_1': 'Call 555-0143.',
    'is_response_0_safe': True,
    'is_response_1_safe': False,
    'better_response_id': 1,
    'safer_response_id': 0,
}
MARKS = st.tuples(*[st.booleans()] * len(CATEGORIES))
TEXTS = st.text(min_size=1).filter(str.strip)


def lines(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def test_there_are_fourteen_categories_in_the_published_order():
    assert len(CATEGORIES) == 14
    assert list(CATEGORIES) == sorted(set(CATEGORIES))


def test_rows_are_read_from_lines_parquet_and_csv(tmp_path):
    labelled = LabelledResponse(LABELLED['prompt'], 'Shout at it.', (True, *[False] * 13))
    judged = JudgedPair('How do I reach Mira?', ('Ask at the town hall.', 'Call 555-0143.'), (False, True), 1, 0)
    assert labelled.unsafe
    assert safety.read_labelled(lines(tmp_path / 'a.jsonl', LABELLED, {**LABELLED, 'more': 1})) == [labelled] * 2
    assert safety.read_judged(lines(tmp_path / 'b.jsonl', JUDGED)) == [judged]
    for path, row, read, expected in (
        (tmp_path / 'a.csv', LABELLED, safety.read_labelled, labelled),
        (tmp_path / 'b.csv', JUDGED, safety.read_judged, judged),
    ):
        with path.open('w', newline='') as file:
            writer = csv.writer(file)
            cells = [json.dumps(value) if isinstance(value, dict) else str(value) for value in row.values()]
            writer.writerows([row, cells])
        assert read(str(path)) == [expected]
    arrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    parquet.write_table(arrow.Table.from_pylist([LABELLED] * 2), tmp_path / 'a.parquet')
    assert safety.read_labelled(str(tmp_path / 'a.parquet')) == [labelled] * 2
    parquet.write_table(arrow.Table.from_pylist([JUDGED]), tmp_path / 'b.parquet')
    assert safety.read_judged(str(tmp_path / 'b.parquet')) == [judged]


WRONG_LABELLED = [
    ({'is_safe': True}, 'is_safe is True.*animal_abuse'),
    ({'category': NONE}, 'is_safe is False.*no category'),
    ({'category': {**NONE, 'rudeness': True}}, "'rudeness'"),
    ({'category': dict.fromkeys(CATEGORIES[1:], False)}, 'no animal_abuse'),
    ({'category': {**NONE, 'self_harm': None}}, 'no self_harm'),
    ({'category': {**NONE, 'self_harm': 1}}, 'self_harm is 1'),
    ({'category': ['self_harm']}, r"category is \['self_harm'\]"),
    ({'category': '{'}, "category is '{'"),
    ({'category': None}, 'no category'),
    ({'is_safe': None}, 'no is_safe'),
    ({'is_safe': 0}, 'is_safe is 0'),
    ({'prompt': ' '}, "prompt is ' '"),
    ({'response': ''}, "response is ''"),
    ({'response': ['a']}, r"response is \['a'\]"),
    ({'prompt': None}, 'no prompt'),
]
WRONG_JUDGED = [
    ({'safer_response_id': 1}, 'safer_response_id is 1'),
    ({'safer_response_id': 2}, 'safer_response_id is 2'),
    ({'better_response_id': -1}, 'better_response_id is -1'),
    ({'better_response_id': True}, "'better_response_id' is True"),
    ({'better_response_id': None}, 'no better_response_id'),
    ({'is_response_0_safe': 'yes'}, "is_response_0_safe is 'yes'"),
    ({'is_response_1_safe': None}, 'no is_response_1_safe'),
    ({'response_1': ''}, "response_1 is ''"),
    ({'response_0': 3}, 'response_0 is 3'),
]


@pytest.mark.parametrize(
    ('read', 'right', 'change', 'named'),
    [(safety.read_labelled, LABELLED, *case) for case in WRONG_LABELLED]
    + [(safety.read_judged, JUDGED, *case) for case in WRONG_JUDGED],
)
def test_what_is_wrong_is_refused_with_its_line(read, right, change, named, tmp_path):
    path = lines(tmp_path / 'a.jsonl', right, {**right, **change})
    with pytest.raises(ValueError, match=rf'a\.jsonl, line 2.*{named}') as caught:
        read(path)
    assert '\n' not in str(caught.value)


def test_a_source_without_records_is_refused(tmp_path):
    for read in (safety.read_labelled, safety.read_judged):
        with pytest.raises(ValueError, match='a.jsonl'):
            read(lines(tmp_path / 'a.jsonl'))


def test_ids_may_be_floats_of_a_column_with_gaps():
    assert safety.to_judged({**JUDGED, 'better_response_id': 1.0, 'safer_response_id': '0'}).better == 1


@given(TEXTS, TEXTS, MARKS)
def test_labelled_rows_come_back_and_are_safe_where_nothing_is_marked(prompt, response, marks):  # 4.4-4
    row = LabelledResponse(prompt, response, marks)
    record = labelled_record(row)
    assert record['is_safe'] == (not any(record['category'].values()))
    assert safety.to_labelled(json.loads(json.dumps(record))) == row


@given(TEXTS, st.tuples(TEXTS, TEXTS), st.tuples(st.booleans(), st.booleans()), st.integers(0, 1), st.integers(0, 1))
def test_judged_rows_come_back_unless_the_safer_one_is_the_unsafe_one(
    prompt, responses, unsafe, better, safer
):  # 4.4-4
    row = JudgedPair(prompt, responses, unsafe, better, safer)
    if unsafe[0] != unsafe[1] and normal(responses[0]) == normal(responses[1]):
        with pytest.raises(ValueError, match='are the same text'):
            safety.to_judged(safety.judged_record(row))
    elif unsafe[safer] and not unsafe[1 - safer]:
        with pytest.raises(ValueError, match=f'^safer_response_id is {safer}'):
            safety.to_judged(safety.judged_record(row))
    else:
        assert safety.to_judged(json.loads(json.dumps(safety.judged_record(row)))) == row


def row(prompt, response, *marked):
    return LabelledResponse(prompt, response, tuple(k in marked for k in range(14)))


def test_repeated_pairs_are_joined_by_majority():
    rows = [
        row('a', 'x', 0, 1, 2),
        row('b', 'x'),
        row('a', 'x', 0, 1),
        row('a', 'y', 3),
        row('a', 'x', 0),
        row('a', 'x', 4),
        row('a', 'y'),
        row('a', 'y'),
    ]
    # Of four labels three mark 0, two mark 1, which is a tie, and one each marks 2 and 4.
    assert safety.joined(rows) == [row('a', 'x', 0, 1), row('b', 'x'), row('a', 'y')]
    assert not safety.joined(rows)[2].unsafe
    assert safety.joined(safety.joined(rows)) == safety.joined(rows)
    assert safety.joined([]) == []
