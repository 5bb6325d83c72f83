"""Endpoints: answers in order, faults that pass and faults that stay, and the cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest

from pal_jax.judges.endpoint import Endpoint


@pytest.fixture
def server(chat_server) -> Iterator[Any]:
    with chat_server() as server:
        yield server


def chat(text: str) -> list[dict[str, str]]:
    return [{'role': 'user', 'content': text}]


def make(server: Any, **settings: Any) -> Endpoint:
    return Endpoint('judge', address=server.address, model='m', **settings)


def test_answers_come_in_order_and_equal_chats_are_asked_once(server):
    endpoint = make(server, prices=(1e6, 2e6))
    texts = [f'question {i % 20}' for i in range(40)]
    assert endpoint([chat(text) for text in texts], 3) == texts
    assert len(server.asked) == 20
    assert {body['seed'] for body in server.asked} == {3}
    assert (endpoint.usage.requests, endpoint.usage.failed, endpoint.usage.cost) == (20, 0, 20 * (10 + 2 * 2))


def test_what_passes_is_tried_again_and_what_stays_is_left_out(server):
    endpoint = make(server, retries=2)
    passing = ['[500] a', '[429] b', '[hang up] c']
    staying = ['[always 500] d', '[broken] e', '[empty] f', '[none] g', '[always 400] h']
    answers = endpoint([chat(text) for text in (*passing, 'fine', *staying)], 0)
    assert answers == [*passing, 'fine', *[None] * len(staying)]
    assert server.seen['[always 500] d'] == 3
    assert endpoint.usage.failed == len(staying)
    assert endpoint.last_error


def test_who_takes_too_long_is_asked_again(server):
    endpoint = make(server, timeout=0.25, retries=1)
    assert endpoint([chat('[slow] a'), chat('[always slow] b'), chat('c')], 0) == ['[slow] a', None, 'c']
    assert (server.seen['[slow] a'], server.seen['[always slow] b']) == (2, 2)
    assert 'APITimeoutError' in endpoint.last_error


@pytest.mark.parametrize('status', [401, 403, 404])
def test_a_server_that_refuses_us_ends_the_run(server, status):
    with pytest.raises(RuntimeError, match=f"endpoint 'judge' at .* refuses us: .*{status}"):
        make(server)([chat(f'[always {status}]')], 0)


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    first = make(server, cache=tmp_path / 'new' / 'answers.sqlite')
    assert first([chat('a'), chat('[always 500] b')], 0) == ['a', None]
    asked = len(server.asked)
    second = make(server, cache=tmp_path / 'new' / 'answers.sqlite', retries=0)
    assert second([chat('a')], 0) == ['a']
    assert len(server.asked) == asked and second.usage.cached == 1
    assert second([chat('a')], 1) == ['a'] and len(server.asked) == asked + 1  # another seed is another question


def test_a_locked_cache_costs_an_answer_asked_again_and_is_counted(server, tmp_path, monkeypatch):
    endpoint = make(server, cache=tmp_path / 'answers.sqlite')
    for method in ('get', 'put'):
        monkeypatch.setattr(endpoint._answers, method, Mock(side_effect=sqlite3.OperationalError('database is locked')))
    assert endpoint([chat('a')], 0) == endpoint([chat('a')], 0) == ['a']
    assert (endpoint.usage.requests, endpoint.usage.unkept) == (2, 4)
    assert 'database is locked' in endpoint.last_error


def test_a_key_is_sent_without_the_newline_of_its_file(server, monkeypatch):
    monkeypatch.setenv('KEY_OF_A_TEST', 'wonderland\n')
    assert make(server, key_env='KEY_OF_A_TEST', retries=0)([chat('a')], 0) == ['a']
    assert server.keys == {'Bearer wonderland'}
    monkeypatch.setenv('KEY_OF_A_TEST', 'wonder\nland')
    with pytest.raises(ValueError, match='KEY_OF_A_TEST holds') as error:
        make(server, key_env='KEY_OF_A_TEST')
    assert 'wonder' not in str(error.value)


def test_what_is_missing_is_told_before_anything_is_asked(monkeypatch):
    with pytest.raises(ValueError, match=r'--config\.endpoints\.judge\.address='):
        Endpoint('judge', address='', model='m')
    for wrong in ('127.0.0.1:8000/v1', 'http://127.0.0.1:74651/v1', 'http://127.0.0.1:-1', 'http://[::1/v1', 'http://'):
        with pytest.raises(ValueError, match="'judge' has address=.*which is no address"):
            Endpoint('judge', address=wrong, model='m')
    monkeypatch.delenv('NO_SUCH_KEY', raising=False)
    with pytest.raises(ValueError, match='NO_SUCH_KEY, which is not set'):
        Endpoint('judge', address='http://127.0.0.1:1/v1', model='m', key_env='NO_SUCH_KEY')


def test_what_was_asked_early_is_not_asked_again_whatever_it_came_to(server, tmp_path):
    for cache in (None, tmp_path / 'answers.sqlite'):
        endpoint, before = make(server, retries=0, cache=cache), len(server.asked)
        texts = ['a', f'[always 500] {cache}', f'[empty] {cache}', 'b']
        early = endpoint.early([chat(text) for text in texts[:3]], 0)
        assert early == ['a', None, None]
        assert endpoint([chat(text) for text in texts], 0) == ['a', None, None, 'b']
        assert len(server.asked) - before == endpoint.usage.requests == 4
        assert (endpoint.usage.failed, endpoint.usage.cached) == (2, 0)
        endpoint([chat(texts[1])], 0)  # a later call is another one
        assert len(server.asked) - before == 5


def test_many_threads_ask_early_and_each_question_is_asked_once(server, tmp_path):
    endpoint = make(server, cache=tmp_path / 'answers.sqlite', concurrency=8)
    texts = [f'question {i % 30}' for i in range(90)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda text: endpoint.early([chat(text)], 0), texts)) == [[text] for text in texts]
    assert len(server.asked) == endpoint.usage.requests == 30
    assert endpoint([chat(text) for text in texts], 0) == texts
    again = make(server, cache=tmp_path / 'answers.sqlite')
    assert again.early([chat('question 1')], 0) == again([chat('question 1')], 0) == ['question 1']
    assert (len(server.asked), again.usage.requests, again.usage.cached) == (30, 0, 1)


def test_a_refusal_met_early_is_raised_by_the_call_that_asks_the_same(server):
    endpoint = make(server)
    for ask in (endpoint.early, endpoint):
        with pytest.raises(RuntimeError, match='refuses us'):
            ask([chat('[always 401]')], 0)
    assert len(server.asked) == 1


def answering(message: dict[str, Any], finish_reason: str = 'stop') -> dict[str, Any]:
    message = {'role': 'assistant', **message}
    return {'id': '1', 'object': 'chat.completion', 'created': 0, 'model': 'm',
            'choices': [{'index': 0, 'message': message, 'finish_reason': finish_reason}]}  # fmt: skip


@pytest.mark.parametrize(
    ('message', 'finish_reason', 'said'),
    [
        ({'content': '<think>a ferret</think>Hello'}, 'stop', 'Hello'),
        ({'content': 'a ferret</think>Hello'}, 'stop', 'Hello'),
        ({'content': 'Hello', 'reasoning_content': 'a ferret'}, 'stop', 'Hello'),
        ({'content': [{'type': 'thinking', 'thinking': []}, {'type': 'text', 'text': 'Hello'}]}, 'stop', 'Hello'),
        ({'content': '<think>\\boxed{3}'}, 'length', None),
        ({'content': '<|channel|>analysis<|message|>\\boxed{3}'}, 'stop', None),
        ({'content': None, 'reasoning_content': '\\boxed{3}'}, 'length', None),
        ({'content': '', 'reasoning': '\\boxed{3}'}, 'stop', None),
        ({'content': 'Hello'}, 'length', 'Hello'),
    ],
)
def test_of_an_answer_what_was_said_is_read_and_no_thought(chat_server, message, finish_reason, said):
    with chat_server(reply=lambda body: (200, answering(message, finish_reason))) as server:
        endpoint = make(server)
        assert endpoint([chat('a')], 0) == [said]
        assert (endpoint.usage.failed, 'max_tokens' in endpoint.last_error) == (said is None, said is None)


def test_a_server_that_begins_thoughts_has_not_answered_where_it_was_cut(chat_server, tmp_path):
    texts = {'a': ('the box \\boxed{3}', 'length'), 'b': ('hm</think>Hello', 'stop'), 'c': ('hm</think>Hel', 'length')}
    reply = lambda body: (200, answering({'content': (told := texts[body['messages'][-1]['content']])[0]}, told[1]))  # noqa: E731
    with chat_server(reply=reply) as server:
        endpoint = make(server, cache=tmp_path / 'answers.sqlite')
        assert endpoint([chat(text) for text in texts], 0) == [None, 'Hello', 'Hel']
        assert endpoint([chat('a')], 0) == [None]
        again = make(server, cache=tmp_path / 'answers.sqlite')
        assert again([chat('b')], 0) == ['Hello'] and again.usage.cached == 1


REFUSALS = {
    'max_tokens': "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    'temperature': "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value "
    'is supported.',
}


def test_settings_that_a_server_refuses_are_sent_as_it_asks_from_then_on(chat_server):
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        for name, message in REFUSALS.items():
            if name in body:
                return 400, {'error': {'message': message, 'param': name, 'code': 'unsupported_parameter'}}
        return 200, answering({'content': 'Hello'})

    with chat_server(reply=reply) as server:
        endpoint = make(server, temperature=0.0, max_tokens=7)
        assert endpoint([chat('a')], 0) == ['Hello']
        assert [set(body) & {'max_tokens', 'max_completion_tokens', 'temperature'} for body in server.asked] == [
            {'max_tokens', 'temperature'},
            {'max_completion_tokens', 'temperature'},
            {'max_completion_tokens'},
        ]
        assert endpoint([chat(str(i)) for i in range(20)], 0) == ['Hello'] * 20
        assert len(server.asked) == 23 and all(body['max_completion_tokens'] == 7 for body in server.asked[1:])
        assert (endpoint.usage.adapted, endpoint.usage.failed, endpoint.usage.requests) == (2, 0, 21)


def test_another_refusal_is_not_mended(chat_server):
    told = {'error': {'message': "'max_completion_tokens' is too large", 'param': 'max_completion_tokens'}}
    with chat_server(reply=lambda body: (400, told)) as server:
        assert make(server)([chat('a')], 0) == [None]
        assert len(server.asked) == 2
