"""A point that is pushed to a goal past hazards: a constrained task with continuous actions.

The square has sides of 2. Coming nearer to the goal pays the distance gained, and reaching it pays 1 more. A step that
ends within a hazard costs 1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.distributions import Gaussian


class PointState(NamedTuple):
    """The places of the point, its goal and the hazards, and the velocity of the point in lengths a step."""

    position: Float[Array, ' 2']
    velocity: Float[Array, ' 2']
    goal: Float[Array, ' 2']
    hazards: Float[Array, 'H 2']


@dataclasses.dataclass(frozen=True)
class PointGoal:
    """The task. `hazards` discs of radius `hazard_radius` are drawn anew for each episode."""

    hazards: int = 4
    hazard_radius: float = 0.3
    goal_radius: float = 0.15
    push: float = 0.03  # lengths a step, of a push of 1; larger pushes are cut to it in each dimension
    friction: float = 0.3  # share of the velocity that a step loses

    channels: ClassVar[int] = 2
    gamma: float = 0.97
    horizon: int = 100

    @property
    def width(self) -> int:
        return 6 + 2 * self.hazards

    @property
    def actions(self) -> Gaussian:
        return Gaussian(2)

    def reset(self, key: Array) -> PointState:
        place, goal, around = jax.random.split(key, 3)
        hazards = jax.random.uniform(around, (self.hazards, 2), minval=-1.0, maxval=1.0)
        return PointState(_somewhere(place), jnp.zeros(2), _somewhere(goal), hazards)

    def observe(self, state: PointState) -> Float[Array, ' D']:
        """The position, the velocity in units of a push, and the ways to the goal and to the hazards, nearest first."""
        away = state.hazards - state.position[None]
        # Hazards have no names, so the policy sees them in the order of their distances.
        order = jnp.argsort(jnp.sum(jnp.square(away), axis=-1))
        near = away[order].reshape(-1)
        return jnp.concatenate([state.position, state.velocity / self.push, state.goal - state.position, near])

    def legal(self, state: PointState) -> Bool[Array, ' 0']:
        return jnp.zeros(0, bool)

    def step(
        self, state: PointState, action: Float[Array, ' 2'], key: Array
    ) -> tuple[PointState, Float[Array, ' 2'], Bool[Array, '']]:
        # A push changes the velocity, which friction shrinks.
        velocity = (1.0 - self.friction) * state.velocity + self.push * jnp.clip(action, -1.0, 1.0)
        position = jnp.clip(state.position + velocity, -1.0, 1.0)
        # The way gained is measured to the goal of this step, before a goal that is reached moves elsewhere.
        before, after = _distance(state.goal, state.position), _distance(state.goal, position)
        reached = after < self.goal_radius
        inside = jnp.any(_distance(state.hazards, position[None]) < self.hazard_radius)
        goal = jnp.where(reached, _somewhere(key), state.goal)
        rewards = jnp.stack([before - after + reached, inside.astype(jnp.float32)])
        return PointState(position, velocity, goal, state.hazards), rewards, jnp.zeros((), bool)


def _somewhere(key: Array) -> Float[Array, ' 2']:
    return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)


def _distance(a: Float[Array, '*S 2'], b: Float[Array, '*S 2']) -> Float[Array, '*S']:
    return jnp.sqrt(jnp.sum(jnp.square(a - b), axis=-1))
