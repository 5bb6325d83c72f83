"""Judging beside decoding: a batch of answers, each judged by a server that takes its time.

  python -m benchmarks.judging --samples=512 --latency=1 --concurrency=64
Prints one JSON object: seconds of decoding alone, of judging alone once all is decoded, and of both as RLPA's rollout
has them, where an answer is judged as soon as it is decoded. `over_larger` is the last over the larger of the others.

The server is a process on this machine that sleeps. So does the decoder, as a host does while its accelerator decodes:
it ends `--rate` answers a second. `--rate=0` decodes a tiny random model on this machine's processor instead, where
requests and decoding share the cores; its answers are replaced by some in the format.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import runpy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pal_jax.decode.requests import Request, Told
    from pal_jax.types import Completion

CONFIG = Path(__file__).parents[1] / 'configs' / 'rlpa.py'
MESSAGE = {'role': 'assistant', 'content': '\\boxed{1 1 1 0 1}'}
VERDICT = {
    'id': '1', 'object': 'chat.completion', 'created': 0, 'model': 'm',
    'choices': [{'index': 0, 'message': MESSAGE, 'finish_reason': 'stop'}],
    'usage': {'prompt_tokens': 300, 'completion_tokens': 9, 'total_tokens': 309},
}  # fmt: skip


def serve(latency: float, port: Connection) -> None:
    """A judge that answers everything alike after `latency` seconds, and any number at once; tells its port."""
    data = json.dumps(VERDICT).encode()

    class Judge(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers['content-length']))
            time.sleep(latency)
            self.send_response(200)
            self.send_header('content-type', 'application/json')
            self.send_header('content-length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 256

    server = Server(('127.0.0.1', 0), Judge)
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The address of a server that answers after `latency` seconds."""
    spawn = multiprocessing.get_context('spawn')
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(latency, there), daemon=True)
    process.start()
    try:
        yield f'http://127.0.0.1:{here.recv()}/v1'
    finally:
        process.terminate()
        process.join()


class Writing:
    """A decoder whose answers are all in the format, and all different."""

    def __init__(self, decode: Callable[[Sequence[Request], Told | None], list[Completion]]):
        self._decoder, self._count = decode, 0

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        number = self._count = self._count + 1

        def written(place: int, completion: Completion) -> Completion:
            from pal_jax.recipes.rlpa.profiles import render_completion

            text = render_completion('- pet: cat\n', f'What about {number} and {place}?')
            return dataclasses.replace(completion, text=text)

        done = self._decoder(
            requests,
            (lambda place, completion: on_completion(place, written(place, completion))) if on_completion else None,
        )
        return [written(place, completion) for place, completion in enumerate(done)]


def simulated(rate: float, tokens: int) -> Callable[[Sequence[Request], Told | None], list[Completion]]:
    """A decoder that ends `rate` answers a second."""
    from pal_jax.types import Completion

    def decode(requests: Sequence[Request], on_completion: Told | None) -> list[Completion]:
        start, done = time.perf_counter(), []
        for place in range(len(requests)):
            time.sleep(max(start + (place + 1) / rate - time.perf_counter(), 0.0))
            done.append(Completion('', (1,) * tokens, (0.0,) * tokens, 'stop'))
            if on_completion:
                on_completion(place, done[-1])
        return done

    return decode


def measure(samples: int, tokens: int, slots: int, rate: float, concurrency: int, address: str) -> dict[str, Any]:
    """Seconds of each part."""
    from pal_jax.decode.choose import choose_decoder
    from pal_jax.models.files import sources
    from pal_jax.recipes.rlpa import turns
    from pal_jax.recipes.rlpa.queue import open_queue
    from pal_jax.recipes.rlpa.world import make_world
    from pal_jax.run import devices
    from pal_jax.run.processes import ALONE
    from pal_jax.run.settings import changed

    n = 4
    config = changed(
        runpy.run_path(str(CONFIG))['get_config']('smoke'),
        dialogue=dict(people=-(-samples // n)),
        sampling=dict(max_tokens=tokens, stop=()),
        decode=dict(slots=slots),
        answers='',
        reward=dict(judge='endpoint:judge'),
        endpoints=dict(judge=dict(address=address, model='m', concurrency=concurrency)),
    )
    world, source = make_world(config), sources.resolve(config.policy.source)
    decode: Any = simulated(rate, tokens)
    tokenizer = source.tokenizer()
    if not rate:
        cfg, settings = (
            devices.for_platform(source.config, 'float32'),
            dataclasses.asdict(config.decode) | {'shares': ALONE},
        )
        decode = choose_decoder(cfg, tokenizer, devices.make_mesh(), **settings)
        decode.load(source.load())
    sample: Any = turns.make_turn_sampler(config, world.system, tokenizer, Writing(decode))  # type: ignore[arg-type]  # it samples, no more
    if not rate:
        sample(open_queue(world.train).pending[: -(-samples // n)], n, (0, 0))  # compiles what it needs
    dialogues = open_queue(world.train).pending[: -(-samples // n)]
    assert world.early is not None
    start = time.perf_counter()
    decoded = sample(dialogues, n, (0, 1))
    middle = time.perf_counter()
    world.reward(decoded, 1)
    end = time.perf_counter()
    together = world.reward(sample(dialogues, n, (0, 2), functools.partial(world.early.ask, seed=2)), 2)
    both = time.perf_counter() - end
    assert all(reply.ok for reply in together) and world.models.usage['judge_requests'] == 2 * len(together)
    seconds = {'decode_s': middle - start, 'judge_s': end - middle, 'both_s': both}
    larger = both / max(seconds['decode_s'], seconds['judge_s'])
    return {name: round(value, 2) for name, value in seconds.items()} | {'over_larger': round(larger, 3)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--samples', type=int, default=512, help='answers of a batch, four to a prompt')
    parser.add_argument('--tokens', type=int, default=64, help='of each answer')
    parser.add_argument('--rate', type=float, default=64.0, help='answers decoded a second; 0: a model on this machine')
    parser.add_argument('--slots', type=int, default=64, help='answers decoded at once, with --rate=0')
    parser.add_argument('--latency', type=float, default=1.0, help='seconds the judge takes')
    parser.add_argument('--concurrency', type=int, default=64, help='questions to the judge under way at once')
    args = parser.parse_args(argv)
    with server(args.latency) as address:
        report = measure(args.samples, args.tokens, args.slots, args.rate, args.concurrency, address)
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'openai')}
    print(json.dumps(vars(args) | report | {'versions': versions}))


if __name__ == '__main__':
    main()
