"""Lower bounds of AllReduce against golden numbers, and that no schedule is below them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest

from pal_jax.recipes.allreduce import bounds as b
from pal_jax.recipes.allreduce import schedules as allreduce
from pal_jax.recipes.allreduce import symmetry
from pal_jax.recipes.allreduce import topology as t

TWO_RINGS = nx.disjoint_union(nx.cycle_graph(4), nx.cycle_graph(4))
TWO_RINGS.add_edge(0, 4)


@pytest.mark.parametrize(
    ('network', 'gather', 'sends', 'cut', 'hops', 'rounds'),
    [
        (t.bcube(2, 1), Fraction(3, 2), 3, 3, 2, 3),
        (t.bcube(3, 1), 4, 8, 6, 2, 8),
        (t.dcell(2, 1), Fraction(5, 2), 5, 5, 3, 5),
        (t.ring(8), Fraction(7, 2), 7, 7, 4, 7),
        (t.Topology('two rings', 8, TWO_RINGS), 4, 56 / 9, 12, 5, 12),
        (t.Topology('path', 4, nx.path_graph(4)), 3, 4, 6, 3, 6),
        (t.torus(4, 4), Fraction(15, 4), 7.5, 7, 4, 8),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_bounds_are_the_golden_ones(network, gather, sends, cut, hops, rounds):
    found = b.bounds(network)
    assert (found.gather, found.cut, found.hops, found.rounds) == (gather, cut, hops, rounds)
    assert found.sends == pytest.approx(sends, abs=1e-6)


@pytest.mark.parametrize(
    ('network', 'gather', 'rounds'),
    [(t.bcube(4, 1), Fraction(15, 2), 15), (t.dcell(3, 1), Fraction(11, 2), 11)],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_bounds_of_larger_networks_are_the_golden_ones(network, gather, rounds):
    found = b.bounds(network)
    assert (found.gather, found.rounds) == (gather, rounds)


def test_the_golden_jellyfish():
    cables = '0-3 0-5 0-7 1-2 1-4 1-6 2-3 2-8 3-5 4-6 4-9 5-8 6-9 7-8 7-9'
    graph = nx.Graph((10 + int(u), 10 + int(v)) for u, v in (pair.split('-') for pair in cables.split()))
    graph.add_edges_from((server, 10 + server) for server in range(10))
    network = t.Topology('J', 10, graph)
    assert b.gather_rounds(network) == 9
    assert b.cut_rounds(network) >= 10
    assert b.send_rounds(network) == pytest.approx(18, abs=1e-6)


def plans_of_a_chunk(network, rounds):
    """All ways to sum one chunk in so many rounds, each as the links that it takes by round: a search without bounds.

    A server holds the set of those whose contributions it has. A send adds the sender's set to the receiver's where
    they share nothing, or replaces a set that it contains.
    """
    count, hops = network.servers, network.ends
    everyone, plans = (1 << count) - 1, set()

    def after(held, sends):
        new = list(held)
        for src, dst in sends:
            if new[dst] & held[src] and held[src] & new[dst] != new[dst]:
                return None
            new[dst] |= held[src]
        return tuple(new)

    def go(held, taken):
        if all(sums == everyone for sums in held):
            plans.add(taken)
        elif len(taken) < rounds:
            for size in range(len(hops) + 1):
                for sends in itertools.combinations(hops, size):
                    links = [link for send in sends for link in network.routes[send]]
                    if len(set(links)) == len(links) and (new := after(held, sends)):
                        go(new, (*taken, frozenset(links)))

    go(tuple(1 << server for server in range(count)), ())
    return plans


def has_schedule(network, rounds):
    """Whether all chunks fit into so many rounds, by trying every plan of each beside those of the others."""
    plans = {plan + (frozenset(),) * (rounds - len(plan)) for plan in plans_of_a_chunk(network, rounds)}
    # A plan that takes all that another one takes, and more, is never needed.
    plans = [plan for plan in plans if not any(other != plan and within(other, plan) for other in plans)]

    def fits(chunks, free, first):
        return not chunks or any(
            within(plans[number], free)
            and fits(chunks - 1, tuple(map(frozenset.difference, free, plans[number])), number)
            for number in range(first, len(plans))
        )

    return fits(network.servers, (frozenset(range(len(network.links))),) * rounds, 0)


def within(plan, links):
    return all(map(frozenset.issubset, plan, links))


@pytest.mark.parametrize(
    ('network', 'least'),
    [(t.Topology('pair', 2, nx.path_graph(2)), 2), (t.Topology('path', 3, nx.path_graph(3)), 4), (t.ring(3), 2)],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_a_search_without_bounds_finds_no_fewer_rounds(network, least):
    """Without bounds the numbers of rounds are tried from one on. A chunk has no root here."""
    assert next(rounds for rounds in range(1, 9) if has_schedule(network, rounds)) == least
    assert b.bounds(network).rounds <= least


@pytest.mark.parametrize('network', [t.bcube(2, 1), t.ring(5), t.torus(2, 3), t.fat_tree(2)], ids=lambda n: n.name)
def test_no_schedule_is_below_the_bound(network):
    least = b.bounds(network).rounds
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for trees in (allreduce.random_trees, allreduce.spread_trees):
            work = allreduce.workloads(network, trees(network, rng))
            assert len(allreduce.deepest_first(work, rng)) >= least
        assert len(allreduce.exchanged(network, rng, symmetry.free_group(network))) >= least
