"""Two tasks on arrays that plan an AllReduce round by round: grow the trees of all chunks, and send along them.

The rules are those of `recipes/allreduce/schedules.py`, which checks every plan that is made here. A task has
candidates, of which a policy picks one after the other until the links forbid all others; then the round ends. A chunk
that a server gets in a round can be sent on from the next. The root of chunk j's tree is server j.

In a symmetric plan candidates are those of a few first chunks alone. A pick stands for itself and for its images under
a free group of symmetries (`symmetry.py`), which are the same pick for the other chunks; all are made in one round.

Letters: `N` servers (and chunks), `G` symmetries, `K = N / G` first chunks, `H` hops, `L` links, `C` candidates,
`F` features, `P` picks of a round, `S` any leading axes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pal_jax.recipes.allreduce.schedules import Schedule, Send
from pal_jax.recipes.allreduce.symmetry import free_group
from pal_jax.recipes.allreduce.topology import Topology

NONE = -1  # a pick that was not made


class Candidates(NamedTuple):
    """The candidates of a round: `hop` is the number of the hop that a candidate takes. Candidates of the same `group`
    exclude each other."""

    features: Float[Array, 'C F']
    valid: Bool[Array, ' C']
    hop: Int[Array, ' C']
    group: Int[Array, ' C']


@dataclasses.dataclass(frozen=True, eq=False)
class Wires:
    """A network as arrays. It is equal to itself alone, so that programs are compiled once for each.

    Attributes:
      symmetric: whether plans are symmetric.
    """

    topology: Topology
    symmetric: bool = False

    @functools.cached_property
    def ends(self) -> Int[np.ndarray, '2 H']:
        """The sources and the destinations of hops."""
        return np.array(self.topology.ends).T

    @functools.cached_property
    def links(self) -> Float[np.ndarray, 'H L']:
        return self.topology.taken.astype(np.float32)

    @functools.cached_property
    def group(self) -> Int[np.ndarray, 'G N']:
        """The server that each symmetry sends each server to."""
        return free_group(self.topology) if self.symmetric else np.arange(self.servers)[None]

    @functools.cached_property
    def first(self) -> Int[np.ndarray, ' K']:
        """The first chunks: the smallest of those that symmetries send to each other."""
        return np.unique(self.group.min(axis=0))

    @functools.cached_property
    def origin(self) -> tuple[Int[np.ndarray, ' N'], Int[np.ndarray, 'N N']]:
        """The place in `first` of the chunk that each chunk is an image of, and the server `[chunk, server]` that the
        symmetry between them sends to each server."""
        place, back = np.zeros(self.servers, int), np.zeros((self.servers, self.servers), int)
        for symmetry in self.group:
            place[symmetry[self.first]] = np.arange(len(self.first))
            back[symmetry[self.first]] = np.argsort(symmetry)
        return place, back

    @functools.cached_property
    def clash(self) -> Bool[np.ndarray, 'H H']:
        """True where two hops share a link, or one does with an image of the other."""
        # A pick is made with its images, so a hop clashes with another where it does with an image of it.
        images = self.number[self.group[:, self.ends[0]], self.group[:, self.ends[1]]]  # [G, H]
        return self.links @ self.links[images].sum(axis=0).T > 0

    @functools.cached_property
    def number(self) -> Int[np.ndarray, 'N N']:
        """The number of the hop between two servers; 0 too where there is none, which no valid candidate takes."""
        return np.maximum(self.topology.number, 0)

    @functools.cached_property
    def distance(self) -> Int[np.ndarray, 'N N']:
        return self.topology.hops()

    @property
    def servers(self) -> int:
        return self.topology.servers

    @functools.cached_property
    def most(self) -> int:
        """A bound of the picks of a round: the number of links, over those of the shortest hop and its images."""
        return int(len(self.topology.links) // (self.links.sum(axis=1).min() * len(self.group)))


def pick(
    key: Array, scores: Float[Array, ' C'], candidates: Candidates, clash: Bool[Array, 'H H'], most: int
) -> tuple[Int[Array, ' P'], Bool[Array, 'P C']]:
    """Pick up to `most` candidates one after the other, by a softmax of the scores over those that are still valid.

    Returns the picks, `NONE` for one that was not made, and the candidates that were valid at each.
    """
    # Gumbel noise that is drawn once gives the probabilities of a softmax for all picks.
    noisy, clash = scores + jax.random.gumbel(key, scores.shape), jnp.asarray(clash)

    def one(valid: Bool[Array, ' C'], _: None) -> tuple[Array, tuple[Array, Array]]:
        chosen = jnp.argmax(jnp.where(valid, noisy, -jnp.inf))
        taken = jnp.any(valid)
        # A pick forbids all candidates whose hops share a link with it, and those of its own group.
        after = valid & ~clash[candidates.hop[chosen]][candidates.hop]
        after &= candidates.group != candidates.group[chosen]
        return jnp.where(taken, after, valid), (jnp.where(taken, chosen, NONE), valid)

    _, (picks, masks) = jax.lax.scan(one, candidates.valid, None, length=most)
    return picks, masks


def logprobs_of(scores: Float[Array, '*S C'], picks: Int[Array, '*S P'], masks: Bool[Array, '*S P C']) -> Array:
    """The log-probability of every pick, `[*S, P]`; 0 of those that were not made."""
    logits = jnp.where(masks, scores[..., None, :], -1e30)
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, jnp.maximum(picks, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(picks == NONE, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))


def _marked(picks: Int[Array, ' P'], count: int) -> Bool[Array, ' C']:
    """Picks as a mask of the candidates."""
    # Picks that were not made mark one place more, which is cut off.
    return jnp.zeros(count + 1, bool).at[jnp.where(picks == NONE, count, picks)].set(True)[:count]


# --- trees ------------------------------------------------------------------------------------------------------------


class Trees(NamedTuple):
    """Trees under way: whether a server has a chunk, and the server from which it gets the chunk; -1 for the root, and
    for servers without a parent yet."""

    has: Bool[Array, 'N N']  # [server, chunk]
    parents: Int[Array, 'N N']  # [chunk, server]


@dataclasses.dataclass(frozen=True, eq=False)
class TreeTask:
    """Grow the trees of all chunks together: a candidate is a hop and a first chunk that its end does not have yet."""

    wires: Wires

    features: ClassVar[int] = 8

    @property
    def cap(self) -> int:
        """Rounds after which an episode is cut: those that a ring of `N` servers needs."""
        return max(2 * (self.wires.servers - 1), 2)

    def start(self) -> Trees:
        count = self.wires.servers
        return Trees(jnp.eye(count, dtype=bool), jnp.full((count, count), NONE))

    def candidates(self, trees: Trees) -> Candidates:
        wires, has = self.wires, trees.has
        count, (src, dst) = wires.servers, wires.ends
        near = jnp.asarray(wires.distance == 1, jnp.float32)
        degree = near.sum(axis=1)
        lacks = (~has).astype(jnp.float32)
        useful = has[src] & ~has[dst]  # [H, chunk]
        into = jnp.zeros(count).at[dst].add(jnp.any(useful, axis=1).astype(jnp.float32))
        out = jnp.zeros(count).at[src].add(jnp.any(useful, axis=1).astype(jnp.float32))
        longest = float(wires.distance.max())
        hops = (len(src), count)
        # Every feature is a share of something of the network, so that a policy can be used on larger networks.
        features = jnp.stack(
            [
                jnp.broadcast_to(jnp.mean(has, axis=0)[None], hops),  # servers that have the chunk
                ((near @ lacks) / degree[:, None])[dst],  # neighbours of the end that lack it
                (((near @ has.astype(jnp.float32)) / degree[:, None])[dst]),  # neighbours of the end that have it
                jnp.broadcast_to((into / degree)[dst][:, None], hops),  # ways to serve the end
                jnp.broadcast_to((out / degree)[src][:, None], hops),  # ways to use the source
                jnp.broadcast_to(jnp.mean(lacks, axis=1)[dst][:, None], hops),  # chunks that the end lacks
                jnp.asarray(wires.distance[dst] / longest),  # how far the end is from the root
                jnp.asarray((wires.distance[dst] > wires.distance[src]).astype(np.float32)),  # whether it leads away
            ],
            axis=-1,
        )[:, wires.first]
        hop = jnp.repeat(jnp.arange(len(src)), len(wires.first))
        # A server gets a chunk from one parent, so candidates of the same server and chunk exclude each other.
        group = (jnp.asarray(dst)[:, None] * count + wires.first[None]).reshape(-1)
        return Candidates(features.reshape(-1, self.features), useful[:, wires.first].reshape(-1), hop, group)

    def advance(self, trees: Trees, picks: Int[Array, ' P']) -> Trees:
        wires, (src, dst) = self.wires, self.wires.ends
        count, (place, back) = wires.servers, wires.origin
        sent = _marked(picks, len(src) * len(wires.first)).reshape(len(src), -1)
        # A hop takes a chunk where the hop that it is an image of takes the first chunk.
        sent = sent[wires.number[back[:, src], back[:, dst]].T, place[None]]
        came = jnp.zeros((count, count), bool).at[dst].max(sent)
        # At most one hop brings a chunk to a server, so the maximum is its source.
        source = jnp.full((count, count), NONE).at[dst].max(jnp.where(sent, src[:, None], NONE))
        return Trees(trees.has | came, jnp.maximum(trees.parents, source.T))

    def left(self, trees: Trees) -> Float[Array, '']:
        """The share of the work that is left."""
        count = self.wires.servers
        return jnp.sum(~trees.has) / (count * (count - 1.0))


# --- transfers --------------------------------------------------------------------------------------------------------


class Transfers(NamedTuple):
    """Transfers under way: which sums have gone up and which totals have come down, `[chunk, server]`."""

    parents: Int[Array, 'N N']
    up: Bool[Array, 'N N']
    down: Bool[Array, 'N N']
    depth: Int[Array, 'N N']  # hops to the root
    height: Int[Array, 'N N']  # hops to the furthest descendant
    size: Int[Array, 'N N']  # descendants, the server itself among them


@dataclasses.dataclass(frozen=True, eq=False)
class TransferTask:
    """Send on given trees: a candidate is a first chunk and a server whose sum goes up, or whose total comes down."""

    wires: Wires

    features: ClassVar[int] = 8

    @property
    def cap(self) -> int:
        """Rounds after which an episode is cut: one and a half times those of the ring, and a few."""
        return 3 * (self.wires.servers - 1) + 4

    def start(self, parents: Int[Array, 'N N']) -> Transfers:
        """The state before the first round; roots have nothing to send up and nothing to get down."""
        count = self.wires.servers
        root = jnp.eye(count, dtype=bool)
        depth = jnp.where(root, 0, count)
        upward = jnp.where(parents == NONE, 0, parents)
        # After as many passes as there are servers depths have come down from the root to every server.
        for _ in range(int(count)):
            depth = jnp.where(root, 0, jnp.take_along_axis(depth, upward, axis=1) + 1)
        chunk = jnp.arange(count)[:, None]
        height, size = jnp.zeros((count, count), int), jnp.ones((count, count), int)

        def lift(level: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
            height, size = both
            at = (depth == count - level) & ~root  # from the deepest servers to the root's children
            height = height.at[chunk, upward].max(jnp.where(at, height + 1, 0))
            return height, size.at[chunk, upward].add(jnp.where(at, size, 0))

        height, size = jax.lax.fori_loop(0, count, lift, (height, size))
        return Transfers(parents, root, root, depth, height, size)

    def candidates(self, state: Transfers) -> Candidates:
        wires, count = self.wires, self.wires.servers
        chunk, server = jnp.arange(count)[:, None], jnp.arange(count)[None]
        upward = jnp.where(state.parents == NONE, 0, state.parents)
        root = chunk == server
        waiting = jnp.zeros((count, count), int).at[chunk, upward].add(~state.up & ~root)  # children not yet heard of
        whole = jnp.where(root, waiting == 0, state.down)  # who has the total
        # A sum goes up once, when all children's sums have come; a total comes down once, when the parent has it.
        go_up = ~state.up & (waiting == 0)
        go_down = ~state.down & jnp.take_along_axis(whole, upward, axis=1)
        number = jnp.asarray(wires.number)
        hop = jnp.stack([number[jnp.broadcast_to(server, upward.shape), upward], number[upward, server]])
        todo = jnp.stack([~state.up, ~state.down]) & ~root[None]
        # The load of a link is the number of sends that still have to take it.
        load = jnp.zeros(len(wires.links)).at[hop].add(todo.astype(jnp.float32)) @ jnp.asarray(wires.links)
        pressure = jnp.max(jnp.asarray(wires.links) * load[None], axis=1)  # of the fullest link of a hop
        pressure = pressure / jnp.maximum(jnp.max(load), 1.0)
        deepest = jnp.max(state.depth, axis=1, keepdims=True)
        longest = jnp.maximum(jnp.max(deepest), 1)
        # The longest chain of sends goes up to the root and down to its deepest server for a reduce, down for a copy.
        remaining = jnp.stack([state.depth + deepest, state.height + 1]) / (2.0 * longest.astype(jnp.float32))
        progress = jnp.mean(jnp.concatenate([state.up, state.down], axis=1), axis=1)[:, None]
        # About how many sends wait for this one: of a reduce all copies, and the reduces outside its subtree.
        behind = jnp.stack([count - 1 + count - state.size, state.size - 1]) / (2.0 * count)
        first = jnp.asarray([1.0, 0.0])[:, None, None] * jnp.ones((2, count, count))  # 1 for a reduce, 0 for a copy
        features = jnp.stack([
            remaining, behind, pressure[hop], first, jnp.broadcast_to(progress[None], first.shape),
            jnp.broadcast_to((state.depth / longest)[None], first.shape), jnp.broadcast_to(jnp.mean(todo), first.shape),
            remaining * first,
        ], axis=-1)  # fmt: skip
        valid = jnp.stack([go_up, go_down]) & ~root[None]
        features, valid, hop = (x[:, wires.first] for x in (features, valid, hop))
        return Candidates(features.reshape(-1, self.features), valid.reshape(-1), hop.reshape(-1), jnp.arange(hop.size))

    def advance(self, state: Transfers, picks: Int[Array, ' P']) -> Transfers:
        count, (place, back) = self.wires.servers, self.wires.origin
        sent = _marked(picks, 2 * len(self.wires.first) * count).reshape(2, -1, count)
        # A server sends a chunk where the server that it is an image of sends the first chunk.
        up, down = sent[:, place[:, None], back]
        return state._replace(up=state.up | up, down=state.down | down)

    def left(self, state: Transfers) -> Float[Array, '']:
        """The share of the work that is left."""
        count = self.wires.servers
        return (jnp.sum(~state.up) + jnp.sum(~state.down)) / (2.0 * count * (count - 1.0))


def schedule(wires: Wires, parents: Int[np.ndarray, 'N N'], picks: Int[np.ndarray, 'T P']) -> Schedule:
    """The sends of an episode of `TransferTask`, by round."""
    rounds = []
    for row in picks:
        sends = []
        for number in row[row != NONE].tolist():
            op, place, server = np.unravel_index(number, (2, len(wires.first), wires.servers))
            for symmetry in wires.group:
                chunk, child = int(symmetry[wires.first[place]]), int(symmetry[server])
                parent = int(parents[chunk, child])
                sends.append(Send(child, parent, chunk, 'reduce') if op == 0 else Send(parent, child, chunk, 'copy'))
        if sends:
            rounds.append(sends)
    return rounds
