"""The server's promises in a storm: through HTTP, with clients that go away and weights that change."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from typing import NamedTuple

import httpx
import jax
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.http import make_app
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
REQUESTS, CLIENTS, VERSIONS = 200, 16, 4


class Ask(NamedTuple):
    """One request: whether it is streamed, and after how many seconds its client goes away."""

    prompt: tuple[int, ...]
    max_tokens: int
    stream: bool
    patience: float | None

    @property
    def body(self) -> dict:
        settings = {'temperature': 0, 'max_tokens': self.max_tokens, 'logprobs': 0}
        return {'prompt': self.prompt, 'stream': self.stream, **settings}


class Answer(NamedTuple):
    """Its status, and of a 200 the text, why it ended, and the version of the weights."""

    status: int
    text: str = ''
    ended: str | None = None
    version: int = -1


def weights(version: int) -> params.Params:
    plain = params.init(params.decoder_specs(CFG), jax.random.key(version))
    return jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, plain)


def make_asks() -> list[Ask]:
    rng = random.Random(0)
    return [
        Ask(
            # A whole character ends it: the server decodes a completion behind its prompt, a lone one stands by itself.
            prompt=(*rng.choices(range(250), k=rng.choice((0, 4, 29, 99))), rng.randrange(32, 127)),
            max_tokens=rng.choice((1, 5, 20, 60)),
            stream=rng.random() < 0.5,
            patience=rng.random() * 0.1 if rng.random() < 0.3 else None,
        )
        for _ in range(REQUESTS)
    ]


@pytest.fixture(scope='module')
def decoder():
    return LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, stride=2)


@pytest.mark.slow
def test_in_a_storm_every_request_ends_and_equals_a_lone_one(decoder, serve):
    loaded = {version: weights(version) for version in range(VERSIONS)}
    decoder.load(loaded[0], 0)
    driver, asks = Driver(decoder, line=4), make_asks()
    with serve(make_app(driver, TOKENIZER, model='tiny')) as address:
        answers = asyncio.run(asyncio.wait_for(storm(address, asks, driver, loaded), 120))
        until(lambda: driver.accepted == 0)
        metrics = httpx.get(f'{address}/metrics').text
    assert 'accepted_requests 0.0' in metrics
    assert decoder.free == decoder.slots
    patient = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if ask.patience is None]
    assert all(answer is not None and answer.status == 200 for _, answer in patient)
    whole = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if answer]
    assert len(whole) < REQUESTS, 'nobody went away'
    assert {answer.version for _, answer in whole} == set(range(VERSIONS))
    for version in range(VERSIONS):
        chosen = [(ask, answer) for ask, answer in whole if answer.version == version]
        decoder.load(loaded[version], version)
        lone = decoder([Request(ask.prompt, Sampling(0.0, max_tokens=ask.max_tokens), 0) for ask, _ in chosen])
        for (_, answer), completion in zip(chosen, lone, strict=True):
            assert (answer.text, answer.ended) == (completion.text, completion.finish_reason)


async def storm(address: str, asks: list[Ask], driver: Driver, loaded: dict) -> list[Answer | None]:
    """What came of each, None of those whose client went away; three swaps in between."""
    answers: list[Answer | None] = [None] * len(asks)
    waiting, done = list(range(len(asks)))[::-1], 0

    async def client() -> None:
        nonlocal done
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            while waiting:
                number = waiting.pop()
                answers[number] = await patiently(http, asks[number])
                done += 1

    async def swaps() -> None:
        for version in range(1, VERSIONS):
            while done < version * len(asks) // VERSIONS:
                await asyncio.sleep(0.005)
            assert await asyncio.wrap_future(driver.swap(loaded[version], version)) == version

    await asyncio.gather(swaps(), *(client() for _ in range(CLIENTS)))
    return answers


async def patiently(http: httpx.AsyncClient, ask: Ask) -> Answer | None:
    """The answer, asked for again while the line is full; None when patience is over: the connection is closed then."""
    try:
        async with asyncio.timeout(ask.patience):
            while (answer := await (streamed if ask.stream else whole)(http, ask)).status == 429:
                await asyncio.sleep(0.01)
            return answer
    except TimeoutError:
        return None


async def whole(http: httpx.AsyncClient, ask: Ask) -> Answer:
    response = await http.post('/v1/completions', json=ask.body)
    return read(response.status_code, [response.json()])


async def streamed(http: httpx.AsyncClient, ask: Ask) -> Answer:
    async with http.stream('POST', '/v1/completions', json=ask.body) as response:
        lines = [line.removeprefix('data: ') async for line in response.aiter_lines() if line]
    if response.status_code == 200:
        assert lines.pop() == '[DONE]'
    return read(response.status_code, [json.loads(line) for line in lines])


def read(status: int, events: list[dict]) -> Answer:
    if status != 200:
        assert events[0]['error']['message']
        return Answer(status)
    choices, prints = [event['choices'][0] for event in events], {event['system_fingerprint'] for event in events}
    (version,) = prints  # drained: no answer mixes two versions
    text = ''.join(choice['text'] for choice in choices)
    assert len({choice['finish_reason'] for choice in choices[:-1]} - {None}) == 0
    return Answer(status, text, choices[-1]['finish_reason'], int(version.removeprefix('weights-')))


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
