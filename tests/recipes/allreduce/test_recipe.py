"""Plans of AllReduce from their config: bounds, schedules, files, and what is refused."""

from __future__ import annotations

import jax
import networkx as nx
import numpy as np
import pytest

from pal_jax.recipes.allreduce import recipe as allreduce
from pal_jax.recipes.allreduce import schedules as a
from pal_jax.recipes.allreduce import topology
from pal_jax.run import devices
from pal_jax.run.glossary import words_of
from pal_jax.run.recipe import Context
from pal_jax.run.verdict import judge
from tests import configs


def make(workdir, **changes):
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    return allreduce.make(configs.load('allreduce', **changes), Context(mesh, workdir=workdir))


def test_a_run_plans_for_every_network_and_goes_on_where_it_was_stopped(tmp_path):
    nx.write_edgelist(nx.path_graph(4), tmp_path / 'path.edgelist')
    networks = ('bcube:2,1', 'ring:5', str(tmp_path / 'path.edgelist'))
    recipe = make(tmp_path, networks=networks, programme=60.0)
    state, host = recipe.init()
    state, host, phase, metrics = recipe.step(state, host, 0)
    assert (phase, metrics) == ('allreduce', {'rounds': 3.0, 'least_rounds': 3.0, 'to_least': 1.0})
    again = make(tmp_path, networks=networks, programme=60.0)  # parts that are done are files
    for i in (1, 2):
        state, host, *_ = again.step(state, host, i)
    evaluation = again.evaluate(state, 'final')
    table, *pictures = evaluation.exhibits
    head, *rows = table.table
    assert [row[0] for row in rows] == ['BCube(2,1)', 'Ring(5)', 'path']
    assert [row[head.index('at least')] for row in rows] == ['3', '4', '6']
    assert all(exhibit.picture.startswith(b'\x89PNG') for exhibit in pictures)
    assert evaluation.record['to_least'] >= 1.0
    record, greedy = (
        evaluation.record,
        [int(row[head.index('greedy')]) / int(row[head.index('at least')]) for row in rows],
    )
    best = [float(row[-1]) for row in rows]
    assert record['saved_to_least'] == pytest.approx(np.mean(greedy) - np.mean(best), abs=0.01)
    verdict = judge([], [{'step': 3, 'stage': 'final', **record}], words_of('allreduce'))
    assert 'greedy' in verdict.question and verdict.basis.endswith('of 3 networks.')
    for name, network in (('bcube-2-1', topology.bcube(2, 1)), ('ring-5', topology.ring(5))):
        rounds, servers = a.load(tmp_path / 'schedules' / f'{name}.json')
        assert servers == network.servers
        a.check(network, rounds)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'networks': ('cube:2',)}, r"'cube:2'.*ring:n, torus"),
        ({'networks': ('jellyfish:5,3',)}, r"networks has 'jellyfish:5,3'.*5 switches with 3 links"),
        ({'networks': ()}, 'networks not empty'),
        ({'networks': ('ring:4', 'ring:4')}, 'ring-4 twice'),
        ({'tries': 0}, 'tries=0'),
        ({'programme': -1.0}, r'programme=-1\.0'),
        ({'total_steps': 3}, 'total_steps=3 must be 0'),
    ],
)
def test_wrong_values_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
