"""Runs that share a program: on one task, under handlers whose updates are the same, any limit and seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.learners.array_ppo import ArrayPPO, ArrayState, Mix
from pal_jax.objectives import constraints as c
from pal_jax.objectives.constraints import State
from pal_jax.objectives.trust_region import TrustRegion
from pal_jax.recipes.cmdp import optimum as cmdp
from pal_jax.recipes.cmdp.finite import Bandit, Grid, Tables
from pal_jax.recipes.cmdp.optimum import HandlerResult
from pal_jax.recipes.cmdp.point import PointGoal
from pal_jax.recipes.cmdp.settings import WITHOUT_LIMIT, Settings
from pal_jax.run import sharding

TASKS: dict[str, Any] = {'bandit': Bandit(), 'grid': Grid(), 'point': PointGoal()}
OWN_UPDATE = c.FOCOPS, c.P3O, c.CUP, TrustRegion  # handlers whose update of the policy is not PPO's


class Member(NamedTuple):
    """A run: the handler's name, the limit of the mean cost (inf: none) and the seed."""

    handler: str
    limit: float
    seed: int


@dataclasses.dataclass(frozen=True)
class MemberGroup:
    """Members side by side on the leading axis of one learner's state.

    Attributes:
      handlers: the handler of each member.
      tables: the task in full, where it is finite; None otherwise.
    """

    task: str
    learner: ArrayPPO
    members: tuple[Member, ...]
    handlers: tuple[Any, ...]
    tables: Tables | None

    def init(self, seed: int) -> tuple[ArrayState, list[State]]:
        """States of the learner and of the handlers. Members of one seed start alike."""
        seeds = jnp.array([seed + member.seed for member in self.members], jnp.int32)
        return self.learner.init(seeds), [handler.init(1) for handler in self.handlers]

    def iterate(
        self, state: ArrayState, states: Sequence[State]
    ) -> tuple[ArrayState, list[State], dict[str, Array], Float[np.ndarray, 'R C']]:
        """One rollout and one update of every member; metrics by member, and what the policies are worth now."""
        # 1. Step the environments, all in one program.
        state, steps, episodes = self.learner.rollout(state)
        # 2. Tell the handlers what episodes have cost, if any has ended.
        costs, ended = np.asarray(episodes.sums, float)[:, 1:2], np.asarray(episodes.ended)[:, None] > 0
        states = [
            c.updated(handler, before, cost, np.array([member.limit]), any_ended)
            for handler, before, cost, member, any_ended in zip(
                self.handlers, states, costs, self.members, ended, strict=True
            )
        ]
        # 3. Advantages of both channels, mixed by the handlers' weights; the policy's update and the critic's.
        state, metrics = self.learner.update(state, steps, self.mix(states))
        # A task that is not finite has no exact value, so the episodes of the rollout stand for it.
        worth = self.worth(state) if self.tables else np.asarray(episodes.sums, float)
        return state, states, metrics, worth

    def mix(self, states: Sequence[State]) -> Mix:
        """The weights of the members' next update, on the devices."""
        weights = [c.weights_of(handler, state) for handler, state in zip(self.handlers, states, strict=True)]
        projections = [
            float(c.projection(handler, state).cost[0]) if isinstance(handler, c.CUP) else 0.0
            for handler, state in zip(self.handlers, states, strict=True)
        ]
        # A handler without an excess in its state never reads it from the mix, so 0 stands there.
        columns = (
            [weight.reward for weight in weights], [float(weight.cost[0]) for weight in weights],
            [weight.divisor for weight in weights], [state.get('excess', [0.0])[0] for state in states],
            projections,
        )  # fmt: skip
        return Mix(*jax.device_put(tuple(np.array(x, np.float32) for x in columns), self._everywhere))

    def worth(self, state: ArrayState) -> Float[np.ndarray, 'R C']:
        """Exact discounted reward and cost of the policies of a finite task."""
        assert self.tables is not None
        observations = jnp.asarray(self.tables.observations, jnp.float32)
        policy = cmdp.probabilities(self.learner.outputs(state, observations))
        return np.asarray(_values(policy, *(jnp.asarray(x, jnp.float32) for x in self.tables)), float)

    def results(self, worth: Float[np.ndarray, 'R C']) -> list[HandlerResult]:
        return [
            HandlerResult(self.task, *member, *map(float, row)) for member, row in zip(self.members, worth, strict=True)
        ]

    @property
    def _everywhere(self) -> Any:
        return sharding.replicated(self.learner.mesh)


@jax.jit
def _values(policy: Array, *tables: Array) -> Array:
    return cmdp.values(Tables(*tables), policy)  # type: ignore[arg-type]


def make_groups(settings: Settings, mesh: Mesh) -> dict[str, MemberGroup]:
    """The groups of a run by their names: `grid` for PPO's update, `grid-cup` and so on for handlers of their own."""
    groups = {}
    for task in settings.tasks:
        # A group is one compiled program with one rule, so handlers with updates of their own have a group each.
        shared = [name for name in settings.handlers if not _alone(settings, name)]
        alone = {f'{task}-{name}': [name] for name in settings.handlers if _alone(settings, name)}
        for group, names in ({task: shared} | alone).items():
            if names:
                groups[group] = make_group(settings, mesh, task, names)
    return groups


def make_group(settings: Settings, mesh: Mesh, task: str, names: Sequence[str]) -> MemberGroup:
    """The runs of some handlers, which share an update, on a task."""
    env, sizes = TASKS[task], getattr(settings, task)
    # Handlers that read no limit would make the same run at each limit, so they have one.
    members = tuple(
        Member(name, limit, seed)
        for name in names
        for limit in ((math.inf,) if name in WITHOUT_LIMIT else sizes.limits)
        for seed in range(settings.seeds)
    )
    rule: Any = settings.constraint.named(names[0]) if _alone(settings, names[0]) else c.Unconstrained()
    # CUP takes twice the optimiser steps, and the schedule of its rate has to last for all of them.
    passes = 2 if isinstance(rule, c.CUP) else 1
    updates = settings.total_steps * settings.updates * settings.epochs * settings.minibatches
    learner = ArrayPPO(
        env, rule, mesh, settings.optimizer.over(passes * updates), settings.critic.over(updates),
        sizes.environments, sizes.steps, sizes.hidden, settings.epochs, settings.minibatches, settings.clip,
        settings.lam, settings.entropy, sizes.reward_scale,
    )  # fmt: skip
    handlers = tuple(settings.constraint.named(member.handler) for member in members)
    tables = env.tables() if hasattr(env, 'tables') else None
    return MemberGroup(task, learner, members, handlers, tables)


def _alone(settings: Settings, name: str) -> bool:
    return isinstance(settings.constraint.named(name), OWN_UPDATE)
