"""AllReduce by two learned policies, which trees and which transfers (after arXiv 2503.21013), trained in turn.

For each network there are two scorers of candidates (`recipes/allreduce/plans.py`). A step updates one of them,
`updates` times, and `turn` steps later it is the other's turn:

1. the policy of trees grows the trees of all chunks together, hop by hop, round by round;
2. the policy of transfers sends on these trees, transfer by transfer, until none fits, round by round;
3. the one whose turn it is learns from the rounds that the whole plan took; the other stays as it is.

The evaluation samples plans, checks the shortest by replay, and tries each policy on a larger network of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.recipes.allreduce import bounds as allreduce_bounds
from pal_jax.recipes.allreduce import rounds, topology
from pal_jax.recipes.allreduce import schedules as allreduce
from pal_jax.recipes.allreduce.plans import PlanEpisodes, PlanPPO, PlanState
from pal_jax.recipes.allreduce.recipe import SCHEDULES, file_name
from pal_jax.recipes.allreduce.report import learned_exhibit, saved
from pal_jax.recipes.allreduce.rounds import TransferTask, TreeTask, Wires
from pal_jax.recipes.allreduce.topology import Topology
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.run.settings import Run
from pal_jax.types import Metrics

TREES, TRANSFERS = 'trees', 'transfers'
EVALUATION = 2**20  # takes the place of a step in the key of an evaluation, as no step has this number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. A step makes `updates` updates of one of the two policies of each network."""

    # ring:n, torus:rows,columns, bcube:n,k, dcell:n,level, jellyfish:switches,degree[,seed[,servers]], fat_tree:k, or
    # files of graphs that networkx reads (.gml, .graphml, .adjlist, .edgelist).
    networks: tuple[str, ...]
    larger: tuple[str, ...] = ()  # networks that nothing is trained on; the policy of the first of a kind plans for it
    updates: int = 10  # updates of each network in a step
    turn: int = 4  # steps until the other policy's turn; the first is that of transfers
    episodes: int = 64  # plans of an update
    groups: int = 8  # sets of trees among the episodes while transfers learn
    samples: int = 20  # plans of an evaluation, of which the shortest counts
    symmetric: bool = True  # plan for one chunk, and move the plan by the network's symmetries to the others
    hidden: tuple[int, ...] = (32,)  # widths of the scorers' hidden layers
    epochs: int = 2  # passes over the plans
    clip: float = 0.2  # PPO clips the ratio of a pick to 1 - clip, 1 + clip
    optimizer: Optimizer


