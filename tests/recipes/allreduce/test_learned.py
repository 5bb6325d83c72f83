"""Learned policies of AllReduce: what a run leaves, what it refuses, and runs that are stopped."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pal_jax.recipes.allreduce import learned as allreduce_learned
from pal_jax.recipes.allreduce import schedules as a
from pal_jax.recipes.allreduce import topology
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from tests import configs

ONE = devices.make_mesh(devices=jax.devices()[:1])
SMALL = {'networks': ('ring:4',), 'larger': ('ring:5',), 'total_steps': 2, 'turn': 1, 'updates': 1, 'episodes': 16,
         'samples': 2, 'hidden': (4,), 'symmetric': False}  # fmt: skip


def make(workdir, mesh=ONE, **changes):
    settings = configs.load('allreduce', 'learn', **SMALL | changes)
    return allreduce_learned.make(settings, Context(mesh, workdir=workdir))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    recipe = make(folder)
    state, host = recipe.init()
    kept, phases = [], []
    for i in range(2):
        kept.append(jax.tree.map(np.asarray, state))
        state, host, phase, metrics = recipe.step(state, host, i)
        phases.append(phase)
    return folder, recipe, state, kept, phases, metrics


def moved(one, other):
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


def test_policies_take_turns(run):
    _, recipe, state, kept, phases, metrics = run
    assert phases == ['allreduce_transfers', 'allreduce_trees']
    assert set(metrics) == {'rounds_mean', 'cost_mean', 'entropy'}
    first, second, last = (x['ring:4'] for x in (*kept, state))
    assert moved(first['transfers'], second['transfers']) and not moved(first['trees'], second['trees'])
    assert moved(second['trees'], last['trees']) and not moved(second['transfers'], last['transfers'])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), recipe.plan.abstract)


def test_a_run_goes_on_bit_by_bit(run):
    _, recipe, state, kept, *_ = run
    shardings = jax.tree.map(lambda x: x.sharding, recipe.plan.abstract)
    again, *_ = recipe.step(jax.device_put(kept[1], shardings), {}, 1)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other), state, again)


def test_an_evaluation_writes_schedules_that_add_up(run):
    folder, recipe, state, *_ = run
    evaluation = recipe.evaluate(state, 'final')
    head, *rows = evaluation.exhibits[0].table
    assert [(row[0], row[head.index('trained on it')]) for row in rows] == [('Ring(4)', 'yes'), ('Ring(5)', 'no')]
    for name, network in (('ring-4', topology.ring(4)), ('ring-5', topology.ring(5))):
        rounds, servers = a.load(folder / 'schedules' / f'{name}.json')
        assert servers == network.servers
        a.check(network, rounds)
    assert evaluation.record['learned_to_least'] >= 1.0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'networks': ('cube:2',)}, "'cube:2'"),
        ({'larger': ('ring:4',)}, 'each once'),
        ({'episodes': 12}, 'episodes=12'),
        ({'turn': 0}, 'turn=0'),
    ],
)
def test_wrong_values_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path):
    states = []
    for mesh in (ONE, devices.make_mesh(data=2, fsdp=4)):
        recipe = make(tmp_path, mesh, networks=('bcube:2,1',), larger=(), symmetric=True)
        state, host = recipe.init()
        # A turn of transfers alone: where all trees are as good, gradients are rounding, which Adam enlarges.
        state, *_ = recipe.step(state, host, 0)
        states.append(jax.tree.map(np.asarray, state))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5), *states)


@pytest.mark.long
def test_transfers_learn_on_a_bcube(tmp_path):
    """The gate of the specification: from about 15 rounds to at most 13 in 200 updates, on trees at random."""
    recipe = make(
        tmp_path, networks=('bcube:3,1',), larger=(), total_steps=20, turn=20, updates=10, episodes=64, hidden=(32,)
    )
    state, host = recipe.init()
    means = []
    for i in range(20):
        state, host, _, metrics = recipe.step(state, host, i)
        means.append(metrics['rounds_mean'])
    assert means[0] > 13.0 >= means[-1]
