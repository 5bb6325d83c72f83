"""Win rates of a player by seat, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

SEATS = 'first', 'second'
KEY = (
    'Shares of the matches of the policy in either seat, with the 95 % exact interval of wins, and its mean reward: '
    'in Kuhn poker the chips that it wins in a hand, otherwise 1 for a win and -1 for a loss.'
)

Rewards = Mapping[tuple[str, str, int], Float[np.ndarray, ' n']]  # by game, opponent and the policy's seat


def measure(rewards: Rewards) -> dict[str, Any]:
    """Shares of wins, draws and losses by game, opponent and seat, the mean over both seats, and `winrate`: the mean
    over all games of the share of wins against the player that moves at random."""
    record: dict[str, Any] = {}
    seats: dict[tuple[str, str], list[Estimate]] = {}
    for (game, opponent, seat), won in rewards.items():
        name, wins = f'{game}_{opponent}_{SEATS[seat]}', intervals.share(won > 0)
        record |= {f'{name}_win': wins.value, f'{name}_win_interval': wins.interval}
        record |= {f'{name}_draw': float(np.mean(won == 0)), f'{name}_reward': float(np.mean(won))}
        seats.setdefault((game, opponent), []).append(wins)
    for (game, opponent), shares in seats.items():
        record |= intervals.average(shares).named(f'{game}_{opponent}_win')
    if against := [share for (_, opponent), shares in seats.items() if opponent == 'random' for share in shares]:
        record |= intervals.average(against).named('winrate')
    return record


def make_exhibit(record: Mapping[str, Any], rewards: Rewards, names: Mapping[str, str]) -> Exhibit:
    """Win rates as a table, a row for each opponent and seat. `names` has what opponents are called in settings."""
    rows = [['game', 'opponent', 'seat', 'wins', '95 %', 'draws', 'mean reward']]
    for game, opponent, seat in rewards:
        name = f'{game}_{opponent}_{SEATS[seat]}'
        low, high = record[f'{name}_win_interval']
        shares = f'{record[f"{name}_win"]:.3f}', f'{low:.3f} to {high:.3f}', f'{record[f"{name}_draw"]:.3f}'
        rows.append([game, names.get(opponent, opponent), SEATS[seat], *shares, f'{record[f"{name}_reward"]:+.3f}'])
    return Exhibit('Matches against fixed opponents', KEY, rows)