@dataclasses.dataclass(frozen=True)
class LearnedPlanner:
    """Both learners of a network."""

    wires: Wires
    trees: PlanPPO
    transfers: PlanPPO

    def init(self, seed: int) -> dict[str, PlanState]:
        """The states of both before the first update."""
        return {TREES: self.trees.init(2 * seed), TRANSFERS: self.transfers.init(2 * seed + 1)}

    def sample(
        self, params: Mapping[str, Any], key: jax.Array, count: int, place: Any, *, groups: int = 0, sharp: bool = False
    ) -> tuple[Any, PlanEpisodes, PlanEpisodes]:
        """The trees, and the episodes of both policies, of `count` plans; with `groups` so many sets of trees."""
        to_grow, to_send = jax.random.split(key)
        start = self.trees.task.start()  # type: ignore[attr-defined]
        starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups or count, *x.shape)), start)
        grown, growth = self.trees.play(params[TREES], starts, to_grow)
        # Episodes of one set of trees stand together, as `PlanPPO.update` groups them.
        parents = jnp.repeat(grown.parents, count // (groups or count), axis=0)
        begun = jax.device_put(jax.vmap(self.transfers.task.start)(parents), place)  # type: ignore[attr-defined]
        _, sent = self.transfers.play(params[TRANSFERS], begun, to_send, sharp)
        return parents, growth, sent


@dataclasses.dataclass(frozen=True)
class PlannerTraining:
    """Trains the policies of all networks.

    Attributes:
      planners: by the network's name; `larger` those of networks that nothing is trained on.
    """

    plan: Plan
    ctx: Context
    settings: Settings
    planners: dict[str, LearnedPlanner]
    larger: dict[str, LearnedPlanner]

    def init(self) -> tuple[dict[str, Any], Host]:
        seed, everywhere = self.settings.seed, sharding.replicated(self.ctx.mesh)
        states = {name: planner.init(seed) for name, planner in self.planners.items()}
        return jax.device_put(states, everywhere), {}

    def step(self, state: dict[str, Any], host: Host, i: int) -> tuple[dict[str, Any], Host, str, Metrics]:
        settings, after, metrics = self.settings, {}, []
        which = (TRANSFERS, TREES)[i // settings.turn % 2]
        for number, (name, planner) in enumerate(self.planners.items()):
            pair = dict(state[name])
            for update in range(settings.updates):
                key = _key(settings.seed, number, i * settings.updates + update)
                with self.ctx.phase('update'):
                    pair[which], more = self.learn(planner, pair, which, key)
                metrics.append(more)
            after[name] = pair
        record = {key: float(np.mean([float(more[key]) for more in metrics])) for key in metrics[0]}
        return after, host, f'allreduce_{which}', record

    def learn(
        self, planner: LearnedPlanner, pair: Mapping[str, PlanState], which: str, key: jax.Array
    ) -> tuple[PlanState, dict[str, Any]]:
        """Steps 1 to 3 of a network: the policy whose turn it is, updated."""
        settings, place = self.settings, sharding.sharding(self.ctx.mesh, ('batch',))
        params = {name: state.params for name, state in pair.items()}
        count = settings.episodes
        if which == TRANSFERS:
            # Each set of trees is used by several episodes, whose mean is the baseline.
            _, _, sent = planner.sample(params, key, count, place, groups=settings.groups)
            return planner.transfers.update(pair[TRANSFERS], sent, sent.cost, settings.groups)
        # Transfers are sharp, nearly always the best score, so that the rounds tell of the trees alone.
        _, growth, sent = planner.sample(params, key, count, place, sharp=True)
        # Trees are as good as the plans that the frozen policy of transfers makes of them.
        learnt, metrics = planner.trees.update(pair[TREES], growth, sent.cost, 1)
        return learnt, metrics | {'rounds_mean': jnp.mean(sent.rounds)}  # of the whole plan, as of transfers

    def evaluate(self, state: dict[str, Any], stage: str) -> Evaluation:
        records = [
            self.measure(planner, state[name], number, stage == 'final', trained=True)
            for number, (name, planner) in enumerate(self.planners.items())
        ]
        if stage == 'final':
            for number, (name, planner) in enumerate(self.larger.items(), len(self.planners)):
                # The first network of the same kind has trained it; the first of all if there is none.
                kind = name.partition(':')[0]
                source = next((k for k in self.planners if k.partition(':')[0] == kind), next(iter(self.planners)))
                records.append(self.measure(planner, state[source], number, True, trained=False))
        trained = [record for record in records if record['trained']]
        best, greedy = (np.array([record[key] / record['least'] for record in trained]) for key in ('best', 'greedy'))
        figures = {
            'learned_to_least': float(best.mean()),
            'greedy_to_least': float(greedy.mean()),
            'rounds_mean': float(np.mean([record['mean'] for record in trained])),
        } | saved(greedy, best)
        return Evaluation(figures, exhibits=[learned_exhibit(records)] if stage == 'final' else [])

    def measure(
        self, planner: LearnedPlanner, pair: Mapping[str, PlanState], number: int, write: bool, *, trained: bool
    ) -> dict[str, Any]:
        """The rounds of sampled plans beside greedy ones; the shortest plan is checked, and written to a file."""
        network, settings = planner.wires.topology, self.settings
        params = {name: state.params for name, state in pair.items()}
        place = sharding.replicated(self.ctx.mesh)
        # Transfers are sharp, since one bad pick can cost a round, and the trees bring the variety.
        key = _key(settings.seed, number, EVALUATION)
        parents, _, sent = planner.sample(params, key, settings.samples, place, sharp=True)
        # All scores are the same before the first update, so these picks are at random.
        untrained = {name: state.params for name, state in planner.init(settings.seed).items()}
        _, _, random = planner.sample(untrained, key, settings.samples, place, sharp=True)
        best = int(np.argmin(sent.rounds))
        # An episode that was cut is no plan yet.
        if int(sent.rounds[best]) <= planner.transfers.task.cap:
            schedule = rounds.schedule(planner.wires, np.asarray(parents[best]), np.asarray(sent.picks[best]))
            allreduce.check(network, schedule)
            if write:
                folder = self.ctx.workdir / SCHEDULES
                folder.mkdir(parents=True, exist_ok=True)
                allreduce.save(schedule, folder / f'{file_name(network)}.json', network)
        named = {'network': network.name, 'servers': network.servers, 'symmetries': len(planner.wires.group)}
        learned = {'trained': trained, 'best': int(sent.rounds[best]), 'mean': float(np.mean(sent.rounds))}
        unlearned = {'unlearned': int(np.min(random.rounds)), 'unlearned_mean': float(np.mean(random.rounds))}
        return named | learned | unlearned | by_rule(network, settings.samples, settings.seed)


@functools.cache
def by_rule(network: Topology, tries: int, seed: int) -> dict[str, int]:
    """The bound of the rounds, and those of the shortest plans by rule, which no training changes."""
    greedy, spread = (functools.partial(rule, network) for rule in (allreduce.greedy, allreduce.spread))
    return {
        'least': allreduce_bounds.bounds(network).rounds,
        'greedy': len(allreduce.best_of(greedy, tries, seed)),
        'spread': len(allreduce.best_of(spread, tries, seed)),
    }


def _key(seed: int, network: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), network), number)


