"""Lower bounds of the rounds of an AllReduce on a network, by cuts, ways and the number of sends.

A directed link carries a chunk a round, the buffer is N chunks, and switches neither copy nor add. No bound supposes
that a chunk has a root: two servers may exchange partial sums in one round, and each then has the total of both.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import networkx as nx
import numpy as np
import scipy
from jaxtyping import Int

from pal_jax.recipes.allreduce.topology import Topology

SOURCE, SINK = -1, -2  # the nodes that feed and drain servers in flow problems


class Bounds(NamedTuple):
    """Lower bounds of the number of rounds.

    gather: of an AllGather, by the tightest cut; two of them are no bound of an AllReduce in general.
    sends: of an AllReduce, by the number of all its sends.
    cut: of an AllReduce, by a cut between servers and the ways to it.
    hops: of an AllReduce, by the hops between the two servers that are furthest apart.
    """

    gather: Fraction
    sends: float
    cut: int
    hops: int

    @property
    def rounds(self) -> int:
        """The rounds that any schedule of whole chunks needs at least, with partial sums added wherever they meet."""
        return max(math.ceil(self.sends - 1e-6), self.cut, self.hops)


def bounds(topology: Topology) -> Bounds:
    """All bounds of a network."""
    hops = int(topology.hops().max())
    return Bounds(gather_rounds(topology), send_rounds(topology), cut_rounds(topology), hops)


def gather_rounds(topology: Topology) -> Fraction:
    """The rounds of an AllGather in the fluid limit, exactly: the largest ratio of servers in a set of nodes, which has
    not all of them, to the links that leave it (ForestColl, arXiv 2402.06787)."""
    count = topology.servers
    # The search begins with the ports of a server: all other nodes are a set with this ratio.
    rounds = Fraction(count - 1, min(topology.ports))
    while True:
        # Max-flow tells whether every server can receive a unit from every server in so many rounds.
        graph = nx.DiGraph()
        # Capacities are times the denominator, so that they are whole numbers.
        for u, v in topology.links:
            graph.add_edge(u, v, capacity=rounds.numerator)
        for server in range(count):
            graph.add_edge(SOURCE, server, capacity=rounds.denominator)
        larger = rounds
        for server in range(count):
            value, (side, _) = nx.minimum_cut(graph, SOURCE, server)
            if value < count * rounds.denominator:
                # The minimal cut is a set of nodes with a larger ratio.
                inside = {node for node in side if node != SOURCE}
                leaving = sum(u in inside and v not in inside for u, v in topology.links)
                larger = max(larger, Fraction(sum(node < count for node in inside), leaving))
        if larger == rounds:
            return rounds
        rounds = larger


def cut_rounds(topology: Topology) -> int:
    """The rounds that a cut between servers asks for, the largest number over cuts that are likely to be narrow.

    Every chunk crosses a cut with what the server that is furthest from it contributes, which takes `a` rounds to come
    there, and needs `b` more to the furthest server on the other side. So all N chunks cross within `T - a - b` rounds.
    """
    hops, count = topology.hops(), topology.servers
    # A cut around each server is as far as so many hops.
    sides = {frozenset(np.flatnonzero(hops[s] <= far).tolist()) for s in range(count) for far in range(hops[s].max())}
    graph = nx.DiGraph()
    graph.add_edges_from(topology.links, capacity=1)
    # The other cuts are minimal ones between the first server and every other.
    for server in range(1, count):
        _, (side, _) = nx.minimum_cut(graph, 0, server)
        sides.add(frozenset(node for node in side if node < count))
    return max(_crossing(topology, graph, hops, sorted(side)) for side in sides)


def _crossing(topology: Topology, graph: nx.DiGraph, hops: Int[np.ndarray, 'N N'], side: list[int]) -> int:
    """The rounds that the cut of some servers from all others asks for."""
    other = [server for server in range(topology.servers) if server not in side]
    graph.add_edges_from(((SOURCE, server) for server in side), capacity=len(topology.links))
    graph.add_edges_from(((server, SINK) for server in other), capacity=len(topology.links))
    # The width of the cut is the number of chunks that can cross in a round.
    width = nx.maximum_flow_value(graph, SOURCE, SINK)
    graph.remove_nodes_from([SOURCE, SINK])
    start, end = np.nonzero(topology.number[np.ix_(side, other)] >= 0)  # hops that cross
    # A server of either side is as far from the cut as its nearest server that a hop across begins or ends at.
    ways = hops[np.ix_(side, side)][:, start].min(axis=1), hops[np.ix_(other, other)][:, end].min(axis=1)
    return math.ceil(topology.servers / width) + int(sum(way.max() for way in ways))


def send_rounds(topology: Topology) -> float:
    """The rounds that all sends take if every round has as many as links allow at most."""
    count, hops = topology.servers, len(topology.ends)
    links = topology.taken.T.astype(float)
    # The programme finds the most sends of a round in the fluid limit: no link carries more than one.
    most = scipy.optimize.linprog(-np.ones(hops), A_ub=links, b_ub=np.ones(len(links)), method='highs')
    assert most.success, most.message
    # A chunk takes `2 (N - 1)` sends: when the first server has its sum, `N - 1` have brought the contributions of the
    # others, and every other server needs one more (Harary & Schwenk 1974, for calls of one way).
    return 2 * count * (count - 1) / -float(most.fun)
