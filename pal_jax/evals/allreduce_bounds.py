"""Lower bounds of the rounds of an AllReduce on a network, by cuts and a linear programme (ForestColl, 2402.06787).

A directed link carries a chunk a round, the buffer is N chunks, and switches neither copy nor add. All bounds but the
last are of the fluid limit, in which chunks may be cut as finely as one likes; a schedule of whole chunks takes at
least as many rounds, rounded up.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from pal_jax.envs.arrays.topology import Topology

SOURCE = -1  # the node that feeds every server in flow problems


class Bounds(NamedTuple):
    """Lower bounds of the number of rounds.

    gather: of an AllGather, by the tightest cut; two of them are no bound of an AllReduce in general.
    programme: of an AllReduce that reduces every chunk and then broadcasts it, by linear programme.
    cut: of any AllReduce, by the narrowest cut between servers.
    hops: twice the hops from the root of a chunk to the server that is furthest away.
    """

    gather: Fraction
    programme: float
    cut: Fraction
    hops: int

    @property
    def rounds(self) -> int:
        """The rounds that a schedule of whole chunks needs at least, if each chunk has a root server of its own."""
        return max(math.ceil(self.programme - 1e-6), math.ceil(self.cut), self.hops)


def bounds(topology: Topology) -> Bounds:
    """All bounds of a network."""
    hops = 2 * int(topology.hops().max())
    return Bounds(gather_rounds(topology), programme_rounds(topology), cut_rounds(topology), hops)


def gather_rounds(topology: Topology) -> Fraction:
    """The rounds of an AllGather in the fluid limit, exactly: the largest ratio of servers in a set of nodes, which has
    not all of them, to the links that leave it.

    The search begins with the ports of a server. It asks by max-flow whether every server can receive a unit from every
    server in so many rounds. Where one cannot, the minimal cut is a set of nodes with a larger ratio.
    """
    count = topology.servers
    rounds = Fraction(count - 1, min(topology.ports))
    while True:
        graph = nx.DiGraph()
        for u, v in topology.links:
            graph.add_edge(u, v, capacity=rounds.numerator)
        for server in range(count):
            graph.add_edge(SOURCE, server, capacity=rounds.denominator)
        larger = rounds
        for server in range(count):
            value, (side, _) = nx.minimum_cut(graph, SOURCE, server)
            if value < count * rounds.denominator:
                inside = {node for node in side if node != SOURCE}
                leaving = sum(u in inside and v not in inside for u, v in topology.links)
                larger = max(larger, Fraction(sum(node < count for node in inside), leaving))
        if larger == rounds:
            return rounds
        rounds = larger


def cut_rounds(topology: Topology) -> Fraction:
    """The rounds that `N` chunks take over the narrowest cut between two servers."""
    graph = nx.DiGraph()
    graph.add_edges_from(topology.links, capacity=1)
    narrowest = min(nx.minimum_cut_value(graph, 0, server) for server in range(1, topology.servers))
    return Fraction(topology.servers, int(narrowest))


def programme_rounds(topology: Topology) -> float:
    """The least `T` with capacities `b` to broadcast and `r` to reduce, `b + r <= T` on every link.

    Every server receives N units from the source, one by way of each server, within `b`, and sends N within `r`, which
    is a flow on the reversed links. At a switch as much comes in as goes out, of `b` and of `r`.

    The variables are T, then b and r by link, then for each server the flows within b and within r, by link.
    """
    count, links = topology.servers, topology.links
    size, nodes = len(links), len(topology.graph)
    number = 1 + 2 * size + 2 * count * size
    equal, below = _Rows(), _Rows()
    for e in range(size):
        below.add({1 + e: 1.0, 1 + size + e: 1.0, 0: -1.0}, 0.0)
    for kind in range(2):
        capacity = 1 + kind * size
        for switch in range(count, nodes):
            row = {capacity + e: float((v == switch) - (u == switch)) for e, (u, v) in enumerate(links)}
            equal.add({key: value for key, value in row.items() if value}, 0.0)
        for server in range(count):
            first = 1 + 2 * size + (kind * count + server) * size
            for e in range(size):
                below.add({first + e: 1.0, capacity + e: -1.0}, 0.0)
            # The source gives a unit to every server; the receiver keeps all N.
            for node in range(nodes):
                if node != server:
                    ends = ((v, u) for u, v in links) if kind else iter(links)
                    row = {first + e: float((u == node) - (v == node)) for e, (u, v) in enumerate(ends)}
                    equal.add({key: value for key, value in row.items() if value}, float(node < count))
    objective = np.zeros(number)
    objective[0] = 1.0
    solution = linprog(
        objective, A_ub=below.matrix(number), b_ub=below.right, A_eq=equal.matrix(number), b_eq=equal.right,
        method='highs',
    )  # fmt: skip
    assert solution.success, solution.message
    return float(solution.fun)


class _Rows:
    """Rows of a sparse matrix and their right-hand sides."""

    def __init__(self):
        self.rows: list[dict[int, float]] = []
        self.right: list[float] = []

    def add(self, row: dict[int, float], right: float) -> None:
        self.rows.append(row)
        self.right.append(right)

    def matrix(self, columns: int) -> coo_matrix:
        at = [(i, j, value) for i, row in enumerate(self.rows) for j, value in row.items()]
        i, j, values = zip(*at, strict=True)
        return coo_matrix((values, (i, j)), shape=(len(self.rows), columns))
