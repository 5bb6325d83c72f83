"""People from JSON lines: the fields of the reference, and a line's fault told with its number."""

from __future__ import annotations

import json

import pytest

from pal_jax.data import histories
from pal_jax.types import Choice

RECORD = {
    'context': 'Liked: A cat naps. Disliked: A dog runs.',
    'reward_prompt': 'Talk.', 'chosen': 'Cats purr.', 'rejected': 'Dogs guard.',
    'train_prompt': 'Talk on.', 'train_chosen': 'Cats groom.', 'train_rejected': 'Dogs dig.',
    'eval_prompt': 'And?', 'eval_chosen': 'Cats see well.', 'eval_rejected': 'Dogs bark.',
}  # fmt: skip


def write(tmp_path, *records):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(each if isinstance(each, str) else json.dumps(each) for each in records))
    return path


def test_fields_go_where_they_belong(tmp_path):
    asked = [{'role': 'user', 'content': 'Who is this?'}]
    path = write(tmp_path, RECORD | {'user': 'u1', 'kind': 'cats'}, '', RECORD | {'context_messages': asked})
    one, two = histories.load(path)
    assert (one.user, one.kind, one.context, one.ask) == ('u1', 'cats', RECORD['context'], ())
    assert one.reward == Choice('Talk.', 'Cats purr.', 'Dogs guard.')
    assert one.train == Choice('Talk on.', 'Cats groom.', 'Dogs dig.')
    assert one.held == (Choice('And?', 'Cats see well.', 'Dogs bark.'),)
    assert two.ask == tuple(asked)
    text = {key: value for key, value in RECORD.items() if key != 'context'} | {'context_messages': 'Who?'}
    (three,) = histories.load(write(tmp_path, text))
    assert (three.context, three.ask) == ('Who?', ({'role': 'user', 'content': 'Who?'},))


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ('{', r'line 2 is no JSON object'),
        ('[]', r'line 2 is no JSON object'),
        (RECORD | {'chosen': ''}, r"line 2 has chosen=''; give a text"),
        ({k: v for k, v in RECORD.items() if k != 'eval_chosen'}, r'line 2 has eval_chosen=None'),
        (RECORD | {'context': None}, r'line 2 has neither context nor context_messages'),
        (RECORD | {'context_messages': [{'role': 'user'}]}, r'line 2 has a message .* give a role and a content'),
        (RECORD | {'eval_chosen': 'Cats purr.'}, r"line 2 tests with a reply it has told before: 'Cats purr.'"),
        (RECORD | {'context': 'I said: Dogs bark.'}, r"line 2 tests with a reply it has told before: 'Dogs bark.'"),
    ],
)
def test_a_wrong_line_is_told_by_its_number(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        histories.load(write(tmp_path, RECORD, record))


def test_an_empty_file_is_told(tmp_path):
    with pytest.raises(ValueError, match='has no person'):
        histories.load(write(tmp_path, ''))
