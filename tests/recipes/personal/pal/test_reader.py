"""A decoder that reads texts: vectors are those of texts by themselves, its gradient is that of the loss of these."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.data.texts import Text
from pal_jax.learners.scorer import decoder_params
from pal_jax.learners.training import Lora
from pal_jax.models import config, decoder, params, states
from pal_jax.models.states import Frame
from pal_jax.recipes.personal.pal.reader import Batching, Reader
from pal_jax.run import devices

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
ONE = devices.make_mesh(devices=jax.devices()[:1])
RNG = np.random.default_rng(0)
TEXTS = [Text(tuple(RNG.integers(1, 64, n).tolist()), before) for n, before in
         [(3, ()), (9, ()), (1, ()), (4, (7, 8)), (6, (7, 8)), (2, (9,))]]  # fmt: skip
FRAME = Frame(RNG.normal(size=CFG.width), RNG.normal(size=(CFG.width, 5)))
ADAPTERS = Lora(2, 4.0, 'all-linear')


def make(mesh=ONE, cfg=CFG, **changes):
    changes = {'pool': 'mean', 'frame': FRAME, 'batching': Batching(2, 16), **changes}
    reader = Reader(cfg, optax.sgd(1.0), mesh, **changes)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(1))
    frozen, reading = reader.divide(jax.device_put(weights, reader.param_shardings), 0)
    if reader.adapters:  # new ones change nothing; these do
        trained = jax.tree.map(lambda x: x + 0.1, reading.model.params)
        reading = reading.replace(model=reading.model.replace(params=trained))
    return reader, frozen, reading


def alone(weights, text, pool, frame=FRAME, cfg=CFG):
    ids = jnp.array([[*text.before, *text.tokens]])
    place, ones = jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
    found = decoder.forward(weights, cfg, ids, place, ones, ones)[0, len(text.before) :].astype(jnp.float32)
    found = found.mean(axis=0) if pool == 'mean' else found[-1]
    return (
        found
        if frame is None
        else (found - jnp.asarray(frame.mean, jnp.float32)) @ jnp.asarray(frame.basis, jnp.float32)
    )


@pytest.mark.long
@pytest.mark.parametrize('adapters', [None, ADAPTERS], ids=['full', 'lora'])
@pytest.mark.parametrize(('pool', 'frame'), [('mean', FRAME), ('last', None)])
def test_vectors_are_those_of_texts_by_themselves(pool, frame, adapters):
    reader, frozen, reading = make(pool=pool, frame=frame, adapters=adapters)
    found, weights = reader.read(reading, frozen, TEXTS), reader.weights(reading, frozen)
    for vector, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(vector, alone(weights, text, pool, frame), atol=3e-5)


@pytest.mark.parametrize('adapters', [None, ADAPTERS], ids=['full', 'lora'])
@pytest.mark.long
def test_its_step_is_down_the_loss_of_all_vectors_together(adapters):
    reader, frozen, reading = make(adapters=adapters)
    before = jax.tree.map(jnp.copy, reading.model.params)

    def loss_of(vectors):  # of all vectors at once, as losses of pairs are
        return jnp.sum(jnp.tanh(vectors @ jnp.ones(5)) * jnp.arange(len(TEXTS))) ** 2 / 100

    def loss(trained):
        weights = decoder_params(trained, frozen)
        return loss_of(jnp.stack([alone(weights, text, 'mean') for text in TEXTS]))

    expected = jax.grad(loss)(before)
    gradient = np.asarray(jax.grad(loss_of)(jnp.asarray(reader.read(reading, frozen, TEXTS))))
    after, metrics = reader.learn(reading, frozen, TEXTS, gradient)
    moved = jax.tree.map(lambda a, b: a - b, before, after.model.params)  # plain descent at rate 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), moved, expected)
    assert metrics['decoder_grad_norm'] == pytest.approx(float(optax.global_norm(expected)), rel=1e-3)


def test_a_gradient_that_is_not_finite_moves_nothing():
    reader, frozen, reading = make()
    before = jax.tree.map(np.array, reading.model.params)
    after, _ = reader.learn(reading, frozen, TEXTS, np.full((len(TEXTS), 5), np.nan, np.float32))
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, before, after.model.params)


def test_no_texts_teach_nothing():
    reader, frozen, reading = make()
    same, metrics = reader.learn(reading, frozen, [], np.zeros((0, 5), np.float32))
    jax.tree.map(np.testing.assert_array_equal, same, reading)
    assert metrics == {}


def test_a_new_reader_reads_as_the_frozen_decoder_does():
    reader = Reader(CFG, optax.sgd(1.0), ONE, pool='last', adapters=ADAPTERS)
    weights = params.init(params.decoder_specs(CFG), jax.random.key(1))
    frozen, reading = reader.divide(weights, 0)
    table = np.zeros((len(TEXTS), CFG.width), np.float32)
    for numbers, vectors in states.hidden_states(weights, CFG, ONE, TEXTS, pool='last'):
        table[numbers] = vectors
    np.testing.assert_allclose(reader.read(reading, frozen, TEXTS), table, atol=1e-5)


def test_adapters_with_dropout_are_refused():
    with pytest.raises(ValueError, match=r'lora.dropout=0.1'):
        make(adapters=Lora(2, 4.0, 'all-linear', 0.1))


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize('adapters', [None, ADAPTERS], ids=['full', 'lora'])
def test_eight_devices_learn_what_one_does(shape, adapters):
    cfg = dataclasses.replace(CFG, kv_heads=4, heads=8, head_dim=8)
    gradient = RNG.normal(size=(len(TEXTS), 5)).astype(np.float32) / 100
    found = []
    for mesh in (ONE, devices.make_mesh(*shape)):
        reader, frozen, reading = make(mesh, cfg, adapters=adapters)
        for _ in range(2):
            reading, _ = reader.learn(reading, frozen, TEXTS, gradient)
        found.append(reader.read(reading, frozen, TEXTS))
    np.testing.assert_allclose(found[1], found[0], atol=2e-4)
