"""Advantages of self-play: a baseline for each game and seat (SPIRAL, arXiv 2506.24119, section 3), or statistics of
each role (Self-RedTeam, arXiv 2506.07468).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pal_jax.objectives.advantages import Discounts, Estimates, EstimatorInputs, returns_of, whiten

Baseline = Literal['role', 'shared', 'none']


def role_conditioned(
    baselines: Float[Array, 'G 2'],
    games: Int[Array, ' N'],
    returns: Float[Array, 'N 2'],
    moved: Bool[Array, 'N 2'],
    *,
    alpha: float = 0.95,
    baseline: Baseline = 'role',
) -> tuple[Float[Array, 'N 2'], Float[Array, 'G 2']]:
    """Role-conditioned advantages (RAE) of the seats of matches, and the baselines after them.

    Matches are taken in their order: `A_p = R_p - b[G, p]`, then `b[G, p] <- alpha b[G, p] + (1 - alpha) R_p`, as the
    released code has it.

    Args:
      baselines: by game and seat, 0 at the beginning of a run.
      games: the game of each match.
      returns: what each seat has won in each match.
      moved: seats that learn. A seat that made no move, or that is somebody else's, has the advantage 0 and leaves its
        baseline as it is.
      baseline: 'role'; or, to compare with, 'shared': both seats have one, which follows the mean of their returns; or
        'none': baselines stay as they are.
    """

    def match(baselines: Array, one: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        game, won, learns = one
        # A seat that moves first may win more often whatever it does. A baseline of its own takes that advantage of the
        # seat out of what its player learns.
        before = baselines[game]
        follows = jnp.broadcast_to(jnp.mean(won), won.shape) if baseline == 'shared' else won
        # A shared baseline moves with every match, also for a seat that has not moved.
        moves = jnp.full_like(learns, True) if baseline == 'shared' else learns
        after = jnp.where(moves, alpha * before + (1.0 - alpha) * follows, before)
        # The baseline before the match is taken. The paper moves the baseline first, which makes it depend on the match
        # that it judges and every advantage `alpha` times as large.
        advantages = jnp.where(learns, won - before, 0.0)
        return baselines if baseline == 'none' else baselines.at[game].set(after), advantages

    baselines, advantages = jax.lax.scan(match, baselines, (games, returns, moved))
    return advantages, baselines


def as_given(rollout: EstimatorInputs) -> Estimates:
    """Advantages of actions where the reward of a sample is its advantage already: all its actions have it, less what
    they pay for their distance from a reference."""
    returns = returns_of(rollout, rollout.rewards, Discounts(reward_clip=(-jnp.inf, jnp.inf)))
    return returns[..., 0], returns


@dataclasses.dataclass(frozen=True)
class RoleWhitening:
    """Returns as advantages, whitened over the actions of each role by itself (Self-RedTeam, arXiv 2506.07468).

    It is REINFORCE++ with statistics by role: what one role is paid on average does not shift the other's advantages.
    """

    roles: int = 2
    discounts: Discounts = Discounts()

    def __call__(self, rollout: EstimatorInputs) -> Estimates:
        returns = returns_of(rollout, rollout.rewards, self.discounts)
        return whiten(returns[..., 0], rollout, roles=self.roles), returns
