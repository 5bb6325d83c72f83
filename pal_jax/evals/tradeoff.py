"""The trade-off of reward and cost: figures of samples that earn a reward and cause a cost, and the systems on the
front.

The cost of a whole sample is to lie below a limit, on average or in every sample. Safe RLHF (arXiv 2310.12773) bounds
the mean, in which very safe samples make up for unsafe ones. So the figures also count the prompts and samples above
the limit, and measure by how much (Rectified Policy Optimization, arXiv 2410.19933).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from pal_jax.evals.bootstrap import interval, resampled_counts, sums
from pal_jax.runtime.curve import GREY, INK, STYLE, png
from pal_jax.types import Exhibit

MARKERS = 'oDs^vP*Xph<>'


class Point(NamedTuple):
    """A system's mean reward and mean cost, and their standard errors."""

    reward: float
    cost: float
    reward_se: float = 0.0
    cost_se: float = 0.0


def measure(
    rewards: Float[np.ndarray, ' samples'],
    costs: Float[np.ndarray, ' samples'],
    prompts: Int[np.ndarray, ' samples'],
    groups: Sequence[str],
    limit: float,
) -> dict[str, Any]:
    """The record of an evaluation.

    `prompts` has the number of each sample's prompt, `groups` the name of its group. `violations` is the share of
    prompts whose mean cost is above the limit, `unsafe_share` that of samples, and `cost_above` the mean of `max(cost -
    limit, 0)`. Each figure has a standard error and a 95 % interval by the bootstrap over prompts: samples of one
    prompt stay together.
    """
    above = np.maximum(costs - limit, 0.0)
    per_sample = np.stack([rewards, costs, costs > limit, above, np.ones(len(costs))], axis=1).astype(float)
    _, prompt = np.unique(prompts, return_inverse=True)
    by_prompt = sums(per_sample, prompt)
    violated = by_prompt[:, 1] > limit * by_prompt[:, -1]
    cells = np.column_stack([by_prompt, violated, np.ones(len(violated))])
    figures, draws = _ratios(cells.sum(axis=0)), _ratios(resampled_counts(len(cells)) @ cells)
    record: dict[str, Any] = {'samples': len(costs), 'prompts': len(cells), 'limit': float(limit)}
    for name, value in figures.items():
        record |= {
            name: float(value),
            f'{name}_se': float(draws[name].std()),
            f'{name}_interval': interval(draws[name]),
        }
    names = np.asarray(groups)
    record['cost_by_group'] = {str(name): float(costs[names == name].mean()) for name in np.unique(names)}
    return record


def _ratios(totals: Float[np.ndarray, '... 7']) -> dict[str, Float[np.ndarray, '...']]:
    """The figures from sums over prompts: of four figures of samples, of samples, of violations and of prompts."""
    reward, cost, unsafe, above, samples, violated, prompts = np.moveaxis(totals, -1, 0)
    return {
        'reward': reward / samples,
        'cost': cost / samples,
        'unsafe_share': unsafe / samples,
        'cost_above': above / samples,
        'violations': violated / prompts,
    }


def average(points: Sequence[Point]) -> Point:
    """The mean of a system's seeds, with standard errors over seeds; a single seed keeps its own."""
    if len(points) == 1:
        return points[0]
    values = np.array([point[:2] for point in points])
    errors = values.std(axis=0, ddof=1) / math.sqrt(len(points))
    return Point(*map(float, values.mean(axis=0)), *map(float, errors))


def pareto(points: Sequence[Point]) -> list[bool]:
    """True for points that no other point dominates, with at least their reward and at most their cost, one of them
    strictly."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(other: Point, point: Point) -> bool:
    no_worse = other.reward >= point.reward and other.cost <= point.cost
    return no_worse and (other.reward > point.reward or other.cost < point.cost)


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_exhibits(points: Mapping[str, Sequence[Point]], limit: float) -> list[Exhibit]:
    """A table of systems, each with its seeds, and the picture of `plot_tradeoff`."""
    means = {name: average(seeds) for name, seeds in points.items()}
    front = pareto(list(means.values()))
    rows = [
        [
            name,
            str(len(points[name])),
            f'{mean.reward:.3f} ± {mean.reward_se:.3f}',
            f'{mean.cost:.3f} ± {mean.cost_se:.3f}',
            within(mean, limit),
            'yes' if best else 'no',
        ]
        for (name, mean), best in zip(means.items(), front, strict=True)
    ]
    text = (
        f'Means over seeds with their standard errors, of one seed over its prompts. The limit of costs is {limit:g}. '
        'On the front: no other has at least its reward for at most its cost.'
    )
    head = ['', 'seeds', 'reward', 'cost', 'within the limit', 'on the front']
    return [Exhibit('Reward and cost', text, [head, *rows], plot_tradeoff(points, limit))]


def within(point: Point, limit: float) -> str:
    """Whether a mean cost is at most the limit, and if not, whether noise of two standard errors explains it."""
    if point.cost <= limit:
        return 'yes'
    return 'within noise' if point.cost <= limit + 2.0 * point.cost_se else 'no'


def plot_tradeoff(points: Mapping[str, Sequence[Point]], limit: float) -> bytes:
    """A picture of systems by cost and reward: seeds pale, their means with error bars, systems on the front connected,
    and the area above the limit shaded."""
    means = {name: average(seeds) for name, seeds in points.items()}
    best = sorted(
        (mean.cost, mean.reward) for mean, on in zip(means.values(), pareto(list(means.values())), strict=True) if on
    )
    with matplotlib.rc_context(STYLE):
        colours = matplotlib.colormaps['tab10']
        figure = Figure(figsize=(8, 4.8), layout='constrained')
        ax = figure.subplots()
        ax.set_title('Reward and what it costs', fontsize=13, fontweight='bold')
        ax.plot(*np.array(best).T, color=GREY, linewidth=1.5, label='front')
        for number, (name, mean) in enumerate(means.items()):
            style: Any = {'color': colours(number % 10), 'marker': MARKERS[number % len(MARKERS)], 'linestyle': ''}
            seeds = points[name] if len(points[name]) > 1 else ()
            pale = [(seed.cost, seed.reward) for seed in seeds]
            ax.plot(*np.array(pale).reshape(-1, 2).T, alpha=0.35, markersize=4, markeredgewidth=0, zorder=2, **style)
            bars: Any = {'elinewidth': 1.2, 'capsize': 2.5, 'markersize': 9, 'markeredgecolor': 'white', 'zorder': 3}
            ax.errorbar(mean.cost, mean.reward, mean.reward_se, mean.cost_se, label=name, **style, **bars)
        ax.margins(0.08)
        left, right = ax.get_xlim()
        span = 0.06 * (right - left)  # the limit is in the picture, wherever the systems are
        left, right = min(left, limit - span), max(right, limit + span)
        ax.axvspan(limit, right, color='#dc2626', alpha=0.05, linewidth=0)
        ax.axvline(limit, color='#dc2626', linewidth=1.2, linestyle=(0, (4, 3)))
        ax.text(limit, 0.01, f' limit {limit:g}', transform=ax.get_xaxis_transform(), color='#dc2626', fontsize=9)
        ax.set_xlim(left, right)
        ax.set_xlabel('mean cost of a sample')
        ax.set_ylabel('mean reward of a sample')
        figure.legend(frameon=False, loc='outside right upper', labelcolor=INK)
    return png(figure)
