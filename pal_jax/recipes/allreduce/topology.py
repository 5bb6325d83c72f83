"""Networks of servers and switches, and how servers reach each other in them.

Servers are the nodes `0 .. servers - 1`, switches the nodes behind them. A link is directed: every cable is two. A hop
from a server to another one takes one round and all the directed links of its route, whose inner nodes are switches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from jaxtyping import Bool, Int

from pal_jax.run import files

MOST = 1000  # servers of a network by name; bounds and plans take hours for fewer
NAMES = frozenset({'id', 'key', 'label', 'name', 'color', 'colour', 'graphics', 'comment'})  # of links in files
DIRECT = 3  # links of the longest hop where these connect all servers: server, switch, switch, server


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A network.

    Attributes:
      name: of the network, such as 'BCube(3,1)'.
      servers: the number of servers.
      graph: undirected; its nodes are numbered as above.
      labels: the names that a file gives to the servers, if any.
    Raises:
      ValueError: there are fewer than two servers, nodes are not numbered from 0, a node is linked to itself, or
        servers cannot reach each other.
    """

    name: str
    servers: int
    graph: nx.Graph
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        if self.servers < 2:
            raise ValueError(f'{self.name} has {self.servers} servers; a network needs 2 or more')
        if sorted(self.graph) != list(range(len(self.graph))):
            raise ValueError(f'{self.name}: nodes must be numbered from 0, got {sorted(self.graph)}')
        if loops := list(nx.nodes_with_selfloops(self.graph)):
            name = self.labels[loops[0]] if loops[0] < len(self.labels) else loops[0]
            raise ValueError(f'{self.name}: node {name} is linked to itself; leave such a link out')
        if not nx.is_connected(self.graph):
            raise ValueError(f'{self.name}: the network is not connected; every server has to reach every other')

    @property
    def switches(self) -> int:
        return len(self.graph) - self.servers

    @functools.cached_property
    def links(self) -> list[tuple[int, int]]:
        """All directed links; their places are their numbers."""
        return sorted(edge for u, v in self.graph.edges for edge in ((u, v), (v, u)))

    @property
    def ports(self) -> list[int]:
        """The number of links of each server; all links of a server can send and receive at once."""
        return [self.graph.degree[server] for server in range(self.servers)]

    @functools.cached_property
    def routes(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The links of each hop by its ends. Servers are neighbours that at most `DIRECT` links connect through
        switches alone; where these do not connect all servers, as in a fat tree, as many links as it takes."""
        number = {link: i for i, link in enumerate(self.links)}
        within, longest = self._through_switches(), DIRECT
        while True:
            # A path of so many links has one node more.
            joined = nx.Graph(pair for pair, paths in within.items() if len(paths[0]) <= longest + 1)
            if len(joined) == self.servers and nx.is_connected(joined):
                break
            longest += 1
        routes = {}
        for (u, v), paths in within.items():
            if len(paths[0]) <= longest + 1:
                # Of several shortest routes hops take different ones, and the way back is the way there.
                path = paths[(u + v) % len(paths)]
                routes[u, v] = tuple(number[link] for link in itertools.pairwise(path))
                routes[v, u] = tuple(number[link] for link in itertools.pairwise(path[::-1]))
        return routes

    @functools.cached_property
    def ends(self) -> list[tuple[int, int]]:
        """The source and the destination of every hop; their places are the numbers of the hops."""
        return sorted(self.routes)

    @functools.cached_property
    def number(self) -> Int[np.ndarray, 'N N']:
        """The number of the hop between two servers; -1 where there is none."""
        table = np.full((self.servers, self.servers), -1)
        for number, hop in enumerate(self.ends):
            table[hop] = number
        return table

    @functools.cached_property
    def taken(self) -> Bool[np.ndarray, 'H L']:
        """The links that each hop takes."""
        table = np.zeros((len(self.ends), len(self.links)), bool)
        for number, hop in enumerate(self.ends):
            table[number, list(self.routes[hop])] = True
        return table

    @functools.cached_property
    def neighbours(self) -> list[list[int]]:
        """The servers that are a hop away, by server."""
        return [[v for v in range(self.servers) if (u, v) in self.routes] for u in range(self.servers)]

    def hops(self) -> Int[np.ndarray, 'N N']:
        """The least number of hops between every two servers."""
        graph = nx.Graph(self.routes.keys())
        return nx.floyd_warshall_numpy(graph, range(self.servers)).astype(int)

    def _through_switches(self) -> dict[tuple[int, int], list[list[int]]]:
        """The shortest paths between servers whose inner nodes are switches, by their ends, where there are any."""
        paths = {}
        switches = set(range(self.servers, len(self.graph)))
        for u, v in itertools.combinations(range(self.servers), 2):
            # Without the other servers every inner node of a path is a switch.
            between = self.graph.subgraph(switches | {u, v})
            if nx.has_path(between, u, v):
                paths[u, v] = sorted(nx.all_shortest_paths(between, u, v))
        return paths


def used_links(topology: Topology, hops: list[tuple[int, int]]) -> Bool[np.ndarray, ' L']:
    """A mask of the links that hops take. Raises ValueError where two hops take one link, or there is no such hop."""
    taken = np.zeros(len(topology.links), bool)
    for hop in hops:
        if hop not in topology.routes:
            raise ValueError(f'{topology.name} has no hop {hop}')
        for link in topology.routes[hop]:
            if taken[link]:
                raise ValueError(f'{topology.name}: two sends of a round take the link {topology.links[link]}')
            taken[link] = True
    return taken


# --- the networks of data centres and of accelerators -----------------------------------------------------------------


def ring(n: int) -> Topology:
    """`n` servers in a circle."""
    return Topology(f'Ring({n})', n, nx.cycle_graph(n))


def torus(rows: int, columns: int) -> Topology:
    """Servers in a grid whose ends meet."""
    grid = nx.grid_2d_graph(rows, columns, periodic=True)
    numbers = {(r, c): r * columns + c for r, c in itertools.product(range(rows), range(columns))}
    return Topology(f'Torus({rows},{columns})', rows * columns, nx.relabel_nodes(grid, numbers))


def bcube(n: int, k: int) -> Topology:
    """BCube(n, k) (Guo et al. 2009): servers are words of `k + 1` digits below `n`; those that differ in one digit
    share a switch."""
    servers, graph = n ** (k + 1), nx.Graph()
    for server in range(servers):
        for level in range(k + 1):
            word = server // n ** (level + 1) * n**level + server % n**level  # the word without the digit
            graph.add_edge(server, servers + level * n**k + word)
    return Topology(f'BCube({n},{k})', servers, graph)


def dcell(n: int, level: int) -> Topology:
    """DCell(n, level) (Guo et al. 2008): a switch with `n` servers, then full graphs of the cells below with one link
    between servers of every two."""
    edges, servers = _dcell(n, level)
    switches = servers // n
    edges += [(server, servers + server // n) for server in range(servers)]
    graph = nx.Graph(edges)
    assert len(graph) == servers + switches
    return Topology(f'DCell({n},{level})', servers, graph)


def _dcell(n: int, level: int) -> tuple[list[tuple[int, int]], int]:
    """The direct links of a cell and its number of servers, which are numbered cell by cell."""
    if level == 0:
        return [], n
    inner, size = _dcell(n, level - 1)
    edges = [(u + cell * size, v + cell * size) for cell in range(size + 1) for u, v in inner]
    # Cell `i` and the later cell `j` are linked by one server each, which serves no other pair of cells.
    edges += [(i * size + j - 1, j * size + i) for i in range(size + 1) for j in range(i + 1, size + 1)]
    return edges, size * (size + 1)


def jellyfish(switches: int, degree: int, seed: int = 0, servers: int = 1) -> Topology:
    """Jellyfish (Singla et al. 2012): a random regular graph of switches with `servers` each.

    Raises:
      ValueError: there is no connected graph of so many switches of this degree.
    """
    if degree >= switches or (degree < 2 < switches) or switches * degree % 2:
        raise ValueError(
            f'no connected graph has {switches} switches with {degree} links each to others: degree must be 2 or more '
            '(1 for two switches) and less than switches, and switches times degree even'
        )
    # A random regular graph may fall apart, so graphs are drawn until one is connected.
    drawn = (nx.random_regular_graph(degree, switches, seed=seed + 1000 * attempt) for attempt in itertools.count())
    inner = next(graph for graph in drawn if nx.is_connected(graph))
    count = switches * servers
    graph = nx.Graph((count + u, count + v) for u, v in inner.edges)
    graph.add_edges_from((server, count + server // servers) for server in range(count))
    return Topology(f'Jellyfish({switches},{degree},{seed})', count, graph)


def fat_tree(k: int) -> Topology:
    """A fat tree of `k` pods of switches with `k` ports each (Al-Fares et al. 2008); `k` is even.

    Raises:
      ValueError: `k` is odd.
    """
    if k % 2:
        raise ValueError(f'k={k} must be even: half of the ports of a switch go up')
    half = k // 2
    servers, graph = k * half * half, nx.Graph()
    edge, aggregation, core = servers, servers + k * half, servers + 2 * k * half
    for pod, e in itertools.product(range(k), range(half)):
        graph.add_edges_from((edge + pod * half + e, aggregation + pod * half + a) for a in range(half))
        graph.add_edges_from((edge + pod * half + e, (pod * half + e) * half + s) for s in range(half))
        graph.add_edges_from((aggregation + pod * half + e, core + e * half + c) for c in range(half))
    return Topology(f'FatTree({k})', servers, graph)


def from_file(path: Path) -> Topology:
    """A graph in a format of networkx, by the ending: .gml, .graphml, .adjlist, .edgelist.

    Nodes with the attribute `kind` or `type` 'switch', in any case, are switches; without any, as in the last two
    formats, all nodes are servers. Servers are numbered in the order in which the file names them.

    Raises:
      ValueError: the ending is unknown, the file cannot be read, it has parallel links, one direction of a link alone,
        links that differ or nodes of other kinds, or as `Topology`.
    """
    readers = {'.gml': nx.parse_gml, '.graphml': nx.parse_graphml, '.adjlist': nx.parse_adjlist, '.edgelist': _edges}
    ending = files.format_of(path)
    if ending not in readers:
        raise ValueError(f'{path} has an unknown ending; use one of {", ".join(readers)}')
    text = files.read_text(path)
    try:
        read = readers[ending](text if ending == '.graphml' else [line.rstrip('\r') for line in text.split('\n')])
    except (nx.NetworkXException, SyntaxError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f'{path} is not read as {ending}: {error}; the lines of .edgelist are the two ends of a link and no '
            'more, since all links are equally fast'
        ) from None
    # All links are equally fast in both directions, so a file that says otherwise is refused.
    if read.is_multigraph():
        raise ValueError(f'{path} has parallel links between two nodes, which are not modelled; give each link once')
    if lone := [(u, v) for u, v in read.edges if read.is_directed() and not read.has_edge(v, u)]:
        raise ValueError(
            f'{path} has a link from {lone[0][0]} to {lone[0][1]} and none back; links go both ways: give both, or '
            'make the graph undirected'
        )
    _check_alike(path, read)
    graph = nx.Graph(read)
    kinds = {node: _kind(path, node, graph.nodes[node]) for node in graph}
    # Servers come first, each kind in the order in which the file names it.
    order = sorted(graph, key=lambda node: kinds[node] == 'switch')
    servers = len(order) - sum(kind == 'switch' for kind in kinds.values())
    numbered = nx.relabel_nodes(graph, {node: i for i, node in enumerate(order)})
    return Topology(path.stem, servers, numbered, tuple(map(str, order[:servers])))


def _edges(lines: list[str]) -> nx.Graph:
    """The graph of the lines of an .edgelist. Raises ValueError for a line with one end."""
    # networkx would skip a line with one end.
    for number, line in enumerate(lines, 1):
        if len(line.partition('#')[0].split()) == 1:
            raise ValueError(f'line {number} is {line!r}, which has one end; write two with a space between')
    return nx.parse_edgelist(lines)


def _check_alike(path: Path, graph: nx.Graph) -> None:
    """Raise ValueError where links differ in an attribute that is no name, such as a weight or a bandwidth."""
    for key in dict.fromkeys(key for *_, data in graph.edges(data=True) for key in data):
        first, *others = [(u, v, data.get(key)) for u, v, data in graph.edges(data=True)]
        other = next((link for link in others if link[2] != first[2]), None)
        if other and key.lower() not in NAMES:
            (a, b, one), (u, v, two) = first, other
            raise ValueError(
                f'{path} has links of different {key}, {one} from {a} to {b} and {two} from {u} to {v}; all links are '
                'equally fast here: leave it out, or give all the same'
            )


def _kind(path: Path, node: Any, attributes: dict[str, Any]) -> str:
    """The kind of a node, server or switch. Raises ValueError where it is of another kind."""
    said = {key.lower(): value for key, value in attributes.items()}
    key = next((key for key in ('kind', 'type') if key in said), '')
    kind = str(said.get(key, 'server')).strip().lower()
    if kind not in ('server', 'switch'):
        raise ValueError(f'{path}: node {node} has {key} {said[key]!r}; give server or switch')
    return kind


# --- networks by name -------------------------------------------------------------------------------------------------


class TopologyKind(NamedTuple):
    """A kind of networks that a name such as `bcube:3,1` may mean.

    Attributes:
      make: builds a network from its numbers.
      form: how its name is written; numbers in brackets may be left out.
      least: the least value of each number.
      servers: the number of servers, from the same numbers.
    """

    make: Callable[..., Topology]
    form: str
    least: tuple[int, ...]
    servers: Callable[..., int]

    def numbers(self, text: str) -> list[int]:
        """The numbers behind the colon of a name. Raises ValueError where one is wrong, missing or too many."""
        parts = text.split(',') if text else []
        required = len(self.least) - self.form.count('[')
        if not required <= len(parts) <= len(self.least):
            raise ValueError(f'it has {len(parts)} numbers')
        for part, least in zip(parts, self.least, strict=False):
            if not part.strip().isdecimal() or int(part) < least:
                raise ValueError(f'{part!r} must be a whole number of at least {least}')
        return [int(part) for part in parts]


def _dcell_servers(n: int, level: int) -> int:
    """The servers of DCell(n, level), or a number above `MOST`."""
    servers = n
    for _ in range(level):
        # The number is nearly squared at each level, so the exact one could be huge.
        if servers > MOST:
            break
        servers *= servers + 1
    return servers


NETWORKS = {
    'ring': TopologyKind(ring, 'ring:n', (2,), lambda n: n),
    'torus': TopologyKind(torus, 'torus:rows,columns', (1, 1), lambda rows, columns: rows * columns),
    'bcube': TopologyKind(bcube, 'bcube:n,k', (2, 0), lambda n, k: n ** (min(k, MOST) + 1)),
    'dcell': TopologyKind(dcell, 'dcell:n,level', (1, 0), _dcell_servers),
    'jellyfish': TopologyKind(
        jellyfish,
        'jellyfish:switches,degree[,seed[,servers]]',
        (2, 1, 0, 1),
        lambda switches, degree, seed=0, servers=1: switches * servers,
    ),
    'fat_tree': TopologyKind(fat_tree, 'fat_tree:k', (2,), lambda k: k**3 // 4),
}


def by_name(name: str, key: str = 'networks') -> Topology:
    """The network of a name such as `bcube:3,1`, with the numbers that its function takes; or of a file.

    `key` is the setting that has the name, for messages.

    Raises:
      ValueError: there is no such network or file, or the numbers are wrong.
    """
    kind, _, text = name.partition(':')
    if kind in NETWORKS:
        network = NETWORKS[kind]
        try:
            numbers = network.numbers(text)
            if (servers := network.servers(*numbers)) > MOST:
                raise ValueError(f'more than {MOST} servers are too many to plan for, got {servers}')
            return network.make(*numbers)
        except ValueError as error:
            raise ValueError(f'{key} has {name!r}: {error}; write {network.form}') from None
    if not Path(name).is_file():
        forms = ', '.join(network.form for network in NETWORKS.values())
        raise ValueError(f'{key} has {name!r}, which is no file; use the file of a graph, or one of {forms}')
    return from_file(Path(name))