def make_planner(settings: Settings, name: str, key: str) -> LearnedPlanner:
    """The learners of a network, which the setting `key` names."""
    wires = Wires(topology.by_name(name, key), settings.symmetric)
    optimizer = settings.optimizer.over(settings.total_steps * settings.updates * settings.epochs)
    trees, transfers = (
        PlanPPO(task, optimizer, settings.hidden, settings.epochs, settings.clip)
        for task in (TreeTask(wires), TransferTask(wires))
    )
    return LearnedPlanner(wires, trees, transfers)


def make(settings: Settings, ctx: Context) -> PlannerTraining:
    """Reads the networks and makes their learners.

    Raises:
      ValueError: a network is unknown or stands there twice, or a number is out of range.
    """
    check_at_least(settings, 1, 'total_steps', 'updates', 'turn', 'groups', 'samples', 'epochs', 'checkpoint.every')
    names = settings.networks + settings.larger
    if not settings.networks or len(set(names)) < len(names):
        raise ValueError(f'networks={settings.networks} and larger={settings.larger} need one network, and each once')
    ways = sharding.batch_ways(ctx.mesh)
    if settings.episodes % settings.groups or settings.episodes < 2 * settings.groups or settings.episodes % ways:
        raise ValueError(
            f'episodes={settings.episodes} must be two or more for each of groups={settings.groups}, and a multiple '
            f'of it and of {ways} devices'
        )
    planners = {name: make_planner(settings, name, 'networks') for name in settings.networks}
    larger = {name: make_planner(settings, name, 'larger') for name in settings.larger}
    learned = PlannerTraining(Plan(0, None, lambda i: None), ctx, settings, planners, larger)
    shapes = jax.eval_shape(lambda: learned.init()[0])
    everywhere = sharding.replicated(ctx.mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    stage = functools.partial(stage_before, warmup=0, steps=settings.total_steps, every=0)
    shown = 'learned_to_least', 'greedy_to_least', 'rounds_mean'
    return dataclasses.replace(learned, plan=Plan(settings.total_steps, abstract, stage, shown=shown))
