"""Constraint handlers on small constrained MDPs, beside the exact optimum (OmniSafe, arXiv 2305.09304).

A step makes `updates` iterations of every handler, limit and seed on every task:

1. step the environments under the policy, N of them for T steps;
2. update the handler's state by the mean cost of the episodes that ended, and the limit;
3. estimate advantages of reward and cost by GAE, mix them by the handler's weights, and update policy and critic.

Policies of finite tasks are valued exactly after each iteration. The result of a run is the mean of these values over
the last part of it: the value of a policy drawn at random from that part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.objectives.constraints import Handlers
from pal_jax.recipes.cmdp import optimum as cmdp
from pal_jax.recipes.cmdp.groups import TASKS, MemberGroup, make_groups
from pal_jax.recipes.cmdp.optimum import ConstrainedOptimum
from pal_jax.recipes.cmdp.settings import LAGRANGIAN, Settings
from pal_jax.run import sharding
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.types import Metrics

States = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CMDP:
    """Trains all groups, an iteration of each in turn.

    Attributes:
      groups: runs that share a program, by the group's name.
      optima: the exact optimum of each finite task at each limit.
      seed: the number of the first of the seeds.
      updates: the number of iterations of a step.
      tail: the number of steps at the end over which results are averaged.
    """

    plan: Plan
    ctx: Context
    groups: dict[str, MemberGroup]
    optima: dict[tuple[str, float], ConstrainedOptimum]
    seed: int
    updates: int
    tail: int

    def init(self) -> tuple[States, Host]:
        started = {name: group.init(self.seed) for name, group in self.groups.items()}
        host = {'handlers': {name: states for name, (_, states) in started.items()}}
        # The means of the tail are kept in the state, so that a run resumed within the tail has the same result.
        tails = {name: jnp.zeros((len(group.members), 2)) for name, group in self.groups.items()}
        tails = jax.device_put(tails, sharding.replicated(self.ctx.mesh))
        return {'learners': {name: state for name, (state, _) in started.items()}, 'tails': tails}, host

    def step(self, state: States, host: Host, i: int) -> tuple[States, Host, str, Metrics]:
        learners, handlers, tails, results, metrics = {}, {}, {}, [], {}
        last = i >= self.plan.total_steps - self.tail
        for name, group in self.groups.items():
            learner, states, tail = state['learners'][name], host['handlers'][name], state['tails'][name]
            total = np.zeros((len(group.members), 2))
            with self.ctx.phase('update'):
                # 1. to 3. of all members of a group at once; groups share nothing, so their order has no part in it.
                for _ in range(self.updates):
                    learner, states, metrics[name], worth = group.iterate(learner, states)
                    total += worth
            # The values of all iterations are averaged, since the last policy alone may circle around the optimum.
            mean = total / self.updates
            results += group.results(mean)
            # A policy drawn at random from the tail may well be the only optimal kind, since under a limit the best
            # policy is in general a mixture of two.
            if last:
                tail = jax.device_put(np.asarray(tail) + mean.astype(np.float32) / self.tail, tail.sharding)
            learners[name], handlers[name], tails[name] = learner, states, tail
        return {'learners': learners, 'tails': tails}, {'handlers': handlers}, 'cmdp', self.figures(results, metrics)

    def figures(self, results: list[cmdp.HandlerResult], metrics: dict[str, dict[str, Any]]) -> Metrics:
        """Figures of a step. Raises RuntimeError where a policy's value is not finite."""
        if bad := [result for result in results if not math.isfinite(result.reward + result.cost)]:
            raise RuntimeError(f'{bad[0].handler} on {bad[0].task} is not finite; lower optimizer.lr')
        keys = dict.fromkeys(key for group in metrics.values() for key in group)
        means = {
            key: float(np.mean(np.concatenate([np.asarray(group[key]) for group in metrics.values() if key in group])))
            for key in keys
        }
        return means | cmdp.make_record(results, self.optima)

    def evaluate(self, state: States, stage: str) -> Evaluation:
        if stage == 'base':
            # A run may solve what the policy before training, which draws all actions alike, has solved already.
            worth = {name: group.worth(state['learners'][name]) for name, group in self.groups.items()}
            results = [result for name, group in self.groups.items() for result in group.results(worth[name])]
            return Evaluation(cmdp.make_record(results, self.optima))
        results = [
            result
            for name, group in self.groups.items()
            for result in group.results(np.asarray(state['tails'][name], float))
        ]
        # Groups follow the updates, but a report lists tasks and handlers in one order for all runs.
        handlers = Handlers.names('arrays')
        results.sort(key=lambda result: (list(TASKS).index(result.task), handlers.index(result.handler)))
        tables = {group.task: group.tables for group in self.groups.values() if group.tables}
        exhibits = cmdp.make_exhibits(results, self.optima, tables)
        return Evaluation(cmdp.make_record(results, self.optima), exhibits=exhibits)


def make(settings: Settings, ctx: Context) -> CMDP:
    """Checks the settings, makes the learners and solves the linear programmes.

    Raises:
      ValueError: a value is wrong, a handler has no place here, or no policy keeps a limit.
    """
    check(settings)
    groups = make_groups(settings, ctx.mesh)
    optima = {}
    # The optimum depends on the task and the limit alone, so all handlers and seeds share it.
    for group in groups.values():
        for limit in {member.limit for member in group.members} if group.tables else ():
            optima[group.task, limit] = cmdp.optimum(group.tables, limit)  # type: ignore[arg-type]
    replicated = sharding.replicated(ctx.mesh)
    abstract = {
        'learners': {name: group.learner.abstract(len(group.members)) for name, group in groups.items()},
        'tails': {
            name: jax.ShapeDtypeStruct((len(group.members), 2), jnp.float32, sharding=replicated)
            for name, group in groups.items()
        },
    }
    tail = max(1, round(settings.tail * settings.total_steps))
    shown = ('solved', *(f'{task}_{name}_share' for task in settings.tasks for name in LAGRANGIAN))
    # A policy is worth an exact sum only where its task is finite.
    base = all(group.tables for group in groups.values())
    stage = functools.partial(stage_before, warmup=0, steps=settings.total_steps, every=0, base=base)
    plan = Plan(settings.total_steps, abstract, stage, shown=shown)
    return CMDP(plan, ctx, groups, optima, settings.seed, settings.updates, tail)


def check(settings: Settings) -> None:
    """Raises ValueError where a task or a handler is unknown or stands there twice, or a number is out of range."""
    check_at_least(settings, 1, 'total_steps', 'seeds', 'updates', 'epochs', 'minibatches', 'checkpoint.every')
    for name in settings.handlers:
        try:
            settings.constraint.named(name, 'arrays')
        except ValueError as error:
            raise ValueError(f'handlers has {error}') from None
    for key, given, known in (
        ('tasks', settings.tasks, TASKS),
        ('handlers', settings.handlers, Handlers.names('arrays')),
    ):
        for name in given:
            if name not in known or given.count(name) > 1:
                raise ValueError(f'{key} has {name!r}; use each once of {", ".join(known)}')
        if not given:
            raise ValueError(f'{key} is empty; use some of {", ".join(known)}')
    if not 0 < settings.tail <= 1:
        raise ValueError(f'tail={settings.tail} must be above 0 and at most 1')
    for task in settings.tasks:
        sizes = getattr(settings, task)
        if min(sizes.environments, sizes.steps) < 1 or not sizes.limits:
            raise ValueError(
                f'{task}: environments={sizes.environments} and steps={sizes.steps} must be at least 1, '
                f'limits={sizes.limits} not empty'
            )
