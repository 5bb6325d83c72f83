"""Rejection sampling in front of the server: how often it succeeds in closed form, and that it changes nothing where
nothing is unsafe."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import numpy as np
import pytest

from pal_jax.decode.driver import Driver
from pal_jax.decode.requests import News, Request, RequestProgress
from pal_jax.decode.serve.guard import REFUSAL, Guard, again, released
from pal_jax.decode.serve.http import make_app
from pal_jax.run.moderator import unsafe_by
from pal_jax.types import Completion, Sampling
from tests.decode.serve.test_http import HELLO, TOKENIZER, make_decoder

ONE_BY_ONE = Sampling(1.0, max_tokens=3)


class Judge:
    """A judge whose verdict of any answer is a function, and what it was asked."""

    def __init__(self, verdict):
        self.verdict, self.asked, self.busy = verdict, [], threading.Lock()

    def unsafe(self, prompts, responses):
        assert self.busy.acquire(blocking=False)  # one call at a time
        self.asked += zip(prompts, responses, strict=True)
        self.busy.release()
        return [self.verdict(response) for response in responses]


@pytest.fixture(scope='module')
def driver():
    return Driver(make_decoder(), line=64)


@pytest.fixture(scope='module')
def guarded(driver, serve):
    """A function that asks a server with a guard; the judge is exchanged."""
    judge = Judge(None)
    guard = Guard(lambda *pairs: judge.unsafe(*pairs), draws=3)
    app = make_app(driver, TOKENIZER, model='tiny', guard=guard)
    with serve(app) as address:

        def ask(verdict, path='chat/completions', **body):
            judge.verdict, judge.asked = verdict, []
            said = {} if path == 'completions' else {'messages': HELLO}
            answer = httpx.post(f'{address}/v1/{path}', json=said | {'max_tokens': 8} | body, timeout=60)
            return answer, judge

        yield ask


@pytest.fixture(scope='module')
def plain(driver, serve, guarded):
    """A function that asks the same model without a guard; its server ends first, and with it the driver."""
    with serve(make_app(driver, TOKENIZER, model='tiny')) as address:
        yield lambda **body: httpx.post(
            f'{address}/v1/chat/completions', json={'messages': HELLO, 'max_tokens': 8} | body, timeout=60
        )


def events(answer):
    """The events of a stream without what differs from request to request."""
    lines = [line.removeprefix('data: ') for line in answer.text.splitlines() if line]
    return [_timeless(json.loads(line)) for line in lines if line != '[DONE]']


def _timeless(body):
    return {key: value for key, value in body.items() if key not in ('id', 'created')}


SAFE = unsafe_by(np.random.default_rng(0).random((1, 14)), np.ones(14)).item()  # what a threshold of 1 says


@pytest.mark.parametrize(
    'body',
    [{'seed': 3}, {'seed': 3, 'n': 4}, {'temperature': 0}, {'seed': 5, 'logprobs': True, 'top_logprobs': 2},
     {'seed': 3, 'stop': ['e', 'a']}],
)  # fmt: skip
def test_a_threshold_of_one_changes_nothing(guarded, plain, body):  # selfplay_safety 9-4
    answer, judge = guarded(lambda response: SAFE, **body)
    expected = plain(**body)
    assert answer.status_code == expected.status_code == 200
    assert _timeless(answer.json()) == _timeless(expected.json())
    told = [choice['message']['content'] for choice in answer.json()['choices']]
    assert judge.asked == [(HELLO, text) for text in told]


def test_a_stream_comes_once_it_is_judged_and_is_the_same(guarded, plain):
    body = {'seed': 3, 'stream': True, 'stream_options': {'include_usage': True}}
    answer, judge = guarded(lambda response: SAFE, **body)
    assert events(answer) == events(plain(**body))
    assert len(judge.asked) == 1
    refused, _ = guarded(lambda response: True, **body)
    text = ''.join(e['choices'][0]['delta']['content'] for e in events(refused) if e['choices'])
    assert text == REFUSAL and judge.asked[0][1] not in refused.text
    assert [e['choices'][0]['finish_reason'] for e in events(refused) if e['choices']] == ['content_filter']


def test_an_unsafe_answer_is_drawn_again(guarded):
    first, _ = guarded(lambda response: False, seed=3)
    bad = first.json()['choices'][0]['message']['content']
    answer, judge = guarded(lambda response: response == bad, seed=3)
    (choice,) = answer.json()['choices']
    assert choice['message']['content'] not in (bad, REFUSAL) and choice['finish_reason'] != 'content_filter'
    assert [response for _, response in judge.asked] == [bad, choice['message']['content']]
    assert answer.json()['usage']['completion_tokens'] <= 8  # of the answer that is told
    assert guarded(lambda response: response == bad, seed=3)[0].json()['choices'] == [choice]  # of the seed alone


def test_a_refusal_is_told_after_as_many_draws(guarded):
    answer, judge = guarded(lambda response: True, n=2, logprobs=True)
    for choice in answer.json()['choices']:
        assert (choice['message']['content'], choice['finish_reason']) == (REFUSAL, 'content_filter')
        assert choice['logprobs'] == {'content': [], 'refusal': None}
    assert len(judge.asked) == 6
    assert len({response for _, response in judge.asked}) > 2
    answer, judge = guarded(lambda response: True, temperature=0)
    assert len(judge.asked) == 1  # greedy: it would be the same again


def test_system_prompts_are_not_judged(guarded):
    system, later = {'role': 'system', 'content': 'Hm.'}, {'role': 'developer', 'content': 'Hm!'}
    _, judge = guarded(lambda response: False, messages=[system, *HELLO], seed=1)
    assert judge.asked[0][0] == HELLO
    answer, judge = guarded(lambda response: False, messages=[later])
    assert answer.status_code == 400 and answer.json()['error']['param'] == 'messages' and not judge.asked


def test_what_cannot_be_judged_is_not_told(guarded):
    def long(response):
        raise ValueError('900 tokens')

    answer, judge = guarded(long, seed=3)
    assert answer.status_code == 400 and '900 tokens' in answer.json()['error']['message']
    assert judge.asked[0][1] not in answer.text
    answer, _ = guarded(lambda response: False, path='completions', prompt='Hello')
    assert answer.status_code == 400 and '--moderation' in answer.json()['error']['message']


def test_draws_and_refusals_are_counted(driver, serve):
    verdicts = iter([True, True, False, True, True, True])
    guard = Guard(lambda prompts, responses: [next(verdicts) for _ in responses], draws=3)
    app = make_app(Driver(make_decoder(), line=4), TOKENIZER, model='tiny', guard=guard)
    with serve(app) as address:
        for _ in range(2):
            httpx.post(f'{address}/v1/chat/completions', json={'messages': HELLO, 'max_tokens': 2}, timeout=60)
        metrics = httpx.get(f'{address}/metrics').text
    assert 'pal_jax_moderated_total{verdict="safe"} 1.0' in metrics
    assert 'pal_jax_moderated_total{verdict="unsafe"} 5.0' in metrics
    assert 'pal_jax_moderation_refusals_total 1.0' in metrics


# --- the closed form --------------------------------------------------------------------------------------------------


async def simulate(draws, count, rng, p=0.57, false_safe=0.0, false_unsafe=0.0):
    """Shares of prompts that get an answer, and of these answers that are unsafe, of draws that are unsafe by `p`."""
    requests = [Request((1,), ONE_BY_ONE, seed) for seed in range(count)]

    async def draw(asked):
        for i, _ in enumerate(asked):
            unsafe = int(rng.random() < p)
            yield News(i, RequestProgress(0, (unsafe,), (0.0,), Completion('', (unsafe,), (0.0,), 'stop')))

    async def judge(answers):
        truth = np.array([answer[0].tokens[0] for answer in answers])
        return rng.random(len(truth)) < np.where(truth, 1 - false_safe, false_unsafe)

    refusals = []
    news = released(requests, draw, judge, draws=draws, refusal=REFUSAL, refused=lambda: refusals.append(1))
    ended = {each.number: each.progress.completion async for each in news}
    told = [completion.token_ids[0] for completion in ended.values() if completion.finish_reason == 'stop']
    assert len(ended) == count == len(told) + len(refusals)
    return len(told) / count, np.mean(told)


def rejection(p_unsafe, n, false_safe=0.0, false_unsafe=0.0):
    """The chance that one of up to `n` independent draws is judged safe and released, and the share of released answers
    that are unsafe, in closed form."""
    unsafe = p_unsafe * false_safe
    released = unsafe + (1.0 - p_unsafe) * (1.0 - false_unsafe)  # the chance that one draw is released
    return 1.0 - (1.0 - released) ** n, unsafe / released


@pytest.mark.parametrize(('draws', 'success'), [(1, 0.43), (2, 0.6751), (4, 0.894440), (8, 0.988857), (16, 0.999876)])
def test_it_succeeds_as_often_as_the_closed_form_says(draws, success):  # selfplay_safety 4.4-3
    count = 4000
    share, unsafe = asyncio.run(simulate(draws, count, np.random.default_rng(draws)))
    assert rejection(0.57, draws) == pytest.approx((success, 0.0), abs=1e-6)
    assert share == pytest.approx(success, abs=3 * np.sqrt(success * (1 - success) / count))
    assert unsafe == 0.0


@pytest.mark.parametrize('draws', [1, 4])
def test_what_a_fallible_judge_lets_through_is_as_unsafe_as_the_closed_form_says(draws):
    count, rates = 4000, {'false_safe': 0.2, 'false_unsafe': 0.1}
    share, unsafe = asyncio.run(simulate(draws, count, np.random.default_rng(draws), **rates))
    success, released = rejection(0.57, draws, **rates)
    assert released == pytest.approx(0.57 * 0.2 / (0.57 * 0.2 + 0.43 * 0.9))
    assert share == pytest.approx(success, abs=3 * np.sqrt(success * (1 - success) / count))
    assert unsafe == pytest.approx(released, abs=3 * np.sqrt(released * (1 - released) / (count * share)))


def test_later_draws_have_seeds_that_are_nobodys_neighbours():
    seeds = {again(Request((1,), ONE_BY_ONE, seed), number).seed for seed in range(50) for number in range(8)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert again(Request((1,), ONE_BY_ONE, 7), 0).seed == 7
