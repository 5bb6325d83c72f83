"""What a tokenizer's post-processor puts around a text, against transformers' AutoTokenizer: before a prompt as there,
nothing between a prompt and what follows it, one end at the end."""

from __future__ import annotations

import itertools
import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pal_jax.data import chats, texts, tokenizer
from pal_jax.data.texts import Text
from pal_jax.data.tokenizer import BYTES, Tokenizer

SPECIALS = ['<unk>', '<s>', '</s>']
CHARS = sorted(set('the cat sat on the mat, hi yo?'.replace(' ', '▁')))
AROUND = {'none': '$A', 'bos': '<s> $A', 'both': '<s> $A </s>', 'eos': '$A </s>'}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
STYLES = ('bytes', 'prepend', 'metaspace')
ALL = list(itertools.product(STYLES, AROUND))


def backend(style: str, around: str) -> tokenizers.Tokenizer:
    """Byte-level BPE, or SentencePiece's with a space before the first word: by a normalizer or a pre-tokenizer."""
    space = 'Ġ' if style == 'bytes' else '▁'
    words = sorted(BYTES) if style == 'bytes' else [f'<0x{i:02X}>' for i in range(256)] + CHARS
    vocab = {word: i for i, word in enumerate([*SPECIALS, *words, 'he', 'the', f'{space}the'])}
    merges = [('h', 'e'), ('t', 'he'), (space, 'the')]
    if style == 'bytes':
        found = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
    else:
        found = tokenizers.Tokenizer(
            BPE(vocab=vocab, merges=merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
        )
        if style == 'prepend':
            found.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
        else:
            found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
        steps = decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)
        found.decoder = decoders.Sequence(list(steps))
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if around != 'none':
        found.post_processor = processors.TemplateProcessing(
            single=AROUND[around], pair=f'{AROUND[around]} $B:1', special_tokens=[('<s>', 1), ('</s>', 2)]
        )
    return found


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('tokenizers')
    for style, around in ALL:
        folder = root / f'{style}-{around}'
        folder.mkdir()
        backend(style, around).save(str(folder / 'tokenizer.json'))
        settings = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'chat_template': TEMPLATE}
        (folder / 'tokenizer_config.json').write_text(
            json.dumps(settings | {'tokenizer_class': 'PreTrainedTokenizerFast'})
        )
    return root


@pytest.fixture(params=ALL, ids='-'.join)
def both(request, folders):
    """Ours and transformers' own."""
    folder = folders / '-'.join(request.param)
    return tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))


def without_end(ids: list[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] == 2 else ids


def test_a_prompt_is_as_transformers_has_it_without_an_end(both):
    ours, theirs = both
    for text in ('the cat', ' the cat ', 'é🙂', 'a\n', 'hi</s>yo', ''):
        assert ours.prompt(text) == without_end(theirs(text)['input_ids'])
    # What is written out at the beginning of a rendered chat is not put there again.
    assert ours.prompt('<s>the cat') == ours.encode('<s>the cat')
    assert ours.opening == ([1] if '<s>' in theirs.decode(theirs('a')['input_ids']) else [])


def test_a_chat_is_as_its_template_writes_it(both):
    ours, theirs = both
    messages = [{'role': 'user', 'content': 'the cat?'}, {'role': 'assistant', 'content': 'hi'}]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ours.chat(messages, add_generation_prompt=False) == expected
    assert expected[:2].count(1) == 1


@pytest.mark.parametrize(
    ('prompt', 'completion'), [('hi', 'yo'), ('the', ' cat'), ('hi ', 'the cat'), ('hi\n', '\nyo')]
)
def test_between_a_prompt_and_its_completion_is_no_end_and_behind_both_is_one(both, prompt, completion):
    ours, theirs = both
    whole = without_end(theirs(prompt + completion)['input_ids'])
    for written in (completion, f'{completion}</s>'):
        example = chats.to_imitate({'prompt': prompt, 'completion': written}, ours)
        ids = [*example.prompt, *example.completion]
        assert ids.count(2) == 1
        assert ids[-1] == 2
        assert ids.count(1) == len(ours.opening)
        assert ours.text_of(ids) == prompt + completion
        if whole[: len(example.prompt)] == example.prompt:
            assert ids == [*whole, 2]
    pair = chats.to_prefer({'prompt': prompt, 'chosen': completion, 'rejected': f'{completion}?'}, ours)
    assert [[*each.prompt, *each.completion].count(2) for each in pair] == [1, 1]


def test_texts_of_pal_have_what_transformers_puts_around_them(both):
    ours, theirs = both
    assert texts.to_text(ours, 'the cat') == Text(tuple(theirs('the cat')['input_ids']))
    (said,), asked = texts.replies(ours, ours.prompt('hi'), [ours.completion('hi', 'yo')], alone=True)
    assert said.tokens == (*ours.opening, *ours.completion('hi', 'yo'))
    assert asked.tokens == tuple(without_end(theirs('hi')['input_ids']))


def test_the_bytes_of_tokens_are_those_of_the_text(both):
    ours, _ = both
    text = 'the cat, é🙂 hi'
    spelled = b''.join(map(ours.bytes_of, ours.encode(text)))
    assert spelled.removeprefix(b' ') == text.encode()
    halves = [ours.bytes_of(token) for token in ours.encode('é')]
    assert b''.join(halves).strip() == 'é'.encode()
    assert len(halves) > 1
    assert ours.bytes_of(2) == b'</s>'


def test_an_opening_is_seen_whatever_the_vocabulary_holds():
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<s>': 0, '</s>': 1, 'hi': 2, 'yo': 3}))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.add_special_tokens(['<s>', '</s>'])
    bare.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
    words = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bare, eos_token='</s>'))
    example = chats.to_imitate({'prompt': 'hi', 'completion': 'yo'}, words)
    assert [*example.prompt, *example.completion] == [0, 2, 3, 1]
