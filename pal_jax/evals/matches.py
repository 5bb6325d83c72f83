"""Win rates of a player by seat, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pal_jax.types import Exhibit

Z = 1.96  # of a 95 % interval
SEATS = 'first', 'second'
KEY = (
    'Shares of the matches of the policy in either seat, with the 95 % interval of wins (Wilson), and its mean reward: '
    'in Kuhn poker the chips that it wins in a hand, otherwise 1 for a win and -1 for a loss.'
)

Rewards = Mapping[tuple[str, str, int], Float[np.ndarray, ' n']]  # by game, opponent and the policy's seat


def wilson(wins: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `wins` of `n` were seen (Wilson 1927)."""
    share, extra = wins / n, Z**2 / n
    centre, half = (share + extra / 2) / (1 + extra), Z * math.sqrt(share * (1 - share) / n + extra / (4 * n))
    return max(centre - half / (1 + extra), 0.0), min(centre + half / (1 + extra), 1.0)


def measure(rewards: Rewards) -> dict[str, Any]:
    """Shares of wins, draws and losses by game, opponent and seat, the mean over both seats, and `winrate`: the mean
    over all games of the share of wins against the player that moves at random."""
    record: dict[str, Any] = {}
    means: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (game, opponent, seat), won in rewards.items():
        name, n = f'{game}_{opponent}_{SEATS[seat]}', len(won)
        wins = int(np.sum(won > 0))
        low, high = wilson(wins, n)
        record |= {f'{name}_win': wins / n, f'{name}_win_interval': [low, high]}
        record |= {f'{name}_draw': float(np.mean(won == 0)), f'{name}_reward': float(np.mean(won))}
        means.setdefault((game, opponent), []).append((wins / n, (high - low) / (2 * Z)))
    for (game, opponent), seats in means.items():
        record[f'{game}_{opponent}_win'], record[f'{game}_{opponent}_win_se'] = mean(seats)
    if against := [pair for (_, opponent), seats in means.items() if opponent == 'random' for pair in seats]:
        record['winrate'], record['winrate_se'] = mean(against)
    return record


def mean(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of independent figures and its standard error, from each with its own."""
    values, errors = zip(*parts, strict=True)
    return float(np.mean(values)), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def make_exhibit(record: Mapping[str, Any], rewards: Rewards, names: Mapping[str, str]) -> Exhibit:
    """Win rates as a table, a row for each opponent and seat. `names` has what opponents are called in settings."""
    rows = [['game', 'opponent', 'seat', 'wins', '95 %', 'draws', 'mean reward']]
    for game, opponent, seat in rewards:
        name = f'{game}_{opponent}_{SEATS[seat]}'
        low, high = record[f'{name}_win_interval']
        shares = f'{record[f"{name}_win"]:.3f}', f'{low:.3f} to {high:.3f}', f'{record[f"{name}_draw"]:.3f}'
        rows.append([game, names.get(opponent, opponent), SEATS[seat], *shares, f'{record[f"{name}_reward"]:+.3f}'])
    return Exhibit('Matches against fixed opponents', KEY, rows)
