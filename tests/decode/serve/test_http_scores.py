"""Log-probs of prompts, alternatives beside tokens, several prompts and web pages of other origins: over HTTP."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading

import httpx
import jax
import numpy as np
import openai
import pytest
from tokenizers import processors

from pal_jax.data.tokenizer import Tokenizer, byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.http import make_app
from pal_jax.decode.serve.jetstream import wire
from pal_jax.models import config, decoder, params
from pal_jax.run import devices
from pal_jax.types import Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
HELLO = [{'role': 'user', 'content': 'Hello'}]
PAGE = 'https://page.example'
LONG = 'naïve 🙂 ' * 12  # three pieces of 64 tokens


@functools.cache
def weights():
    return jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params.init(params.decoder_specs(CFG), jax.random.key(0)))


def make_driver() -> Driver:
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    local = LocalDecoder(CFG, TOKENIZER, mesh, slots=8, stride=2, chunk=64)
    local.load(weights(), version=7)
    return Driver(local, line=4)


@pytest.fixture(scope='module')
def driver():
    return make_driver()


@pytest.fixture(scope='module')
def address(driver, serve):
    with serve(make_app(driver, TOKENIZER, model='tiny', origins=[PAGE])) as address:
        yield address
        assert driver.accepted == 0


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0, timeout=120) as client:
        yield client


@jax.jit
def forward(tokens: jax.Array) -> jax.Array:
    row = np.zeros((3, *tokens.shape), np.int32)
    row[0] = np.arange(tokens.shape[1])
    return jax.nn.log_softmax(decoder.unembed(weights(), CFG, decoder.forward(weights(), CFG, tokens, *row))[0])


def scores(ids: list[int]) -> np.ndarray:
    """Log-probs `[T, V]` of what follows each token, by the forward pass of training. Prompts are padded to one length,
    so that one program is compiled for all of them."""
    tokens = np.zeros((1, 192), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(forward(tokens))[: len(ids)]


@pytest.mark.parametrize('text', ['Hi', LONG], ids=['one piece', 'pieces'])
def test_a_prompt_is_scored_as_the_forward_pass_has_it(client, text):
    ids = TOKENIZER.prompt(text)
    table = scores(ids)
    answer = client.completions.create(model='', prompt=text, max_tokens=0, echo=True, logprobs=3)
    (choice,) = answer.choices
    told = choice.logprobs
    assert (choice.text, choice.finish_reason) == (text, 'length')
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(table[np.arange(len(ids) - 1), ids[1:]].tolist(), abs=1e-4)
    for top, row, token, logprob in zip(
        told.top_logprobs[1:], table[:-1], told.tokens[1:], told.token_logprobs[1:], strict=True
    ):
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(np.sort(row)[::-1][:3].tolist(), abs=1e-4)
        assert top[token] == logprob
        assert len(top) in (3, 4)
    assert answer.system_fingerprint == 'weights-7'
    assert [text[at:].encode().startswith(word.encode()) for at, word in zip(told.text_offset, told.tokens, strict=True)
            if not word.startswith('bytes:')].count(False) == 0  # fmt: skip


def test_an_echo_goes_on_with_what_is_sampled_and_its_scores(client):
    ask = dict(model='', prompt='Once upon', temperature=0, max_tokens=4, logprobs=2)
    plain = client.completions.create(**ask).choices[0]
    whole = client.completions.create(**ask, echo=True).choices[0]
    assert whole.text == 'Once upon' + plain.text
    said = len(plain.logprobs.tokens)
    assert whole.logprobs.tokens[-said:] == plain.logprobs.tokens
    assert whole.logprobs.text_offset[-said:] == [9 + at for at in plain.logprobs.text_offset]
    ids = [*TOKENIZER.encode('Once upon'), *(TOKENIZER.encode(plain.text))]
    assert whole.logprobs.token_logprobs[1:9] == pytest.approx(
        scores(ids)[np.arange(8), ids[1:9]].tolist(), abs=1e-4
    )  # fmt: skip
    told = plain.logprobs.top_logprobs, plain.logprobs.tokens
    assert all(max(top, key=top.get) == word for top, word in zip(*told, strict=True))
    pieces = list(client.completions.create(**ask, echo=True, stream=True))
    assert ''.join(piece.choices[0].text for piece in pieces) == whole.text
    told = [token for piece in pieces for token in piece.choices[0].logprobs.tokens]
    assert told == whole.logprobs.tokens
    only = client.completions.create(model='', prompt='Once upon', max_tokens=0, echo=True).choices[0]
    assert (only.text, only.logprobs) == ('Once upon', None)


def test_alternatives_of_a_chat_are_of_the_distribution_drawn_from(client):
    ask = dict(model='', messages=HELLO, max_tokens=6, seed=3, top_logprobs=2, temperature=1.5)
    told = client.chat.completions.create(**ask, logprobs=True, extra_body={'top_k': 2}).choices[0].logprobs.content
    for token in told:
        assert sum(np.exp(other.logprob) for other in token.top_logprobs) == pytest.approx(1, abs=1e-4)
        assert token.token in [other.token for other in token.top_logprobs]
    plain = client.chat.completions.create(model='', messages=HELLO, max_tokens=6, seed=3, logprobs=True,
                                           temperature=1.5, extra_body={'top_k': 2})  # fmt: skip
    assert [token.bytes for token in plain.choices[0].logprobs.content] == [token.bytes for token in told]


def test_the_bytes_of_half_characters_are_true(client):
    ids = TOKENIZER.encode('é🙂')
    answer = client.completions.create(model='', prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert answer.text == 'é🙂'
    assert answer.logprobs.tokens == [f'bytes:\\x{byte:02x}' for byte in 'é🙂'.encode()]
    told = client.chat.completions.create(
        model='', messages=HELLO, max_tokens=40, seed=1, temperature=2, logprobs=True
    ).choices[0]
    spelled = b''.join(bytes(token.bytes) for token in told.logprobs.content)
    for special in TOKENIZER.fast.all_special_tokens:
        spelled = spelled.replace(special.encode(), b'')
    assert spelled.decode(errors='replace') == told.message.content
    json.dumps([token.token for token in told.logprobs.content], ensure_ascii=False).encode()


@pytest.mark.parametrize('stream', [False, True])
def test_several_prompts_have_their_choices_in_order(client, stream):
    texts = ['a', 'Once upon', 'b c']
    for prompts in (texts, [TOKENIZER.encode(text) for text in texts]):
        ask = dict(model='', prompt=prompts, n=2, seed=4, max_tokens=5, echo=True)
        if stream:
            options = {'include_usage': True}
            *pieces, last = client.completions.create(**ask, stream=True, stream_options=options)
            found = dict.fromkeys(range(6), '')
            for piece in pieces:
                found[piece.choices[0].index] += piece.choices[0].text
            told, usage = list(found.values()), last.usage
        else:
            answer = client.completions.create(**ask)
            assert [choice.index for choice in answer.choices] == list(range(6))
            told, usage = [choice.text for choice in answer.choices], answer.usage
        assert [text.startswith(texts[i // 2]) for i, text in enumerate(told)] == [True] * 6
        assert usage.prompt_tokens == 13
        alone = client.completions.create(model='', prompt='b c', n=2, seed=4, max_tokens=5)
        assert told[4:] == [f'b c{choice.text}' for choice in alone.choices]


def test_more_choices_than_there_is_room_for_take_turns(client):
    answer = client.completions.create(model='', prompt=['a', 'b'], n=16, max_tokens=2)
    assert len(answer.choices) == 32


def test_a_wrong_prompt_among_others_is_named(client):
    with pytest.raises(openai.BadRequestError, match=r'prompt\.1'):
        client.completions.create(model='', prompt=[[1], [99999]], max_tokens=2)
    with pytest.raises(openai.BadRequestError, match='the model has room for'):
        client.completions.create(model='', prompt='a' * 1025, max_tokens=0, echo=True, logprobs=1)
    full = client.completions.create(model='', prompt='a' * 1024, max_tokens=0, echo=True, logprobs=1)
    assert len(full.choices[0].logprobs.tokens) == 1024


def test_prompts_are_scored_while_others_stream(client, driver):
    ask = dict(model='', prompt='Once upon', temperature=0, max_tokens=60)
    alone = client.completions.create(**ask).choices[0].text
    found: list[float | None] = []

    def score() -> None:
        for _ in range(3):
            answer = client.completions.create(model='', prompt=LONG, max_tokens=0, echo=True, logprobs=0)
            found.append(answer.choices[0].logprobs.token_logprobs[-1])

    thread = threading.Thread(target=score)
    stream = client.completions.create(**ask, stream=True)
    text = next(stream).choices[0].text
    thread.start()
    text += ''.join(piece.choices[0].text for piece in stream)
    thread.join()
    assert text == alone
    assert len(found) == 3
    assert len(set(found)) == 1


def test_new_weights_wait_for_a_prompt_or_it_is_scored_by_them():
    driver = make_driver()
    request = Request(tuple(TOKENIZER.encode(LONG)), Sampling(), 0, alternatives=1)
    before = driver.score(request)
    swaps = [driver.swap(weights(), 8, 'drain'), driver.swap(weights(), 9, 'continue')]
    after = driver.score(request)
    assert before.result().version in (7, 8, 9)
    assert after.result().version == 9
    assert [swap.result() for swap in swaps] == [8, 9]
    assert len(after.result().logprobs) == len(request.prompt_ids)
    gone = [driver.score(request) for _ in range(8)]
    assert sum([each.cancel() for each in gone]) > 0
    driver.drain()
    assert driver.accepted == 0
    driver.close()


def test_pages_of_configured_origins_may_ask_and_no_others(address, serve):
    def preflight(address: str, origin: str) -> httpx.Response:
        headers = {'origin': origin, 'access-control-request-method': 'POST',
                   'access-control-request-headers': 'authorization,content-type,x-stainless-lang'}  # fmt: skip
        return httpx.options(f'{address}/v1/chat/completions', headers=headers)

    allowed = preflight(address, PAGE)
    assert allowed.status_code == 200
    assert allowed.headers['access-control-allow-origin'] == PAGE
    assert 'x-stainless-lang' in allowed.headers['access-control-allow-headers']
    assert 'access-control-allow-origin' not in preflight(address, 'https://evil.example').headers
    for path, status in (('models', 200), ('nothing', 404)):
        answer = httpx.get(f'{address}/v1/{path}', headers={'origin': PAGE})
        assert (answer.status_code, answer.headers['access-control-allow-origin']) == (status, PAGE)
    with serve(make_app(make_driver(), TOKENIZER, model='tiny')) as closed:
        assert 'access-control-allow-origin' not in preflight(closed, PAGE).headers


def test_a_raw_text_begins_as_its_tokenizer_has_it_and_token_ids_as_they_are(serve):
    """A tokenizer that puts a token before a text and one behind it: the latter stands behind no prompt."""
    fast = byte_tokenizer().fast
    opening, end = fast.convert_tokens_to_ids(['<|reserved_0|>', '<|im_end|>'])
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single='<|reserved_0|> $A <|im_end|>', special_tokens=[('<|reserved_0|>', opening), ('<|im_end|>', end)]
    )
    tokenizer = Tokenizer(fast)
    with serve(make_app(make_driver(), tokenizer, model='tiny')) as address:
        for prompt, size in (('Hi', 3), ('<|reserved_0|>Hi', 3), (tokenizer.encode('Hi'), 2), (None, 1)):
            ask = {'prompt': prompt, 'max_tokens': 0, 'echo': True, 'logprobs': 1}
            answer = httpx.post(f'{address}/v1/completions', json=ask, timeout=60).json()
            assert answer['usage']['prompt_tokens'] == size
            (choice,) = answer['choices']
            assert choice['text'] == (prompt if isinstance(prompt, str) else '' if prompt is None else 'Hi')
            assert (choice['logprobs']['tokens'][0] == '<|reserved_0|>') is (size != 2)
    (request,) = [wire.request_of(wire.Ask(prompt='Hi', max_tokens=1), tokenizer)]
    assert request.prompt_ids == (opening, *tokenizer.encode('Hi'))
