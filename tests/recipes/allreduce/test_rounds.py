"""Rounds of AllReduce on arrays, against the simulator in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.allreduce import rounds as r
from pal_jax.recipes.allreduce import schedules as a
from pal_jax.recipes.allreduce import topology as t

NETWORKS = t.bcube(2, 1), t.ring(5)


def played(task, state, key, wires):
    """An episode whose picks are uniform: the last state, and the picks by round."""

    @jax.jit
    def one_round(state, key):
        seen = task.candidates(state)
        picks, masks = r.pick(key, jnp.zeros(len(seen.valid)), seen, wires.clash, wires.most)
        return task.advance(state, picks), picks, masks, seen

    rows = []
    while float(task.left(state)) > 0:
        key, now = jax.random.split(key)
        state, picks, masks, seen = one_round(state, now)
        rows.append((np.asarray(picks), np.asarray(masks), seen))
        assert len(rows) <= task.cap
    return state, rows


@pytest.mark.parametrize(
    ('network', 'symmetric'),
    [(NETWORKS[0], False), (NETWORKS[1], False), (NETWORKS[0], True), (t.torus(2, 3), True)],
    ids=lambda value: getattr(value, 'name', str(value)),
)
def test_grown_trees_and_sent_transfers_are_a_schedule(network, symmetric):
    wires = r.Wires(network, symmetric)
    assert len(wires.first) == (1 if symmetric else network.servers)
    grown, growth = played(r.TreeTask(wires), r.TreeTask(wires).start(), jax.random.key(0), wires)
    parents = np.asarray(grown.parents)
    assert (np.diag(parents) == -1).all() and (parents >= 0).sum() == network.servers * (network.servers - 1)
    assert (np.asarray(grown.has)).all()
    task = r.TransferTask(wires)
    _, sent = played(task, task.start(grown.parents), jax.random.key(1), wires)
    rounds = r.schedule(wires, parents, np.stack([picks for picks, *_ in sent]))
    a.check(network, rounds)
    assert sum(map(len, rounds)) == 2 * network.servers * (network.servers - 1)
    # A round ends when nothing fits any more, so every link that could carry a transfer is taken.
    for picks, _, seen in (*growth, *sent):
        taken = picks[picks >= 0]
        hops = np.asarray(seen.hop)
        groups = np.asarray(seen.group)
        for other in np.flatnonzero(np.asarray(seen.valid)):
            clash = wires.clash[hops[other], hops[taken]].any() or (groups[other] == groups[taken]).any()
            assert clash, 'a candidate was left that fitted'
    assert all(np.isfinite(seen.features).all() and np.abs(seen.features).max() <= 2.0 for *_, seen in (*growth, *sent))


def test_sizes_of_trees_are_those_of_the_numpy_simulator():
    network = t.bcube(3, 1)
    parents = a.random_trees(network, np.random.default_rng(0))
    work = a.workloads(network, parents)
    state = r.TransferTask(r.Wires(network)).start(jnp.asarray(parents))
    depth, height, size = (np.asarray(x) for x in (state.depth, state.height, state.size))
    for send, chain in zip(work.sends, work.depth, strict=True):
        if send.op == 'copy':  # a copy and all below it: as long a chain as the height of the receiver, and itself
            assert height[send.chunk, send.dst] + 1 == chain
        else:
            assert depth[send.chunk, send.src] + depth[send.chunk].max() >= chain
    assert (size.max(axis=1) == 9).all() and (size[~np.eye(9, dtype=bool)] >= 1).all()


def test_the_probability_of_picks_is_that_of_a_softmax_over_what_is_left():
    scores = jnp.array([0.3, -1.0, 0.8])
    seen = r.Candidates(jnp.zeros((3, 1)), jnp.array([True, True, True]), jnp.array([0, 1, 2]), jnp.arange(3))
    clash = np.eye(3, dtype=bool)
    draw = jax.jit(jax.vmap(lambda key: r.pick(key, scores, seen, clash, 3)))
    picks, masks = draw(jax.random.split(jax.random.key(0), 4000))
    logprobs = np.asarray(r.logprobs_of(jnp.broadcast_to(scores, (4000, 3)), picks, masks)).sum(axis=1)
    p = np.exp(np.asarray(scores)) / np.exp(np.asarray(scores)).sum()
    first, second, _ = np.asarray(picks).T
    np.testing.assert_allclose(logprobs, np.log(p[first] * p[second] / (1 - p[first])), rtol=1e-4)
    for order in {tuple(row) for row in np.asarray(picks).tolist()}:
        share = np.mean((np.asarray(picks) == order).all(axis=1))
        assert share == pytest.approx(p[order[0]] * p[order[1]] / (1 - p[order[0]]), abs=0.03)
