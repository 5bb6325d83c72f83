"""Schedules run on eight devices: sums are right, and those of psum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pal_jax.recipes.allreduce import collective, symmetry
from pal_jax.recipes.allreduce import schedules as a
from pal_jax.recipes.allreduce import topology as t

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')


@pytest.fixture(scope='module')
def mesh():
    return Mesh(np.array(jax.devices()[:8]), ('servers',))


def schedules():
    rng = np.random.default_rng(0)
    yield t.ring(8), a.ring_schedule(range(8))
    cube = t.bcube(2, 2)
    yield cube, a.deepest_first(a.workloads(cube, a.random_trees(cube, rng)), rng)
    grid = t.torus(2, 4)
    yield grid, a.there_and_back(grid, a.spread_trees(grid, rng), rng)
    switch = t.bcube(8, 0)  # one switch, whose servers exchange sums
    yield switch, a.exchanged(switch, rng, symmetry.free_group(switch))


SCHEDULES = {network.name: (network, rounds) for network, rounds in schedules()}


@pytest.mark.parametrize('name', SCHEDULES)
def test_integers_add_up_on_eight_devices(mesh, name, tmp_path):
    network, planned = SCHEDULES[name]
    a.save(planned, tmp_path / 'schedule.json', network)
    rounds, _ = a.load(tmp_path / 'schedule.json')
    values = np.random.default_rng(1).integers(-1000, 1000, (8, 13), dtype=np.int32)  # 13 is no multiple of 8
    total = collective.all_reduce(rounds, mesh, 'servers')(jnp.asarray(values))
    np.testing.assert_array_equal(total, np.tile(values.sum(axis=0), (8, 1)))


@pytest.mark.parametrize('name', ['BCube(2,2)'])
def test_gradients_of_an_update_are_those_of_psum(mesh, name):
    rng = np.random.default_rng(2)
    weights, x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 3), (32, 5), (32, 3)))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec('servers'), PartitionSpec('servers')),
        out_specs=PartitionSpec('servers'), check_vma=False,
    )  # fmt: skip
    def gradients(weights, x, y):
        return jax.grad(lambda w: jnp.sum(jnp.square(jnp.tanh(x @ w) - y)))(weights)[None]

    own = jax.jit(gradients)(weights, x, y)
    summed = jax.jit(
        jax.shard_map(
            lambda part: jax.lax.psum(part, 'servers'), mesh=mesh, in_specs=PartitionSpec('servers'),
            out_specs=PartitionSpec(),
        )
    )(own)  # fmt: skip
    total = collective.all_reduce(SCHEDULES[name][1], mesh, 'servers')(own)
    np.testing.assert_allclose(total, np.tile(summed, (8, 1, 1)), rtol=1e-5, atol=1e-5)
    moved = weights - 0.1 * total[3] / 32
    whole = jax.grad(lambda w: jnp.sum(jnp.square(jnp.tanh(x @ w) - y)))(weights)
    np.testing.assert_allclose(moved, weights - 0.1 * whole / 32, rtol=1e-5, atol=1e-5)


def test_a_device_sends_to_one_and_receives_from_one_in_a_step():
    for sends in (sends for _, rounds in SCHEDULES.values() for sends in rounds):
        steps = collective.steps_of(sends, 8)
        assert sum(len(step.pairs) for step in steps) == len(sends)
        for step in steps:
            sources, targets = zip(*step.pairs, strict=True)
            assert len(set(sources)) == len(sources) and len(set(targets)) == len(targets)


def test_a_schedule_of_other_devices_is_refused(mesh):
    with pytest.raises(ValueError, match='8 devices'):
        collective.all_reduce(a.ring_schedule(range(9)), mesh, 'servers')
