"""Elo ratings of systems from their outcomes against each other, as Safe RLHF reports them (arXiv 2310.12773).

An outcome is +1, 0 or -1, for the first system of a pair on a prompt; NaN where it was not judged. The ratings are
those of the Bradley-Terry model with the highest likelihood (Bradley & Terry 1952), in which a system wins against
another with the probability `1 / (1 + 10^(-difference / 400))`. A tie is half a win for each system. The mean of all
ratings is 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
import scipy
from jaxtyping import Float
from matplotlib.figure import Figure

from pal_jax.judges.winrates import Pair
from pal_jax.run.bootstrap import DRAWS, interval, resampled_counts
from pal_jax.run.curve import BLUE, GREY, STYLE, png
from pal_jax.types import Exhibit

SCALE = 400.0 / math.log(10.0)  # rating points of a unit of log-odds
VIRTUAL = 0.25  # virtual wins of each system against every other one
KEY = (
    'A system that is 100 points above another wins 64 % of the prompts against it, 200 points 76 %, 400 points 91 %; '
    'the mean of all is 0. Intervals are of 95 % over prompts.'
)

Outcomes = Mapping[Pair, Float[np.ndarray, ' prompts']]


def measure(outcomes: Outcomes, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The ratings `elo_<system>`, with standard errors and 95 % intervals by the bootstrap over prompts.

    Raises:
      ValueError: a pair has another number of prompts than the first one.
    """
    systems, wins = _wins(outcomes)
    best = fit(wins.sum(axis=0))
    # The outcomes of one prompt in all pairs stay together.
    counts = resampled_counts(len(wins), draws=draws, seed=seed)
    # Each draw starts from the ratings of all prompts, which are near its own.
    drawn = np.stack([fit(total, start=best) for total in np.tensordot(counts, wins, axes=1)])
    record: dict[str, Any] = {'prompts': len(wins)}
    for number, name in enumerate(systems):
        record |= {
            f'elo_{name}': float(best[number]),
            f'elo_{name}_se': float(drawn[:, number].std()),
            f'elo_{name}_interval': interval(drawn[:, number], len(wins)),
        }
    return record


def fit(
    wins: Float[np.ndarray, 'systems systems'], start: Float[np.ndarray, ' systems'] | None = None
) -> Float[np.ndarray, ' systems']:
    """The ratings of the highest likelihood, from the row's wins against the column's and the virtual wins."""
    # A system that never lost would have no finite rating. So every two systems also have half a virtual draw: a
    # quarter of a win for each. The draw pulls all ratings a little together, and less the more prompts there are.
    counted = wins + VIRTUAL * (1.0 - np.eye(len(wins)))
    counted = counted / counted.sum()
    games = counted + counted.T

    def loss(x: np.ndarray) -> float:
        # The likelihood is concave in the ratings and the same for all shifts of them. A penalty on their sum, which is
        # 0 at the maximum, picks the ratings of mean 0.
        return float((counted * np.logaddexp(0.0, x[None] - x[:, None])).sum() + x.sum() ** 2 / 2.0)

    def slope(x: np.ndarray) -> np.ndarray:
        return (games * _expected(x) - counted).sum(axis=1) + x.sum()

    def curvature(x: np.ndarray) -> np.ndarray:
        share = games * _expected(x) * _expected(-x)
        return np.diag(share.sum(axis=1)) - share + 1.0

    begin = np.zeros(len(wins)) if start is None else start / SCALE
    settings: Any = {'jac': slope, 'hess': curvature, 'method': 'trust-exact', 'options': {'gtol': 1e-13}}
    return SCALE * scipy.optimize.minimize(loss, begin, **settings).x


def _expected(x: Float[np.ndarray, ' systems']) -> Float[np.ndarray, 'systems systems']:
    """The chance that the row's system wins against the column's."""
    return scipy.special.expit(x[:, None] - x[None])


def _wins(outcomes: Outcomes) -> tuple[list[str], Float[np.ndarray, 'prompts systems systems']]:
    """The systems, and the row's wins against the column's on each prompt."""
    systems = list(dict.fromkeys(itertools.chain.from_iterable(outcomes)))
    place = {name: number for number, name in enumerate(systems)}
    prompts = len(next(iter(outcomes.values())))
    wins = np.zeros((prompts, len(systems), len(systems)))
    for (first, second), signs in outcomes.items():
        if len(signs) != prompts:
            raise ValueError(
                f'outcomes of {first} against {second}: they are of {len(signs)} prompts, those of the first pair of '
                f'{prompts}; give all pairs the same prompts, NaN where one was not judged'
            )
        won = (np.asarray(signs, float) + 1.0) / 2.0
        wins[:, place[first], place[second]] += np.nan_to_num(won)
        wins[:, place[second], place[first]] += np.nan_to_num(1.0 - won)
    return systems, wins


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_exhibits(record: Mapping[str, Any], systems: Iterable[str], kind: str) -> list[Exhibit]:
    """A table and a picture of the figures of `measure`, the best system first; `kind` says what they are best at."""
    names = sorted(systems, key=lambda name: -record[f'elo_{name}'])
    rows = [
        [name, f'{record[f"elo_{name}"]:+.0f}', ' to '.join(f'{end:+.0f}' for end in record[f'elo_{name}_interval'])]
        for name in names
    ]
    title = f'Elo ratings, the most {kind} first'
    return [Exhibit(title, KEY, [['', 'Elo', '95 %'], *rows], plot_ratings(record, names, title))]


def plot_ratings(record: Mapping[str, Any], names: list[str], title: str) -> bytes:
    """Ratings with their intervals, the first of `names` on top."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.4 + 0.36 * len(names)), layout='constrained')
        ax = figure.subplots()
        ax.grid(visible=False, axis='y')
        ax.set_title(title, fontsize=13, fontweight='bold')
        ax.axvline(0, color=GREY, linewidth=1, linestyle='--')
        for row, name in enumerate(names):
            ax.plot(record[f'elo_{name}_interval'], [row, row], color=BLUE, alpha=0.35, linewidth=5)
            ax.plot(record[f'elo_{name}'], row, 'o', color=BLUE, markersize=8, markeredgecolor='white')
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis='y', length=0)
        ax.set_xlabel('points, mean 0')
    return png(figure)
