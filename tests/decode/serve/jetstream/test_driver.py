"""JetStream's driver keeps the promises of ours: the local decoder's tokens, an end for every request, slots that come
back; and what ends a stock JetStream server ends one request."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import queue
import random
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.choose import choose_decoder
from pal_jax.decode.driver import Busy, Closed
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.decode.serve.jetstream.decoder import BatchProgress
from pal_jax.decode.serve.jetstream.driver import JetStreamDriver
from pal_jax.decode.serve.jetstream.engine import JetStreamEngine, orchestrator, protocol
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Completion, Sampling

ROOT = Path(__file__).parents[4]
TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
MESH = devices.make_mesh(devices=jax.devices()[:1])
ENDLESS = Sampling(temperature=0.0, max_tokens=900)


@functools.cache
def weights(seed: int) -> params.Params:
    """Greedily they never end a text."""
    tree = params.init(params.decoder_specs(CFG), jax.random.key(seed))
    tree = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, tree)
    return {**tree, 'embed': tree['embed'].at[jax.numpy.asarray(TOKENIZER.stop_ids)].set(0)}


def prompt(seed: int, length: int = 12) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(250), k=length))


def request(seed: int, max_tokens: int = 8, temperature: float = 0.0) -> Request:
    return Request(prompt(seed), Sampling(temperature, max_tokens=max_tokens), seed)


@pytest.fixture(scope='module')
def local():
    decoder = LocalDecoder(CFG, TOKENIZER, MESH, slots=8, stride=2)
    decoder.load(weights(0))
    return decoder


@pytest.fixture(scope='module')
def engine():
    return JetStreamEngine(CFG, TOKENIZER, MESH, slots=8, stride=2)


@pytest.fixture
def driver(engine):
    engine.load(weights(0))
    driver = JetStreamDriver(engine, line=8)
    yield driver
    driver.stop()
    assert (driver.free, driver.accepted) == (8, 0)
    assert not any(thread.is_alive() for thread in driver._all_threads)


class Asker:
    """Submits one request and collects what it is told."""

    def __init__(self, driver: JetStreamDriver, request: Request):
        self.news: queue.SimpleQueue[RequestProgress | Exception] = queue.SimpleQueue()
        self.ticket = driver.submit(request, self.news.put)

    def result(self) -> tuple[list[int], Completion | Exception]:
        tokens: list[int] = []
        while True:
            news = self.news.get(timeout=60)
            if isinstance(news, Exception):
                return tokens, news
            tokens += news.tokens
            if news.completion is not None:
                return tokens, news.completion


def whole(driver: JetStreamDriver, requests: list[Request]) -> list[Completion]:
    done = {number: each.completion for told in BatchProgress(driver, requests) for number, each in told}
    return [done[number] for number in range(len(requests))]


def test_completions_are_those_of_the_local_decoder(local, driver):
    """Greedy and sampled, truncated or not, ended by length, a token or a text, in more requests than slots."""
    text = local([request(3, 20)])[0].text
    settings = [
        Sampling(0.0, max_tokens=9),
        Sampling(1.0, max_tokens=30),
        Sampling(0.7, top_k=5, top_p=0.9, max_tokens=12),
        Sampling(0.0, max_tokens=20, stop=(text[5:7],)),
        Sampling(1.0, max_tokens=40, stop_ids=tuple(range(0, 250, 5))),
    ]
    requests = [Request(prompt(i // 2, 3 + 9 * (i % 7)), settings[i % 5], i) for i in range(30)]
    requests[3] = Request(prompt(3), settings[3], 3)
    ours, theirs = whole(driver, requests), local(requests)
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.text, one.finish_reason, one.versions) == (other.text, other.finish_reason, other.versions)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        np.testing.assert_allclose(one.policy_logprobs, other.policy_logprobs, atol=1e-5)
    assert {each.finish_reason for each in ours} == {'stop', 'length'}


def test_a_device_that_goes_ahead_of_the_host_changes_no_answer(local, engine, monkeypatch):
    """As on accelerators: slots are filled and weights swapped with a stride still on its way."""
    engine.load(weights(0))
    driver = JetStreamDriver(engine, line=40, ahead=1)
    stops = Sampling(1.0, max_tokens=40, stop_ids=tuple(range(0, 250, 5)))
    requests = [Request(prompt(i // 2), stops if i % 2 else Sampling(0.0, max_tokens=5 + i), i) for i in range(30)]
    assert [each.token_ids for each in whole(driver, requests)] == [each.token_ids for each in local(requests)]
    under_way = [Asker(driver, Request(prompt(i), ENDLESS, i)) for i in range(10)]
    under_way[0].news.get(timeout=60)
    with monkeypatch.context() as patch:
        patch.setattr(engine, '_pack', lambda *_: Poisoned())
        assert isinstance(under_way[0].result()[1], RuntimeError)
    for asker in under_way[1:]:
        driver.cancel(asker.ticket)
        assert asker.result()[1] is not None
    assert driver.swap(weights(1), 1, 'abort').result(timeout=60) == 1
    assert set(whole(driver, [request(0)])[0].versions) == {1}
    driver.stop()
    assert (driver.free, driver.accepted) == (8, 0)


def test_the_token_that_ends_an_answer_is_kept(local, driver):
    stop = local([request(1)])[0].token_ids[4]
    ended = Request(prompt(1), Sampling(0.0, max_tokens=8, stop_ids=(stop,)), 1)
    (completion,) = whole(driver, [ended])
    assert completion.finish_reason == 'stop'
    assert completion.token_ids[-1] == stop
    assert len(completion.logprobs) == len(completion.token_ids) <= 5


def test_samples_of_one_prompt_share_its_prefill_and_none_hears_of_a_slot_it_does_not_have(local, driver, engine):
    requests = [Request(prompt(5), Sampling(1.0, max_tokens=4), seed) for seed in range(20)]
    before = engine.counters.prompt_tokens
    news: dict[int, list[RequestProgress]] = {}
    done = threading.Semaphore(0)

    def notify(number, each):
        news.setdefault(number, []).append(each)
        if each.completion is not None:
            done.release()

    driver.submit_all(requests, notify)
    for _ in requests:
        assert done.acquire(timeout=60)
    assert engine.counters.prompt_tokens - before <= 3 * len(prompt(5))  # eight slots: three groups
    for told in news.values():
        assert len(told) == 2, 'one message a stride'
        assert sum((each.tokens for each in told), ()) == told[-1].completion.token_ids
    assert len({told[-1].completion.token_ids for told in news.values()}) > 1
    assert [news[i][-1].completion.token_ids for i in range(20)] == [each.token_ids for each in local(requests)]


def test_a_full_line_is_told_and_a_wrong_request_fails_alone(driver):
    askers = [Asker(driver, Request(prompt(i), ENDLESS, i)) for i in range(16)]
    with pytest.raises(Busy, match='16 requests'):
        driver.submit(request(0), print)
    for wrong, message in (
        (Request((CFG.vocab,), ENDLESS, 0), 'token ids from 0 to'),
        (Request((-1,), ENDLESS, 0), 'token ids from 0 to'),
        (Request((), ENDLESS, 0), 'token ids from 0 to'),
        (Request(prompt(0, 1000), ENDLESS, 0), 'has room for'),
    ):
        with pytest.raises(ValueError, match=message):
            driver.submit(wrong, print)
    for asker in askers:
        driver.cancel(asker.ticket)
    for asker in askers:
        _, end = asker.result()
        assert isinstance(end, Closed) or end.finish_reason in ('aborted', 'stop')


@pytest.mark.parametrize('policy', ['drain', 'abort', 'continue'])
def test_new_weights_reach_the_requests_they_are_meant_for(local, driver, policy):
    before = Asker(driver, request(1, 200))
    first = before.news.get(timeout=60)
    swapped = driver.swap(weights(1), 1, policy)
    after = Asker(driver, request(2))
    assert swapped.result(timeout=60) == 1
    tokens, old = before.result()
    _, new = after.result()
    assert set(new.versions) == {1}
    assert (*first.tokens, *tokens) == old.token_ids
    lone = local([request(1, 200)])[0]
    local.load(weights(1), 1)
    assert new.token_ids == local([request(2)])[0].token_ids
    local.load(weights(0))
    if policy == 'drain':
        assert old.token_ids == lone.token_ids
    elif policy == 'abort':
        assert old.finish_reason == 'aborted'
        assert old.token_ids == lone.token_ids[: len(old.token_ids)]
    else:
        assert list(old.versions) == sorted(old.versions)
        assert set(old.versions) == {0, 1}


def test_weights_that_do_not_fit_are_told_and_the_next_ones_are_taken(driver):
    with pytest.raises(Exception, match='layers'):
        driver.swap({'embed': weights(0)['embed']}, 1).result(timeout=60)
    with pytest.raises(RuntimeError, match='has no weights'):
        whole(driver, [request(0)])
    assert driver.swap(weights(0), 2).result(timeout=60) == 2
    assert set(whole(driver, [request(0)])[0].versions) == {2}


class Poisoned:
    """A device array whose computation has failed: nobody knows before it is fetched."""

    def copy_to_host_async(self):
        pass

    def __array__(self, *args, **kwargs):
        raise RuntimeError('the device is gone')


@pytest.mark.parametrize('where', ['generate', 'place', 'fetch'])
def test_a_failing_step_fails_the_requests_under_way_and_no_others(driver, engine, monkeypatch, where):
    asker = Asker(driver, Request(prompt(0), ENDLESS, 0))
    asker.news.get(timeout=60)
    if where == 'fetch':
        monkeypatch.setattr(engine, '_pack', lambda *_: Poisoned())
    else:
        monkeypatch.setattr(engine, where, lambda *_: 1 / 0)
    late = Asker(driver, request(7)) if where == 'place' else asker
    assert isinstance(late.result()[1], RuntimeError if where == 'fetch' else ZeroDivisionError)
    if late is not asker:
        assert isinstance(asker.result()[1], ZeroDivisionError)
    monkeypatch.undo()
    assert Asker(driver, request(3)).result()[1].finish_reason in ('length', 'stop')


def test_a_failing_prefill_fails_its_own_requests(local, driver, engine, monkeypatch):
    under_way = Asker(driver, request(1, 100))
    under_way.news.get(timeout=60)
    with monkeypatch.context() as patch:
        patch.setattr(engine, 'prefill_prompts', lambda *_: 1 / 0)
        assert isinstance(Asker(driver, request(2)).result()[1], ZeroDivisionError)
    assert under_way.result()[1].token_ids == local([request(1, 100)])[0].token_ids


def test_an_asker_that_breaks_frees_its_slot(driver):
    calls = []

    def broken(news):
        calls.append(news)
        raise RuntimeError('the event loop is closed')

    driver.submit(Request(prompt(0), ENDLESS, 0), broken)
    driver.drain()
    assert len(calls) == 1


def test_drain_ends_what_was_accepted_and_stop_aborts_it(driver, engine):
    askers = [Asker(driver, request(seed)) for seed in range(12)]
    driver.drain()
    with pytest.raises(Closed):
        driver.submit(request(0), print)
    with pytest.raises(Closed):
        driver.swap(weights(0), 1)
    assert all(asker.result()[1].finish_reason in ('length', 'stop') for asker in askers)
    driver.stop()
    again = JetStreamDriver(engine, line=8)
    endless = [Asker(again, Request(prompt(i), ENDLESS, i)) for i in range(16)]
    endless[0].news.get(timeout=60)
    swap = again.swap(weights(1), 1)
    again.stop()
    again.stop()
    ends = [asker.result()[1] for asker in endless]
    assert any(isinstance(end, Closed) for end in ends)
    assert all(isinstance(end, Closed) or end.finish_reason in ('aborted', 'stop') for end in ends)
    assert isinstance(swap.exception(timeout=60), Closed)


def test_what_nobody_foresaw_ends_every_request_and_not_the_process(driver, monkeypatch):
    askers = [Asker(driver, Request(prompt(i), ENDLESS, i)) for i in range(12)]
    askers[0].news.get(timeout=60)
    swap = driver.swap(weights(1), 1)
    monkeypatch.setattr(driver, '_work', lambda _: 1 / 0)
    assert all(isinstance(asker.result()[1], RuntimeError | Completion) for asker in askers)
    assert 'takes no more requests' in str(swap.exception(timeout=60))
    with pytest.raises(Closed):
        driver.submit(request(0), print)


def test_two_drivers_in_one_process_do_not_meet(local, driver):
    other = JetStreamEngine(CFG, TOKENIZER, MESH, slots=8, stride=4)
    other.load(weights(1), 1)
    second = JetStreamDriver(other)
    requests = [request(seed, 30) for seed in range(12)]
    mine, theirs = BatchProgress(driver, requests), BatchProgress(second, requests)
    mine, theirs = ({number: each.completion for told in a for number, each in told} for a in (mine, theirs))
    second.stop()
    assert {v for each in mine.values() for v in each.versions} == {0}
    assert {v for each in theirs.values() for v in each.versions} == {1}
    assert [mine[i].token_ids for i in range(12)] == [each.token_ids for each in local(requests)]


@pytest.mark.slow
def test_slots_and_heads_may_be_spread_over_a_mesh(local):
    mesh = devices.make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    engine = JetStreamEngine(CFG, TOKENIZER, mesh, slots=8, stride=2)
    engine.load(weights(0))
    driver = JetStreamDriver(engine)
    requests = [request(seed, 4 + seed) for seed in range(20)]
    told = whole(driver, requests)
    driver.stop()
    assert [each.token_ids for each in told] == [each.token_ids for each in local(requests)]


# --- JetStream's own parts on our engine and driver -------------------------------------------------------------------


def stock(**fields) -> protocol.DecodeRequest:
    text, ids = fields.pop('text', None), fields.pop('ids', None)
    if text is not None:
        fields['text_content'] = protocol.DecodeRequest.TextContent(text=text)
    if ids is not None:
        fields['token_content'] = protocol.DecodeRequest.TokenContent(token_ids=ids)
    return protocol.DecodeRequest(**fields)


def test_jetstreams_orchestrator_runs_on_our_driver(local, driver):
    lone = local([Request(tuple(TOKENIZER.encode('Hello')), Sampling(0.0, max_tokens=9), 0)])[0]

    async def ask(request):
        return [message async for message in orchestrator.LLMOrchestrator(driver).Decode(request)]

    told = asyncio.run(ask(stock(text='Hello', max_tokens=9)))
    samples = [message.stream_content.samples[0] for message in told]
    assert ''.join(sample.text for sample in samples) == lone.text
    told = asyncio.run(ask(stock(ids=TOKENIZER.encode('Hello'), max_tokens=9)))
    assert [i for m in told for i in m.stream_content.samples[0].token_ids] == list(lone.token_ids)
    with pytest.raises(ValueError, match='session_cache'):
        asyncio.run(ask(stock(ids=[1], session_cache='x', max_tokens=9)))


def test_an_event_loop_that_closes_early_costs_its_own_request(driver):
    """A stock driver ends the process with SIGKILL here."""

    async def one_message():
        return await anext(orchestrator.LLMOrchestrator(driver).Decode(stock(ids=[5], max_tokens=900)))

    for _ in range(3):
        assert asyncio.run(one_message()) is not None
    driver.drain()


def test_the_engine_runs_under_jetstreams_own_driver(local):
    """Its first words are those of the local decoder; it adds no log-probs and drops the end."""
    engine = JetStreamEngine(CFG, TOKENIZER, MESH, slots=8, stride=1)
    engine.load(weights(0))
    driver = orchestrator.Driver([engine], [engine], [engine.load_params()], [engine.load_params()], True)
    lone = local([Request(tuple(TOKENIZER.encode('Hello')), Sampling(0.0, max_tokens=9), 0)])[0]

    async def ask():
        told = [m async for m in orchestrator.LLMOrchestrator(driver).Decode(stock(text='Hello', max_tokens=9))]
        await asyncio.to_thread(driver.stop)  # before the loop closes: see the test above
        return told

    told = [i for m in asyncio.run(ask()) for i in m.stream_content.samples[0].token_ids]
    assert told == [token for token in lone.token_ids if token not in TOKENIZER.stop_ids]
    with pytest.raises(ValueError, match='send the whole prompt'):
        engine.prefill(params=engine.weights, existing_prefix=1, padded_tokens=np.ones(16, np.int32), true_length=3)


@pytest.mark.slow
def test_starting_it_imports_no_tensorflow_and_leaves_the_logging_as_it_was():
    code = (
        'import json, logging, sys\nimport pal_jax.decode.serve.jetstream.rpc\n'
        'root = logging.getLogger()\n'
        'left = sorted({"tensorflow", "seqio"} & sys.modules.keys())\n'
        'print(json.dumps([left, root.level, len(root.handlers)]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == [[], 30, 0]


# --- for a trainer ----------------------------------------------------------------------------------------------------


def test_a_trainers_decoder_starts_and_stops_with_its_weights(local):
    decoder = choose_decoder(CFG, TOKENIZER, MESH, driver='jetstream', address='', slots=8, stride=2)
    with pytest.raises(RuntimeError, match='has no weights; call load'):
        decoder([request(0)])
    requests = [request(seed, 12, 1.0) for seed in range(10)]
    before = threading.active_count()
    for _ in range(2):
        decoder.load(weights(0))
        assert [each.token_ids for each in decoder(requests)] == [each.token_ids for each in local(requests)]
        with pytest.raises(ValueError, match='token ids from 0 to'):
            decoder([*requests, Request((-3,), ENDLESS, 0)])
        assert decoder([]) == []
        decoder.release()
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ('chosen', 'message'),
    [
        ({'driver': 'vllm'}, "decode.driver='vllm' is unknown; use 'local' or 'jetstream'"),
        ({'driver': 'jetstream', 'address': 'a:74651'}, "decode.address='a:74651' is no host:port"),
        ({'driver': 'jetstream', 'address': 'a'}, "decode.address='a' is no host:port"),
        ({'driver': 'local', 'address': 'a:1'}, "decode.address='a:1' needs decode.driver='jetstream'"),
    ],
)
def test_a_wrong_choice_is_told(chosen, message):
    with pytest.raises(ValueError, match=message):
        choose_decoder(CFG, TOKENIZER, MESH, **{'address': '', 'slots': 8, 'stride': 2} | chosen)
