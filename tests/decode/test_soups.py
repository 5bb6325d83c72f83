"""One engine, many users: each decodes as the copy merged for it would, whoever else is in the batch."""

from __future__ import annotations

import dataclasses

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.http import make_app
from pal_jax.models import config, lora, merging, params, soups
from pal_jax.run import devices
from pal_jax.types import Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
GREEDY = Sampling(temperature=0.0, max_tokens=10)
USERS = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.2, 0.5, 0.3), (1.5, -0.5, 0.0), None]


def words(seed: int, length: int = 48) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 250, length).tolist())


@pytest.fixture(scope='module')
def base():
    # Larger than usual, so that greedy tokens differ from place to place.
    return jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params.init(params.decoder_specs(CFG), jax.random.key(0)))


@pytest.fixture(scope='module')
def adapters(base):
    """Three on weights with one input axis and two, that training has moved."""
    moved = []
    for seed in range(3):
        targets = ('attn/(q|v|o)', 'down')
        trainable, _ = lora.split(lora.attach(base, rank=4, alpha=8.0, targets=targets, key=jax.random.key(seed)))
        wave = jax.tree.map(lambda x, s=seed: 0.3 * jnp.cos(jnp.arange(x.size) + s).reshape(x.shape), trainable)
        moved.append(jax.tree.map(jnp.add, trainable, wave))
    return moved


def make_decoder(weights, slots=8, mesh=None, **settings) -> LocalDecoder:
    mesh = mesh or devices.make_mesh(devices=jax.devices()[:1])
    decoder = LocalDecoder(CFG, TOKENIZER, mesh, slots=slots, prefill_rows=4, chunk=64, **settings)
    decoder.load(weights)
    return decoder


@pytest.fixture(scope='module')
def decoder(base, adapters):
    return make_decoder(soups.stack(base, adapters))


@pytest.fixture(scope='module')
def merged(base):
    """Decodes with copies merged one after the other."""
    decoder = make_decoder(base)

    def answer(kind, adapters, mixture, prompts):
        weights = base
        if mixture and kind == 'factors':
            weights = lora.merge(lora.join(merging.linear(adapters, mixture), base))
        elif mixture:
            weights = merging.linear([lora.merge(lora.join(each, base)) for each in adapters], mixture)
        decoder.load(jax.tree.map(jnp.asarray, weights))
        return [each.token_ids for each in decoder([Request(prompt, GREEDY, 0) for prompt in prompts])]

    return answer


def check_users(decoder, merged, kind, adapters):
    asked = [Request(words(seed), GREEDY, 0, mixture) for mixture in USERS for seed in range(2)]
    found = [each.token_ids for each in decoder(asked)]
    expected = [tokens for mixture in USERS for tokens in merged(kind, adapters, mixture, [words(0), words(1)])]
    assert found == expected
    assert len(set(found)) == len(found)  # no two users hear the same
    return found


@pytest.mark.slow
def test_users_of_one_batch_get_the_tokens_of_their_merged_copies(decoder, merged, adapters):
    check_users(decoder, merged, 'factors', adapters)


@pytest.mark.slow
def test_mixed_updates_are_the_merged_updates(base, adapters, merged):
    scaled = [jax.tree.map(lambda x, s=s: x.replace(scale=s), each, is_leaf=lambda x: isinstance(x, lora.Adapter))
              for each, s in zip(adapters, (2.0, 1.0, 0.5), strict=True)]  # fmt: skip
    check_users(make_decoder(soups.stack(base, scaled, 'delta')), merged, 'delta', scaled)
    with pytest.raises(ValueError, match='different weights, ranks or scales'):
        soups.stack(base, scaled)


@pytest.mark.slow
def test_a_single_slot_and_a_mesh_decode_the_same(base, adapters, merged):
    for settings in ({'slots': 1}, {'mesh': devices.make_mesh(data=2, fsdp=2, tensor=2)}):
        check_users(make_decoder(soups.stack(base, adapters), **settings), merged, 'factors', adapters)


@pytest.mark.slow
def test_no_prompt_starts_from_the_cache_of_another_mixture(decoder, base, adapters):
    """A prompt asked under one mixture after the other, and a longer one that goes on from it."""
    fresh = make_decoder(soups.stack(base, adapters), reuse=False)
    for mixture in USERS:
        for prompt in (words(5, 60), words(5, 60) + words(6, 40)):
            before = decoder.counters.reused_tokens
            request = Request(prompt, GREEDY, 0, mixture)
            (found,), (expected,) = decoder([request]), fresh([request])
            assert found.token_ids == expected.token_ids
            assert (decoder.counters.reused_tokens > before) == (len(prompt) == 100)
    same = [Request(words(7, 70), GREEDY, 0, mixture) for mixture in USERS for _ in range(2)]
    assert [x.token_ids for x in decoder(same)] == [x.token_ids for x in fresh(same)]


def test_a_mixture_that_does_not_fit(decoder, base, adapters):
    for mixture, message in (
        ((0.5, 0.5), 'mixture has 2 weights with sum 1, the model 3 adapters to mix'),
        ((0.5, 0.5, 0.5), 'with sum 1.5'),
        ((float('nan'), 0.5, 0.5), 'with sum nan'),
    ):
        with pytest.raises(ValueError, match=message):
            decoder([Request(words(0), GREEDY, 0, mixture)])
    plain = make_decoder(base)
    with pytest.raises(ValueError, match='the model 0 adapters'):
        plain([Request(words(0), GREEDY, 0, (1.0,))])
    under_way = make_decoder(soups.stack(base, adapters))
    under_way.add(Request(words(0), GREEDY, 0, USERS[0]))
    with pytest.raises(ValueError, match='the model 2 adapters'):
        under_way.load(soups.stack(base, adapters[:2]))


@pytest.mark.slow
def test_a_user_s_mixture_comes_over_http(decoder, serve, merged, adapters):
    with serve(make_app(Driver(decoder), TOKENIZER, model='soup')) as address:
        asked = {'prompt': list(words(0)), 'max_tokens': 10, 'temperature': 0.0}
        texts = []
        for mixture in (USERS[0], USERS[2]):
            answer = httpx.post(f'{address}/v1/completions', json=asked | {'mixture': mixture}, timeout=60)
            texts.append(answer.json()['choices'][0]['text'])
        expected = [merged('factors', adapters, mixture, [words(0)])[0] for mixture in (USERS[0], USERS[2])]
        before = TOKENIZER.text_of(words(0))  # which may end within a character that the answer goes on with
        assert texts == [TOKENIZER.text_of([*words(0), *tokens]).removeprefix(before) for tokens in expected]
        refused = httpx.post(f'{address}/v1/completions', json=asked | {'mixture': [1, 1]}, timeout=60)
        assert refused.status_code == 400
        assert 'the model 3 adapters' in refused.json()['error']['message']
