"""Decoders side by side give what each gives alone on its share."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from pal_jax.decode.choose import choose_decoder
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.programs import Programs
from pal_jax.decode.requests import Request, completion_of
from pal_jax.decode.shares import SharedDecoder, on_mesh
from pal_jax.models import params
from pal_jax.models.config import tiny
from pal_jax.models.files import sources
from pal_jax.models.params import decoder_specs
from pal_jax.run import devices, sharding
from pal_jax.run.processes import Shares
from pal_jax.types import Completion, Sampling


def test_a_completion_is_the_same_after_json():
    one = Completion('a \udcff \x00 "', (1, 2), (-0.1, -1e-30), 'stop', (-1 / 3, -2.0), (0, 0))
    assert completion_of(json.loads(json.dumps(dataclasses.asdict(one)))) == one


@pytest.mark.parametrize('address', ['', 'elsewhere:1'])
def test_other_drivers_have_no_shares(address):
    source, mesh = sources.resolve('random:tiny'), devices.make_mesh()
    with pytest.raises(ValueError, match="decode.shares=2 is for decode.driver='local' alone"):
        choose_decoder(
            source.config, source.tokenizer(), mesh, driver='jetstream', address=address, slots=8, stride=2,
            shares=Shares(2),
        )  # fmt: skip


def test_a_part_of_a_mesh_holds_its_buffers():
    wide = devices.divide(devices.make_mesh(fsdp=4, tensor=2), 2)
    part = jax.sharding.Mesh(wide.devices[1:], wide.axis_names, axis_types=wide.axis_types)
    values = jax.numpy.arange(8.0).reshape(2, 4)
    spread = jax.device_put(values, sharding.sharding(wide, (None, 'mlp')))
    taken = on_mesh(spread, part)
    assert taken.sharding.device_set == set(wide.devices[1].flat)
    assert (jax.numpy.asarray(taken) == values).all()
    buffers = {shard.device: shard.data.unsafe_buffer_pointer() for shard in spread.addressable_shards}
    assert all(shard.data.unsafe_buffer_pointer() == buffers[shard.device] for shard in taken.addressable_shards)


def test_published_weights_are_cut_where_a_part_has_fewer_devices_than_the_tensor_axis():
    cfg = dataclasses.replace(tiny(), kv_heads=4)
    mesh = devices.make_mesh(fsdp=2, tensor=4)
    wide = devices.divide(mesh, 4)
    assert wide.shape == {'data': 4, 'fsdp': 1, 'tensor': 2}
    specs = decoder_specs(cfg)
    ordered = jax.sharding.Mesh(wide.devices.reshape(1, 2, 4), wide.axis_names, axis_types=wide.axis_types)
    plain = jax.device_put(params.init(specs, jax.random.key(0)), sharding.param_shardings(specs, ordered))
    published = Programs(cfg, wide, slots=8).publish(plain)
    layer = published['layers'][1]
    for name, axis in (('q', 0), ('k', 0), ('v', 0), ('o', 1)):  # with their output axes first
        w = layer['attn'][name].values
        assert w.sharding.shard_shape(w.shape)[axis] == w.shape[axis] // 2, name
    for name, axis in (('gate', 0), ('up', 0), ('down', 1)):
        w = layer['mlp'][name].values
        assert w.sharding.shard_shape(w.shape)[axis] == w.shape[axis] // 2, name
    assert published['embed'].sharding.shard_shape((cfg.vocab, cfg.width)) == (cfg.vocab // 2, cfg.width)
    assert (layer['mlp']['up'].values == plain['layers']['mlp']['up'][1].T.astype(cfg.dtype)).all()


@pytest.mark.slow
@pytest.mark.parametrize('int8', [False, True])
def test_shares_sample_what_their_decoders_sample_alone(int8):
    source = sources.resolve('random:tiny')
    cfg, tokenizer = devices.for_platform(source.config, 'float32'), source.tokenizer()
    mesh = devices.make_mesh(fsdp=4, tensor=2)
    weights = source.load(sharding.param_shardings(decoder_specs(cfg), mesh))
    shared = SharedDecoder(cfg, tokenizer, mesh, Shares(2), slots=16, int8=int8)
    shared.load(weights, 3)
    texts = [tuple(tokenizer.encode(f'number {i}: ' + 'word ' * i)) for i in range(10)]
    requests = [Request(text, Sampling(0.7, max_tokens=12), seed) for seed, text in enumerate(texts)]
    told = {}
    together = shared(requests, told.__setitem__)
    assert [told[place] for place in range(10)] == together
    for part, half in enumerate((requests[:5], requests[5:])):
        own = devices.make_mesh(fsdp=2, tensor=2, devices=mesh.devices.flat[4 * part : 4 * part + 4].tolist())
        alone = LocalDecoder(cfg, tokenizer, own, slots=8, int8=int8)
        alone.load(source.load(), 3)
        assert alone(half) == together[5 * part : 5 * part + 5]
    shared.release()
    with pytest.raises(RuntimeError, match='no weights'):
        shared(requests)
