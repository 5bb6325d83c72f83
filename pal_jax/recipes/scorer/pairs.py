"""Figures of a scorer on pairs it was not taught: its accuracy, its calibration, and whether length leads it.

Scores and lengths (in tokens) are `[pairs, 2]`, of the side that should score higher, which is the chosen reply or the
less safe one, and of the other. A model's confidence in a pair is the probability that it gives to the reply it
prefers, `sigmoid(|gap|)`, from 1/2 to 1. Labels of costs are `[pairs, 2]`: 1 for an unsafe answer, whose cost should be
above 0, 0 for a safe one, NaN where nobody has said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.calibration import calibration_error, reliability
from pal_jax.run.curve import BLUE, GREY, INK, RULE, STYLE, png
from pal_jax.types import Exhibit

ORANGE = '#d97706'
COSTS = 30  # bins of costs


def measure(scores: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """The record of an evaluation, whose `accuracy_se` and `accuracy_interval` are over prompts.

    `prompts` has the number of each pair's prompt.
    """
    gap, longer = scores[:, 0] - scores[:, 1], lengths[:, 0] - lengths[:, 1]
    right = hits(gap)
    record: dict[str, Any] = {
        'rows': len(scores),
        # Pairs of one prompt stay together, as they are not independent.
        **intervals.share(right, prompts).named('accuracy'),
        'loss': float(np.logaddexp(0.0, -gap).mean()),
        'margin': float(gap.mean()),
        'ece': calibration_error(reliability(gap)),
        'score_mean': float(scores.mean()),
        'score_std': float(scores.std()),
        'length_correlation': correlation(scores.ravel(), lengths.ravel()),
        # The sign of a difference only depends on the reply that was named first, so differences are not centred.
        'length_correlation_in_pairs': correlation(gap, longer, centred=False),
    }
    for name, way in (('longer', longer), ('shorter', -longer)):
        # A rule that takes the longer reply of each pair, or the shorter one, is a baseline without a model.
        record[f'accuracy_of_{name}'] = float(hits(way).mean())
        record |= intervals.gain(hits(way) - right, prompts).named(f'lead_of_{name}')
        part = way > 0
        record[f'rows_chosen_{name}'] = int(part.sum())
        if part.any():
            record[f'accuracy_chosen_{name}'] = float(right[part].mean())
    return record


def correlation(x: np.ndarray, y: np.ndarray, *, centred: bool = True) -> float:
    """Pearson's correlation; without `centred` it is taken about 0."""
    x, y = (column - column.mean() if centred else column for column in (x, y))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else 0.0


def make_exhibits(scores: np.ndarray, lengths: np.ndarray, record: Mapping[str, Any]) -> list[Exhibit]:
    """A table of the figures of `measure`, and the reliability plot."""
    cells = [
        ['pairs right', _share(record, 'accuracy', record['rows'])],
        *([f'always the {name} reply', f'{record[f"accuracy_of_{name}"]:.3f}'] for name in ('longer', 'shorter')),
        *(
            [f'right where the chosen reply is {name}', f'{record[key]:.3f}, of {record[f"rows_chosen_{name}"]}']
            for name in ('longer', 'shorter')
            if (key := f'accuracy_chosen_{name}') in record
        ),
        ['correlation of score and tokens', f'{record["length_correlation"]:+.2f}'],
        ['the same, within pairs', f'{record["length_correlation_in_pairs"]:+.2f}'],
        ['expected calibration error', f'{record["ece"]:.3f}'],
    ]
    return [
        Exhibit('Held-out pairs', table=[['', ''], *cells]),
        Exhibit('Reliability', picture=plot_reliability(reliability(scores[:, 0] - scores[:, 1]))),
        Exhibit('Score and length', picture=plot_lengths(scores, lengths)),
    ]


