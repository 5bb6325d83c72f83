"""What the table of held tokens promises, and that a prompt which starts from a cache ends as one which does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.prefixes import Prefixes, common
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Completion, Sampling

TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
GREEDY = Sampling(temperature=0.0, max_tokens=9)


def make_decoder(**settings) -> LocalDecoder:
    return LocalDecoder(CFG, TOKENIZER, devices.make_mesh(devices=jax.devices()[:1]), slots=8, **settings)


@pytest.fixture(scope='module')
def weights():
    return [
        jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params.init(params.decoder_specs(CFG), jax.random.key(seed)))
        for seed in range(2)
    ]


@pytest.fixture(scope='module')
def reusing():
    return make_decoder(chunk=64, prefill_rows=4, grain=512)


@pytest.fixture(scope='module')
def computing():
    return make_decoder(reuse=False)


def words(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 250, length).tolist())


def ask(prompt: tuple[int, ...], seed: int = 0, **settings) -> Request:
    return Request(prompt, dataclasses.replace(GREEDY, **settings), seed)


def completions(decoder: LocalDecoder, news: Sequence[RequestProgress] = ()) -> dict[int, Completion]:
    """Steps until every request has ended."""
    news = list(news)
    while decoder.free < decoder.slots:
        news += decoder.step()
    return {each.number: each.completion for each in news if each.completion}


def assert_same(found: Completion, expected: Completion) -> None:
    assert found.token_ids == expected.token_ids
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)
    assert found.versions == expected.versions


def test_the_table_finds_the_longest_beginning():
    table = Prefixes(4)
    assert table.longest((1, 2, 3)) == (0, 0)
    table.write(1, 0, (1, 2, 3, 4))
    table.write(2, 0, (1, 2, 9))
    assert table.longest((1, 2, 3, 9)) == (1, 3)
    assert table.longest((1, 2, 9, 9, 9)) == (2, 3)
    assert table.longest((1, 2)) == (1, 2)  # the least recently used of equals
    assert table.longest((5,))[1] == 0
    table.forget(1, 2)
    assert table.longest((1, 2, 3, 4)) == (1, 2)
    table.write(1, 2, (7,))
    assert (table.longest((1, 2, 7, 7)), table.held(1)) == ((1, 3), 3)
    table.write(3, 5, (1, 2))  # a gap before it: nothing can start from there
    assert table.longest((1, 2, 7)) == (1, 3)
    assert [table.oldest([0, 1, 2]), table.oldest([1, 2])] == [0, 2]
    table.clear()
    assert table.longest((1, 2, 7)) == (0, 0)


def test_an_entry_is_of_its_weights_and_of_its_mixture():
    table = Prefixes(3)
    table.write(0, 0, (1, 2, 3), weights=1)
    table.write(1, 0, (1, 2), (0.5, 0.5), weights=2)
    assert table.longest((1, 2, 3), weights=1) == (0, 3)
    assert table.longest((1, 2, 3), weights=2)[1] == table.longest((1, 2, 3), (0.5, 0.5), weights=1)[1] == 0
    assert table.longest((1, 2, 3), (0.5, 0.5), weights=2) == (1, 2)


def test_common_counts_equal_first_tokens():
    assert [common((), (1,)), common((1, 2), (1, 2, 3)), common((1, 2, 3), (1, 5, 3)), common((4,), (5,))] == [
        0,
        2,
        1,
        0,
    ]


@pytest.mark.slow
@pytest.mark.parametrize('length', [1, 2, 63, 64, 65, 128, 200, 300])
def test_a_prompt_in_chunks_ends_as_one_in_a_piece(weights, reusing, computing, length):
    for decoder in (reusing, computing):
        decoder.load(weights[0])
    assert_same(reusing([ask(words(length, length))])[0], computing([ask(words(length, length))])[0])


def test_prompts_of_one_beginning_compute_it_once(weights, reusing, computing):
    system = words(0, 100)
    requests = [ask(system + words(seed, 5 + 20 * seed)) for seed in range(1, 6)]
    expected = []
    for decoder in (computing, reusing):
        decoder.load(weights[0])
        before = dataclasses.replace(decoder.counters)
        expected, found = decoder(requests), expected
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)
    assert reusing.counters.reused_tokens - before.reused_tokens == 4 * len(system)
    computed = reusing.counters.prompt_tokens - before.prompt_tokens
    assert computed == sum(len(request.prompt_ids) for request in requests) - 4 * len(system)


def test_caches_are_as_long_as_prompts_and_answers_wherever_prompts_start(weights, computing):
    reusing = make_decoder(chunk=64, prefill_rows=4)
    system, found = words(0, 70), []
    requests = [ask(system + words(seed, 48), seed, max_tokens=10) for seed in range(3)]
    for decoder in (reusing, computing):
        decoder.load(weights[0])
        decoder.reset()
        found.append(decoder(requests))
        assert decoder._state and decoder._state.capacity == 128  # 70 in it and 64 to compute are more
    assert reusing.counters.reused_tokens
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_samples_of_one_prompt_compute_it_once(weights, reusing):
    reusing.load(weights[0])
    before = reusing.counters.prompt_tokens
    samples = reusing([ask(words(3, 90), seed, temperature=1.0) for seed in range(8)])
    assert reusing.counters.prompt_tokens - before == 90
    assert len({sample.token_ids for sample in samples}) == 8


def test_a_dialogue_of_six_rounds_computes_each_token_once(weights, reusing, computing):
    for decoder in (reusing, computing):
        decoder.load(weights[0])
    before = dataclasses.replace(reusing.counters)
    prompt = words(0, 70)
    for turn in range(6):
        others = [ask(words(1000 + 10 * turn + i, 40 + i)) for i in range(3)]  # other people talk in between
        completion, *_ = reusing([ask(prompt), *others])
        assert_same(completion, computing([ask(prompt)])[0])
        computed = reusing.counters.prompt_tokens - before.prompt_tokens - sum(len(o.prompt_ids) for o in others)
        before = dataclasses.replace(reusing.counters)
        # The last token of an answer was sampled but never read: it is computed with what the user says next.
        assert computed == (70 if turn == 0 else 1 + 30)
        prompt = (*prompt, *completion.token_ids, *words(50 + turn, 30))


def test_new_weights_make_caches_worthless(weights, reusing, computing):
    prompt = words(7, 150)
    for version in (0, 1):
        reusing.load(weights[version], version)
        computing.load(weights[version], version)
        before = reusing.counters.reused_tokens
        first, again = reusing([ask(prompt)])[0], reusing([ask(prompt)])[0]
        assert_same(first, computing([ask(prompt)])[0])
        assert_same(again, first)
        assert reusing.counters.reused_tokens - before == len(prompt) - 1  # by the second, of the same weights


@pytest.mark.parametrize('length', [1, 2, 70])
@pytest.mark.parametrize('versions', [(0, 1), (0, 0)])
def test_what_began_under_old_weights_is_of_no_use_to_new_ones(weights, reusing, computing, length, versions):
    reusing.load(weights[0], versions[0])
    prompt = words(1, length)
    asked = [ask(prompt, max_tokens=24), ask(prompt, 1, temperature=1.0, max_tokens=24)]
    numbers, news = [reusing.add(request) for request in asked], []
    for _ in range(5):
        news += reusing.step()
    reusing.load(weights[1], versions[1])
    computing.load(weights[1], versions[1])
    done, before = completions(reusing, news), reusing.counters.reused_tokens
    requests = [ask((*prompt, *done[number].token_ids, 5)) for number in numbers]
    assert_same(reusing(requests[:1])[0], computing(requests[:1])[0])
    assert reusing.counters.reused_tokens == before
    assert_same(reusing(requests[1:])[0], computing(requests[1:])[0])  # may go on from the prompt of the first


def test_weights_that_change_under_a_request_leave_nothing_to_reuse(weights, reusing, computing):
    reusing.load(weights[0], 0)
    decoding, waiting = ask(words(1, 70), max_tokens=20), ask(words(2, 190))
    reusing.add(decoding)
    news = reusing.step()
    number = reusing.add(waiting)
    news += reusing.step()  # the first of its three chunks
    reusing.load(weights[1], 1)
    computing.load(weights[1], 1)
    assert_same(completions(reusing, news)[number], computing([waiting])[0])
    before = reusing.counters.reused_tokens
    assert_same(reusing([ask(words(1, 70))])[0], computing([ask(words(1, 70))])[0])
    assert reusing.counters.reused_tokens == before


def test_a_prompt_whose_first_asker_leaves_half_way_is_computed_again(weights, reusing, computing):
    reusing.load(weights[0])
    computing.load(weights[0])
    reusing.add(ask(words(9, 40), max_tokens=30))
    reusing.step()
    first, second = (reusing.add(ask(words(8, 250), seed)) for seed in (0, 1))
    reusing.step()
    aborted = reusing.cancel(first)
    assert aborted is not None and aborted.token_ids == ()
    assert_same(completions(reusing)[second], computing([ask(words(8, 250))])[0])
    assert reusing.free == reusing.slots
