"""Constrained MDPs against their exact optimum: linear programme, exact values of policies, and what a report shows.

The optimum is over occupancy measures (Altman 1999, chapter 3): `x[s, a]` is the discounted number of visits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from pal_jax.recipes.cmdp.figures import HANDLERS
from pal_jax.recipes.cmdp.finite import Tables
from pal_jax.run import intervals
from pal_jax.run.curve import GREY, STYLE, png
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

SHARE, ROOM = 0.97, 0.1  # a handler solves a task with such a share of the optimum and costs so little above the limit
MARKERS = 'oDs^vP*Xph<>d'


class ConstrainedOptimum(NamedTuple):
    """The best discounted reward under a limit, its cost, and the multiplier of the limit."""

    reward: float
    cost: float
    multiplier: float


class HandlerResult(NamedTuple):
    """The discounted reward and cost of an episode by a handler's policy, on a task with a limit (inf: none)."""

    task: str
    handler: str
    limit: float
    seed: int
    reward: float
    cost: float


def optimum(tables: Tables, limit: float) -> ConstrainedOptimum:
    """Solve `max sum x r` over occupancies `x >= 0` with `sum x c <= limit` by HiGHS. A limit of inf is none.

    Raises:
      ValueError: no policy keeps the limit.
    """
    states, actions, _ = tables.transition.shape
    # What leaves a state, less what comes into it, is what starts there.
    leaves = np.repeat(np.eye(states), actions, axis=0)
    flow = (leaves - tables.gamma * tables.transition.reshape(-1, states)).T
    paid = tables.rewards.reshape(-1, 2)
    within: dict[str, Any] = {} if math.isinf(limit) else {'A_ub': paid[None, :, 1], 'b_ub': [limit]}
    # Rewards and costs are linear in the visits, so a linear programme finds the best policy under a limit.
    solution = scipy.optimize.linprog(-paid[:, 0], A_eq=flow, b_eq=tables.start, method='highs', **within)
    if not solution.success:
        raise ValueError(f'no policy keeps a cost of {limit:g} ({solution.message}); raise the limit')
    # The dual value is negative, since the programme makes the negative reward small.
    multiplier = -float(solution.ineqlin.marginals[0]) if within else 0.0
    return ConstrainedOptimum(-float(solution.fun), float(solution.x @ paid[:, 1]), multiplier)


def values(tables: Tables, policy: Float[Array, 'R S A']) -> Float[Array, 'R C']:
    """The exact discounted sums of policies from the start, by channel: a linear system each."""
    moved = jnp.einsum('rsa,sat->rst', policy, jnp.asarray(tables.transition, jnp.float32))
    paid = jnp.einsum('rsa,sac->rsc', policy, jnp.asarray(tables.rewards, jnp.float32))
    # The values are what is paid now and the discounted values after it: `(I - gamma P) v = r`.
    stays = jnp.eye(moved.shape[-1])[None] - tables.gamma * moved
    start = jnp.asarray(tables.start, jnp.float32)
    return jnp.einsum('s,rsc->rc', start, jnp.linalg.solve(stays, paid))


# --- what a report shows ----------------------------------------------------------------------------------------------


class HandlerSummary(NamedTuple):
    """A handler's seeds on a task and a limit. `share` is of the optimum; None: the optimum is not known."""

    reward: Estimate
    cost: Estimate
    share: float | None
    solved: bool | None


def summarize(
    results: Sequence[HandlerResult], optima: Mapping[tuple[str, float], ConstrainedOptimum]
) -> dict[tuple, HandlerSummary]:
    """Means over seeds by task, handler and limit."""
    cells = {}
    for key in dict.fromkeys((result.task, result.handler, result.limit) for result in results):
        seeds = np.array([(r.reward, r.cost) for r in results if (r.task, r.handler, r.limit) == key])
        reward, cost = map(intervals.mean, seeds.T)
        best = optima.get((key[0], key[2]))
        share = reward.value / best.reward if best else None
        # A run without a limit has nothing to keep, so it neither solves a task nor fails.
        solved = None if share is None or math.isinf(key[2]) else bool(share >= SHARE and cost.value <= key[2] + ROOM)
        cells[key] = HandlerSummary(reward, cost, share, solved)
    return cells