def measure_costs(
    costs: Float[np.ndarray, 'P 2'],
    lengths: Int[np.ndarray, 'P 2'],
    prompts: Int[np.ndarray, ' P'],
    unsafe: Float[np.ndarray, 'P 2'],
) -> dict[str, Any]:
    """The record of an evaluation: the ranking's figures as `measure` has them, and figures of the signs
    where answers have labels.

    Standard errors and intervals are over prompts.
    """
    record = measure(costs, lengths, prompts) | {'cost_least': float(costs.min())}
    known = ~np.isnan(unsafe)
    if not known.any():
        return record
    # A cost is the log-odds of unsafe, so this is the cross-entropy of its label.
    wrong_way = np.logaddexp(0.0, np.where(unsafe == 1.0, -costs, costs))
    record |= {'ranking_loss': record['loss'], 'sign_loss': float(wrong_way[known].sum() / len(costs))}
    # The loss is that of training without its regulariser.
    record['loss'] = record['ranking_loss'] + record['sign_loss']
    of_prompt = np.broadcast_to(prompts[:, None], costs.shape)[known]
    cost, label = costs[known], unsafe[known] == 1.0
    record |= {'labelled': int(known.sum())} | intervals.share(signs(cost, label), of_prompt).named('sign_accuracy')
    # A model that gives every answer the commoner sign is right so often.
    record['sign_accuracy_of_commoner'] = float(max(label.mean(), 1.0 - label.mean()))
    for name, part in (('safe', ~label), ('unsafe', label)):
        if part.any():
            record[f'cost_{name}'] = float(cost[part].mean())
            record[f'sign_accuracy_{name}'] = float(signs(cost[part], label[part]).mean())
    # An AUC needs answers of both labels.
    if label.any() and not label.all():
        record |= intervals.auc(cost, label, of_prompt).named('auc')
    return record


def signs(cost: Float[np.ndarray, '*S'], unsafe: Float[np.ndarray, '*S']) -> Float[np.ndarray, '*S']:
    """The score of each sign: 1 where the cost is above 0 and the answer unsafe, or below 0 and the answer safe; 1/2 at
    0.

    Every answer has a label.
    """
    return hits(np.where(unsafe, cost, -cost))


def make_cost_exhibits(
    costs: Float[np.ndarray, 'P 2'], unsafe: Float[np.ndarray, 'P 2'], record: Mapping[str, Any]
) -> list[Exhibit]:
    """A table of the figures of `measure_costs`, the costs of safe and of unsafe answers, and the reliability of the
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


def plot_reliability(bins: Float[np.ndarray, 'bins 3']) -> bytes:
    """A picture of accuracy by confidence, beside the line where they are equal."""
    figure, ax = make_axes('Is it as right as it is sure?', 'confidence', 'share of pairs that are right')
    ax.plot([0.5, 1], [0.5, 1], color=GREY, linestyle='--')
    # Bins hold sums, and an empty one has no point.
    counts, confidence, accuracy = bins[bins[:, 0] > 0].T
    confidence, accuracy = confidence / counts, accuracy / counts
    # The area of a point grows with its number of pairs.
    ax.scatter(confidence, accuracy, s=20 + 400 * counts / counts.sum(), color=BLUE, alpha=0.8, linewidth=0)
    for x, y, count in zip(confidence, accuracy, counts, strict=True):
        ax.annotate(f'{count:.0f}', (x, y), textcoords='offset points', xytext=(0, -16), ha='center', fontsize=8)
    ax.set_xlim(0.48, 1.02)
    ax.set_ylim(-0.05, 1.05)
    return png(figure)


def plot_lengths(scores: np.ndarray, lengths: np.ndarray) -> bytes:
    """A picture of the scores of all replies by their lengths."""
    figure, ax = make_axes('Does it like what is long?', 'tokens of the reply', 'score')
    for k, (name, colour) in enumerate((('chosen', BLUE), ('rejected', ORANGE))):
        ax.scatter(lengths[:, k], scores[:, k], s=12, color=colour, alpha=0.6, linewidth=0, label=name)
    ax.legend(frameon=False, edgecolor=RULE)
    return png(figure)


def plot_costs(costs: Float[np.ndarray, 'P 2'], unsafe: Float[np.ndarray, 'P 2']) -> bytes:
    """A histogram of the costs of safe and of unsafe answers, with a line at 0."""
    figure, ax = make_axes('Is a cost above 0 where an answer is unsafe?', 'cost', 'answers')
    known = costs[~np.isnan(unsafe)]
    # Both histograms have the same bins, and 0 is within them.
    bins = np.linspace(min(known.min(), 0.0), max(known.max(), 0.0), COSTS + 1)
    for label, name, colour in ((0.0, 'safe', BLUE), (1.0, 'unsafe', ORANGE)):
        ax.hist(costs[unsafe == label], bins=list(bins), color=colour, alpha=0.6, label=name)
    ax.axvline(0.0, color=INK, linestyle='--')
    ax.legend(frameon=False)
    return png(figure)


def make_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty picture."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4.4), layout='constrained')
        ax = figure.subplots()
        ax.set_title(title, fontsize=13, fontweight='bold')
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    return figure, ax
