"""Rewards of a team by what each member contributes: values of sub-teams, and Shapley's shares of them (CTCR).

Chen et al. 2023, *Proactive multi-camera collaboration for 3D human pose estimation* (arXiv 2303.03767, section 3.2).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

MOST = 6  # members whose sub-teams are all counted: 57 of them
FAILED = 100.0  # cm: the error of a joint that is not reconstructed, and the largest that counts
Value = Literal['unit', 'geman', 'error']


@functools.cache
def teams(members: int) -> Bool[np.ndarray, 'S n']:
    """The members of every sub-team of two or more, as rows: pairs first, the whole team last.

    Raises:
      ValueError: there are fewer than two members or more than `MOST`.
    """
    if not 2 <= members <= MOST:
        raise ValueError(f'a team has 2 to {MOST} members for exact contributions, got {members}')
    chosen = [team for size in range(2, members + 1) for team in itertools.combinations(range(members), size)]
    return np.array([[member in team for member in range(members)] for team in chosen])


@functools.cache
def coefficients(members: int) -> Float[np.ndarray, 'n S']:
    """The weights of the sub-teams' values in every member's contribution.

    phi_i = n * sum over S with i in S, |S| >= 2, of (|S| - 1)! (n - |S|)! / n! * [v(S) - v(S without i)],
    where a team of one is worth 0.
    """
    rows = teams(members)
    place = {tuple(row): number for number, row in enumerate(rows.tolist())}
    weights = np.zeros((members, len(rows)))
    for number, row in enumerate(rows.tolist()):
        size = sum(row)
        share = members * math.factorial(size - 1) * math.factorial(members - size) / math.factorial(members)
        for member in np.flatnonzero(row):
            weights[member, number] += share
            without = tuple(inside and other != member for other, inside in enumerate(row))
            # A team of one is worth 0, since one camera alone has no depth.
            if without in place:
                weights[member, place[without]] -= share
    return weights


def contributions(values: Float[Array, '*B S'], members: int) -> Float[Array, '*B n']:
    """Every member's contribution to the team, by the values of its sub-teams in the order of `teams`. Their mean is
    the value of the whole team."""
    return values @ jnp.asarray(coefficients(members).T, values.dtype)


def geman(error: Float[Array, '*B']) -> Float[Array, '*B']:
    """The loss of Geman and McClure, `2 u / (u + 4) - 1` with `u = (.2 e)^2`: from -1 over 0 at 10 cm up to 1."""
    u = jnp.square(0.2 * error)
    return 2.0 * u / (u + 4.0) - 1.0


def value(error: Float[Array, '*B'], kind: Value = 'unit') -> Float[Array, '*B']:
    """The value of a mean error in cm. `geman` is the paper's, minus the loss: from 1 at no error to -1. `unit` is the
    same from 1 to 0, and `error` the negative error.

    Raises:
      ValueError: there is no such kind.
    """
    if kind == 'error':
        return -error
    if kind not in ('unit', 'geman'):
        raise ValueError(f'value={kind!r}; use unit, geman or error')
    # Where values can be negative, a pair can be worth less than a member alone, which is worth 0. Then contributions
    # punish whoever joins.
    return -geman(error) if kind == 'geman' else 0.5 * (1.0 - geman(error))
