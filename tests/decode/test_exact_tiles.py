"""`decode.exact` on an accelerator: sampler and trainer compute the same tiles and kernels. These are interpreted here;
that the compilers for GPUs and TPUs make the same instructions of both is in tests/commands/planning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import exact
from benchmarks.decoders import Endless
from pal_jax.data.packing import pack_rollouts
from pal_jax.decode import requests
from pal_jax.decode.choose import check_exact
from pal_jax.decode.local import LocalDecoder
from pal_jax.models import attention, flash, lora, params, soups, splash, tile_product
from pal_jax.models.config import ModelConfig, exact_config, tiny
from pal_jax.objectives.rounding import by_tile
from pal_jax.run.devices import make_mesh
from pal_jax.types import Sample, Sampling
from tests.decode.test_exact import adapters

TILE = flash.Tile(16, 16)
in_order = pytest.mark.skipif(not attention.adds_in_order(), reason="its attention is that of this processor's trainer")


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run on this machine, and a decoder has no more slots than it is asked for."""
    tiles = flash.Tiles(TILE, TILE, TILE)
    for module, name, settings in (
        (flash, 'flash_attention', {'tiles': tiles}),
        (splash, 'splash_attention', {}),
        (tile_product, 'tile_product', {}),
    ):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True, **settings))
    monkeypatch.setattr(requests, 'EXACT_SLOTS', {'float32': 8, 'bfloat16': 8})


def model(kind: str, dtype: str) -> ModelConfig:
    cfg = dataclasses.replace(tiny(), attention=kind, dtype=dtype, act_dtype=dtype)
    return dataclasses.replace(exact_config(cfg), tile=128)


