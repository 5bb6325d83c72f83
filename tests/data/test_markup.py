"""Control tokens that somebody writes out in a text: they stay in it, and are never live."""

from __future__ import annotations

import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pal_jax.data import chats, markup, texts, tokenizer
from pal_jax.data.tokenizer import Tokenizer

HEAD, FOOT, END, BOS = '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<s>'
LLAMA_3 = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MARKS = (HEAD, FOOT, END, BOS, '<think>', '</think>', '<tool_call>')


def byte_level(template: str, special: bool, normalizer=None) -> Tokenizer:
    """A byte-level tokenizer whose control tokens the map of special tokens does not name, except two."""
    vocab = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(BPE(vocab={**vocab, 'ĊĊ': 256, '<|': 257}, merges=[('Ċ', 'Ċ'), ('<', '|')]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, END)])
    add = backend.add_special_tokens if special else backend.add_tokens
    add([AddedToken(token, special=special, normalized=bool(normalizer)) for token in (HEAD, FOOT)])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS[4:]])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=BOS, chat_template=template)
    )


def live(tok: Tokenizer, ids) -> list[str]:
    """The control tokens among these ids."""
    names = {i: str(token) for i, token in tok.fast.added_tokens_decoder.items()}
    return [names[i] for i in ids if i in names]


@pytest.mark.parametrize('special', [True, False])
def test_what_anybody_writes_is_in_the_prompt_whole_and_opens_no_turn(special):
    tok, rng = byte_level(LLAMA_3, special), random.Random(0)
    parts = [*MARKS, *(mark[: len(mark) // 2] for mark in MARKS), *(mark[len(mark) // 2 :] for mark in MARKS)]
    parts += [' ', '\n\n', 'system', 'Obey', markup.SHIELD, '\ufdd0', '<', '🙂']
    for _ in range(40):
        said = [''.join(rng.choices(parts, k=rng.randrange(1, 9))) for _ in range(3)]
        messages = [
            {'role': role, 'content': text} for role, text in zip(('system', 'user', 'tool'), said, strict=True)
        ]
        ids = tok.chat(messages)
        assert live(tok, ids) == [BOS, *[HEAD, FOOT, END] * 3, HEAD, FOOT]
        rendered = tok.fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tok.decode(ids) == rendered


def test_text_without_control_tokens_has_the_tokens_of_transformers():
    tok = byte_level(LLAMA_3, special=True)
    messages = [
        {'role': 'user', 'content': '\n\nif a < b || c >\n\n: <b>é</b> <|'},
        {'role': 'assistant', 'content': 'x'},
    ]
    assert tok.chat(messages) == tok.fast.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )


def test_an_answer_that_mentions_the_end_of_a_turn_is_learnt_to_its_own_end():
    tok = byte_level(LLAMA_3, special=False)
    answer = f'It is {END} here, {HEAD} there.'
    asked = {'role': 'user', 'content': f'Why is <s>$9</s> struck through, and what is {END}?'}
    example = chats.to_imitate({'messages': [asked, {'role': 'assistant', 'content': answer}]}, tok)
    assert tok.decode(example.completion) == f'{answer}{END}'
    assert all(example.acts or [True])
    assert live(tok, example.completion) == [END]
    assert asked['content'] in tok.decode(example.prompt)
    assert tok.decode(tok.plain(answer)) == answer
    assert live(tok, tok.plain(answer)) == []


def test_an_answer_keeps_its_marks_of_thoughts_and_calls_live_and_a_user_has_none():
    tok = byte_level(LLAMA_3 + '{# <think> <tool_call> #}', special=True)
    text = '<think>hm</think><tool_call>'
    assert live(tok, tok.plain(text)) == ['<think>', '</think>', '<tool_call>']
    assert live(tok, tok.plain('<think>hm<tool_call>', 'user')) == []


def test_a_template_that_quotes_and_splits_texts_still_does():
    template = (
        "{% for m in messages %}{{ '<|start_header_id|>' }}{{ m.content.split('</think>')[-1] | trim | tojson }}"
        "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    )
    tok = byte_level(template, special=True)
    call = {'function': {'name': 'look', 'arguments': {f'at {END}': [f'{HEAD}"']}}}
    ids = tok.chat([{'role': 'assistant', 'content': f'hm</think> "{END}" ', 'tool_calls': [call]}])
    assert tok.decode(ids) == f'{HEAD}{json.dumps(f"{chr(34)}{END}{chr(34)}")}{json.dumps(call)}{END}'
    assert live(tok, ids) == [HEAD, END]


def test_a_control_token_in_other_letters_is_not_live_either():
    tok = byte_level(LLAMA_3, special=False, normalizer=normalizers.NFKC())
    wide = ''.join(chr(ord(char) + 0xFEE0) for char in HEAD)
    assert live(tok, tok.encode(wide)) == [HEAD]
    ids = tok.chat([{'role': 'user', 'content': f'a{wide}b'}])
    assert live(tok, ids) == [BOS, HEAD, FOOT, END, HEAD, FOOT]
    assert f'a{HEAD}b' in tok.decode(ids)


@pytest.mark.parametrize('style', ['prepend', 'metaspace'])
def test_no_space_comes_into_a_text_and_no_piece_of_a_vocabulary_is_a_control_token(style):
    words = ['▁', *'hi</s>yotha,|', '▁hi', '▁the']
    backend = tokenizers.Tokenizer(
        Unigram([('<unk>', -20.0), ('</s>', 0.0), *((word, -2.0) for word in words)], unk_id=0)
    )
    if style == 'prepend':
        backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    steps = decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)
    backend.decoder = decoders.Sequence(list(steps))
    backend.add_special_tokens([AddedToken('</s>', special=True, normalized=False)])
    tok = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>', unk_token='<unk>'))
    for text in ('hi</s>yo', '</s>', 'hi </s> yo</s></s>', 'hi</'):
        assert tok.decode(tok.plain(text)) == text
        assert 1 not in tok.plain(text)
    assert texts.to_text(tok, 'hi</s>yo').tokens == tuple(tok.plain('hi</s>yo'))
    assert texts.to_text(tok, 'hi</s>yo', '{}</s>').tokens == (*tok.plain('hi</s>yo'), 1)


def test_shields_stand_in_every_token_also_where_tokens_overlap():
    shield = markup.make_shield({'ab', 'bc', 'cdd'})
    assert markup.pieces(shield('xabcx')) == ['xa', 'b', 'cx']
    assert markup.pieces(shield('abcdx')) == ['a', 'b', 'cdx']
    assert markup.pieces(shield('abcd')) == ['a', 'b', 'cd', '']  # what follows may complete it
    assert markup.pieces(shield(f'a{markup.SHIELD}b')) == [f'a{markup.SHIELD}b']
    assert markup.pieces(markup.make_shield(set())('ab')) == ['ab']


def test_a_saved_tokenizer_knows_its_control_tokens_still(tmp_path):
    byte_level(LLAMA_3, special=True).save(tmp_path)
    tok = tokenizer.from_folder(tmp_path)
    assert live(tok, tok.chat([{'role': 'user', 'content': f'{END}{HEAD}'}])) == [BOS, HEAD, FOOT, END, HEAD, FOOT]
