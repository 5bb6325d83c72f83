"""OpenAI's Responses API, as OpenAI's own client sees it."""

from __future__ import annotations

import contextlib

import openai
import pytest
from openai.types.responses import response_create_params as api
from pydantic import ValidationError

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.serve.guard import REFUSAL, Guard
from pal_jax.decode.serve.http import make_app
from pal_jax.decode.serve.responses import ResponseRequest
from tests.decode.serve.test_chat_page import ScriptedDecoder

TOKENIZER = byte_tokenizer()


@pytest.fixture
def talking(serve):
    """A server whose model says these lines, its client, and the prompts that the model read."""

    @contextlib.contextmanager
    def talking(*lines: str, guard: Guard | None = None):
        decoder = ScriptedDecoder(*lines)
        with (
            serve(make_app(Driver(decoder), TOKENIZER, model='tiny', guard=guard)) as address,
            openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0, timeout=60) as client,
        ):
            yield client, decoder.prompts

    return talking


LOGPROBS = 'message.output_text.logprobs'


def test_a_text_is_answered_and_the_answer_can_be_sent_back(talking):
    with talking('One: naïve.', 'Two.') as (client, prompts):
        first = client.responses.create(model='', input='Hello', instructions='Be brief.', include=[LOGPROBS])
        assert (first.output_text, first.status, first.error) == ('One: naïve.', 'completed', None)
        assert first.usage and first.usage.output_tokens == len(TOKENIZER.encode('One: naïve.')) + 1
        entries = first.output[0].content[0].logprobs
        assert b''.join(bytes(entry.bytes) for entry in entries).startswith('One: naïve.'.encode())
        more = {'role': 'user', 'content': [{'type': 'input_text', 'text': 'More'}]}
        again = client.responses.create(model='', input=[{'role': 'user', 'content': 'Hello'}, *first.output, more])
        assert again.output_text == 'Two.'
    chat = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello'}]
    said = {'role': 'assistant', 'content': 'One: naïve.'}
    assert prompts[0] == TOKENIZER.decode(TOKENIZER.chat(chat))
    assert prompts[1] == TOKENIZER.decode(TOKENIZER.chat([chat[1], said, {'role': 'user', 'content': 'More'}]))


BEFORE = ['created', 'in_progress', 'output_item.added', 'content_part.added']
AFTER = ['output_text.done', 'content_part.done', 'output_item.done']


@pytest.mark.parametrize(
    ('guard', 'text', 'end'),
    [(None, 'Once upon a time.', 'completed'), (Guard(lambda _, texts: [True] * len(texts), 1), REFUSAL, 'incomplete')],
)
def test_a_stream_has_the_events_and_the_text_of_the_whole(talking, guard, text, end):
    with talking('Once upon a time.', guard=guard) as (client, _):
        events = list(client.responses.create(model='', input='Hello', stream=True))
    kinds = [event.type.removeprefix('response.') for event in events]
    pieces = [event.delta for event in events if event.type == 'response.output_text.delta']
    assert kinds == [*BEFORE, *['output_text.delta'] * len(pieces), *AFTER, end]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert ''.join(pieces) == events[-4].text == events[-1].response.output_text == text
    assert guard or events[-1].response.usage.output_tokens == len(text) + 1


def test_the_clients_own_stream_gathers_a_response_and_a_cut_one_is_incomplete(talking):
    with talking('Once upon a time.') as (client, _):
        with client.responses.stream(model='', input='Hello') as stream:
            final = stream.get_final_response()
        assert final.output_text == 'Once upon a time.'
        again = ResponseRequest.model_validate({'input': [item.to_dict() for item in final.output]})
        assert again.messages() == [{'role': 'assistant', 'content': 'Once upon a time.'}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model='', input='Hello', max_output_tokens=1 << 19, tools=[{'type': 'web_search'}])
        assert caught.value.body['param'].startswith('tools')


REFUSED = [
    {'tools': [{'type': 'web_search'}]}, {'tool_choice': 'required'}, {'store': True}, {'previous_response_id': 'x'},
    {'conversation': 'x'}, {'background': True}, {'reasoning': {'effort': 'high'}}, {'truncation': 'auto'},
    {'text': {'format': {'type': 'json_object'}}}, {'include': ['reasoning.encrypted_content']}, {'n': 2},
    {'input': [{'type': 'function_call_output', 'call_id': '1', 'output': 'x'}]}, {'prompt': {'id': 'x'}},
    {'input': [{'role': 'user', 'content': [{'type': 'input_image', 'image_url': 'x'}]}]}, {'input': []},
    {'max_output_tokens': 0}, {'messages': []},
]  # fmt: skip


@pytest.mark.parametrize('value', REFUSED, ids=str)
def test_what_is_not_supported_is_refused_by_name(value):
    with pytest.raises(ValidationError) as error:
        ResponseRequest.model_validate({'input': 'Hi'} | value)
    assert next(iter(value)) in str(error.value)


def test_every_parameter_of_openais_client_is_decided_and_null_stands_for_none():
    names = set(api.ResponseCreateParamsNonStreaming.__annotations__)
    names |= set(api.ResponseCreateParamsBase.__annotations__)
    assert names <= ResponseRequest.model_fields.keys()
    nulls = dict.fromkeys(names - {'input'})
    assert ResponseRequest.model_validate({'input': 'Hi'} | nulls) == ResponseRequest.model_validate({'input': 'Hi'})