def make_record(
    results: Sequence[HandlerResult], optima: Mapping[tuple[str, float], ConstrainedOptimum]
) -> dict[str, Any]:
    """Figures of each handler on each task: the share of the optimum and the cost above the limit, each at the limit
    where it is worst; reward and cost where there is no limit or no optimum."""
    record: dict[str, Any] = {}
    cells = summarize(results, optima)
    for task, handler in dict.fromkeys(key[:2] for key in cells):
        by_limit = {key[2]: cell for key, cell in cells.items() if key[:2] == (task, handler)}
        name = f'{task}_{handler}'
        if shares := [cell.share for cell in by_limit.values() if cell.solved is not None and cell.share is not None]:
            record[f'{name}_share'] = min(shares)
            record[f'{name}_over'] = max(cell.cost.value - limit for limit, cell in by_limit.items())
        else:
            record[f'{name}_reward'] = float(np.mean([cell.reward.value for cell in by_limit.values()]))
            record[f'{name}_cost'] = float(np.mean([cell.cost.value for cell in by_limit.values()]))
    solved = [cell.solved for cell in cells.values() if cell.solved is not None]
    record['solved'] = float(np.mean(solved)) if solved else 0.0
    return record


def make_exhibits(
    results: Sequence[HandlerResult],
    optima: Mapping[tuple[str, float], ConstrainedOptimum],
    tables: Mapping[str, Tables],
) -> list[Exhibit]:
    """A table and a picture for each task."""
    cells = summarize(results, optima)
    return [_exhibit(task, results, cells, optima, tables) for task in dict.fromkeys(r.task for r in results)]


def _exhibit(task: str, results, cells, optima, tables) -> Exhibit:
    rows = [['handler', 'limit', 'reward', 'optimum', 'share', 'cost', 'solved']]
    for (of, handler, limit), cell in cells.items():
        if of == task:
            best = optima.get((task, limit))
            rows.append(
                [
                    str(HANDLERS.get(handler, handler)),
                    '' if math.isinf(limit) else f'{limit:g}',
                    cell.reward.with_error(),
                    f'{best.reward:.3f}' if best else '',
                    f'{cell.share:.3f}' if cell.share is not None else '',
                    cell.cost.with_error(),
                    {True: 'yes', False: 'no', None: ''}[cell.solved],
                ]
            )
    text = 'Discounted sums of an episode, means over seeds with their standard errors.'
    if task in tables:
        text += (
            f' Policies are valued exactly. Solved: at least {SHARE:.0%} of the optimum by linear programme, and a '
            f'cost of at most the limit and {ROOM:g}. A share above 1 is bought by a cost above the limit.'
        )
    on_task = [result for result in results if result.task == task]
    return Exhibit(f'Handlers on the {task}', text, rows, plot(on_task, tables.get(task)))


def plot(results: Sequence[HandlerResult], tables: Tables | None) -> bytes:
    """Results by cost and reward, a colour a handler, beside the best reward for each cost where that is known. A
    dotted line leads from a result to its limit."""
    with matplotlib.rc_context(STYLE):
        colours = matplotlib.colormaps['tab20']
        figure = Figure(figsize=(8, 4.8), layout='constrained')
        ax = figure.subplots()
        ax.set_title('Reward and what it costs', fontsize=13, fontweight='bold')
        if tables is not None:
            top = optimum(tables, math.inf)
            # The smallest limits may be below what any policy can keep; the curve begins above them.
            costs = np.linspace(0.02 * top.cost, top.cost, 60)
            best = [front for limit in costs if (front := _reachable(tables, float(limit)))]
            ax.plot([at.cost for at in best], [at.reward for at in best], color=GREY, label='exact optimum')
        for number, handler in enumerate(dict.fromkeys(result.handler for result in results)):
            runs = [result for result in results if result.handler == handler]
            style: Any = {'color': colours(number % 20), 'zorder': 3}
            marker = MARKERS[number % len(MARKERS)]
            ax.plot(
                [r.cost for r in runs],
                [r.reward for r in runs],
                marker,
                label=HANDLERS.get(handler, handler),
                alpha=0.8,
                **style,
            )
            for result in runs:
                if not math.isinf(result.limit):
                    ax.plot(
                        [result.limit, result.cost],
                        [result.reward] * 2,
                        ':',
                        color=style['color'],
                        linewidth=1,
                        alpha=0.6,
                    )
        for limit in dict.fromkeys(result.limit for result in results if not math.isinf(result.limit)):
            ax.axvline(limit, color='#dc2626', linewidth=1, linestyle=(0, (4, 3)))
        ax.set_xlabel('cost of an episode (dashed: the limits)')
        ax.set_ylabel('reward of an episode')
        figure.legend(frameon=False, loc='outside right upper')
    return png(figure)


def _reachable(tables: Tables, limit: float) -> ConstrainedOptimum | None:
    try:
        return optimum(tables, limit)
    except ValueError:
        return None
