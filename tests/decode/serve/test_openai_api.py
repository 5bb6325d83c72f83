"""The text of an answer, token by token, against the whole answer decoded at once; what is accepted of requests."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_api
from openai.types.chat import ParsedChatCompletionMessage
from openai.types.chat import completion_create_params as chat_api
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from pal_jax.data.tokenizer import Tokenizer, byte_tokenizer
from pal_jax.decode.requests import LiveRequest, Request, RequestProgress, advance
from pal_jax.decode.serve.openai_api import AnswerStream, ChatForm, ChatRequest, TextForm, TextRequest
from pal_jax.types import Sampling

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
    choice, told, at = AnswerStream(tokenizer, stops), [], 0
    while at < len(tokens):
        size = data.draw(st.sampled_from([1, 1, 2, 4]))
        piece = tuple(tokens[at : at + size])
        choice.take(RequestProgress(0, piece, (0.0,) * len(piece), None))
        at += size
        told.append(choice.news(ended=at >= len(tokens)))
    whole = tokenizer.text_of(tokens)
    assert choice.text == whole[: min([at for at in map(whole.find, stops) if at >= 0], default=len(whole))]
    assert ''.join(told) == choice.text
    assert len(choice.offsets) == len(tokens)


SILENT = next(i for i in BYTES.fast.all_special_ids if i not in BYTES.stop_ids)
BEYOND = BYTES.vocab_size + 9  # a row of the model that no token has


def stopped(tokenizer: Tokenizer, tokens: list[int], stop: str, before: tuple[int, ...] = ()) -> list[int]:
    """The tokens up to the one at which the engine ends the request, which goes on with the text `before`."""
    settings = Sampling(max_tokens=len(tokens) + 1, stop=(stop,))
    live = LiveRequest(0, Request(before or (0,), settings, 0, continues=bool(before)))
    for token in tokens:
        if advance(live, tokenizer, 0, [token], [0.0], [0.0]) == 'stop':
            break
    return live.tokens


@pytest.mark.parametrize(
    ('name', 'tokens', 'stop', 'end'),
    [
        ('bytes', [*BYTES.encode('a'), SILENT, *BYTES.encode('bxxx')], 'ab', 3),
        ('bytes', [*BYTES.encode('a'), *[SILENT] * 40, *BYTES.encode('bxxx')], 'ab', 42),
        ('bytes', [*BYTES.encode('a'), BEYOND, BEYOND, *BYTES.encode('bxxx')], 'ab', 4),
        ('bytes', [*BYTES.encode('aé')[:2], SILENT, *BYTES.encode('é')[1:], *BYTES.encode('xx')], 'é', 4),
        ('spaced', [1, 4, 7, 7, 7], ' x', 3),  # the tail's first word has no space
    ],
)
def test_the_engine_notices_a_stop_string_that_the_text_shows(name, tokens, stop, end):
    tokenizer = TOKENIZERS[name]
    choice = AnswerStream(tokenizer, [stop])
    choice.take(RequestProgress(0, tuple(tokens), (0.0,) * len(tokens), None))
    assert choice.stop_reason == stop
    assert stopped(tokenizer, tokens, stop) == tokens[:end]


@pytest.mark.parametrize('before', [(), (2,)])
def test_the_engine_notices_a_stop_string_that_begins_with_the_space_of_the_first_word(before):
    tokenizer, tokens = TOKENIZERS['spaced'], [1, 7, 7, 7]
    choice = AnswerStream(tokenizer, [' ax'], before=before)
    choice.take(RequestProgress(0, tuple(tokens), (0.0,) * len(tokens), None))
    assert choice.text == ('' if before else 'axxx')
    assert stopped(tokenizer, tokens, ' ax', before) == tokens[: 2 if before else 4]


def test_a_long_answer_decodes_each_token_once(monkeypatch):
    decoded, text_of = [], BYTES.text_of
    monkeypatch.setattr(BYTES, 'text_of', lambda ids: (decoded.append(len(ids)), text_of(ids))[1])
    choice = AnswerStream(BYTES, ['</end>'])
    for token in BYTES.encode('naïve ' * 200):
        choice.take(RequestProgress(0, (token,), (0.0,), None))
    assert max(decoded) <= 5
    assert choice.text == 'naïve ' * 200


def test_offsets_are_where_tokens_begin_in_the_text():
    choice = AnswerStream(BYTES, [])
    choice.take(RequestProgress(0, tuple(BYTES.encode('aé🙂b')), (0.0,) * 8, None, 3))
    assert choice.offsets == [0, 1, 1, 2, 2, 2, 2, 3]
    answer = TextForm('id', 'model', BYTES, True).whole([choice], ['length'], 1)
    assert answer['choices'][0]['logprobs']['text_offset'] == choice.offsets
    assert answer['system_fingerprint'] == 'weights-3'


# --- what is accepted -------------------------------------------------------------------------------------------------

CHAT = {'messages': [{'role': 'user', 'content': 'Hi'}]}
NEUTRAL = [
    {'tools': []}, {'functions': []}, {'tool_choice': 'none'}, {'tool_choice': 'auto'}, {'function_call': 'none'},
    {'logit_bias': {}}, {'logit_bias': {'50256': 0}}, {'response_format': {'type': 'text'}}, {'metadata': {'a': 'b'}},
    {'store': False}, {'parallel_tool_calls': False}, {'parallel_tool_calls': True}, {'service_tier': 'auto'},
    {'service_tier': 'default'}, {'user': 'me'}, {'reasoning_effort': 'none'}, {'modalities': ['text']},
    {'stream_options': {'include_usage': True, 'include_obfuscation': False}}, {'top_logprobs': 0},
    {'frequency_penalty': 0.0, 'presence_penalty': 0}, {'safety_identifier': 'x'}, {'prompt_cache_key': 'x'},
    {'prompt_cache_retention': 'in_memory'}, {'verbosity': 'medium'}, {'top_p': 0}, {'n': 128}, {'seed': -1},
    {'top_k': -1}, {'repetition_penalty': 1}, {'repetition_penalty': 1.0}, {'min_p': 0.0},
    {'typical_p': 1.0, 'length_penalty': 1, 'use_beam_search': False, 'ignore_eos': False, 'min_tokens': 0},
    {'stop_token_ids': [], 'skip_special_tokens': True, 'include_stop_str_in_output': False},
]  # fmt: skip
REFUSED = [
    {'tools': [{'type': 'function'}]}, {'tool_choice': 'required'}, {'functions': [{'name': 'f'}]},
    {'function_call': {'name': 'f'}}, {'logit_bias': {'5': 1}}, {'response_format': {'type': 'json_object'}},
    {'store': True}, {'service_tier': 'priority'}, {'reasoning_effort': 'high'}, {'modalities': ['text', 'audio']},
    {'audio': {'voice': 'alloy'}}, {'prediction': {'type': 'content', 'content': 'x'}}, {'web_search_options': {}},
    {'verbosity': 'low'}, {'frequency_penalty': 0.5}, {'stream_options': {'include_obfuscation': True}},
    {'moderation': {'model': 'x'}}, {'prompt_cache_retention': '24h'}, {'top_logprobs': 21}, {'max_tokens': 0},
    {'repetition_penalty': 1.1}, {'min_p': 0.1}, {'top_k': -2}, {'something': None},
    {'ignore_eos': True}, {'min_tokens': 3}, {'stop_token_ids': [2]}, {'skip_special_tokens': False},
]  # fmt: skip


@pytest.mark.parametrize(('api', 'kind'), [(chat_api, ChatRequest), (text_api, TextRequest)])
def test_every_parameter_of_openais_client_is_decided_and_null_stands_for_none(api, kind):
    names = set(api.CompletionCreateParamsNonStreaming.__annotations__)
    names |= set(api.CompletionCreateParamsStreaming.__annotations__)
    assert names <= kind.model_fields.keys()
    required = {'messages': CHAT['messages']} if kind is ChatRequest else {'prompt': 'Hi'}
    nulls = dict.fromkeys(names - required.keys())
    assert kind.model_validate(required | nulls) == kind.model_validate(required)
    described = kind.model_json_schema()['properties']
    for name in nulls:
        kinds = [each.get('type') for each in (described[name], *described[name].get('anyOf', ()))]
        assert 'null' in kinds, name


@pytest.mark.parametrize('value', NEUTRAL, ids=str)
def test_what_asks_for_nothing_is_accepted(value):
    ChatRequest.model_validate(CHAT | value)


@pytest.mark.parametrize('value', REFUSED, ids=str)
def test_what_is_not_supported_is_refused_by_name(value):
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate(CHAT | value)
    assert error.value.errors()[0]['loc'][0] == next(iter(value))


def test_text_completions_take_neutral_values_and_four_kinds_of_prompts():
    for value in ({'best_of': 1}, {'suffix': ''}, {'echo': False}, {'logprobs': 5}, {'max_tokens': 0}):
        TextRequest.model_validate({'prompt': 'Hi', **value})
    for value in ({'best_of': 2}, {'suffix': 'end'}, {'logprobs': 21}, {'prompt': []}, {'prompt': [[1], 'a']}):
        with pytest.raises(ValidationError):
            TextRequest.model_validate({'prompt': 'Hi', **value})
    for sent, prompts in (('a', ['a']), (['a', 'b'], ['a', 'b']), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]),
                           (None, [None])):  # fmt: skip
        assert TextRequest.model_validate({'prompt': sent}).prompts() == prompts


def test_an_answer_can_be_sent_back_as_openais_client_has_it():
    said = ChatForm('id', 'model', BYTES, False).whole([AnswerStream(BYTES, [])], ['stop'], 1)['choices'][0]['message']
    nulls = dict.fromkeys(ParsedChatCompletionMessage.model_fields)
    for message in (said, nulls | {'annotations': [], 'tool_calls': []} | said, nulls | said):
        ChatRequest.model_validate({'messages': [*CHAT['messages'], message]})


@pytest.mark.parametrize(
    ('message', 'plain'),
    [
        ({'role': 'developer', 'content': 'S'}, {'role': 'system', 'content': 'S'}),
        ({'role': 'user', 'content': 'S', 'name': 'ana'}, {'role': 'user', 'content': 'S', 'name': 'ana'}),
        ({'role': 'user', 'content': [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]},
         {'role': 'user', 'content': 'ab'}),
        ({'role': 'assistant', 'content': None}, None),
        ({'role': 'assistant', 'content': []}, None),
        ({'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': 'x'}}]}, None),
        ({'role': 'tool', 'content': 'x', 'tool_call_id': '1'}, None),
        ({'role': 'assistant', 'content': 'x', 'tool_calls': [{'id': '1'}]}, None),
        ({'role': 'assistant', 'content': 'x', 'refusal': 'no'}, None),
    ],
)  # fmt: skip
def test_messages_are_as_openai_has_them(message, plain):
    if plain is None:
        with pytest.raises(ValidationError):
            ChatRequest.model_validate({'messages': [message]})
    else:
        assert ChatRequest.model_validate({'messages': [message]}).messages[0].plain() == plain


@pytest.mark.parametrize('prompt', ['a', 'a bc'])
def test_a_completion_keeps_the_space_between_it_and_its_prompt(prompt):
    words = TOKENIZERS['spaced']
    ids = {'a': [1], 'a bc': [1, 2]}[prompt]
    choice = AnswerStream(words, [], before=ids)
    choice.take(RequestProgress(0, (2, 1), (0.0, 0.0), None))
    assert prompt + choice.text == words.text_of([*ids, 2, 1])
    assert choice.bytes == [b' bc', b' a']
    alone = AnswerStream(words, [])
    alone.take(RequestProgress(0, (2, 1), (0.0, 0.0), None))
    assert (alone.text, alone.bytes) == ('bc a', [b'bc', b' a'])
