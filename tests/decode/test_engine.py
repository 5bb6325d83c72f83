"""The engine against the full forward pass, and the driver's promises."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode import engine
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import Request, bucket, for_slots
from pal_jax.models import config, decoder, lora, params
from pal_jax.run import devices
from pal_jax.types import Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
GREEDY = Sampling(temperature=0.0, max_tokens=12)


@pytest.fixture(scope='module')
def weights():
    # Larger than usual, so that greedy tokens differ from place to place.
    return jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params.init(params.decoder_specs(CFG), jax.random.key(0)))


@pytest.fixture(scope='module')
def driver(weights):
    driver = LocalDecoder(
        CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, prefill_rows=4, stride=3
    )
    driver.load(weights)
    return driver


@functools.partial(jax.jit, static_argnums=2)
def all_logits(weights, tokens, cfg):
    ones = jnp.ones_like(tokens)
    hidden = decoder.forward(weights, cfg, tokens, jnp.arange(tokens.shape[1])[None], ones, ones)
    return decoder.unembed(weights, cfg, hidden)[0]


def full_logits(weights, tokens, cfg=CFG):
    padded = jnp.zeros((1, 64 if len(tokens) <= 64 else 128), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens))
    return np.asarray(all_logits(weights, padded, cfg))[: len(tokens)]


def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def prompt(seed, length):
    return tuple(np.random.default_rng(seed).integers(0, 250, length).tolist())


def test_greedy_tokens_and_logprobs_are_those_of_the_full_forward(weights, driver):
    requests = [Request(prompt(i, 5 + 9 * i), GREEDY, seed=i) for i in range(5)]
    for request, completion in zip(requests, driver(requests), strict=True):
        tokens = list(request.prompt_ids)
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            logits = full_logits(weights, tokens)[-1]
            assert token == int(logits.argmax())
            assert logprob == pytest.approx(float(jax.nn.log_softmax(logits)[token]), abs=2e-4)
            tokens.append(token)


KINDS = {
    'gemma': dict(
        pattern=(config.LayerKind(5, 'local'), config.LayerKind()), qk_norm=True, post_norms=True, norm_offset=1.0,
        scale_embed=True, activation='gelu_tanh', query_scalar=9, attn_softcap=2.0, final_softcap=3.0,
    ),
    'baichuan': dict(alibi=True, pattern=(config.LayerKind(rope='none'),), unit_head=True, tie_embed=False),
}  # fmt: skip


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('slots', [8, pytest.param(1, marks=pytest.mark.slow)])
def test_every_kind_of_layer_decodes_as_it_is_trained(name, slots):
    """A prompt in two chunks, so that the second reads a cache, and tokens that see no further than a window."""
    cfg = dataclasses.replace(CFG, **KINDS[name])
    weights = params.init(params.decoder_specs(cfg), jax.random.key(1))
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x + 0.1, weights)
    driver = LocalDecoder(cfg, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=slots, chunk=64)
    driver.load(weights)
    (completion,) = driver([Request(prompt(3, 100), GREEDY, seed=0)])
    logits = full_logits(weights, [*prompt(3, 100), *completion.token_ids], cfg)[99:-1]
    assert logits.argmax(-1).tolist() == list(completion.token_ids)
    expected = jax.nn.log_softmax(logits)[np.arange(len(logits)), np.array(completion.token_ids)]
    np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)


def test_a_result_does_not_depend_on_its_neighbours(driver):
    sampling = Sampling(temperature=1.0, max_tokens=10)
    request = Request(prompt(1, 20), sampling, seed=7)
    others = [Request(prompt(i, 3 + i), Sampling(temperature=0.7, max_tokens=3 + i), seed=i) for i in range(12)]
    (alone,), crowd = driver([request]), driver([*others[:6], request, *others[6:]])
    assert crowd[6].token_ids == alone.token_ids
    assert len({c.token_ids for c in driver([dataclasses.replace(request, seed=s) for s in range(6)])}) > 1


def test_more_requests_than_slots_come_back_in_order_and_reuse_slots(driver):
    requests = [
        Request(prompt(i, 4 + i % 7), Sampling(temperature=0.0, max_tokens=1 + i % 5), seed=0) for i in range(20)
    ]
    told = []
    completions = driver(requests, lambda place, each: told.append((place, each)))
    assert [place for place, _ in told] != list(range(20))  # each is told when it ends, with its place
    assert [each for _, each in sorted(told, key=lambda entry: entry[0])] == completions
    for i, completion in enumerate(completions):
        limit = 1 + i % 5
        assert len(completion.token_ids) == limit or completion.finish_reason == 'stop'
        assert completion.token_ids == driver([requests[i]])[0].token_ids


def test_stop_ids_and_stop_strings_end_a_completion_and_stay_in_it(driver):
    (free,) = driver([Request(prompt(3, 9), GREEDY, seed=0)])
    stop = TOKENIZER.text_of(free.token_ids[4:6])
    (stopped,) = driver([Request(prompt(3, 9), dataclasses.replace(GREEDY, stop=(stop,)), seed=0)])
    assert stopped.finish_reason == 'stop'
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert stop in stopped.text
    assert stop not in TOKENIZER.text_of(stopped.token_ids[:-1])


def test_an_end_of_turn_token_is_returned_and_not_in_the_text(weights):
    stop_id = TOKENIZER.stop_ids[0]
    tied = dict(weights, embed=weights['embed'].at[stop_id].mul(40.0))
    driver = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8)
    driver.load(tied)
    completions = driver([Request(prompt(i, 6), Sampling(max_tokens=20), seed=i) for i in range(8)])
    ended = [c for c in completions if c.finish_reason == 'stop']
    assert ended
    for completion in ended:
        assert completion.token_ids[-1] == stop_id
        assert completion.text == TOKENIZER.text_of(completion.token_ids[:-1])


def test_new_weights_reach_the_engine(weights):
    driver = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8)
    request = Request(prompt(5, 12), GREEDY, seed=0)
    driver.load(weights)
    (before,) = driver([request])
    changed = jax.tree.map(lambda x: x * 1.5, weights)
    driver.load(changed)
    (after,) = driver([request])
    logits = full_logits(changed, list(request.prompt_ids))[-1]
    assert after.logprobs[0] == pytest.approx(float(jax.nn.log_softmax(logits).max()), abs=2e-4)
    assert after.logprobs[0] != before.logprobs[0]


def test_trained_adapters_reach_the_engine_merged(weights):
    attached = lora.attach(weights, rank=2, alpha=4.0, targets='all-linear', key=jax.random.key(1))
    trainable, frozen = lora.split(attached)
    trained = lora.join(
        jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), trainable), frozen
    )
    decoder = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8)
    request = Request(prompt(5, 12), GREEDY, seed=0)
    decoder.load(weights)
    (before,) = decoder([request])
    decoder.load(jax.jit(lora.merge)(trained), version=1)
    (after,) = decoder([request])
    logits = full_logits(trained, list(request.prompt_ids))[-1]  # adapters applied, not merged
    assert after.logprobs[0] == pytest.approx(float(jax.nn.log_softmax(logits).max()), abs=2e-3)
    assert abs(after.logprobs[0] - before.logprobs[0]) > 0.01
    assert set(after.versions) == {1}


@pytest.mark.slow
def test_no_more_programs_are_compiled_than_there_are_sizes(weights):
    programs_of.cache_clear()  # of decoders of this shape in other tests
    decoder = LocalDecoder(
        CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, prefill_rows=4, stride=3, chunk=128
    )
    decoder.load(weights)
    rng = np.random.default_rng(0)

    lengths, news = rng.integers(1, 400, 300).tolist(), rng.integers(1, 12, 300).tolist()
    decoder(
        [
            Request(prompt(i % 6, length), Sampling(float(i % 2), top_k=i % 5, max_tokens=new), i)
            for i, (length, new) in enumerate(zip(lengths, news, strict=True))
        ]
    )
    caches, chunks, rows = 4, 2, 2  # 128 to 512 long; 64 and 128 tokens; one prompt or a batch
    assert decoder._programs.generate._cache_size() <= caches
    assert decoder._programs.prefill._cache_size() <= rows * chunks
    assert decoder._programs.extend._cache_size() <= rows * chunks * caches
    assert decoder._programs.insert._cache_size() <= (1 + rows * chunks) * caches


def test_misuse_is_told_plainly(driver):
    with pytest.raises(RuntimeError, match='no weights'):
        LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]))([Request((1,), GREEDY, 0)])
    with pytest.raises(ValueError, match=r'need 1112 tokens, the model has room for 1024'):
        driver([Request(prompt(0, 1100), GREEDY, 0)])
    assert driver([]) == []


def test_a_cpu_decodes_by_eights_or_alone():
    assert [for_slots(CFG, slots)[1] for slots in (1, 2, 8, 25)] == [1, 8, 8, 32]
    assert for_slots(CFG, 25, 'gpu') == (CFG, 25)


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_a_decoder_reads_prompts_with_the_attention_of_the_training(platform):
    cfg = devices.for_platform(CFG, platform=platform)
    decoder = LocalDecoder(cfg, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]))
    assert decoder.cfg.attention == devices.ATTENTION[platform]


def test_a_decoder_of_one_slot_decodes_the_same_one_after_the_other(weights, driver):
    single = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=1)
    single.load(weights)
    requests = [Request(prompt(i, 20), GREEDY, seed=0) for i in range(3)]
    assert single.slots == 1
    for found, expected in zip(single(requests), driver(requests), strict=True):
        assert found.token_ids == expected.token_ids
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)


def test_eight_bit_weights_change_logprobs_a_little(weights, driver):
    small = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, int8=True)
    small.load(jax.tree.map(lambda x: x / 4, weights))
    driver.load(jax.tree.map(lambda x: x / 4, weights))
    requests = [Request(prompt(i, 30), Sampling(temperature=0.0, max_tokens=1), seed=0) for i in range(8)]
    found, expected = small(requests), driver(requests)
    driver.load(weights)
    off = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(found, expected, strict=True)]
    assert 0 < max(off) < 0.1
    bits = jax.tree.leaves(small._weights['layers'][0]['mlp'])
    assert (
        sum(x.nbytes for x in bits)
        < 0.3 * sum(x.nbytes for x in jax.tree.leaves(weights['layers']['mlp'])) / CFG.layers
    )


def test_no_program_moves_whole_caches_between_devices(weights):
    decoder = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(2, 2, 2), slots=16, prefill_rows=4)
    decoder.load(jax.device_put(weights, decoder.param_shardings))
    decoder.add(Request(prompt(0, 40), GREEDY, seed=0))
    decoder.step()
    program = decoder._programs.generate.lower(decoder._weights, decoder._state).compile().as_text()
    moved = re.findall(r'= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute|all-reduce)\(', program)
    assert moved  # of a token's activations
    assert (
        max(int(np.prod([int(n) for n in shape.split(',') if n])) for shape in moved) < decoder._state.keys[0].size / 8
    )


@pytest.mark.parametrize(('platform', 'barriers'), [('cpu', 1), ('tpu', 1), ('cuda', 0)])
def test_a_gpu_does_not_write_exponentials_before_it_sums_them(platform, barriers):
    traced = jax.jit(engine.sampling.log_sum_exp).trace(jax.ShapeDtypeStruct((2, 300), jnp.float32))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count('optimization_barrier') == barriers


def test_buckets_are_few_and_a_third_padding_at_most():
    sizes = [bucket(n, 64) for n in (1, 64, 65, 129, 200, 257, 390, 600)]
    assert sizes == [64, 64, 128, 192, 256, 384, 512, 768]
    assert all(n <= bucket(n, 128) <= max(1.5 * n, n + 127) for n in range(1, 5000))
    assert len({bucket(n, 128) for n in range(1, 4097)}) == 10


@pytest.mark.parametrize(
    'shape',
    [pytest.param(shape, marks=pytest.mark.slow) for shape in ((2, 2, 2), (8, 1, 1), (1, 4, 2))],
)
def test_slots_and_heads_spread_over_a_mesh_decode_the_same(weights, driver, shape):
    system = prompt(50, 80)
    requests = [Request(system + prompt(i, 5 + 9 * i), GREEDY, seed=i) for i in range(9)]
    meshed = LocalDecoder(CFG, TOKENIZER, devices.make_mesh(*shape), slots=8, prefill_rows=4, stride=3)
    meshed.load(jax.device_put(weights, meshed.param_shardings))
    for found, expected in zip(meshed(requests), driver(requests), strict=True):
        assert found.token_ids == expected.token_ids
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)
    cache = meshed._state.keys[0]  # what `release` would drop
    assert cache.sharding.shard_shape(cache.shape)[:2] == (8 // (shape[0] * shape[1]), CFG.kv_heads // shape[2])


@pytest.mark.parametrize('axis', [1, 2])
def test_caches_are_written_alike_on_every_platform(axis):
    rng = np.random.default_rng(0)
    size = [3, 2, 5, 5]
    rows = rng.normal(size=size).astype(np.float32)
    size[1 + axis] = 2
    new, start = rng.normal(size=size).astype(np.float32), np.array([0, 3, 1])
    wanted = rows.copy()
    for n, at in enumerate(start):
        where = [n, slice(None), slice(None), slice(None)]
        where[1 + axis] = slice(at, at + 2)
        wanted[tuple(where)] = new[n]
    for way in (engine.write_by_slices, engine.write_by_scatter):
        np.testing.assert_array_equal(way(jnp.asarray(rows), jnp.asarray(new), jnp.asarray(start), axis=axis), wanted)
