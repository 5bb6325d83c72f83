"""Rows in TRL's formats: what is learnt of them, and what is told of wrong ones."""

from __future__ import annotations

import json

import pytest

from pal_jax.data import chats
from pal_jax.data.packing import Example
from pal_jax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
USER, BOT = {'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes?'}
MORE, END = {'role': 'user', 'content': 'Bye'}, {'role': 'assistant', 'content': 'So long'}


def learnt(example: Example) -> str:
    acts = example.acts or [True] * len(example.completion)
    return TOKENIZER.decode([token for token, act in zip(example.completion, acts, strict=True) if act])


def whole(example: Example) -> str:
    return TOKENIZER.decode([*example.prompt, *example.completion])


def test_only_the_assistants_turns_and_their_ends_are_learnt():
    example = chats.to_imitate({'messages': [{'role': 'system', 'content': 'S'}, USER, BOT, MORE, END]}, TOKENIZER)
    assert learnt(example) == 'Yes?<|im_end|>So long<|im_end|>'
    assert example.prompt == TOKENIZER.chat([{'role': 'system', 'content': 'S'}, USER])
    assert whole(example) + '\n' == TOKENIZER.decode(
        TOKENIZER.chat([{'role': 'system', 'content': 'S'}, USER, BOT, MORE, END], add_generation_prompt=False)
    )


def test_a_prompt_with_its_completion_learns_the_completion_alone():
    chat = chats.to_imitate({'prompt': [USER, BOT, MORE], 'completion': [END]}, TOKENIZER)
    assert learnt(chat) == 'So long<|im_end|>'
    text = chats.to_imitate({'prompt': 'The sky is', 'completion': ' blue'}, TOKENIZER)
    assert (TOKENIZER.decode(text.prompt), learnt(text)) == (
        'The sky is',
        f' blue{TOKENIZER.decode([TOKENIZER.stop_ids[0]])}',
    )


@pytest.mark.parametrize('explicit', [True, False])
def test_pairs_share_their_prompt_given_or_not(explicit):
    other = {'role': 'assistant', 'content': 'No.'}
    record = {'prompt': [USER], 'chosen': [BOT], 'rejected': [other]}
    implicit = {'chosen': [USER, BOT], 'rejected': [USER, other], 'score': 3}
    pair = chats.to_prefer(record if explicit else implicit, TOKENIZER)
    assert [learnt(each) for each in pair] == ['Yes?<|im_end|>', 'No.<|im_end|>']
    assert pair.chosen.prompt == pair.rejected.prompt == TOKENIZER.chat([USER])


def test_what_a_message_says_can_end_no_turn():
    example = chats.to_imitate({'messages': [USER, {'role': 'assistant', 'content': 'a<|im_end|>b'}]}, TOKENIZER)
    assert learnt(example) == 'ab<|im_end|>'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"messages": [', 'rows.jsonl, line 2: not valid JSON'),
        ('[1]', 'line 2: expected an object with messages or prompt and completion or .*, got list'),
        ('{"words": "a"}', 'line 2: expected an object with messages or prompt and completion or .*, got keys words'),
        ('{"messages": []}', "line 2: 'messages' must be a list of messages"),
        ('{"messages": [{"role": "user"}]}', r"line 2: messages\[0\] must have 'role' and 'content'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', 'line 2: .* no assistant message'),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
         r"line 2: messages\[0\] is the assistant's, .* put a system or user message before it"),
        ('{"prompt": "a", "completion": [1]}', "line 2: 'prompt' and 'completion' must both be texts or both lists"),
        ('{"prompt": "", "completion": "a"}', "line 2: 'prompt' is empty"),
        ('{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "a"}]}',
         'line 2: what is learnt must begin with an assistant message'),
    ],
)  # fmt: skip
def test_wrong_rows_are_told_by_file_and_line(tmp_path, line, message):
    path = tmp_path / 'rows.jsonl'
    path.write_text(json.dumps({'messages': [USER, BOT]}) + '\n' + line)
    with pytest.raises(ValueError, match=message) as error:
        chats.read(path, lambda record: chats.to_imitate(record, TOKENIZER))
    assert '\n' not in str(error.value)


def test_wrong_pairs_and_files_are_told(tmp_path):
    with pytest.raises(ValueError, match='expected an object with chosen and rejected or .*, got keys prompt, chosen'):
        chats.to_prefer({'prompt': 'a', 'chosen': 'b'}, TOKENIZER)
    with pytest.raises(ValueError, match='begin differently'):
        chats.to_prefer({'chosen': [USER, BOT], 'rejected': [MORE, BOT]}, TOKENIZER)
    with pytest.raises(ValueError, match='must begin with an assistant message'):
        chats.to_prefer({'chosen': [USER, BOT], 'rejected': [USER]}, TOKENIZER)
    with pytest.raises(ValueError, match=r'nowhere\.jsonl is no file'):
        chats.read('nowhere.jsonl', dict)
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='has no rows'):
        chats.read(tmp_path / 'empty.jsonl', dict)
