"""Symmetries of a network: permutations of its servers that turn hops into hops which share links as before.

A plan for one chunk, moved by a group of symmetries, is a plan for the chunks of all servers that the group reaches
from the first. The group must be free: no symmetry but the identity leaves a server where it is. BCube, DCell, rings
and tori have free groups that reach all servers from one; most random graphs have the identity alone.

Letters: `G` symmetries of a group, `N` servers, `H` hops.
"""

from __future__ import annotations

import dataclasses

import networkx as nx
import numpy as np
from jaxtyping import Bool, Int

from pal_jax.recipes.allreduce.topology import Topology

DRAWS = 100  # symmetries that are drawn
TRIES = 20  # groups that are grown from them, one after the other
BUDGET = 10  # places that a draw tries for each server before it gives up

Symmetry = tuple[int, ...]  # the server that takes the place of each server


@dataclasses.dataclass(frozen=True)
class _Hops:
    """The hops of a network.

    kind: of each pair of servers; pairs of one kind are as far apart and have as many links in their hop.
    number: of each pair's hop, -1 where there is none.
    clash: whether two hops share a link.
    """

    kind: Int[np.ndarray, 'N N']
    number: Int[np.ndarray, 'N N']
    ends: Int[np.ndarray, '2 H']
    clash: Bool[np.ndarray, 'H H']

    def kept_by(self, symmetry: Symmetry) -> bool:
        """True where the symmetry takes hops to hops, those that share a link to hops that do, and no hop to a hop
        that shares a link with it."""
        to = np.array(symmetry)
        image = self.number[to[self.ends[0]], to[self.ends[1]]]
        if (image < 0).any() or self.clash[np.arange(len(image)), image].any():
            return False
        return bool((self.clash[image][:, image] == self.clash).all())


def free_group(topology: Topology, seed: int = 0) -> Int[np.ndarray, 'G N']:
    """The largest free group of symmetries that a search finds: where each symmetry sends each server.

    The first one is the identity. Another seed may find another group.
    """
    rng, hops, identity = np.random.default_rng(seed), _hops(topology), tuple(range(topology.servers))
    drawn = {power for _ in range(DRAWS) for power in _powers(_draw(hops, rng))}
    # A symmetry is of use if the group of its own powers is free and keeps the hops.
    usable = [symmetry for symmetry in sorted(drawn) if _generate([symmetry], hops)]
    best = {identity}
    for _ in range(TRIES):
        group, generators = {identity}, []
        # A group grows by every symmetry that leaves it free; the order decides which group it becomes.
        for i in rng.permutation(len(usable)):
            if usable[i] not in group and (larger := _generate([*generators, usable[i]], hops)):
                group, generators = larger, [*generators, usable[i]]
        best = max(best, group, key=len)
        # A free group has at most as many symmetries as there are servers.
        if len(best) == topology.servers:
            break
    return np.array(sorted(best))


def subgroup(group: Int[np.ndarray, 'G N'], rng: np.random.Generator) -> Int[np.ndarray, 'S N']:
    """The group that one, two or three members of a free group generate, which are drawn at random."""
    # In a free group a symmetry is known by the place of one server.
    row = {int(place): number for number, place in enumerate(group[:, 0])}
    generators = rng.integers(len(group), size=rng.integers(1, 4))
    kept, front = {0}, [0]
    while front:
        front = list({row[int(group[g, group[k, 0]])] for g in generators for k in front} - kept)
        kept.update(front)
    return group[sorted(kept)]


def _hops(topology: Topology) -> _Hops:
    ends, takes = np.array(topology.ends).T, topology.taken.astype(np.float32)
    # A kind is the distance in hops times more than any hop has links, plus the number of links.
    kind = topology.hops() * len(topology.links)
    kind[ends[0], ends[1]] += topology.taken.sum(axis=1)
    return _Hops(kind, topology.number, ends, takes @ takes.T > 0)


def _draw(hops: _Hops, rng: np.random.Generator) -> Symmetry:
    """A permutation at random that keeps the kinds of all pairs; the identity where the search gives up."""
    count = len(hops.kind)
    # In breadth-first order the next server has a neighbour among those with a place, so few places fit it.
    order = list(nx.bfs_tree(nx.Graph(hops.ends.T.tolist()), int(rng.integers(count))))
    places: list[int] = []  # of the first servers of the order
    options = [rng.permutation(count).tolist()]  # not yet tried, of these servers and of the next one
    for _ in range(BUDGET * count):
        if not options[-1]:
            if not places:
                break
            # No place fits the next server, so the one before it tries another.
            options.pop()
            places.pop()
            continue
        places.append(options[-1].pop())
        if len(places) == count:
            return tuple(np.array(places)[np.argsort(order)].tolist())
        # A place fits the next server if its pairs with the places so far are of the kinds of the server's pairs.
        kinds = hops.kind[order[: len(places)], order[len(places)]]
        fits = hops.kind[places] == kinds[:, None]
        free = np.setdiff1d(np.flatnonzero(fits.all(axis=0)), places)
        options.append(rng.permutation(free).tolist())
    return tuple(range(count))


def _powers(symmetry: Symmetry) -> list[Symmetry]:
    """The symmetry applied once, twice and so on, up to the identity."""
    powers, identity = [symmetry], tuple(range(len(symmetry)))
    while powers[-1] != identity:
        powers.append(_after(symmetry, powers[-1]))
    return powers


def _after(second: Symmetry, first: Symmetry) -> Symmetry:
    return tuple(second[server] for server in first)


def _generate(generators: list[Symmetry], hops: _Hops) -> set[Symmetry]:
    """The group of some symmetries; empty where it is not free or does not keep the hops."""
    identity = tuple(range(len(hops.kind)))
    group, front = {identity}, [identity]
    while front:
        front = list({_after(one, other) for one in generators for other in front} - group)
        if any(symmetry[server] == server for symmetry in front for server in identity):
            return set()
        if not all(hops.kept_by(symmetry) for symmetry in front):
            return set()
        group.update(front)
    return group
