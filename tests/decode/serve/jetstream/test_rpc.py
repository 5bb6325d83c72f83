"""The gRPC server, as JetStream's own client, a trainer and a clumsy or hostile caller see it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import socket
import threading
import time
from concurrent import futures

import grpc
import jax
import msgpack
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.jetstream import remote, rpc, wire
from pal_jax.decode.serve.jetstream.engine import protocol, protocol_grpc
from pal_jax.decode.serve.jetstream.remote import RemoteDecoder
from pal_jax.decode.serve.jetstream.rpc import GrpcServer
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Completion, Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
MESH = devices.make_mesh(devices=jax.devices()[:1])
CODE = grpc.StatusCode


@functools.cache
def weights(seed: int) -> params.Params:
    """Greedily they never end a text."""
    tree = params.init(params.decoder_specs(CFG), jax.random.key(seed))
    tree = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, tree)
    return {**tree, 'embed': tree['embed'].at[jax.numpy.asarray(TOKENIZER.stop_ids)].set(0)}


def prompt(seed: int, length: int = 12) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(250), k=length))


def request(seed: int, max_tokens: int = 8, temperature: float = 0.0) -> Request:
    return Request(prompt(seed, 3 + seed % 40), Sampling(temperature, max_tokens=max_tokens), seed)


@pytest.fixture(scope='module')
def local():
    return LocalDecoder(CFG, TOKENIZER, MESH, slots=8, stride=2)


def alone(local: LocalDecoder, requests: list[Request], version: int = 0) -> list[Completion]:
    local.load(weights(version), version)
    return local(requests)


@contextlib.contextmanager
def serving(driver: Driver, *, port: int = 0, token: str = '', grace: float = 0.0):
    """A server; yields its address."""
    server = GrpcServer('127.0.0.1', port, requests=driver.room, token=token)
    server.start(driver, 'tiny')
    try:
        yield f'127.0.0.1:{server.port}'
    finally:
        server.stop(grace)
        driver.close()


def make_driver() -> Driver:
    decoder = LocalDecoder(CFG, TOKENIZER, MESH, slots=8, stride=2)
    decoder.load(weights(0))
    return Driver(decoder, line=16)


@pytest.fixture(scope='module')
def driver():
    return make_driver()


@pytest.fixture(scope='module')
def address(driver):
    with serving(driver) as address:
        yield address
    assert (driver.decoder.free, driver.accepted) == (8, 0)


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address, options=wire.OPTIONS) as channel:
        yield channel


def method(channel: grpc.Channel, name: str):
    kind = {'Generate': 'unary_stream', 'Update': 'stream_unary', 'Status': 'unary_unary'}[name]
    return getattr(channel, kind)(f'/pal_jax.Rollout/{name}')


def status(channel: grpc.Channel) -> wire.Status:
    return wire.unpack(wire.Status, method(channel, 'Status')(b'', timeout=30))


def wait_until(happened) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError('it never happened')


# --- JetStream's own client -------------------------------------------------------------------------------------------


def stock(**fields):
    text, ids = fields.pop('text', None), fields.pop('ids', None)
    if text is not None:
        fields['text_content'] = protocol.DecodeRequest.TextContent(text=text)
    if ids is not None:
        fields['token_content'] = protocol.DecodeRequest.TokenContent(token_ids=ids)
    return protocol.DecodeRequest(**{'max_tokens': 9, **fields})


def test_a_stock_client_gets_text_and_tokens(channel, local):
    stub = protocol_grpc.OrchestratorStub(channel)
    assert stub.HealthCheck(protocol.HealthCheckRequest()).is_live
    (lone,) = alone(local, [Request(tuple(TOKENIZER.encode('Hello')), Sampling(0.0, max_tokens=9), 0)])
    for content in ({'text': 'Hello'}, {'ids': TOKENIZER.encode('Hello')}):
        call = stub.Decode(stock(priority=100, **content), timeout=60)
        samples = [message.stream_content.samples[0] for message in call]
        assert len(samples) == 5, 'a message a stride of two'
        assert [i for sample in samples for i in sample.token_ids] == list(lone.token_ids)
        assert ''.join(sample.text for sample in samples) == lone.text
        assert dict(call.trailing_metadata())['finish-reason'] == lone.finish_reason


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'ids': [1, 2], 'session_cache': 'mine'}, 'session_cache is not supported'),  # SIGKILL in a stock server
        ({'text': 'a', 'session_cache': 'mine'}, 'session_cache is not supported'),
        ({'ids': list(range(200)) * 6}, 'has room for 1024'),  # loses its head there
        ({'text': 'a' * 1100}, 'has room for 1024'),
        ({}, 'text_content or token_content'),
        ({'ids': []}, 'one or more token ids'),
        ({'text': ''}, 'one or more token ids'),
        ({'ids': [CFG.vocab]}, 'token ids from 0 to'),
        ({'ids': [-1]}, 'token ids from 0 to'),
        ({'ids': [1], 'max_tokens': 0}, 'max_tokens=0 at least 1'),
        ({'ids': [1], 'max_tokens': -5}, 'max_tokens=-5 at least 1'),
        ({'ids': [1], 'max_tokens': 2**31 - 1}, 'has room for 1024'),
    ],
)
def test_a_request_that_ends_a_stock_server_or_is_nonsense_there_is_told_and_the_server_goes_on(
    channel, fields, message
):
    stub = protocol_grpc.OrchestratorStub(channel)
    with pytest.raises(grpc.RpcError, match=message) as error:
        list(stub.Decode(stock(**fields), timeout=60))
    assert error.value.code() == CODE.INVALID_ARGUMENT
    assert len(list(stub.Decode(stock(ids=[7], max_tokens=2), timeout=60))) == 1


def test_a_client_that_goes_away_frees_its_slot_and_is_counted(channel, driver, caplog):
    before = status(channel).left
    calls = [protocol_grpc.OrchestratorStub(channel).Decode(stock(ids=[i], max_tokens=1000)) for i in range(12)]
    next(calls[0])
    for call in calls:
        call.cancel()
    wait_until(lambda: driver.accepted == 0)
    assert driver.decoder.free == 8
    assert before < status(channel).left <= before + 12
    assert list(protocol_grpc.OrchestratorStub(channel).Decode(stock(ids=[1], max_tokens=2)))
    assert status(channel).left <= before + 12
    assert [record for record in caplog.records if record.levelname == 'ERROR'] == []  # nobody's fault


# --- our service ------------------------------------------------------------------------------------------------------


def test_batches_equal_the_local_decoder(address, local):
    decoder = RemoteDecoder(CFG, TOKENIZER, address)
    with pytest.raises(RuntimeError, match='has no weights; call load'):
        decoder([request(0)])
    settings = [
        Sampling(0.0, max_tokens=9, stop=('e',)),
        Sampling(1.0, max_tokens=30),
        Sampling(0.7, top_k=5, top_p=0.9, max_tokens=12, stop_ids=(3, 4)),
    ]
    requests = [Request(prompt(i // 4, 5 + i), settings[i % 3], 2**64 - 1 - i) for i in range(40)]
    for version in (1, 2):
        decoder.load(weights(version), version)
        ours, theirs = decoder(requests), alone(local, requests, version)
        for one, other in zip(ours, theirs, strict=True):
            plain = [dataclasses.replace(each, logprobs=(), policy_logprobs=()) for each in (one, other)]
            assert plain[0] == plain[1]
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
            np.testing.assert_allclose(one.policy_logprobs, other.policy_logprobs, atol=1e-5)
    with pytest.raises(ValueError, match='has room for'):
        decoder([request(0, 2000)])
    assert decoder([]) == []
    decoder.release()
    decoder.load(weights(0))
    assert set(decoder([request(0)])[0].versions) == {decoder.version}
    decoder.release()


BROKEN = [
    (b'\xc1', 'this is not msgpack'),
    (b'', 'this is not msgpack'),
    (msgpack.packb({'requests': []}), 'requests: '),
    (msgpack.packb({'requests': [{'prompt': [1], 'tempreature': 0.5}]}), 'requests.0.tempreature: '),
    (msgpack.packb({'requests': [{'prompt': [1], 'temperature': -1.0}]}), 'temperature=-1.0'),
    (msgpack.packb({'requests': [{'prompt': [1], 'temperature': float('nan')}]}), 'finite number'),
    (msgpack.packb({'requests': [{'prompt': [1], 'seed': -1}]}), 'requests.0.seed: '),
    (msgpack.packb({'requests': [{'prompt': ['1']}]}), 'requests.0.prompt'),
    (msgpack.packb({'requests': [{'prompt': [5000]}]}), 'token ids from 0 to'),
    (msgpack.packb({'requests': [{'prompt': msgpack.ExtType(1, b'')}]}), 'requests.0.prompt'),
]


@pytest.mark.parametrize(('data', 'message'), BROKEN)
def test_a_broken_batch_is_told(channel, data, message):
    with pytest.raises(grpc.RpcError, match=message) as error:
        list(method(channel, 'Generate')(data, timeout=60))
    assert error.value.code() == CODE.INVALID_ARGUMENT


def test_a_full_line_is_told_and_text_is_taken_for_a_prompt(channel, driver):
    many = wire.pack(wire.Batch(requests=[wire.Ask(prompt='Hello', max_tokens=900, temperature=0.0)] * 20))
    calls = [method(channel, 'Generate')(many, timeout=60)]
    wait_until(lambda: driver.accepted == 20)
    with pytest.raises(grpc.RpcError, match='requests are under way') as error:
        list(method(channel, 'Generate')(many, timeout=60))
    assert error.value.code() == CODE.RESOURCE_EXHAUSTED
    calls[0].cancel()
    wait_until(lambda: driver.accepted == 0)


def test_an_update_that_is_not_whole_changes_nothing(channel, local):
    before, whole = status(channel).version, list(wire.update(weights(3), 9, 'drain'))
    chunk = wire.unpack(wire.Chunk, whole[1])
    long = wire.pack(chunk.model_copy(update={'offset': len(chunk.data), 'data': b'more'}))
    header = wire.unpack(wire.UpdateHeader, whole[0])

    def changed(**tensors):
        kept = {name: each for name, each in {**header.tensors, **tensors}.items() if each is not None}
        return wire.pack(header.model_copy(update={'tensors': kept}))

    for messages, message in (
        ([], 'this is not msgpack'),
        (whole[:-1], 'ended before its commit'),
        (whole[:3], 'ended before its commit'),
        ([*whole[:-2], whole[-1]], 'bytes at the commit'),
        ([whole[0], whole[1], whole[1]], 'is out of order'),
        ([*whole[:2], long], 'bytes, got'),
        ([whole[0], whole[1].replace(b'embed', b'elbow')], 'out of order'),
        ([whole[0], b'junk'], 'this is not msgpack'),
        ([whole[0], whole[0]], 'Field required'),
        ([changed(embed=None)], 'another model: embed is missing'),
        ([changed(extra=wire.Tensor(shape=[1], dtype='float32'))], 'another model: extra is not in it'),
        ([changed(embed=wire.Tensor(shape=[3, 64], dtype='float32'))], r'embed has shape \[3, 64\], not'),
    ):
        with pytest.raises(grpc.RpcError, match=message) as error:
            method(channel, 'Update')(iter(messages), timeout=60)
        assert error.value.code() == CODE.INVALID_ARGUMENT
        assert status(channel).version == before
    reordered = [whole[0], whole[2], whole[1], *whole[3:]]  # tensors may come in any order
    method(channel, 'Update')(iter(reordered), timeout=60)
    assert status(channel).version == 9
    (told,) = method(channel, 'Generate')(wire.pack(wire.Batch(requests=[wire.ask(request(5))])), timeout=60)
    assert tuple(wire.unpack(wire.Answers, told).answers[0].tokens) == alone(local, [request(5)], 3)[0].token_ids


def test_an_update_may_cut_what_is_under_way(channel, driver):
    stream = protocol_grpc.OrchestratorStub(channel).Decode(stock(ids=[3], max_tokens=1000), timeout=60)
    next(stream)
    batch = wire.pack(wire.Batch(requests=[wire.ask(request(3, 900))]))
    whole = method(channel, 'Generate')(batch, timeout=60)
    wait_until(lambda: driver.decoder.free == 6)
    method(channel, 'Update')(wire.update(weights(0), 10, 'abort'), timeout=60)
    with pytest.raises(grpc.RpcError, match='cut short') as error:
        list(stream)
    assert error.value.code() == CODE.ABORTED
    (told,) = whole
    assert wire.unpack(wire.Answers, told).answers[0].finish_reason == 'aborted'


def test_an_update_whose_sender_vanishes_leaves_room_for_the_next(channel):
    release, sent = threading.Event(), threading.Event()

    def slow():
        messages = wire.update(weights(1), 11, 'drain')
        yield next(messages)
        yield next(messages)
        sent.set()
        release.wait(60)

    call = method(channel, 'Update').future(slow(), timeout=60)
    assert sent.wait(60)

    def refused() -> bool:
        try:
            method(channel, 'Update')(iter([]), timeout=60)
        except grpc.RpcError as error:
            return error.code() == CODE.RESOURCE_EXHAUSTED
        return False

    wait_until(refused)
    call.cancel()
    release.set()
    wait_until(lambda: not refused())
    method(channel, 'Update')(wire.update(weights(0), 12, 'drain'), timeout=60)
    assert status(channel).version == 12


def test_a_trainer_waits_for_a_server_that_reads_its_weights(local, monkeypatch, capsys):
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(remote, 'SILENT', 0.1)
    decoder = RemoteDecoder(CFG, TOKENIZER, f'127.0.0.1:{port}')
    with futures.ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(decoder.load, weights(0), 5)
        driver, printed = make_driver(), ''
        # On a busy machine the trainer may begin to wait late, and the server must not be there before.
        while 'waiting' not in printed and not loaded.done():
            time.sleep(0.02)
            printed += capsys.readouterr().err
        with serving(driver, port=port) as address:
            loaded.result(60)
            assert decoder([request(1)])[0].token_ids == alone(local, [request(1)])[0].token_ids
            decoder.release()
    assert f'waiting for the decode server at {address}' in printed


def test_a_trainer_is_told_what_is_wrong_with_a_server(address, monkeypatch):
    monkeypatch.setattr(remote, 'START', 0.3)
    wider = dataclasses.replace(CFG, mlp=256)
    with pytest.raises(ValueError, match=f'the server at {address} has another model .tiny.: its mlp is 128, ours 256'):
        RemoteDecoder(wider, TOKENIZER, address).load(weights(0))
    other = byte_tokenizer()
    other.stop_ids = (1,)
    with pytest.raises(ValueError, match='has another tokenizer: its answers end with'):
        RemoteDecoder(CFG, other, address).load(weights(0))
    with pytest.raises(RuntimeError, match='127.0.0.1:1: it cannot be reached; start pal-jax serve') as error:
        RemoteDecoder(CFG, TOKENIZER, '127.0.0.1:1').load(weights(0))
    assert '\n' not in str(error.value)


def test_weights_from_elsewhere_are_noticed(address, channel):
    decoder = RemoteDecoder(CFG, TOKENIZER, address)
    decoder.load(weights(0), 21)
    method(channel, 'Update')(wire.update(weights(1), 22, 'drain'), timeout=60)
    with pytest.raises(RuntimeError, match=r'asked version 21, got \[22\]'):
        decoder([request(0)])
    decoder.load(weights(0))
    another = RemoteDecoder(CFG, TOKENIZER, address)
    another.load(weights(1))  # as another trainer would
    with pytest.raises(RuntimeError, match=f'asked version {decoder.version}, got .{another.version}.'):
        decoder([request(0)])
    for each in (decoder, another):
        each.release()


def test_a_secret_is_asked_of_every_call():
    with serving(make_driver(), token='wonderland') as address:
        for given in ((), (('authorization', 'Bearer wonderlan'),), (('authorization', 'wonderland'),)):
            with grpc.insecure_channel(address) as channel:
                stub = protocol_grpc.OrchestratorStub(channel)
                for call in (
                    lambda: list(stub.Decode(stock(ids=[1]), metadata=given, timeout=30)),  # noqa: B023
                    lambda: stub.HealthCheck(protocol.HealthCheckRequest(), metadata=given, timeout=30),  # noqa: B023
                    lambda: method(channel, 'Status')(b'', metadata=given, timeout=30),  # noqa: B023
                    lambda: list(method(channel, 'Generate')(b'', metadata=given, timeout=30)),  # noqa: B023
                    lambda: method(channel, 'Update')(iter([b'']), metadata=given, timeout=30),  # noqa: B023
                ):
                    with pytest.raises(grpc.RpcError) as error:
                        call()
                    assert error.value.code() == CODE.UNAUTHENTICATED
        with pytest.raises(RuntimeError, match='set PAL_JAX_TOKEN'):
            RemoteDecoder(CFG, TOKENIZER, address, 'guess').load(weights(0))
        decoder = RemoteDecoder(CFG, TOKENIZER, address, 'wonderland')
        decoder.load(weights(0))
        assert len(decoder([request(1, 4)])[0].token_ids) == 4
        decoder.release()


def test_a_server_stops_with_calls_under_way_and_starts_again_on_its_port():
    again = 0
    for _ in range(2):
        driver = make_driver()
        with serving(driver, port=again) as address:
            again = int(address.partition(':')[2])
            with pytest.raises(OSError, match='choose another --port'):
                GrpcServer('127.0.0.1', again, requests=1)
            channel = grpc.insecure_channel(address)
            stub = protocol_grpc.OrchestratorStub(channel)
            streams = [stub.Decode(stock(ids=[i], max_tokens=1000)) for i in range(9)]
            next(streams[0])
        codes = []
        for stream in streams:
            with contextlib.suppress(grpc.RpcError):
                list(stream)
            codes.append(stream.code())
        assert set(codes) <= {CODE.OK, CODE.UNAVAILABLE, CODE.CANCELLED, CODE.ABORTED}
        assert set(codes) != {CODE.OK}
        channel.close()
        assert (driver.decoder.free, driver.accepted) == (8, 0)


def test_a_call_that_does_not_come_whole_holds_no_server_that_stops(monkeypatch):
    monkeypatch.setattr(rpc, 'PARTING', 0.1)
    release, sent = threading.Event(), threading.Event()

    def half():
        yield next(wire.update(weights(0), 1, 'drain'))
        sent.set()
        release.wait(60)

    with serving(make_driver(), grace=1e6) as address, grpc.insecure_channel(address) as channel:
        call = method(channel, 'Update').future(half())
        assert sent.wait(60)
        status(channel)
    release.set()
    assert isinstance(call.exception(60), grpc.RpcError)


# --- all at once ------------------------------------------------------------------------------------------------------


def storm(address: str) -> list[tuple[Request, bool, Completion | grpc.StatusCode]]:
    """200 requests by 16 clients, 30 % cancelled at random moments, three swaps in between."""
    ended = []

    def client(number: int) -> None:
        rng = random.Random(number)
        with grpc.insecure_channel(address, options=(('grpc.use_local_subchannel_pool', 1),)) as channel:
            for i in range(number, 200, 16):
                wanted, cancelled = request(i, rng.choice((2, 5, 20, 60))), rng.random() < 0.3
                ended.append((wanted, cancelled, one(channel, wanted, rng.random() * 0.1 if cancelled else None)))

    def one(channel: grpc.Channel, wanted: Request, cancel_after: float | None) -> Completion | grpc.StatusCode:
        call = method(channel, 'Generate')(wire.pack(wire.Batch(requests=[wire.ask(wanted)])), timeout=120)
        if cancel_after is not None:
            threading.Timer(cancel_after, call.cancel).start()
        try:
            (told,) = call
        except grpc.RpcError as error:
            return error.code()
        return wire.completion_of(wire.unpack(wire.Answers, told).answers[0])

    threads = [threading.Thread(target=client, args=[i]) for i in range(16)]
    for thread in threads:
        thread.start()
    with grpc.insecure_channel(address, options=wire.OPTIONS) as channel:
        for version in (1, 2, 3):
            time.sleep(0.3)
            method(channel, 'Update')(wire.update(weights(version), version, 'drain'), timeout=120)
    for thread in threads:
        thread.join(timeout=120)
    return ended


@pytest.mark.slow
def test_in_a_storm_every_request_ends_and_equals_a_lone_one(local):
    driver = make_driver()
    with serving(driver) as address:
        ended = storm(address)
        wait_until(lambda: driver.accepted == 0)
        assert driver.decoder.free == 8
    assert len(ended) == 200
    for _, cancelled, end in ended:
        assert isinstance(end, Completion) or (cancelled and end == CODE.CANCELLED)
    answered = [(wanted, end) for wanted, _, end in ended if isinstance(end, Completion)]
    assert len(answered) >= 130
    assert len({end.versions[0] for _, end in answered}) > 1
    for version in range(4):
        chosen = [(wanted, end) for wanted, end in answered if version in end.versions]
        lone = alone(local, [wanted for wanted, _ in chosen], version) if chosen else []
        for (_, end), expected in zip(chosen, lone, strict=True):
            assert set(end.versions) == {version}, 'drained: no request mixes two versions'
            assert (end.token_ids, end.text, end.finish_reason) == (
                expected.token_ids, expected.text, expected.finish_reason,
            )  # fmt: skip
