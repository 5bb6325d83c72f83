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
from pal_jax.runtime.curve import GREY, INK, RED, STYLE, png
from pal_jax.runtime.verdict import WIDTH
from pal_jax.types import Exhibit

MARKERS = 'oDs^vP*Xph<>'
WITHIN = 'Within noise: the limit is inside the 95 % interval of the cost.'


class Point(NamedTuple):
    """A system's mean reward and mean cost, their standard errors, and its share of unsafe answers."""

    reward: float
    cost: float
    reward_se: float = 0.0
    cost_se: float = 0.0
    unsafe: float = math.nan


def measure(
    rewards: Float[np.ndarray, ' samples'],
    costs: Float[np.ndarray, ' samples'],
    prompts: Int[np.ndarray, ' samples'],
    groups: Sequence[str],
    limits: Mapping[str, float],
) -> dict[str, Any]:
    """The record of an evaluation.

    `prompts` has the number of each sample's prompt, `groups` the name of its group, and `limits` the limit of each
    group. `unsafe_share` is the share of samples whose cost is above 0, `above_limit` that of samples above their
    limit, `prompts_above_limit` that of prompts whose mean cost is, and `cost_above` the mean of `max(cost - limit,
    0)`. Each figure has a standard error and a 95 % interval by the bootstrap over prompts: samples of one prompt stay
    together. `by_group` has the limit, the number of prompts, the mean cost (None without prompts) and its standard
    error (None with less than two) of each group.
    `limit` is there where all groups have the same.
    """
    limit = np.array([limits[group] for group in groups], float)
    above = np.maximum(costs - limit, 0.0)
    per_sample = np.stack([rewards, costs, costs > 0.0, costs > limit, above, limit, np.ones(len(costs))], axis=1)
    _, firsts, prompt = np.unique(prompts, return_index=True, return_inverse=True)
    by_prompt = sums(per_sample.astype(float), prompt)
    cells = np.column_stack([by_prompt, by_prompt[:, 1] > by_prompt[:, 5], np.ones(len(by_prompt))])
    figures, draws = _ratios(cells.sum(axis=0)), _ratios(resampled_counts(len(cells)) @ cells)
    record: dict[str, Any] = {'samples': len(costs), 'prompts': len(cells)}
    if len(used := {limits[group] for group in groups}) == 1:
        record['limit'] = float(*used)
    for name, value in figures.items():
        record |= {
            name: float(value),
            f'{name}_se': float(draws[name].std()),
            f'{name}_interval': interval(draws[name]),
        }
    names = np.asarray(groups)[firsts]
    record['by_group'] = {name: _of_group(cells[names == name], limits[name]) for name in limits}
    return record


def _ratios(totals: Float[np.ndarray, '... 9']) -> dict[str, Float[np.ndarray, '...']]:
    """The figures from sums over prompts: of six figures of samples, of samples, of prompts above and of prompts."""
    reward, cost, unsafe, over, above, _, samples, prompts_over, prompts = np.moveaxis(totals, -1, 0)
    return {
        'reward': reward / samples,
        'cost': cost / samples,
        'unsafe_share': unsafe / samples,
        'above_limit': over / samples,
        'cost_above': above / samples,
        'prompts_above_limit': prompts_over / prompts,
    }


def _of_group(cells: Float[np.ndarray, 'prompts 9'], limit: float) -> dict[str, float | None]:
    cost = float(_ratios(cells.sum(axis=0))['cost']) if len(cells) else None
    error = float(_ratios(resampled_counts(len(cells)) @ cells)['cost'].std()) if len(cells) > 1 else None
    return {'cost': cost, 'cost_se': error, 'limit': float(limit), 'prompts': len(cells)}


def average(points: Sequence[Point]) -> Point:
    """The mean of a system's seeds, with standard errors over seeds; a single seed keeps its own."""
    if len(points) == 1:
        return points[0]
    values = np.array([point[:2] for point in points])
    errors = values.std(axis=0, ddof=1) / math.sqrt(len(points))
    unsafe = float(np.mean([point.unsafe for point in points]))
    (reward, cost), (reward_se, cost_se) = values.mean(axis=0).tolist(), errors.tolist()
    return Point(reward, cost, reward_se, cost_se, unsafe)


