"""Lower bounds of AllReduce against golden numbers, and that no schedule is below them."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import numpy as np
import pytest

from pal_jax.envs.arrays import allreduce
from pal_jax.envs.arrays import topology as t
from pal_jax.evals import allreduce_bounds as b

TWO_RINGS = nx.disjoint_union(nx.cycle_graph(4), nx.cycle_graph(4))
TWO_RINGS.add_edge(0, 4)


@pytest.mark.parametrize(
    ('network', 'gather', 'programme', 'cut', 'hops', 'rounds'),
    [
        (t.bcube(2, 1), Fraction(3, 2), 3, 2, 4, 4),
        (t.bcube(3, 1), 4, 8, Fraction(9, 2), 4, 8),
        (t.dcell(2, 1), Fraction(5, 2), 5, 3, 6, 6),
        (t.ring(8), Fraction(7, 2), 7, 4, 8, 8),
        (t.Topology('two rings', 8, TWO_RINGS), 4, 8, 8, None, None),
        (t.Topology('path', 4, nx.path_graph(4)), 3, 4, 4, 6, 6),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_bounds_are_the_golden_ones(network, gather, programme, cut, hops, rounds):
    found = b.bounds(network)
    assert found.gather == gather
    assert found.programme == pytest.approx(programme, abs=1e-6)
    assert found.cut == cut
    if hops is not None:
        assert (found.hops, found.rounds) == (hops, rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'gather', 'programme', 'rounds'),
    [
        (t.bcube(4, 1), Fraction(15, 2), 15, 15), (t.dcell(3, 1), Fraction(11, 2), 11, 11),
        (t.torus(4, 4), Fraction(15, 4), 7.5, 8),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)  # fmt: skip
def test_bounds_of_larger_networks_are_the_golden_ones(network, gather, programme, rounds):
    found = b.bounds(network)
    assert (found.gather, found.rounds) == (gather, rounds)
    assert found.programme == pytest.approx(programme, abs=1e-6)


def test_the_golden_jellyfish():
    cables = '0-3 0-5 0-7 1-2 1-4 1-6 2-3 2-8 3-5 4-6 4-9 5-8 6-9 7-8 7-9'
    graph = nx.Graph((10 + int(u), 10 + int(v)) for u, v in (pair.split('-') for pair in cables.split()))
    graph.add_edges_from((server, 10 + server) for server in range(10))
    network = t.Topology('J', 10, graph)
    assert b.gather_rounds(network) == 9
    assert b.cut_rounds(network) == 10
    assert b.programme_rounds(network) == pytest.approx(18, abs=1e-6)


@pytest.mark.parametrize('network', [t.bcube(2, 1), t.ring(5), t.torus(2, 3), t.fat_tree(2)], ids=lambda n: n.name)
def test_no_schedule_is_below_the_bound(network):
    least = b.bounds(network).rounds
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for trees in (allreduce.random_trees, allreduce.spread_trees):
            work = allreduce.workloads(network, trees(network, rng))
            assert len(allreduce.deepest_first(work, rng)) >= least
