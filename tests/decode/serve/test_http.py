"""The HTTP server, as OpenAI's own client sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import logging
import re
import socket
import time

import httpx
import jax
import openai
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.decode.serve import http
from pal_jax.decode.serve.http import BODY_LIMIT, make_app
from pal_jax.decode.serve.openai_api import AnswerStream
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
HELLO = [{'role': 'user', 'content': 'Hello'}]


def make_decoder() -> LocalDecoder:
    weights = params.init(params.decoder_specs(CFG), jax.random.key(0))
    decoder = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, stride=2)
    decoder.load(jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, weights), version=7)
    return decoder


@pytest.fixture(scope='module')
def lone():
    return make_decoder()


@pytest.fixture(scope='module')
def driver():
    return Driver(make_decoder(), line=4)


@pytest.fixture(scope='module')
def address(driver, serve):
    with serve(make_app(driver, TOKENIZER, model='tiny')) as address:
        yield address
    assert driver.decoder.free == driver.decoder.slots


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0, timeout=60) as client:
        yield client


def expected(lone: LocalDecoder, max_tokens: int, seed: int = 0, temperature: float = 0.0):
    (completion,) = lone([Request(tuple(TOKENIZER.chat(HELLO)), Sampling(temperature, max_tokens=max_tokens), seed)])
    return completion


def test_a_chat_is_answered_whole_and_streamed_alike(client, lone):
    ask = dict(model='tiny', messages=HELLO, temperature=0, max_tokens=12, logprobs=True)
    whole = client.chat.completions.create(**ask)
    alone = expected(lone, 12)
    choice = whole.choices[0]
    assert choice.message.content == alone.text
    assert choice.finish_reason == alone.finish_reason
    assert tuple(entry.logprob for entry in choice.logprobs.content) == pytest.approx(alone.logprobs, abs=1e-5)
    assert whole.usage.completion_tokens == len(alone.token_ids)
    assert whole.usage.prompt_tokens == len(TOKENIZER.chat(HELLO))
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={'include_usage': True}))
    assert ''.join(piece.choices[0].delta.content for piece in pieces[:-1]) == alone.text
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]][-1] == alone.finish_reason
    assert sum(len(piece.choices[0].logprobs.content) for piece in pieces[:-1]) == len(alone.token_ids)
    assert pieces[-1].usage == whole.usage


def test_n_answers_come_from_seeds_that_follow_each_other(client, lone):
    answer = client.chat.completions.create(model='', messages=HELLO, n=3, seed=5, max_tokens=8)
    assert [c.message.content for c in answer.choices] == [expected(lone, 8, 5 + i, 1.0).text for i in range(3)]
    assert len({c.message.content for c in answer.choices}) > 1


def test_prompts_of_a_list_are_answered_as_each_alone_with_the_seed(client):
    ask = dict(model='', n=2, seed=2**63 - 1, max_tokens=8)
    several = client.completions.create(prompt=['The sea', 'A dog'], **ask)
    alone = [client.completions.create(prompt=prompt, **ask) for prompt in ('The sea', 'A dog')]
    assert [c.text for c in several.choices] == [c.text for answer in alone for c in answer.choices]


def test_the_official_client_gathers_a_stream_into_a_message_that_can_be_sent_back(client):
    with client.chat.completions.stream(model='', messages=HELLO, n=2, seed=4, max_tokens=30) as stream:
        pieces = [event.chunk for event in stream if event.type == 'chunk']
        choices = stream.current_completion_snapshot.choices
    roles = [choice.delta.role for piece in pieces for choice in piece.choices]
    assert (roles.count('assistant'), roles.count(None)) == (2, len(roles) - 2)
    said = choices[0].message
    assert said.role == 'assistant'
    again = [*HELLO, said, *HELLO]
    assert client.chat.completions.create(model='', messages=again, max_tokens=1).choices


def test_text_ends_before_a_stop_string(client, lone):
    text = expected(lone, 12).text
    stop = text[4:6]
    cut = text[: text.index(stop)]
    ask = dict(model='', messages=HELLO, temperature=0, max_tokens=12, stop=[stop, 'never'])
    whole = client.chat.completions.create(**ask)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (cut, 'stop')
    assert ''.join(p.choices[0].delta.content for p in client.chat.completions.create(**ask, stream=True)) == cut


def test_a_text_completion_takes_text_or_tokens(client, lone):
    ids = TOKENIZER.encode('Once upon')
    (alone,) = lone([Request(tuple(ids), Sampling(0.0, max_tokens=6), 0)])
    for prompt in ('Once upon', ids):
        answer = client.completions.create(model='', prompt=prompt, temperature=0, max_tokens=6, logprobs=0)
        assert answer.choices[0].text == alone.text
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_what_the_server_is(client, address):
    assert [model.id for model in client.models.list()] == ['tiny']
    assert client.models.retrieve('tiny').id == 'tiny'
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve('another/model')
    assert caught.value.body['code'] == 'model_not_found'
    for path in ('', 'health', 'metrics', 'chat.json', 'v1/models', 'v1/models/tiny'):
        head = httpx.head(f'{address}/{path}')
        assert (head.status_code, head.content) == (200, b'')
    assert httpx.get(f'{address}/health').json() == {'status': 'ok', 'model': 'tiny', 'weights_version': 7}
    client.completions.create(model='', prompt='a', max_tokens=3)
    metrics = httpx.get(f'{address}/metrics').text
    assert 'pal_jax_requests_total{ended=' in metrics
    assert 'pal_jax_first_token_seconds_count' in metrics
    assert 'slots 8.0' in metrics


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'messages': []}, 'messages'),
        ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'messages.0.role'),
        ({'temperature': -1}, 'temperature'),
        ({'max_tokens': 0}, 'max_tokens'),
        ({'max_tokens': 5000}, 'the model has room for'),
        ({'extra_body': {'repetition_penalty': 1.2}}, 'repetition_penalty'),
        ({'n': 1000}, 'n: '),
        ({'tools': [{'type': 'function', 'function': {'name': 'f'}}]}, 'tools: is not supported'),
        ({'presence_penalty': 0.5}, 'presence_penalty: only 0 is supported'),
        ({'top_logprobs': 21}, 'top_logprobs'),
        ({'messages': [{'role': 'user', 'content': 'x' * 2000}]}, 'the model has room for'),
    ],
)
def test_a_wrong_request_gets_openais_error(client, change, told):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{'model': '', 'messages': HELLO, 'max_tokens': 4, **change})
    assert told in caught.value.body['message']
    assert caught.value.body['type'] == 'invalid_request_error'
    assert (caught.value.body['code'] == 'context_length_exceeded') == ('the model has room for' in told)


@pytest.mark.parametrize(
    ('prompt', 'param', 'told'),
    [
        ([], 'prompt', 'at least 1'),
        ([[]], 'prompt.0', 'at least 1'),
        ([-1], 'prompt.0', 'greater'),
        (3, 'prompt', 'string'),
    ],
)
def test_a_wrong_prompt_is_told_what_is_wrong_with_it(client, prompt, param, told):
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.completions.create(model='', prompt=prompt, max_tokens=1)
    assert caught.value.body['param'] == param


@pytest.mark.parametrize(
    'body',
    [b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'{"messages": NaN}', b'[' * 100_000, b'{"prompt": "\\ud800"}',
     b'{"prompt": [-1]}', b'{"prompt": [99999]}', b'{"prompt": "a", "seed": 1e400}', b'{"prompt": "a", "stop": [""]}',
     b'{"prompt": ""}'],
)  # fmt: skip
def test_rubbish_is_refused_and_the_server_goes_on(address, client, body):
    for path in ('chat/completions', 'completions'):
        answer = httpx.post(f'{address}/v1/{path}', content=body, headers={'content-type': 'application/json'})
        assert 400 <= answer.status_code < 500
        assert answer.json()['error']['message']
    assert client.completions.create(model='', prompt='a', max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ('headers', 'body', 'status', 'told'),
    [
        ({}, b'{"prompt": "a"}', 415, 'content-type none; send JSON'),
        ({'content-type': 'text/plain'}, b'{"prompt": "a"}', 415, 'content-type text/plain'),
        ({'content-encoding': 'gzip'}, gzip.compress(b'{"prompt": "a"}', mtime=0), 415, "content-encoding 'gzip'"),
        (None, b'{"prompt": "\xff"}', 400, 'UTF-8'),
        (None, b'{"prompt": "\\ud83d"}', 400, 'half of a surrogate pair'),
        (None, b'{"prompt": }', 400, 'not valid JSON: Expecting value at character 11'),
        (None, b'{"prompt": "a', 400, 'JSON: Unterminated string starting at character 11'),
        (None, b'[' * 100_000, 400, 'nested too deeply'),
        (None, b'{"prompt": "a", "seed": ' + b'9' * 5000 + b'}', 400, 'too many digits'),
        (None, b'{"prompt": "a", "top_p": NaN}', 400, 'finite'),
        (None, b'[]', 400, 'body: should be a JSON object'),
        (None, b'', 400, 'body: is required'),
        (None, b'{"prompt": ""}', 400, 'the prompt is empty'),
        (None, b'{"prompt": ["a", ""]}', 400, 'prompt.1: the prompt is empty'),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(address, headers, body, status, told):
    given = {'content-type': 'application/json'} | (headers or {}) if headers != {} else {}
    answer = httpx.post(f'{address}/v1/completions', content=body, headers=given)
    error = answer.json()['error']
    assert (answer.status_code, error['type']) == (status, 'invalid_request_error')
    assert told in error['message']
    assert '\n' not in error['message']


def test_a_body_that_does_not_come_is_given_up_and_holds_no_server_that_closes(driver, serve, monkeypatch):
    app = make_app(driver, TOKENIZER, model='tiny')
    half = b'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{'

    def status(sock: socket.socket) -> bytes:
        return sock.recv(1000).split(b'\r\n')[0]

    monkeypatch.setattr(app.router, 'lifespan_context', lambda _: contextlib.nullcontext())  # the driver stays
    with serve(app) as address:
        place = '127.0.0.1', int(address.rpartition(':')[2])
        with socket.create_connection(place) as sock:
            sock.sendall(half)
            time.sleep(0.3)
            app.state.closing.set()  # as `pal_jax.serve` does when it is told to end
            assert status(sock) == b'HTTP/1.1 503 Service Unavailable'
        app.state.closing.clear()
        monkeypatch.setattr(http, 'BODY_SECONDS', 0.2)
        with socket.create_connection(place) as sock:
            sock.sendall(half)
            assert status(sock) == b'HTTP/1.1 408 Request Timeout'


def test_a_token_that_the_model_does_not_embed_is_refused(client, monkeypatch):
    monkeypatch.setattr(TOKENIZER, 'rows', 263)
    with pytest.raises(
        openai.BadRequestError, match='reserved_3.*of id 263, and the model embeds 263 tokens'
    ) as caught:
        client.completions.create(model='', prompt='a <|reserved_3|>', max_tokens=1)
    assert caught.value.body['param'] == 'prompt'


def test_a_large_body_and_an_unknown_route_are_refused(address):
    assert httpx.post(f'{address}/v1/completions', content=b'x' * (BODY_LIMIT + 1)).status_code == 413
    chunked = (b'x' * 65536 for _ in range(2 * BODY_LIMIT // 65536))
    assert httpx.post(f'{address}/v1/completions', content=chunked).status_code == 413
    answer = httpx.get(f'{address}/nothing')
    assert (answer.status_code, answer.json()['error']['message']) == (404, 'Not Found')


def test_a_full_line_gets_429_and_those_who_leave_free_their_slots(client, address, driver, monkeypatch, caplog):
    decode = driver.decoder._decode
    monkeypatch.setattr(logging.getLogger('uvicorn'), 'propagate', True)
    monkeypatch.setattr(TOKENIZER, 'stop_ids', ())  # nothing ends by itself
    monkeypatch.setattr(driver.decoder, '_decode', lambda: (time.sleep(0.02), decode())[1])
    endless = {'messages': HELLO, 'max_tokens': 900, 'temperature': 0, 'stream': True, 'n': 6}
    held = []  # an iterator that is dropped closes its connection
    with contextlib.ExitStack() as streams:
        for _ in range(2):  # 12 requests: eight slots and a line of four
            response = streams.enter_context(
                httpx.stream('POST', f'{address}/v1/chat/completions', json=endless, timeout=60)
            )
            held.append(response.iter_lines())
            next(held[-1])
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model='', prompt='a', max_tokens=1)
    until(lambda: driver.accepted == 0)
    assert left(address) == 12
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f'{address}/v1/chat/completions', json=endless | {'stream': False}, timeout=0.5)
    until(lambda: driver.accepted == 0)
    until(lambda: left(address) == 18)
    assert [record for record in caplog.records if record.levelname == 'ERROR'] == []  # nobody's fault


def left(address: str) -> float:
    """How many answers nobody waited for."""
    found = re.search(r'requests_total{ended="client_left"} (.*)', httpx.get(f'{address}/metrics').text)
    return float(found[1]) if found else 0.0


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_token_is_asked_for(serve):
    with serve(make_app(Driver(make_decoder()), TOKENIZER, model='tiny', token='secret')) as address:
        for key, status in (('wrong', 401), ('secret', 200)):
            answer = httpx.get(f'{address}/v1/models', headers={'authorization': f'Bearer {key}'})
            assert answer.status_code == status
        assert httpx.get(f'{address}/health').status_code == 200
        assert 'got none' in httpx.get(f'{address}/v1/models').text


def test_a_page_under_another_name_is_not_answered(client):
    address = f'{client.base_url}models'
    for host in ('evil.example:8000', 'evil.example:', 'evil.example:0x50', 'a b', '127.0.0.1@evil.example',
                 'evil.example#127.0.0.1', 'evil.example/127.0.0.1', 'b\xf6se.example', '[::1', '127.0.0.1:abc', '',
                 '127.0.0.1.evil.example', '0.0.0.0:8000', 'localhost:65536'):  # fmt: skip
        assert httpx.get(address, headers={'host': host.encode('latin1')}).status_code == 403, host
    for host in ('[::1]:8000', 'LOCALHOST:8000', '127.0.0.1'):
        assert httpx.get(address, headers={'host': host}).status_code == 200, host


def test_a_decoder_that_fails_is_an_error_and_not_the_end(client, driver, monkeypatch):
    monkeypatch.setattr(driver.decoder, '_decode', lambda: 1 / 0)
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model='', prompt='a', max_tokens=1)
    monkeypatch.undo()
    assert client.completions.create(model='', prompt='a', max_tokens=1).choices


def test_halves_of_characters_and_of_stop_strings_are_held_back():
    choice = AnswerStream(TOKENIZER, ['</end>'])
    told = []
    for token in TOKENIZER.encode('naïve <b> </end>'):
        choice.take(RequestProgress(0, (token,), (0.0,), None))
        told.append(choice.news(ended=False))
    assert ''.join(told) == 'naïve <b> '
    assert '\ufffd' not in ''.join(told)
    assert json.dumps(told).count('<') == 1
