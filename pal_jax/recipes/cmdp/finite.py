"""Two constrained MDPs that are small enough for an exact optimum: a bandit and a grid with hazards.

Both are those of OmniSafe's side in the specification (section 5.4): their optima by linear programme are known, and
`tables` gives all that the programme needs.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pal_jax.objectives.distributions import Categorical

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left, as rows and columns


class Tables(NamedTuple):
    """A finite constrained MDP, in full.

    start: probability of each first state.
    transition: probability of the next state by state and action.
    rewards: mean reward of a step by state, action and channel.
    observations: the observation of each state.
    gamma: the discount.
    """

    start: Float[np.ndarray, ' S']
    transition: Float[np.ndarray, 'S A S']
    rewards: Float[np.ndarray, 'S A C']
    observations: Float[np.ndarray, 'S D']
    gamma: float


@dataclasses.dataclass(frozen=True)
class Bandit:
    """One choice among arms; `rewards[a]` is paid and `costs[a]` is caused."""

    rewards: tuple[float, ...] = (1.0, 0.6, 0.2)
    costs: tuple[float, ...] = (1.0, 0.4, 0.0)

    width: ClassVar[int] = 1
    channels: ClassVar[int] = 2
    gamma: ClassVar[float] = 1.0
    horizon: ClassVar[int] = 1

    @property
    def actions(self) -> Categorical:
        return Categorical((len(self.rewards),))

    def reset(self, key: Array) -> Int[Array, '']:
        return jnp.zeros((), jnp.int32)

    def observe(self, state: Int[Array, '']) -> Float[Array, ' 1']:
        return jnp.ones(1)

    def legal(self, state: Int[Array, '']) -> Bool[Array, ' K']:
        return jnp.ones(len(self.rewards), bool)

    def step(
        self, state: Int[Array, ''], action: Int[Array, ' 1'], key: Array
    ) -> tuple[Array, Float[Array, ' 2'], Bool[Array, '']]:
        paid = jnp.array([self.rewards, self.costs], jnp.float32)[:, action[0]]
        return state, paid, jnp.ones((), bool)

    def tables(self) -> Tables:
        """The tables of the bandit, with a second state after the pull."""
        arms = len(self.rewards)
        transition = np.zeros((2, arms, 2))
        # A pull leads to a second state, in which nothing is paid.
        transition[:, :, 1] = 1.0
        paid = np.zeros((2, arms, 2))
        paid[0] = np.stack([self.rewards, self.costs], axis=-1)
        # Any discount gives the same values, since one step is paid.
        return Tables(np.array([1.0, 0.0]), transition, paid, np.ones((2, 1)), 0.5)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A walk from the upper left corner to the upper right one, past hazards that lie on the short way.

    Walls stop a move. With probability `slip` the action is replaced by a uniform one. Entering the goal pays 1 and
    ends the episode; entering a hazard, or staying in one at a wall, costs 1.
    """

    rows: int = 3
    columns: int = 5
    slip: float = 0.1
    hazards: tuple[tuple[int, int], ...] = ((0, 1), (0, 2), (0, 3), (1, 2))

    channels: ClassVar[int] = 2
    gamma: float = 0.95
    horizon: int = 100

    @property
    def width(self) -> int:
        return self.rows * self.columns

    @property
    def actions(self) -> Categorical:
        return Categorical((len(MOVES),))

    @property
    def goal(self) -> int:
        return self.columns - 1

    def reset(self, key: Array) -> Int[Array, '']:
        return jnp.zeros((), jnp.int32)

    def observe(self, state: Int[Array, '']) -> Float[Array, ' D']:
        return jax.nn.one_hot(state, self.width)

    def legal(self, state: Int[Array, '']) -> Bool[Array, ' K']:
        return jnp.ones(len(MOVES), bool)

    def step(
        self, state: Int[Array, ''], action: Int[Array, ' 1'], key: Array
    ) -> tuple[Array, Float[Array, ' 2'], Bool[Array, '']]:
        # The same draw tells whether the action is replaced, below 1, and by which one.
        draw = jax.random.uniform(key) / max(self.slip, 1e-9)
        other = jnp.clip(jnp.floor(draw * len(MOVES)), 0, len(MOVES) - 1).astype(jnp.int32)
        move = jnp.array(MOVES)[jnp.where(draw < 1.0, other, action[0])]
        row = jnp.clip(state // self.columns + move[0], 0, self.rows - 1)
        column = jnp.clip(state % self.columns + move[1], 0, self.columns - 1)
        cell = row * self.columns + column
        ended = cell == self.goal
        return cell, jnp.stack([ended, self._hazards[cell]]).astype(jnp.float32), ended

    def tables(self) -> Tables:
        """The tables of the grid."""
        size = self.width
        moved = np.zeros((size, len(MOVES), size))
        for cell in range(size):
            for action, (down, right) in enumerate(MOVES):
                row = min(max(cell // self.columns + down, 0), self.rows - 1)
                column = min(max(cell % self.columns + right, 0), self.columns - 1)
                moved[cell, action, row * self.columns + column] = 1.0
        transition = (1.0 - self.slip) * moved + self.slip * moved.mean(axis=1, keepdims=True)
        # The state of the goal pays nothing and is never left.
        transition[self.goal] = np.eye(size)[self.goal]
        # A move pays its mean reward, by the probabilities of the cells that it leads to.
        into_goal = transition[:, :, self.goal]
        into_hazard = np.tensordot(transition, np.asarray(self._hazards, float), axes=1)
        rewards = np.stack([into_goal, into_hazard], axis=-1)
        rewards[self.goal] = 0.0
        return Tables(np.eye(size)[0], transition, rewards, np.eye(size), self.gamma)

    @property
    def _hazards(self) -> Array:
        cells = [row * self.columns + column for row, column in self.hazards]
        return jnp.zeros(self.width, bool).at[jnp.array(cells)].set(True)