def off(cfg, weights, *, slots: int, devices: int = 1, apart: int = attention.COLUMNS, new: int = 12) -> float:
    """The largest difference of the sampler's log-probs from those of a score and of an update, on packed rows."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    asked = exact.questions(8, new, cfg.vocab, 40)
    decoder = LocalDecoder(cfg, Endless(cfg.vocab), mesh, slots=slots)
    decoder.load(weights)
    samples = [
        Sample(request.prompt_ids, answer, k // 4, rewards=(0.0,))
        for k, (request, answer) in enumerate(zip(asked, decoder(asked), strict=True))
    ]
    batch = pack_rollouts(samples, n=4, actions=16, mesh=mesh, row_tokens=512, apart=apart, ways=devices)
    acts, sampled = (np.asarray(x) for x in (batch.tokens.acts, batch.sampler_logprobs))
    assert acts.sum() == sum(len(sample.completion.token_ids) for sample in samples)
    with jax.set_mesh(mesh):
        trained = [np.asarray(of(weights, cfg, batch.tokens)) for of in (exact._score, exact._update)]
    return max(float(np.abs(logprobs - sampled)[acts].max()) for logprobs in trained)


@pytest.mark.slow
@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize(
    ('kind', 'dtype', 'slots'),
    [('flash', 'float32', 2), ('flash', 'bfloat16', 16), ('splash', 'float32', 16), ('splash', 'bfloat16', 2)],
)
def test_the_kernels_of_training_sample_its_bits(kind, dtype, slots):
    cfg = model(kind, dtype)
    assert off(cfg, params.init(params.decoder_specs(cfg), jax.random.key(0)), slots=slots) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize('change', [{'apart': 0}, {'tile': 0}])
def test_without_whole_blocks_or_without_tiles_the_bits_are_others(change):
    cfg = model('flash', 'float32')
    weights, apart = params.init(params.decoder_specs(cfg), jax.random.key(0)), change.pop('apart', attention.COLUMNS)
    assert off(dataclasses.replace(cfg, **change), weights, slots=2, apart=apart, new=16) > 0.0


@in_order
@pytest.mark.parametrize('devices', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_tiles_have_the_same_numbers_on_one_device_and_on_two(devices, monkeypatch):
    """Here the attention is that of a CPU, in tiles of 128 tokens."""
    monkeypatch.setattr(requests, 'EXACT_SLOTS', {'float32': 8})
    cfg = dataclasses.replace(tiny(), exact=True, tile=128)
    assert off(cfg, params.init(params.decoder_specs(cfg), jax.random.key(0)), slots=8, devices=devices, apart=0) == 0.0


@in_order
@pytest.mark.parametrize('kind', [pytest.param('plain', marks=pytest.mark.slow), 'factors'])
def test_a_soup_and_adapters_are_scored_as_they_were_sampled(kind, monkeypatch):
    """In tiles a token has the mixture of its request."""
    monkeypatch.setattr(requests, 'EXACT_SLOTS', {'float32': 8})
    cfg = dataclasses.replace(tiny(), exact=True, tile=128)
    plain = params.init(params.decoder_specs(cfg), jax.random.key(0))
    adapted = [adapters(plain, seed) for seed in range(2)]
    weights = lora.join(adapted[0], plain) if kind == 'plain' else soups.stack(plain, adapted, kind=kind)
    decoder = LocalDecoder(cfg, Endless(cfg.vocab), make_mesh(devices=jax.devices()[:1]), slots=4)
    decoder.load(weights)
    asked = [
        requests.Request((5, 6, seed), Sampling(max_tokens=8), seed, mixture=None if kind == 'plain' else mixture)
        for seed, mixture in enumerate([(1.0, 0.0), (0.25, 0.75)])
    ]
    answers = decoder(asked)
    for request, answer in zip(asked, answers, strict=True):
        whole = dataclasses.replace(request, prompt_ids=request.prompt_ids + tuple(answer.token_ids))
        scored = [logprob for piece in decoder.score(whole) for logprob in piece.logprobs]
        assert scored[3:] == list(answer.policy_logprobs)
    # The tiles are the model: without them its numbers are these up to rounding.
    plain_decoder = LocalDecoder(tiny(), Endless(cfg.vocab), make_mesh(devices=jax.devices()[:1]), slots=4)
    plain_decoder.load(lora.merge(weights) if kind == 'plain' else weights)
    for request, answer in zip(asked, plain_decoder(asked), strict=True):
        ours = answers[request.seed]
        assert ours.token_ids == answer.token_ids
        np.testing.assert_allclose(ours.logprobs, answer.logprobs, atol=1e-4)


@pytest.mark.parametrize('by_output', [False, True])
@pytest.mark.parametrize('columns', [40, 4500])
def test_a_product_of_a_tile_is_the_product_at_any_number_of_rows(columns, by_output):
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(300, columns), (columns, 300)]))
    product = functools.partial(tile_product.tile_product, out_dtype='float32', by_output=by_output, interpret=True)
    out = product(x, w.T if by_output else w)
    np.testing.assert_allclose(out, np.asarray(x, np.float64) @ np.asarray(w, np.float64), atol=1e-3)
    np.testing.assert_array_equal(product(x[:7], w.T if by_output else w), out[:7])


def test_a_gradient_through_tiles_is_that_of_all_rows_at_once():
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 6), (6, 3)]))

    def function(w, rows):
        x, shift = rows
        return jnp.tanh(x @ w) + shift[..., None]

    def loss(of, w, x):
        return jnp.sum(of(w, (x, jnp.arange(10).reshape(2, 5))) ** 2)

    tiled = functools.partial(by_tile, function, 4, 'float32')
    np.testing.assert_allclose(loss(tiled, w, x), loss(function, w, x), rtol=1e-6)
    got, want = (jax.grad(functools.partial(loss, of), (0, 1))(w, x) for of in (tiled, function))
    for g, e in zip(got, want, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5)


def test_accelerators_without_the_kernels_are_refused_by_name():
    card = make_mesh(devices=jax.devices()[:1])
    check_exact(dataclasses.replace(tiny(), attention='flash'), card)
    with pytest.raises(ValueError, match='ALiBi'):
        check_exact(dataclasses.replace(tiny(), attention='splash', alibi=True), card)
