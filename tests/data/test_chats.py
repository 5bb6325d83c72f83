"""Rows in TRL's formats: what is learnt of them, and what is told of wrong ones."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pal_jax.data import chats, records
from pal_jax.data.packing import Example
from pal_jax.data.tokenizer import CHATML, Tokenizer, byte_tokenizer

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
    assert learnt(example) == 'a<|im_end|>b<|im_end|>'
    assert [*example.completion].count(TOKENIZER.stop_ids[0]) == 1


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"messages": [', 'rows.jsonl, line 2: not valid JSON'),
        ('[1]', r'line 2: got list; .* messages \| prompt, completion \| '),
        ('{"words": "a"}', r'line 2: got keys words; .* messages \| prompt, completion \| '),
        ('{"messages": []}', "line 2: 'messages' must be a list of messages"),
        ('{"messages": [{"role": "user"}]}', r"line 2: messages\[0\]: 'content'"),
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
        records.read_all(path, lambda record: chats.to_imitate(record, TOKENIZER))
    assert '\n' not in str(error.value)


def test_wrong_pairs_and_files_are_told(tmp_path):
    with pytest.raises(ValueError, match='rejected is missing or empty, got keys prompt, chosen'):
        chats.to_prefer({'prompt': 'a', 'chosen': 'b'}, TOKENIZER)
    with pytest.raises(ValueError, match='rejected is null, got keys prompt, chosen, rejected$'):
        chats.to_prefer({'prompt': 'a', 'chosen': 'b', 'rejected': None}, TOKENIZER)
    with pytest.raises(ValueError, match="rejected is missing.*'reject' meant"):
        chats.to_prefer({'prompt': 'a', 'chosen': 'b', 'reject': 'c'}, TOKENIZER)
    with pytest.raises(ValueError, match='begin differently'):
        chats.to_prefer({'chosen': [USER, BOT], 'rejected': [MORE, BOT]}, TOKENIZER)
    with pytest.raises(ValueError, match='must begin with an assistant message'):
        chats.to_prefer({'chosen': [USER, BOT], 'rejected': [USER]}, TOKENIZER)
    with pytest.raises(ValueError, match=r'nowhere\.jsonl is no file'):
        records.read_all('nowhere.jsonl', dict)
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='has no rows'):
        records.read_all(tmp_path / 'empty.jsonl', dict)


# --- where an answer meets its prompt ---------------------------------------------------------------------------------

THINKS = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
WORDS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
OPEN_ENDED = (  # as GLM's, which ends a turn by the beginning of the next
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def merging(template: str = CHATML) -> Tokenizer:
    """A byte-level tokenizer that joins line ends, spaces, and a space with the letter after it."""
    vocab = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    merges = [('Ċ', 'Ċ'), ('ĊĊ', 'Ċ'), ('Ġ', 'Ġ'), ('Ċ', 'Ġ'), ('Ġ', 'H'), ('t', 'Ċ')]
    vocab |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    backend = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    tokens = ('<|im_start|>', '<|im_end|>', '<|user|>', '<|assistant|>')
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='<|im_end|>', chat_template=template))


MERGING = merging()


@pytest.mark.parametrize(
    'answer', ['\n\nHello', '\nHello', '  Hello', '\n', '\n\n', '  ', '', 'Hello\n', '<|im_end|>', '\n<|im_end|>']
)
@pytest.mark.parametrize('template', [CHATML, WORDS])
def test_an_answer_is_learnt_as_it_would_be_sampled_whatever_it_begins_with(template, answer):
    tok = merging(template) if template == WORDS else MERGING
    example = chats.to_imitate({'messages': [USER, {**BOT, 'content': answer}]}, tok)
    assert example.prompt == tok.chat([USER])
    assert example.completion == [*tok.plain(answer), tok.stop_ids[0]]
    other = {'prompt': [USER], 'chosen': [BOT], 'rejected': [{**BOT, 'content': answer}]}
    assert chats.to_prefer(other, tok).rejected == example


def test_turns_that_begin_with_line_ends_are_learnt_in_a_conversation():
    first = {**BOT, 'content': '\n\nHello'}
    example = chats.to_imitate({'messages': [USER, first, MORE, END]}, MERGING)
    acted = [token for token, act in zip(example.completion, example.acts or [], strict=True) if act]
    end = MERGING.stop_ids[0]
    assert acted == [*MERGING.plain('\n\nHello'), end, *MERGING.plain('So long'), end]
    assert MERGING.decode([*example.prompt, *example.completion]) + '\n' == str(
        MERGING.fast.apply_chat_template([USER, first, MORE, END], tokenize=False)
    )


@pytest.mark.parametrize('answer', ['Hello', '\n\nHello', ' '])
@pytest.mark.parametrize('template', [CHATML, WORDS])
def test_an_answer_keeps_its_tokens_once_others_follow(template, answer):
    tok, said = merging(template) if template == WORDS else MERGING, {**BOT, 'content': answer}
    asked, sampled = tok.chat([USER, said, MORE]), [*tok.chat([USER]), *tok.plain(answer)]
    assert asked[: len(sampled)] == sampled
    assert chats.to_imitate({'prompt': [USER, said, MORE], 'completion': [END]}, tok).prompt == asked
    if template == CHATML:
        example = chats.to_imitate({'messages': [USER, said, MORE, END]}, tok)
        assert [*example.prompt, *example.completion][: len(asked)] == asked


@pytest.mark.parametrize(
    ('answer', 'completion'),
    [
        ('Yes?', '\n</think>\n\nYes?<|im_end|>'),  # as Qwen's own template writes an answer without a thought
        ('<think>\nhm\n</think>\n\nYes?', 'hm\n</think>\n\nYes?<|im_end|>'),
        ('hm\n</think>\n\nYes?', 'hm\n</think>\n\nYes?<|im_end|>'),
        ('<think>\nhm', 'hm<|im_end|>'),
    ],
)
def test_an_answer_goes_on_in_the_thought_that_its_prompt_opens(answer, completion):
    tok = byte_tokenizer().with_template(THINKS)
    example = chats.to_imitate({'messages': [USER, {**BOT, 'content': answer}]}, tok)
    assert example.prompt == tok.chat([USER])
    assert tok.decode(example.completion) == completion


def test_an_end_is_learnt_where_the_template_writes_one_only_before_the_next_turn():
    tok = merging(OPEN_ENDED)
    end, asked = tok.stop_ids[0], tok.encode('<|user|>')[0]
    example = chats.to_imitate({'messages': [USER, BOT]}, tok)
    assert (tok.decode(example.prompt), example.completion) == (
        '<|user|>\nHi<|assistant|>\n',
        [*tok.plain('Yes?'), end],
    )
    pair = chats.to_prefer({'prompt': [USER], 'chosen': [BOT], 'rejected': [END]}, tok)
    assert [side.completion[-1] for side in pair] == [end, end]
    with pytest.raises(ValueError, match='no token that ends message 2'):
        chats.to_imitate({'messages': [USER, BOT, MORE, END]}, tok)
    ends = Tokenizer(tok.fast, [asked])  # as GLM's generation_config.json says
    example = chats.to_imitate({'messages': [USER, BOT, MORE, END]}, ends)
    acted = [token for token, act in zip(example.completion, example.acts or [], strict=True) if act]
    assert acted == [*tok.plain('Yes?'), asked, *tok.plain('So long'), end]
