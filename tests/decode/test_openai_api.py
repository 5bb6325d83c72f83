"""The text of an answer, token by token, against the whole answer decoded at once."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pal_jax.data.tokenizer import Tokenizer, byte_tokenizer
from pal_jax.decode.openai_api import Choice, TextForm
from pal_jax.decode.requests import Progress

BYTES = byte_tokenizer()
SPECIALS = len(BYTES.fast.all_special_ids)


def spaced() -> Tokenizer:
    """A tokenizer whose decoder drops the space before the first word, as SentencePiece models have it."""
    words = ['</s>', *('▁a', '▁bc', 'd', '▁', 'é', '▁</end>', 'x')]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='x')
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(['</s>'])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>'))


TOKENIZERS = {'bytes': BYTES, 'spaced': spaced()}
TEXT = st.text(alphabet=st.sampled_from('ab</é🙂\ufffd\n'), min_size=1, max_size=30).map(BYTES.encode)
ANY = st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=12)
STOPS = st.lists(st.sampled_from(['ab', '</', 'aé', '🙂', 'b<', '\n\n', ' bc', 'a bc']), max_size=2)


def until_stop(tokenizer: Tokenizer, tokens: list[int], stops: list[str]) -> list[int]:
    """The tokens up to the one that completes a stop string: there a decoder ends."""
    for end in range(1, len(tokens) + 1):
        if any(stop in tokenizer.text_of(tokens[:end]) for stop in stops):
            return tokens[:end]
    return tokens


@pytest.mark.parametrize('name', TOKENIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_token_by_token_is_the_whole_text(name, data):
    tokenizer, stops = TOKENIZERS[name], data.draw(STOPS)
    known = ANY.map(lambda ids: [i % tokenizer.vocab_size for i in ids])
    parts = data.draw(st.lists(TEXT | known if name == 'bytes' else known, max_size=4))
    tokens = until_stop(tokenizer, list(itertools.chain(*parts)), stops)
    choice, told, at = Choice(tokenizer, stops), [], 0
    while at < len(tokens):
        size = data.draw(st.sampled_from([1, 1, 2, 4]))
        piece = tuple(tokens[at : at + size])
        choice.take(Progress(0, piece, (0.0,) * len(piece), None))
        at += size
        told.append(choice.news(ended=at >= len(tokens)))
    whole = tokenizer.text_of(tokens)
    assert choice.text == whole[: min([at for at in map(whole.find, stops) if at >= 0], default=len(whole))]
    assert ''.join(told) == choice.text
    assert len(choice.offsets) == len(tokens)


def test_a_long_answer_decodes_each_token_once(monkeypatch):
    decoded, text_of = [], BYTES.text_of
    monkeypatch.setattr(BYTES, 'text_of', lambda ids: (decoded.append(len(ids)), text_of(ids))[1])
    choice = Choice(BYTES, ['</end>'])
    for token in BYTES.encode('naïve ' * 200):
        choice.take(Progress(0, (token,), (0.0,), None))
    assert max(decoded) <= 5
    assert choice.text == 'naïve ' * 200


def test_offsets_are_where_tokens_begin_in_the_text():
    choice = Choice(BYTES, [])
    choice.take(Progress(0, tuple(BYTES.encode('aé🙂b')), (0.0,) * 8, None, 3))
    assert choice.offsets == [0, 1, 1, 2, 2, 2, 2, 3]
    answer = TextForm('id', 'model', BYTES, True).whole([choice], ['length'], 1)
    assert answer['choices'][0]['logprobs']['text_offset'] == choice.offsets
    assert answer['system_fingerprint'] == 'weights-3'
