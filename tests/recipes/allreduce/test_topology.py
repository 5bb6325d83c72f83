"""Networks from files: kinds of nodes in other spellings, links of one direction, weights, and byte order marks."""

from __future__ import annotations

import networkx as nx
import pytest

from pal_jax.recipes.allreduce import topology as t


def star(kind, switch, server='server'):
    graph = nx.Graph([('s', 'a'), ('s', 'b'), ('s', 'c')])
    nx.set_node_attributes(graph, {'s': switch} | dict.fromkeys('abc', server), kind)
    return graph


WRITERS = {'.gml': nx.write_gml, '.graphml': nx.write_graphml}


@pytest.mark.parametrize('ending', WRITERS)
@pytest.mark.parametrize(
    'kind', [('kind', 'Switch'), ('type', 'switch'), ('Kind', ' SWITCH'), ('TYPE', 'Switch', 'Server')]
)
def test_kinds_are_read_in_any_case_and_under_type(tmp_path, ending, kind):
    path = tmp_path / f'star{ending}'
    WRITERS[ending](star(*kind), path)
    network = t.from_file(path)
    assert (network.servers, network.switches, network.labels) == (3, 1, ('a', 'b', 'c'))
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert t.from_file(path).labels == ('a', 'b', 'c')


@pytest.mark.parametrize('ending', WRITERS)
def test_a_node_of_another_kind_is_refused_by_name(tmp_path, ending):
    WRITERS[ending](star('type', 'router'), tmp_path / f'star{ending}')
    with pytest.raises(ValueError, match=f"star{ending}: node s has type 'router'; give server or switch"):
        t.from_file(tmp_path / f'star{ending}')


@pytest.mark.parametrize('ending', WRITERS)
def test_a_link_of_one_direction_is_refused_and_one_of_both_is_a_cable(tmp_path, ending):
    path, ring = tmp_path / f'ring{ending}', nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    WRITERS[ending](ring, path)
    with pytest.raises(ValueError, match='link from 0 to 1 and none back'):
        t.from_file(path)
    WRITERS[ending](nx.Graph(ring).to_directed(), path)
    assert len(t.from_file(path).links) == 6


@pytest.mark.parametrize('key', ['weight', 'bandwidth', 'capacity'])
@pytest.mark.parametrize('ending', ['.gml', '.graphml', '.edgelist'])
def test_links_that_differ_are_refused_by_name_in_every_format_and_equal_ones_are_not(tmp_path, ending, key):
    path, ring = tmp_path / f'ring{ending}', nx.cycle_graph(3)
    write = {**WRITERS, '.edgelist': nx.write_edgelist}[ending]
    nx.set_edge_attributes(ring, {(0, 1): 1, (1, 2): 100, (2, 0): 1}, key)
    write(ring, path)
    with pytest.raises(ValueError, match=f'links of different {key}, 1 from 0 to 1 and 100 from 1 to 2'):
        t.from_file(path)
    nx.set_edge_attributes(ring, 100, key)
    write(ring, path)
    assert t.from_file(path).servers == 3
    del ring.edges[1, 2][key]
    write(ring, path)
    with pytest.raises(ValueError, match=f'links of different {key}'):
        t.from_file(path)


def test_a_byte_order_mark_is_no_server_and_a_line_of_one_end_is_told(tmp_path):
    (tmp_path / 'a.edgelist').write_bytes('\ufeffa b\r\nb c # far\n# x\n\nc a\r\n'.encode())
    assert t.from_file(tmp_path / 'a.edgelist').labels == ('a', 'b', 'c')
    (tmp_path / 'a.adjlist').write_bytes('\ufeffa b c\nb c\nc\n'.encode())
    assert t.from_file(tmp_path / 'a.adjlist').labels == ('a', 'b', 'c')
    (tmp_path / 'c.edgelist').write_text('# my net\na,b\nb,c\n')
    with pytest.raises(ValueError, match="c.edgelist .*line 2 is 'a,b', which has one end"):
        t.from_file(tmp_path / 'c.edgelist')
    (tmp_path / 'l.edgelist').write_bytes('é b\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='l.edgelist, line 1: byte 1 .* no UTF-8'):
        t.from_file(tmp_path / 'l.edgelist')
