"""Whatever is sent, the server answers it or says what is wrong, and goes on."""

from __future__ import annotations

import dataclasses
import json
import re

import httpx
import jax
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.serve.http import make_app
from pal_jax.models import config, params
from pal_jax.run import devices

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True, max_len=64)
PATHS = ('chat/completions', 'completions', 'responses')
OF_THIS_MODEL = 'token ids from 0 to|the model has room for|mixture has'  # no description says what it can take
FUZZ = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just('\ud800'),  # half a character
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope='module')
def address(serve):
    decoder = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, stride=4)
    decoder.load(params.init(params.decoder_specs(CFG), jax.random.key(0)))
    driver = Driver(decoder)
    with serve(make_app(driver, TOKENIZER, model='tiny')) as address:
        yield address
        assert driver.accepted == 0
        assert httpx.post(f'{address}/v1/completions', json={'prompt': 'a', 'max_tokens': 2}).status_code == 200
    assert decoder.free == decoder.slots


@pytest.fixture(scope='module')
def described(address):
    return schemathesis.openapi.from_url(f'{address}/openapi.json', timeout=120)


@pytest.mark.parametrize('mode', [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize('path', PATHS)
@FUZZ
@given(data=st.data())
def test_requests_made_up_from_the_description(described, path, mode, data):
    answer = data.draw(described[f'/v1/{path}']['POST'].as_strategy(generation_mode=mode)).call(timeout=60)
    told(answer.status_code, answer.text)
    if mode is GenerationMode.POSITIVE and answer.status_code != 200:
        assert re.search(OF_THIS_MODEL, answer.text), 'it fits the description'


def told(status: int, text: str) -> None:
    """An answer, or the caller's own mistake in OpenAI's error JSON."""
    assert status < 500, text
    if status >= 400:
        assert not re.search(r'function-|\[', json.loads(text)['error']['message']), 'of our insides'


def post(address: str, path: str, body: bytes, kind: str = 'application/json') -> None:
    answer = httpx.post(f'{address}/v1/{path}', content=body, headers={'content-type': kind}, timeout=60)
    told(answer.status_code, answer.text)


@pytest.mark.parametrize('path', PATHS)
@FUZZ
@given(body=st.binary(max_size=200), kind=st.sampled_from(['application/json', 'text/plain', 'multipart/form-data']))
def test_random_bytes(address, path, body, kind):
    post(address, path, body, kind)


@pytest.mark.parametrize('path', PATHS)
@FUZZ
@given(change=st.dictionaries(st.sampled_from([
    'messages', 'prompt', 'n', 'seed', 'stop', 'temperature', 'top_p', 'top_k', 'max_tokens', 'stream', 'logprobs',
    'stream_options', 'user', 'model', 'input', 'text', 'include', 'top_logprobs', 'max_output_tokens',
]), JSON, max_size=4))  # fmt: skip
def test_right_requests_with_wrong_values(address, path, change):
    right = {
        'completions': {'prompt': 'a', 'max_tokens': 3},
        'chat/completions': {'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 3},
        'responses': {'input': 'a', 'max_output_tokens': 3},
    }
    post(address, path, json.dumps({**right[path], **change}).encode())
