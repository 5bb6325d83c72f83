"""A short AllReduce of a small network by integer programme.

It is an AllGather in as few rounds as possible, and before it the sends of this AllGather backwards as the reduction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy

from pal_jax.recipes.allreduce.schedules import Schedule, Send, mirrored
from pal_jax.recipes.allreduce.topology import Topology


def shortest(topology: Topology, least: int, seconds: float) -> Schedule | None:
    """An AllReduce of twice the rounds of the shortest AllGather; None where no AllGather is found in time.

    Args:
      least: rounds that an AllGather takes at least; one more is tried after each number that is impossible.
      seconds: for each number of rounds. Where a number is neither solved nor refuted in time, the next is tried.
    """
    for rounds in range(least, least + topology.servers):
        if (rounds_of_gather := gather(topology, rounds, seconds)) is not None:
            return mirrored(rounds_of_gather)
    return None


def gather(topology: Topology, rounds: int, seconds: float) -> Schedule | None:
    """An AllGather in so many rounds by HiGHS, or None where there is none or time is up.

    The variables are `x[round, hop, chunk]`, whether a chunk takes a hop in a round.
    """
    hops = topology.ends
    count, size = topology.servers, len(topology.routes)
    number = rounds * size * count
    place = np.arange(number).reshape(rounds, size, count)
    src, dst = np.array(hops).T
    into = [np.flatnonzero(dst == server) for server in range(count)]

    # Every server receives every other chunk once, and its own never.
    once = [_row(number, place[:, into[server], chunk].ravel()) for server in range(count) for chunk in range(count)]
    exactly = np.array([float(server != chunk) for server in range(count) for chunk in range(count)])
    rows, right = [], []
    for t in range(rounds):
        for hop in range(size):
            for chunk in range(count):
                # A server has a chunk before it sends it, so a chunk that comes in a round goes on from the next.
                earlier = place[:t, into[src[hop]], chunk].ravel()
                rows.append(_row(number, [place[t, hop, chunk]], earlier))
                right.append(float(src[hop] == chunk))
        for link in range(len(topology.links)):
            # A link carries one chunk a round.
            through = np.flatnonzero(topology.taken[:, link])
            if through.size:
                rows.append(_row(number, place[t, through].ravel()))
                right.append(1.0)
    constraint: Any = scipy.optimize.LinearConstraint  # whose annotations know single numbers alone
    constraints = [
        constraint(scipy.sparse.vstack(once).tocsr(), exactly, exactly),
        constraint(scipy.sparse.vstack(rows).tocsr(), -np.inf, np.array(right)),
    ]
    whole, options = {'integrality': np.ones(number), 'bounds': scipy.optimize.Bounds(0, 1)}, {'time_limit': seconds}
    # Every solution has so many rounds, so there is no cost: the first that is found counts.
    solution = scipy.optimize.milp(np.zeros(number), constraints=constraints, options=options, **whole)
    if solution.x is None:
        return None
    taken = solution.x.reshape(rounds, size, count) > 0.5
    return [
        [Send(hops[hop][0], hops[hop][1], int(chunk), 'copy') for hop, chunk in zip(*np.nonzero(taken[t]), strict=True)]
        for t in range(rounds)
    ]


def _row(width: int, ones: np.ndarray | list[int], minus: np.ndarray | tuple[()] = ()) -> scipy.sparse.csr_matrix:
    """A row of 1 at some columns and -1 at others."""
    columns = np.concatenate([np.asarray(ones, int), np.asarray(minus, int)])
    values = np.concatenate([np.ones(len(ones)), -np.ones(len(minus))])
    return scipy.sparse.csr_matrix((values, (np.zeros(len(columns), int), columns)), shape=(1, width))
