"""AllReduce as a schedule of rounds: trees of chunks, the sends that they ask for, and schedules by simple rules.

The buffer of each of N servers is cut into N chunks. Chunk j is reduced up a tree to its root, server j, and then
broadcast down. A send moves one chunk over one hop, takes the hop's directed links for a round, and no link carries
two chunks in a round. A server sends its partial sum once all its children's sums have come, and merges what comes;
what comes in a round can be sent from the next on. The number of rounds is to be small.

A root may have a partner among its children. Both then collect the sums of their sides of the tree, exchange them in
one round and broadcast the total to their sides, which takes a round less than a reduction to the root alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pal_jax.recipes.allreduce.symmetry import subgroup
from pal_jax.recipes.allreduce.topology import Topology, used_links

SEARCH = 200  # steps for each server after which the search for a ring gives up

Parents = Int[np.ndarray, 'N N']  # of each chunk's tree, by server; the root's is -1
Group = Int[np.ndarray, 'G N']  # the server that each symmetry sends each server to (`symmetry.py`)
Partners = Int[np.ndarray, ' N']  # of each chunk's root; -1 where there is none

Op = Literal['reduce', 'copy']


class Send(NamedTuple):
    """A chunk over a hop: `reduce` adds it to what the receiver has, `copy` replaces that."""

    src: int
    dst: int
    chunk: int
    op: Op


Schedule = list[list[Send]]  # the sends of each round


class Workloads(NamedTuple):
    """All sends of a set of trees, `M = 2 N (N - 1)` of them: first those that reduce, then those that broadcast.

    links: the directed links that each send takes.
    needs: `needs[i, j]` says that send `j` has to be done in a round before send `i`.
    depth: the number of sends on the longest chain that begins with each send.
    waiting: the number of sends that wait for each send, directly or through others.
    """

    sends: list[Send]
    links: Bool[np.ndarray, 'M L']
    needs: Bool[np.ndarray, 'M M']
    depth: Int[np.ndarray, ' M']
    waiting: Int[np.ndarray, ' M']


# --- trees ------------------------------------------------------------------------------------------------------------


def random_trees(topology: Topology, rng: np.random.Generator) -> Parents:
    """A breadth-first tree from each server, whose neighbours are visited in random order."""
    count = topology.servers
    parents = np.full((count, count), -1)
    for root in range(count):
        reached, queue = {root}, [root]
        for server in queue:
            for other in rng.permutation(topology.neighbours[server]):
                if other not in reached:
                    reached.add(int(other))
                    queue.append(int(other))
                    parents[root, other] = server
    return parents


def spread_gather(
    topology: Topology, rng: np.random.Generator, group: Group | None = None, partners: Partners | None = None
) -> Schedule:
    """An AllGather whose chunks go on together: round by round every chunk is sent from where it is to where it is not,
    over links that are free, so that chunks share the links evenly.

    Under a free group of symmetries the images of every choice are chosen with it.
    """
    count = topology.servers
    group = np.arange(count)[None] if group is None else group
    has = np.eye(count, dtype=bool)  # [server, chunk]
    if partners is not None:
        # Where a root has a partner its chunk is at both from the start.
        roots = np.flatnonzero(partners >= 0)
        has[partners[roots], roots] = True
    rounds: Schedule = []
    links, (src, dst) = topology.taken, np.array(topology.ends).T
    while not has.all():
        # A chunk that comes in a round goes on from the next, so senders are those of `has`.
        new, sends = has.copy(), []
        free = np.ones(len(topology.links), bool)
        while True:
            open_hops = ~np.any(links & ~free, axis=1)
            useful = has[src] & ~new[dst] & open_hops[:, None]  # [hop, chunk]
            if not useful.any():
                break
            # The server with the fewest ways to be served goes first, then its rarest chunk.
            ways = np.zeros(count)
            np.add.at(ways, dst, useful.any(axis=1))
            rank = ways[dst][:, None] + new.sum(axis=0)[None, :] / (2.0 * count) + rng.random(useful.shape) * 0.5
            hop, chunk = np.unravel_index(np.argmin(np.where(useful, rank, np.inf)), useful.shape)
            # A symmetry takes no hop to one that shares a link with it, so the images of a choice fit in its round.
            for symmetry in group:
                start, end = int(symmetry[src[hop]]), int(symmetry[dst[hop]])
                new[end, symmetry[chunk]] = True
                sends.append(Send(start, end, int(symmetry[chunk]), 'copy'))
                free &= ~links[topology.number[start, end]]
        has = new
        rounds.append(sends)
    return rounds


def spread_trees(topology: Topology, rng: np.random.Generator, group: Group | None = None) -> Parents:
    """The trees of `spread_gather`, whose chunks share the links evenly."""
    parents = np.full((topology.servers, topology.servers), -1)
    for sends in spread_gather(topology, rng, group):
        for send in sends:
            parents[send.chunk, send.dst] = send.src
    return parents


def workloads(topology: Topology, parents: Parents) -> Workloads:
    """The sends that trees ask for, and which of them wait for which."""
    count = topology.servers
    edges = [(chunk, child) for chunk in range(count) for child in range(count) if child != chunk]
    up = {edge: i for i, edge in enumerate(edges)}
    size = len(edges)
    sends = [Send(child, int(parents[chunk, child]), chunk, 'reduce') for chunk, child in edges]
    sends += [Send(int(parents[chunk, child]), child, chunk, 'copy') for chunk, child in edges]
    needs = np.zeros((2 * size, 2 * size), bool)
    for (chunk, child), i in up.items():
        parent = int(parents[chunk, child])
        # The root has the total when all its children's sums are there.
        if parent == chunk:
            roots = [up[chunk, other] for other in range(count) if other != chunk and parents[chunk, other] == chunk]
            needs[size + i, roots] = True
        else:
            # A parent sends its sum after its children, and its children the total after it.
            needs[up[chunk, parent], i] = True
            needs[size + i, size + up[chunk, parent]] = True
    links = topology.taken[[topology.number[send.src, send.dst] for send in sends]]
    depth, waiting = _ahead(needs)
    return Workloads(sends, links, needs, depth, waiting)


def _ahead(needs: Bool[np.ndarray, 'M M']) -> tuple[Int[np.ndarray, ' M'], Int[np.ndarray, ' M']]:
    """The length of the longest chain that begins with each send, and the number of sends that wait for it."""
    step = needs.T.astype(np.float32)  # [i, j]: j waits for i
    depth, waiting, front = np.ones(len(needs), int), needs.T.copy(), np.eye(len(needs), dtype=np.float32)
    for length in range(2, len(needs) + 1):
        # A front has the sends that end a chain of this length from each send.
        front = (front @ step > 0).astype(np.float32)
        if not front.any():
            break
        depth[front.any(axis=1)] = length
        waiting |= front > 0
    return depth, waiting.sum(axis=1)


# --- schedules --------------------------------------------------------------------------------------------------------


def schedule(
    work: Workloads,
    priority: Callable[[Int[np.ndarray, ' E']], Float[np.ndarray, ' E']],
    images: Int[np.ndarray, 'M G'] | None = None,
) -> Schedule:
    """Round by round, take the enabled send of the highest priority that no link forbids, until none is left.

    Args:
      priority: of the enabled sends, by their numbers; called once a round.
      images: the sends that are taken together with each, itself among them; by default itself alone.
    """
    images = np.arange(len(work.sends))[:, None] if images is None else images
    done, rounds = np.zeros(len(work.sends), bool), []
    while not done.all():
        enabled = np.flatnonzero(~done & ~np.any(work.needs & ~done, axis=1))
        free, taken = np.ones(work.links.shape[1], bool), []
        for i in enabled[np.argsort(-priority(enabled), kind='stable')]:
            links = np.any(work.links[images[i]], axis=0)
            if not np.any(links & ~free):
                free &= ~links
                taken.extend(images[i].tolist())
        done[taken] = True
        rounds.append([work.sends[i] for i in taken])
    return rounds


def at_random(work: Workloads, rng: np.random.Generator) -> Schedule:
    """A schedule that takes enabled sends in random order, as many a round as the links allow."""
    return schedule(work, lambda enabled: rng.random(len(enabled)))


def deepest_first(work: Workloads, rng: np.random.Generator, group: Group | None = None) -> Schedule:
    """A schedule that takes the sends with the longest chains behind them first, ties at random.

    Under a free group of symmetries, by which the trees have been made, the images of a send are taken with it.
    """
    images = None
    if group is not None:
        number = {send: i for i, send in enumerate(work.sends)}
        moved = [[Send(int(to[s.src]), int(to[s.dst]), int(to[s.chunk]), s.op) for to in group] for s in work.sends]
        images = np.array([[number[send] for send in sends] for sends in moved])
    return schedule(work, lambda enabled: work.depth[enabled] + rng.random(len(enabled)), images)


def greedy(topology: Topology, rng: np.random.Generator) -> Schedule:
    """A deepest-first schedule on breadth-first trees."""
    return deepest_first(workloads(topology, random_trees(topology, rng)), rng)


def spread(topology: Topology, rng: np.random.Generator, group: Group | None = None) -> Schedule:
    """A deepest-first schedule on trees that are made together; with a group of symmetries, a symmetric one."""
    return deepest_first(workloads(topology, spread_trees(topology, rng, group)), rng, group)


def best_of(rule: Callable[[np.random.Generator], Schedule], tries: int, seed: int) -> Schedule:
    """The shortest of `tries` schedules by a rule."""
    # Each try has a generator of its own, so that more tries leave the earlier ones as they are.
    return min((rule(np.random.default_rng([seed, number])) for number in range(tries)), key=len)


def there_and_back(topology: Topology, parents: Parents, rng: np.random.Generator) -> Schedule:
    """An AllGather on the trees, deepest first, and before it the same sends backwards as the reduction."""
    whole = workloads(topology, parents)
    half = len(whole.sends) // 2
    needs = whole.needs[half:, half:]
    gather = Workloads(whole.sends[half:], whole.links[half:], needs, *_ahead(needs))
    return mirrored(deepest_first(gather, rng))


def mirrored(gather: Schedule, middle: Sequence[list[Send]] = ()) -> Schedule:
    """An AllReduce made of an AllGather: its sends backwards from the last round to the first, which reduce, the rounds
    of the `middle`, and then the AllGather itself."""
    # Links backwards are as free as the links were.
    back = [[Send(send.dst, send.src, send.chunk, 'reduce') for send in sends] for sends in reversed(gather)]
    return [*back, *middle, *gather]


def choose_partners(topology: Topology, rng: np.random.Generator, group: Group) -> Partners:
    """A partner of each root among its neighbours, at random, so that symmetries take partners to partners. Where no
    neighbour fits, a root has no partner."""
    partners, used = np.full(topology.servers, -1), np.zeros(len(topology.links), int)
    for root in range(topology.servers):
        # The choice of the smallest root decides for all roots that symmetries take it to.
        if root != group[:, root].min():
            continue
        pairs = [group[:, [root, other]] for other in rng.permutation(topology.neighbours[root])]
        takes = [topology.taken[topology.number[pair, pair[:, ::-1]].ravel()].sum(axis=0) for pair in pairs]
        # These roots must be able to exchange sums in one round, if possible in the round of those before them.
        if fits := [k for k in range(len(pairs)) if takes[k].max() == 1]:
            best = min(fits, key=lambda k: (used + takes[k]).max())
            partners[pairs[best][:, 0]] = pairs[best][:, 1]
            used += takes[best]
    return partners


def exchanges(topology: Topology, partners: Partners) -> Schedule:
    """The rounds in which roots and partners exchange sums, each pair in the first one that has its links free."""
    rounds: Schedule = []
    free: list[Bool[np.ndarray, ' L']] = []
    for root, other in enumerate(partners.tolist()):
        if other >= 0:
            links = np.any(topology.taken[topology.number[[root, other], [other, root]]], axis=0)
            at = next((t for t in range(len(free)) if free[t][links].all()), len(free))
            if at == len(free):
                free.append(np.ones(len(topology.links), bool))
                rounds.append([])
            free[at] &= ~links
            rounds[at] += [Send(root, other, root, 'reduce'), Send(other, root, root, 'reduce')]
    return rounds


def exchanged(topology: Topology, rng: np.random.Generator, group: Group) -> Schedule:
    """An AllGather made together from roots and partners, before it their exchange, and before that the AllGather
    backwards; all of it by some of a free group of symmetries."""
    group = subgroup(group, rng)
    partners = choose_partners(topology, rng, group)
    return mirrored(spread_gather(topology, rng, group, partners), exchanges(topology, partners))


def ring_schedule(order: Sequence[int]) -> Schedule:
    """The ring algorithm along an order of servers: `2 (N - 1)` rounds, in which every server sends to the next."""
    count = len(order)
    rounds: Schedule = []
    phases: tuple[tuple[Op, int], ...] = (('reduce', 0), ('copy', 1))
    for op, first in phases:
        for t in range(count - 1):
            sends = [Send(order[i], order[(i + 1) % count], (i + first - t) % count, op) for i in range(count)]
            rounds.append(sends)
    return rounds


def ring_order(topology: Topology, rng: np.random.Generator) -> list[int] | None:
    """An order of all servers in a circle whose hops share no link, by depth-first search; None where none is seen."""
    order, free = [0], np.ones(len(topology.links), bool)
    options: list[list[int]] = []  # servers not yet tried after each server of the order
    for _ in range(SEARCH * topology.servers):
        if len(options) < len(order):
            here = order[-1]
            ways = [
                v for v in topology.neighbours[here] if v not in order and free[list(topology.routes[here, v])].all()
            ]
            onward = {v: sum(other not in order for other in topology.neighbours[v]) + rng.random() for v in ways}
            # The last option is tried first: short hops, and of these the ones to servers with the fewest ways on.
            options.append(sorted(ways, key=lambda v: (len(topology.routes[here, v]), onward[v]), reverse=True))
            # The circle is closed where the hop back to the first server is free.
            last = topology.routes.get((here, 0), ())
            if len(order) == topology.servers and last and free[list(last)].all():
                return order
        if options[-1]:
            order.append(options[-1].pop())
            free[list(topology.routes[order[-2], order[-1]])] = False
        elif len(order) > 1:
            # No way leads on from here, so the search goes a hop back and frees its links.
            options.pop()
            free[list(topology.routes[order[-2], order[-1]])] = True
            order.pop()
        else:
            return None
    return None


def server_rounds(topology: Topology) -> int:
    """Rounds of a parameter server without merging: its ports receive N chunks from all others, then send as many."""
    chunks = topology.servers * (topology.servers - 1)
    return min(2 * -(-chunks // ports) for ports in topology.ports)


# --- what a schedule is worth -----------------------------------------------------------------------------------------


def replay(rounds: Schedule, vectors: Int[np.ndarray, 'N N']) -> Int[np.ndarray, 'N N']:
    """The values that servers hold after a schedule, by server and chunk, if they began with `vectors`."""
    held = np.array(vectors)
    for sends in rounds:
        # The sends of a round read the values from before that round.
        before = held.copy()
        for send in sends:
            if send.op == 'reduce':
                held[send.dst, send.chunk] += before[send.src, send.chunk]
            else:
                held[send.dst, send.chunk] = before[send.src, send.chunk]
    return held


def check(topology: Topology, rounds: Schedule) -> None:
    """Raises ValueError where a hop is none of the network's, a link carries two chunks in a round, or a server does
    not end with every server's contribution to every chunk, each counted once."""
    count = topology.servers
    for sends in rounds:
        used_links(topology, [(send.src, send.dst) for send in sends])
    # What each server contributes is followed by itself, as sums are linear.
    for source in range(count):
        start = np.zeros((count, count), int)
        start[source] = 1
        if not np.all(replay(rounds, start) == 1):
            raise ValueError(f'{topology.name}: what server {source} contributes does not count once everywhere')


def save(rounds: Schedule, path: Path, topology: Topology) -> None:
    """Write a schedule as JSON: the network's `name`, number of `servers` and their `labels` in a file of the user's;
    `rounds`, lists of objects with src, dst, chunk and op; and `routes`, objects with src, dst and the nodes `through`
    which the hop leads."""
    hops = sorted({(send.src, send.dst) for sends in rounds for send in sends})
    routes = [
        {'src': u, 'dst': v, 'through': [topology.links[link][1] for link in topology.routes[u, v][:-1]]}
        for u, v in hops
    ]
    data = {'name': topology.name, 'servers': topology.servers, 'labels': topology.labels}
    data |= {'rounds': [[send._asdict() for send in sends] for sends in rounds], 'routes': routes}
    path.write_text(json.dumps(data) + '\n', encoding='utf-8')


def load(path: Path) -> tuple[Schedule, int]:
    """A schedule that `save` wrote, and its number of servers.

    Raises:
      ValueError: the file is no schedule.
    """
    try:
        data: Any = json.loads(path.read_text(encoding='utf-8'))
        rounds = [[Send(**send) for send in sends] for sends in data['rounds']]
        return rounds, int(data['servers'])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no schedule ({error}); write one with `allreduce.save`') from None
