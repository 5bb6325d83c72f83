"""AllReduce on given networks: short schedules, how far they are from the least rounds, and files to run them by.

A step plans for one network:

1. bound the rounds from below by cuts and by the number of sends;
2. schedule random breadth-first trees, at random and deepest first (the greedy baseline, best of `tries`);
3. schedule trees that are made together, so that they share the links evenly, deepest first, there and back, and
   by the network's symmetries, so that the plan is the same for every chunk, and with roots that exchange sums with
   partners;
4. look for a ring whose hops share no link, and where time is given for a shortest AllGather by integer programme,
   which is mirrored;
5. check the shortest of these and write it as JSON: rounds of sends (src, dst, chunk, op).

`recipes/allreduce/collective.py` runs such a file on devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.recipes.allreduce import bounds as allreduce_bounds
from pal_jax.recipes.allreduce import programme as gather_programme
from pal_jax.recipes.allreduce import report as allreduce_report
from pal_jax.recipes.allreduce import schedules as allreduce
from pal_jax.recipes.allreduce import symmetry, topology
from pal_jax.recipes.allreduce.schedules import Schedule
from pal_jax.recipes.allreduce.topology import Topology
from pal_jax.run import piecework
from pal_jax.run.piecework import Records
from pal_jax.run.recipe import Context, Evaluation, Host, Recipe, check_at_least
from pal_jax.run.settings import Run
from pal_jax.types import Metrics

EXCHANGES = 10  # schedules with partners for each one by another rule; they need no search for an order of sends
SCHEDULES = 'schedules'  # the folder of the schedules that `recipes/allreduce/collective.py` can run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. There is a step for each network, so `total_steps` stays 0."""

    # ring:n, torus:rows,columns, bcube:n,k, dcell:n,level, jellyfish:switches,degree[,seed[,servers]], fat_tree:k, or
    # files of graphs that networkx reads (.gml, .graphml, .adjlist, .edgelist).
    networks: tuple[str, ...]
    tries: int = 20  # of every rule; the shortest schedule counts
    programme: float = 0.0  # seconds of the integer programme for each number of rounds; 0: none


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans for one network after the other.

    Attributes:
      folder: the folder that schedules are written to.
    """

    settings: Settings
    networks: Sequence[Topology]
    folder: Path

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """The record of network `i`, and its shortest schedule as a file."""
        network = self.networks[i]
        # 1. Lower bounds.
        least = allreduce_bounds.bounds(network)
        # 2, 3. and 4. Schedules by every rule.
        plans = plan(network, least.gather, self.settings)
        # 5. The shortest is checked and written.
        rule = min(plans, key=lambda name: len(plans[name]))
        best = plans[rule]
        allreduce.check(network, best)
        self.folder.mkdir(parents=True, exist_ok=True)
        allreduce.save(best, self.folder / f'{file_name(network)}.json', network)
        rounds = {name: len(schedule) for name, schedule in plans.items()}
        record = {'network': network.name, 'servers': network.servers, 'least': least.rounds}
        record |= {'server': allreduce.server_rounds(network), 'rounds': rounds, 'rule': rule}
        record |= {'used': used_by_round(network, best), 'links': [f'{a} to {b}' for a, b in network.links]}
        ratio = len(best) / least.rounds
        return [record], host, {'rounds': float(len(best)), 'least_rounds': float(least.rounds), 'to_least': ratio}

    def finish(self, records: Sequence[Mapping[str, Any]]) -> Evaluation:
        return Evaluation(allreduce_report.make_record(records), exhibits=allreduce_report.make_exhibits(records))


def plan(network: Topology, gather: Any, settings: Settings) -> dict[str, Schedule]:
    """The shortest schedule of every rule, by the rule's name."""
    tried: dict[str, list[Schedule]] = {name: [] for name in ('random', 'greedy', 'spread', 'back')}
    group = symmetry.free_group(network)
    for number in range(settings.tries):
        # A generator for each try, so that more tries leave the earlier ones as they are.
        rng = np.random.default_rng([settings.seed, number])
        work = allreduce.workloads(network, allreduce.random_trees(network, rng))
        tried['random'].append(allreduce.at_random(work, rng))
        tried['greedy'].append(allreduce.deepest_first(work, rng))
        trees = allreduce.spread_trees(network, rng)
        tried['spread'].append(allreduce.deepest_first(allreduce.workloads(network, trees), rng))
        tried['back'].append(allreduce.there_and_back(network, trees, rng))
    if len(group) > 1:
        symmetric = functools.partial(allreduce.spread, network, group=group)
        tried['symmetric'] = [allreduce.best_of(symmetric, settings.tries, settings.seed)]
    exchange = functools.partial(allreduce.exchanged, network, group=group)
    tried['exchange'] = [allreduce.best_of(exchange, EXCHANGES * settings.tries, settings.seed)]
    if order := allreduce.ring_order(network, np.random.default_rng(settings.seed)):
        tried['ring'] = [allreduce.ring_schedule(order)]
    plans = {name: min(schedules, key=len) for name, schedules in tried.items()}
    if settings.programme:
        # No AllGather takes fewer rounds than its cut or the longest way asks for, so the search begins there.
        least = max(math.ceil(gather), int(network.hops().max()))
        if exact := gather_programme.shortest(network, least, settings.programme):
            plans['programme'] = exact
    return plans


def used_by_round(network: Topology, rounds: Schedule) -> list[list[int]]:
    """The chunk that each link carries in each round, as rows of rounds; -1 where the link is free."""
    rows = []
    for sends in rounds:
        row = [-1] * len(network.links)
        for send in sends:
            for link in network.routes[send.src, send.dst]:
                row[link] = send.chunk
        rows.append(row)
    return rows


def file_name(network: Topology) -> str:
    """The network's name in letters, digits and dashes."""
    return ''.join(c if c.isalnum() else '-' for c in network.name).strip('-').lower()


def make(settings: Settings, ctx: Context) -> Recipe:
    """Reads the networks.

    Raises:
      ValueError: a network is unknown or not connected, two have the same name, or a number is out of range.
    """
    check_at_least(settings, 1, 'tries', 'checkpoint.every')
    if settings.total_steps:
        raise ValueError(f'total_steps={settings.total_steps} must be 0: there is a step for each of networks')
    if settings.programme < 0 or not settings.networks:
        raise ValueError(f'programme={settings.programme} must be at least 0, and networks not empty')
    networks = [topology.by_name(name) for name in settings.networks]
    names = [file_name(network) for network in networks]
    # Schedules are written under these names, so a second network would replace the file of the first.
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f'networks has {twice[0]} twice; schedules are written under this name')
    planner = Planner(settings, networks, ctx.workdir / SCHEDULES)
    return piecework.make(ctx, len(networks), planner.work, 'allreduce', planner.finish, ('to_least',))