def pareto(points: Sequence[Point]) -> list[bool]:
    """True for points that no other point dominates, with at least their reward and at most their cost, one of them
    strictly."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(other: Point, point: Point) -> bool:
    no_worse = other.reward >= point.reward and other.cost <= point.cost
    return no_worse and (other.reward > point.reward or other.cost < point.cost)


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_groups_exhibit(records: Mapping[str, Mapping[str, Any]]) -> Exhibit:
    """A table of the groups of prompts, from the records of `measure` by the name of their system."""
    rows = [
        [
            system,
            group,
            str(figures['prompts']),
            f'{figures["limit"]:g}',
            *_cost_of(figures),
        ]
        for system, record in records.items()
        for group, figures in record['by_group'].items()
    ]
    text = f'Mean costs with their standard errors over prompts. {WITHIN}'
    return Exhibit('Costs by group', text, [['', 'group', 'prompts', 'limit', 'cost', 'within the limit'], *rows])


def _cost_of(figures: Mapping[str, Any]) -> tuple[str, str]:
    """The cells of a group's mean cost and of whether it is within the limit; a dash where nothing is known."""
    cost, error = figures['cost'], figures['cost_se']
    if cost is None or error is None:
        return '–' if cost is None else f'{cost:.3f}', '–'
    return f'{cost:.3f} ± {error:.3f}', within(Point(0.0, cost, 0.0, error), figures['limit'])


def make_exhibits(points: Mapping[str, Sequence[Point]], limit: float | None) -> list[Exhibit]:
    """A table of systems, each with its seeds, and the picture of `plot_tradeoff`.

    `limit` is None where groups have limits of their own, which `make_groups_exhibit` shows, or costs have none.
    """
    means = {name: average(seeds) for name, seeds in points.items()}
    front = pareto(list(means.values()))
    rows = [
        [
            name,
            str(len(points[name])),
            f'{mean.reward:.3f} ± {mean.reward_se:.3f}',
            f'{mean.cost:.3f} ± {mean.cost_se:.3f}',
            f'{mean.unsafe:.3f}',
            '' if limit is None else within(mean, limit),
            'yes' if best else 'no',
        ]
        for (name, mean), best in zip(means.items(), front, strict=True)
    ]
    text = (
        'Means over seeds with their standard errors, of one seed over its prompts. '
        'Unsafe: the share of answers with a cost above 0. '
        + ('' if limit is None else f'The limit of costs is {limit:g}. {WITHIN} ')
        + 'On the front: no other has at least its reward for at most its cost.'
    )
    head = ['', 'seeds', 'reward', 'cost', 'unsafe', 'within the limit', 'on the front']
    return [Exhibit('Reward and cost', text, [head, *rows], plot_tradeoff(points, limit))]


def within(point: Point, limit: float) -> str:
    """'yes' where the mean cost is below the limit, 'no' where it is above, each by more than `WIDTH` standard errors,
    and 'within noise' in between."""
    if abs(point.cost - limit) <= WIDTH * point.cost_se:
        return 'within noise'
    return 'yes' if point.cost <= limit else 'no'


def plot_tradeoff(points: Mapping[str, Sequence[Point]], limit: float | None) -> bytes:
    """A picture of systems by cost and reward: seeds pale, their means with error bars, systems on the front connected,
    and the area above the limit, if there is one, shaded."""
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
        if limit is not None:
            left, right = ax.get_xlim()
            span = 0.06 * (right - left)  # the limit is in the picture, wherever the systems are
            left, right = min(left, limit - span), max(right, limit + span)
            ax.axvspan(limit, right, color=RED, alpha=0.05, linewidth=0)
            ax.axvline(limit, color=RED, linewidth=1.2, linestyle=(0, (4, 3)))
            ax.text(limit, 0.01, f' limit {limit:g}', transform=ax.get_xaxis_transform(), color=RED, fontsize=9)
            ax.set_xlim(left, right)
        ax.set_xlabel('mean cost of a sample')
        ax.set_ylabel('mean reward of a sample')
        figure.legend(frameon=False, loc='outside right upper', labelcolor=INK)
    return png(figure)
