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
from pal_jax.objectives.advantages import ChannelWeights
from pal_jax.objectives.constraints import Unconstrained
from pal_jax.objectives.handler import Handler, State, updated
from pal_jax.recipes.cmdp import optimum as cmdp
from pal_jax.recipes.cmdp.finite import Bandit, Grid, Tables
from pal_jax.recipes.cmdp.optimum import HandlerResult
from pal_jax.recipes.cmdp.point import PointGoal
from pal_jax.recipes.cmdp.settings import Settings
from pal_jax.run import sharding

NOTHING = ChannelWeights(0.0, np.zeros(1))
TASKS: dict[str, Any] = {'bandit': Bandit(), 'grid': Grid(), 'point': PointGoal()}


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
    handlers: tuple[Handler, ...]
    tables: Tables | None

    def init(self, seed: int) -> tuple[ArrayState, list[State]]:
        """States of the learner and of the handlers."""
        # Members of one seed start alike, so that their handlers are what differs.
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
            updated(handler, before, cost, np.array([member.limit]), any_ended)
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
        pairs = [*zip(self.handlers, states, strict=True)]
        first = [handler.weigh(state) for handler, state in pairs]
        # A handler without a second update never reads its weights from the mix, so 0 stands there; as for an excess.
        second = [made.weights if (made := handler.second_update(state)) else NOTHING for handler, state in pairs]
        excess: Any = np.array([state.get('excess', [0.0])[0] for state in states], np.float32)
        return jax.device_put(Mix(by_member(first), excess, by_member(second)), sharding.replicated(self.learner.mesh))

    def worth(self, state: ArrayState) -> Float[np.ndarray, 'R C']:
        """Exact discounted reward and cost of the policies of a finite task."""
        assert self.tables is not None
        observations = jnp.asarray(self.tables.observations, jnp.float32)
        policy = jax.nn.softmax(self.learner.outputs(state, observations), axis=-1)
        return np.asarray(_values(policy, *(jnp.asarray(x, jnp.float32) for x in self.tables)), float)

    def results(self, worth: Float[np.ndarray, 'R C']) -> list[HandlerResult]:
        return [
            HandlerResult(self.task, *member, *map(float, row)) for member, row in zip(self.members, worth, strict=True)
        ]


@jax.jit
def _values(policy: Array, *tables: Array) -> Array:
    return cmdp.values(Tables(*tables), policy)  # type: ignore[arg-type]


def make_groups(settings: Settings, mesh: Mesh) -> dict[str, MemberGroup]:
    """The groups of a run by their names: `grid` for PPO's update, `grid-cup` and so on for handlers of their own."""
    groups = {}
    for task in settings.tasks:
        # A group is one compiled program, so handlers with updates of their own have a group each.
        names: dict[str, list[str]] = {task: []}
        for name in settings.handlers:
            alone = settings.constraint.named(name, 'arrays').own_update
            names.setdefault(f'{task}-{name}' if alone else task, []).append(name)
        groups |= {group: make_group(settings, mesh, task, of) for group, of in names.items() if of}
    return groups


def by_member(weights: Sequence[ChannelWeights]) -> ChannelWeights:
    """The weights of several members as `[R]` arrays."""
    return ChannelWeights(*(np.array(column, np.float32).ravel() for column in zip(*weights, strict=True)))


def make_group(settings: Settings, mesh: Mesh, task: str, names: Sequence[str]) -> MemberGroup:
    """The runs of some handlers, which share an update, on a task."""
    env, sizes = TASKS[task], getattr(settings, task)
    named = {name: settings.constraint.named(name, 'arrays') for name in names}
    # Handlers that read no limit would make the same run at each limit, so they have one.
    members = tuple(
        Member(name, limit, seed)
        for name, handler in named.items()
        for limit in (sizes.limits if handler.reads_limit else (math.inf,))
        for seed in range(settings.seeds)
    )
    handler = named[names[0]] if named[names[0]].own_update else Unconstrained()
    # A second update takes as many optimiser steps again, and the schedule of the rate has to last for all of them.
    passes = 2 if handler.second_update(handler.init(1)) else 1
    updates = settings.total_steps * settings.updates * settings.epochs * settings.minibatches
    optimizers = settings.optimizer.over(passes * updates), settings.critic.over(updates)
    size = {key: getattr(sizes, key) for key in ('environments', 'steps', 'hidden', 'reward_scale')}
    ppo = {key: getattr(settings, key) for key in ('epochs', 'minibatches', 'clip', 'lam', 'entropy')}
    learner = ArrayPPO(env, handler, mesh, *optimizers, **size, **ppo)
    handlers = tuple(named[member.handler] for member in members)
    tables = env.tables() if hasattr(env, 'tables') else None
    return MemberGroup(task, learner, members, handlers, tables)
