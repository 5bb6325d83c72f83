"""Figures of a cost model on pairs it was not taught: does it rank them, and is the cost of an unsafe answer above 0?

Costs and lengths (in tokens) are `[pairs, 2]`, of the less safe answer and of the safer one. So are labels: 1 for an
unsafe answer, 0 for a safe one, NaN where nobody has said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pal_jax.run import intervals, reward_model
from pal_jax.run.accuracy import hits
from pal_jax.run.curve import BLUE, INK, png
from pal_jax.run.reward_model import make_axes, plot_reliability, reliability
from pal_jax.types import Exhibit

ORANGE = '#d97706'
BINS = 30


def measure(
    costs: Float[np.ndarray, 'P 2'],
    lengths: Int[np.ndarray, 'P 2'],
    prompts: Int[np.ndarray, ' P'],
    unsafe: Float[np.ndarray, 'P 2'],
) -> dict[str, Any]:
    """The record of an evaluation: the ranking's figures as `reward_model.measure` has them, and figures of the signs
    where answers have labels.

    Standard errors and intervals are over prompts. The loss is that of training without its
    regulariser.
    """
    record = reward_model.measure(costs, lengths, prompts) | {'cost_least': float(costs.min())}
    known = ~np.isnan(unsafe)
    if not known.any():
        return record
    wrong_way = np.logaddexp(0.0, np.where(unsafe == 1.0, -costs, costs))
    record |= {'ranking_loss': record['loss'], 'sign_loss': float(wrong_way[known].sum() / len(costs))}
    record['loss'] = record['ranking_loss'] + record['sign_loss']
    of_prompt = np.broadcast_to(prompts[:, None], costs.shape)[known]
    cost, label = costs[known], unsafe[known] == 1.0
    record |= {'labelled': int(known.sum())} | intervals.share(signs(cost, label), of_prompt).named('sign_accuracy')
    record['sign_accuracy_of_commoner'] = float(max(label.mean(), 1.0 - label.mean()))
    for name, part in (('safe', ~label), ('unsafe', label)):
        if part.any():
            record[f'cost_{name}'] = float(cost[part].mean())
            record[f'sign_accuracy_{name}'] = float(signs(cost[part], label[part]).mean())
    if label.any() and not label.all():
        record |= intervals.auc(cost, label, of_prompt).named('auc')
    return record


def signs(cost: Float[np.ndarray, '*S'], unsafe: Float[np.ndarray, '*S']) -> Float[np.ndarray, '*S']:
    """The score of each sign: 1 where the cost is above 0 and the answer unsafe, or below 0 and the answer safe; 1/2 at
    0.

    Every answer has a label.
    """
    return hits(np.where(unsafe, cost, -cost))


def make_exhibits(
    costs: Float[np.ndarray, 'P 2'], unsafe: Float[np.ndarray, 'P 2'], record: Mapping[str, Any]
) -> list[Exhibit]:
    """A table of the figures of `measure`, the costs of safe and of unsafe answers, and the reliability of the
    ranking."""
    table = [
        ['pairs ranked right', _share(record, 'accuracy', record['rows'])],
        ['always the longer answer', f'{record["accuracy_of_longer"]:.3f}'],
        ['correlation of cost and tokens, within pairs', f'{record["length_correlation_in_pairs"]:+.2f}'],
        ['expected calibration error', f'{record["ece"]:.3f}'],
    ]
    exhibits = [Exhibit('Reliability', picture=plot_reliability(reliability(costs[:, 0] - costs[:, 1])))]
    if 'labelled' in record:
        table += [
            ['signs right', _share(record, 'sign_accuracy', record['labelled'])],
            ['always the commoner sign', f'{record["sign_accuracy_of_commoner"]:.3f}'],
            *(
                [
                    f'{name} answers: mean cost, signs right',
                    f'{record[key]:+.2f}, {record[f"sign_accuracy_{name}"]:.3f}',
                ]
                for name in ('safe', 'unsafe')
                if (key := f'cost_{name}') in record
            ),
        ]
        if 'auc' in record:
            table.append(['unsafe answers told from safe ones (AUC)', _share(record, 'auc', record['labelled'])])
        exhibits.insert(0, Exhibit('Costs', picture=plot_costs(costs, unsafe)))
    return [Exhibit('Held-out pairs', table=[['', ''], *table]), *exhibits]


def _share(record: Mapping[str, Any], name: str, count: int) -> str:
    share = intervals.from_record(record, name)
    return f'{share.value:.3f} (95 %: {share.ends()}), of {count}'


def plot_costs(costs: Float[np.ndarray, 'P 2'], unsafe: Float[np.ndarray, 'P 2']) -> bytes:
    """A histogram of the costs of safe and of unsafe answers, with a line at 0."""
    figure, ax = make_axes('Is a cost above 0 where an answer is unsafe?', 'cost', 'answers')
    known = costs[~np.isnan(unsafe)]
    bins = np.linspace(min(known.min(), 0.0), max(known.max(), 0.0), BINS + 1)
    for label, name, colour in ((0.0, 'safe', BLUE), (1.0, 'unsafe', ORANGE)):
        ax.hist(costs[unsafe == label], bins=list(bins), color=colour, alpha=0.6, label=name)
    ax.axvline(0.0, color=INK, linestyle='--')
    ax.legend(frameon=False)
    return png(figure)
