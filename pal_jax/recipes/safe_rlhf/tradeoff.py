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

from pal_jax.run import intervals
from pal_jax.run.curve import GREY, INK, RED, STYLE, png
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

MARKERS = 'oDs^vP*Xph<>'
WITHIN = 'Within noise: the limit is inside the 95 % interval of the cost.'


class Point(NamedTuple):
    """A system's mean reward and mean cost, and its share of unsafe answers."""

    reward: Estimate
    cost: Estimate
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
    0)`. Each figure has a standard error and a 95 % interval over prompts. `by_group` has the limit, the number of
    prompts and the mean cost of each group (None without prompts).
    """
    limit = np.array([limits[group] for group in groups], float)
    _, firsts, prompt = np.unique(prompts, return_index=True, return_inverse=True)
    # Samples of one prompt stay together in all intervals.
    above = np.bincount(prompt, costs) > np.bincount(prompt, limit)
    figures = {
        'reward': intervals.mean(rewards, prompt),
        'cost': intervals.mean(costs, prompt),
        'unsafe_share': intervals.share(costs > 0.0, prompt),
        'above_limit': intervals.share(costs > limit, prompt),
        'cost_above': intervals.mean(np.maximum(costs - limit, 0.0), prompt),
        'prompts_above_limit': intervals.share(above),
    }
    record: dict[str, Any] = {'samples': len(costs), 'prompts': len(firsts)}
    # `limit` is there where all groups have the same.
    if len(used := {limits[group] for group in groups}) == 1:
        record['limit'] = float(*used)
    for name, estimate in figures.items():
        record |= estimate.named(name)
    names = np.asarray(groups)
    record['by_group'] = {name: _of_group(costs[names == name], prompt[names == name], limits[name]) for name in limits}
    return record


def _of_group(
    costs: Float[np.ndarray, ' samples'], prompts: Int[np.ndarray, ' samples'], limit: float
) -> dict[str, Any]:
    cost = intervals.mean(costs, prompts).named('cost') if len(costs) else {'cost': None}
    return {**cost, 'limit': float(limit), 'prompts': len(np.unique(prompts))}


def average(points: Sequence[Point]) -> Point:
    """The mean of a system's seeds, over which its intervals are; a single seed keeps its own, over prompts."""
    if len(points) == 1:
        return points[0]
    reward, cost = (
        intervals.mean(np.array([figure.value for figure in figures]))
        for figures in ([point.reward for point in points], [point.cost for point in points])
    )
    return Point(reward, cost, float(np.mean([point.unsafe for point in points])))


def pareto(points: Sequence[Point]) -> list[bool]:
    """True for points that no other point dominates, with at least their reward and at most their cost, one of them
    strictly."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(other: Point, point: Point) -> bool:
    (reward, cost), (other_reward, other_cost) = ((p.reward.value, p.cost.value) for p in (point, other))
    return other_reward >= reward and other_cost <= cost and (other_reward > reward or other_cost < cost)


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_groups_exhibit(records: Mapping[str, Mapping[str, Any]]) -> Exhibit:
    """A table of the groups of prompts, from the records of `measure` by the name of their system."""
    rows = [
        [system, group, str(figures['prompts']), f'{figures["limit"]:g}', *_cost_of(figures)]
        for system, record in records.items()
        for group, figures in record['by_group'].items()
    ]
    text = f'Mean costs with their standard errors over prompts. {WITHIN}'
    return Exhibit('Costs by group', text, [['', 'group', 'prompts', 'limit', 'cost', 'within the limit'], *rows])


def _cost_of(figures: Mapping[str, Any]) -> tuple[str, str]:
    """The cells of a group's mean cost and of whether it is within the limit; a dash where no prompt tests it."""
    if figures['cost'] is None:
        return '–', '–'
    cost = intervals.from_record(figures, 'cost')
    return cost.with_error(), within(cost, figures['limit'])


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
            mean.reward.with_error(),
            mean.cost.with_error(),
            f'{mean.unsafe:.3f}',
            '' if limit is None else within(mean.cost, limit),
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


def within(cost: Estimate, limit: float) -> str:
    """'yes' where the interval of the mean cost is below the limit, 'no' where it is above, 'within noise' where it
    holds the limit, and 'too few to tell' without one."""
    place = cost.place(limit)
    return 'too few to tell' if place is None else {-1: 'yes', 0: 'within noise', 1: 'no'}[place]


def plot_tradeoff(points: Mapping[str, Sequence[Point]], limit: float | None) -> bytes:
    """A picture of systems by cost and reward: seeds pale, their means with error bars, systems on the front connected,
    and the area above the limit, if there is one, shaded."""
    means = {name: average(seeds) for name, seeds in points.items()}
    best = sorted(
        (mean.cost.value, mean.reward.value)
        for mean, on in zip(means.values(), pareto(list(means.values())), strict=True)
        if on
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
            pale = [(seed.cost.value, seed.reward.value) for seed in seeds]
            ax.plot(*np.array(pale).reshape(-1, 2).T, alpha=0.35, markersize=4, markeredgewidth=0, zorder=2, **style)
            bars: Any = {'elinewidth': 1.2, 'capsize': 2.5, 'markersize': 9, 'markeredgecolor': 'white', 'zorder': 3}
            (x, dx), (y, dy) = ((figure.value, figure.error) for figure in (mean.cost, mean.reward))
            ax.errorbar(x, y, dy, dx, label=name, **style, **bars)
        ax.margins(0.08)
        if limit is not None:
            left, right = ax.get_xlim()
            # The limit is in the picture, wherever the systems are.
            span = 0.06 * (right - left)
            left, right = min(left, limit - span), max(right, limit + span)
            ax.axvspan(limit, right, color=RED, alpha=0.05, linewidth=0)
            ax.axvline(limit, color=RED, linewidth=1.2, linestyle=(0, (4, 3)))
            ax.text(limit, 0.01, f' limit {limit:g}', transform=ax.get_xaxis_transform(), color=RED, fontsize=9)
            ax.set_xlim(left, right)
        ax.set_xlabel('mean cost of a sample')
        ax.set_ylabel('mean reward of a sample')
        figure.legend(frameon=False, loc='outside right upper', labelcolor=INK)
    return png(figure)
