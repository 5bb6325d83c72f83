"""Several decode servers of one trainer: they share the prompts, one is lost, and it comes back."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.serve.jetstream import servers
from pal_jax.decode.serve.jetstream.remote import RemoteDecoder
from pal_jax.decode.serve.jetstream.rpc import GrpcServer
from pal_jax.decode.serve.jetstream.servers import Servers, SharedServers
from tests.decode.serve.jetstream.test_rpc import (
    CFG,
    MESH,
    TOKENIZER,
    alone,
    make_driver,
    request,
    serving,
    weights,
)


@pytest.fixture(scope='module')
def local():
    return LocalDecoder(CFG, TOKENIZER, MESH, slots=8, stride=2)


def test_several_servers_share_requests_and_one_that_is_lost_gives_its_own_to_the_others(local, capsys):
    requests, told = [request(seed, 48) for seed in range(12)], {}
    expected = [completion.token_ids for completion in alone(local, requests, version=1)]
    with contextlib.ExitStack() as stack:
        first, lost = make_driver(), GrpcServer('127.0.0.1', 0, requests=24, token='')
        lost_driver = make_driver()
        lost.start(lost_driver, 'tiny')
        stack.callback(lost_driver.close)
        addresses = [stack.enter_context(serving(first)), f'127.0.0.1:{lost.port}']
        decoder = Servers([RemoteDecoder(CFG, TOKENIZER, address) for address in addresses])
        decoder.load(weights(1), 1)
        assert [completion.token_ids for completion in decoder(requests)] == expected
        counts = [driver.decoder.counters.requests for driver in (first, lost_driver)]
        assert counts == [6, 6]
        # The server is lost as soon as its first completion has arrived.
        stopped = threading.Event()

        def tell(place, completion):
            told[place] = completion.token_ids
            if place >= 6 and not stopped.is_set():
                stopped.set()
                threading.Thread(target=lost.stop, args=(0,)).start()

        assert [completion.token_ids for completion in decoder(requests, tell)] == expected
        assert [told[place] for place in range(12)] == expected
        decoder.load(weights(1), 2)
        assert f'127.0.0.1:{lost.port}: ' in capsys.readouterr().err
        assert [completion.token_ids for completion in decoder(requests)] == expected
        # It comes back between two loads.
        again = GrpcServer('127.0.0.1', lost.port, requests=24, token='')
        again.start(lost_driver, 'tiny')
        stack.callback(again.stop, 0)
        before = lost_driver.decoder.counters.requests
        decoder.load(weights(1), 3)
        assert [completion.token_ids for completion in decoder(requests)] == expected
        assert lost_driver.decoder.counters.requests == before + 6
        assert f'127.0.0.1:{lost.port} is back' in capsys.readouterr().err
        decoder.release()


def test_a_trainer_without_any_server_is_told(monkeypatch):
    monkeypatch.setattr(servers, 'START', 0.1)
    decoder = Servers([RemoteDecoder(CFG, TOKENIZER, f'127.0.0.1:{port}') for port in (1, 2)])
    with pytest.raises(RuntimeError, match='127.0.0.1:1: it cannot be reached'):
        decoder.load(weights(0))
    with pytest.raises(RuntimeError, match='no weights'):
        decoder([request(0)])


def test_without_lockstep_weights_change_while_servers_sample(local):
    short, long = request(0, 4), request(1, 600)
    expected = alone(local, [long], version=1)[0].token_ids
    with serving(make_driver()) as address:
        decoder, began = Servers([RemoteDecoder(CFG, TOKENIZER, address, start=1000)]), threading.Event()
        decoder.load(weights(1), 3)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(decoder, [short, long], lambda place, completion: began.set())
            assert began.wait(60)
            decoder.load(weights(2), 4)
            first, second = answers.result(60)
        assert (set(first.versions), set(second.versions)) == ({3}, {3, 4})
        assert list(second.versions) == sorted(second.versions)
        # The tokens before the change are those of the earlier weights.
        same = second.versions.count(3)
        assert second.token_ids[:same] == expected[:same]
        assert second.token_ids != expected
        # Without a number, weights have that of the last ones.
        decoder.load(weights(2))
        assert set(decoder([short])[0].versions) == {4}
        RemoteDecoder(CFG, TOKENIZER, address).load(weights(1), 7)  # as another trainer would
        with pytest.raises(RuntimeError, match='got weights from elsewhere'):
            decoder([short])
        decoder.release()


def test_no_process_refuses_answers_by_weights_that_process_0_is_sending(monkeypatch):
    decoder, seen = RemoteDecoder(CFG, TOKENIZER, '127.0.0.1:1', start=1000), []

    def exchange(what, value):
        seen.append((what, decoder.version))
        return [value]

    monkeypatch.setattr(servers.processes, 'exchange', exchange)
    monkeypatch.setattr(servers.jax, 'process_index', lambda: 1)
    monkeypatch.setattr(Servers, 'join', lambda self, version, reached: seen.append(('join', version)))
    SharedServers(Servers([decoder])).load(weights(1), 4)
    # Process 0 sends the weights between the two exchanges, while requests of this process are under way.
    assert seen == [('version', 4), ('decode servers', 4), ('join', 4)]
