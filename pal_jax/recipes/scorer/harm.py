"""Figures of a classifier of several labels: how well it finds harm, and how unsafe the answers are that it lets
through.

Probabilities and labels are `[rows, classes]`, of a prompt with a response in each of the kinds of harm, which do not
exclude each other (BeaverTails, arXiv 2307.04657). A row is called unsafe where one of its probabilities is above the
threshold of its class, and it is unsafe where it has a label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from pal_jax.run import intervals
from pal_jax.run.curve import BLUE, GREY, INK, STYLE, png
from pal_jax.run.intervals import Estimate
from pal_jax.run.moderator import unsafe_by
from pal_jax.types import Exhibit

Probabilities = Float[np.ndarray, 'rows classes']
Labels = Bool[np.ndarray, 'rows classes']
Thresholds = Float[np.ndarray, ' classes']
Rule = Literal['max', 'mean']

MIDDLE = 0.5  # the threshold of a class that no validation row has
ORANGE = '#d97706'


def measure(
    probabilities: Probabilities, labels: Labels, prompts: Int[np.ndarray, ' rows'], thresholds: Thresholds
) -> dict[str, Any]:
    """The record of an evaluation.

    Its first figures are of the verdict unsafe or safe. Their standard errors and 95 % intervals are over prompts, of
    which `prompts` has the number by row. Lists have an entry for each class, and None for an unknown figure.
    """
    # The AUC of the verdict is of the largest probability, which no threshold changes.
    score, unsafe = harm(probabilities), any_of(labels)
    called = unsafe_by(probabilities, thresholds)
    classes = by_class(probabilities, labels, thresholds)
    verdict = {name: float(share) for name, share in rates(called, unsafe).items()}
    record: dict[str, Any] = {
        'rows': len(labels),
        'unsafe': float(unsafe.mean()),
        'called_unsafe': float(called.mean()),
        **verdict,
        'auc': math.nan,
        # A verdict that is always the commoner one is right so often.
        'accuracy_of_commoner': max(float(unsafe.mean()), 1.0 - float(unsafe.mean())),
    }
    # Rows of one prompt stay together, so their errors are not taken for independent.
    for name, figure in _estimates(score, called, unsafe, prompts).items():
        record |= figure.named(name)
    seen = labels.any(axis=0)
    for name, values in classes.items():
        # Means are over the classes that a row has, for the AUC over those that a row has and another one has not.
        counted = values[seen & np.isfinite(values)]
        record[f'macro_{name}'] = float(counted.mean()) if counted.size else math.nan
        record[f'{name}_by_class'] = [None if math.isnan(value) else value for value in values.tolist()]
    return record | {
        'support_by_class': labels.sum(axis=0).tolist(),
        'threshold_by_class': list(map(float, thresholds)),
    }


def harm(probabilities: Float[np.ndarray, '... classes'], rule: Rule = 'max') -> Float[np.ndarray, '...']:
    """One number for all kinds of harm, the largest of their probabilities or the mean: the costs that BeaverTails made
    of its classifier."""
    return probabilities.max(axis=-1) if rule == 'max' else probabilities.mean(axis=-1)


def any_of(labels: Labels) -> Bool[np.ndarray, ' rows']:
    """True for rows that have a label."""
    return np.asarray(labels.any(axis=1))


def by_class(probabilities: Probabilities, labels: Labels, thresholds: Thresholds) -> dict[str, np.ndarray]:
    """The AUC, precision, recall and F1 of each class by its own threshold.

    The AUC is NaN where all rows or none have the label.
    """
    # An AUC needs rows on both sides.
    areas = [
        intervals.auc(score, label).value if 0 < label.sum() < len(label) else math.nan
        for score, label in zip(probabilities.T, labels.T, strict=True)
    ]
    shares = rates(probabilities > thresholds, labels)
    return {'auc': np.array(areas)} | {name: shares[name] for name in ('precision', 'recall', 'f1')}


def rates(called: Bool[np.ndarray, 'rows ...'], label: Bool[np.ndarray, 'rows ...']) -> dict[str, np.ndarray]:
    """Accuracy, precision, recall and F1 of verdicts, for each column."""
    right, hits = (called == label).sum(axis=0), (called & label).sum(axis=0)
    alarms, unsafe = called.sum(axis=0), label.sum(axis=0)
    counts = {
        'accuracy': (right, np.full_like(right, len(label))),
        'precision': (hits, alarms),
        'recall': (hits, unsafe),
        'f1': (2 * hits, alarms + unsafe),
    }
    # A share of no rows is 0.
    return {name: np.where(whole > 0, part / np.maximum(whole, 1), 0.0) for name, (part, whole) in counts.items()}


def choose_thresholds(probabilities: Probabilities, labels: Labels) -> Thresholds:
    """The threshold of each class with the highest F1 on validation rows; the nearest to 1/2 of equals, and 1/2 for a
    class that no row has."""
    return np.array([_choose(score, label) for score, label in zip(probabilities.T, labels.T, strict=True)])


def _choose(score: Float[np.ndarray, ' rows'], label: Bool[np.ndarray, ' rows']) -> float:
    if not label.any():
        return MIDDLE
    # The candidates are 1/2 and the middles between neighbouring probabilities, with 0 among these.
    levels = np.unique(np.append(score.astype(float), 0.0))
    candidates = np.append((levels[1:] + levels[:-1]) / 2.0, MIDDLE)
    positive = np.sort(score[label].astype(float))
    # How many rows are above each candidate is read from sorted rows, for all candidates at once.
    hits, called = (len(x) - np.searchsorted(x, candidates, side='right') for x in (positive, np.sort(score)))
    f1 = 2.0 * hits / (called + len(positive))
    # Of equals the nearest to 1/2 is chosen, as it depends least on the validation rows.
    best = candidates[np.isclose(f1, f1.max(), rtol=0.0, atol=1e-12)]
    return float(best[np.argmin(np.abs(best - MIDDLE))])


def _estimates(
    score: Float[np.ndarray, ' rows'],
    called: Bool[np.ndarray, ' rows'],
    unsafe: Bool[np.ndarray, ' rows'],
    prompts: Int[np.ndarray, ' rows'],
) -> dict[str, Estimate]:
    """The figures of the verdict that some rows tell of, with their intervals over prompts."""
    right = called == unsafe
    # Each figure is a share of hits among rows with weights. F1 counts a row that is called unsafe, and is, twice.
    weights = {'accuracy': np.ones(len(called)), 'precision': called, 'recall': unsafe, 'f1': 1.0 * called + unsafe}
    hits = {'accuracy': right, 'precision': unsafe, 'recall': called, 'f1': called & unsafe}
    figures = {name: intervals.share(hits[name], prompts, weight) for name, weight in weights.items() if weight.any()}
    return figures | ({'auc': intervals.auc(score, unsafe, prompts)} if 0 < unsafe.sum() < len(unsafe) else {})


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_exhibits(
    probabilities: Probabilities, labels: Labels, record: Mapping[str, Any], names: Sequence[str]
) -> list[Exhibit]:
    """Tables of the verdict and of the classes by the figures of `measure`, and a picture of each."""
    score, unsafe = harm(probabilities), any_of(labels)
    verdict = [
        [name, f'{record[key]:.3f}', intervals.from_record(record, key).ends()]
        for key, name in (
            ('auc', 'AUC of the largest probability'),
            ('accuracy', 'rows called right'),
            ('precision', 'share of those called unsafe that are unsafe'),
            ('recall', 'of the unsafe, that are called so'),
            ('f1', 'F1'),
        )
    ]
    text = f'{record["rows"]} rows, of which {record["unsafe"]:.1%} are unsafe.'
    columns = ('support', 'auc', 'precision', 'recall', 'f1', 'threshold')
    head = ['', 'rows', 'AUC', 'precision', 'recall', 'F1', 'threshold']
    classes = [
        [name, *('-' if value is None else f'{value:.3g}' for value in values)]
        for name, *values in zip(names, *(record[f'{column}_by_class'] for column in columns), strict=True)
    ]
    means = ['mean of those that a row has', '', *(f'{record[f"macro_{column}"]:.3g}' for column in columns[1:-1]), '']
    exhibits = [
        Exhibit('Unsafe or safe', text, [['', '', '95 %'], *verdict]),
        Exhibit('Kinds of harm', table=[head, *classes, means]),
        Exhibit('Kinds of harm, by F1', picture=plot_classes(record, names)),
    ]
    if math.isfinite(record['auc']):
        exhibits.insert(1, Exhibit('What finding more of it costs', picture=plot_roc(score, unsafe, record)))
    return exhibits


def plot_roc(score: np.ndarray, unsafe: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """A picture of the ROC curve of the largest probability, with the point of the classes' thresholds."""
    order = np.argsort(-score, kind='stable')
    # Equal scores are passed at once.
    last = np.append(np.diff(score[order]) != 0, True)
    recalls, alarms = (np.append(0.0, np.cumsum(of[order])[last] / of.sum()) for of in (unsafe, ~unsafe))
    share = float(unsafe.mean())
    recall = record['recall']
    # The rows called unsafe are a share of the unsafe ones and a share of the safe ones, which this solves for.
    alarm = (record['called_unsafe'] - share * recall) / (1.0 - share)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.8), layout='constrained')
        ax = figure.subplots()
        ax.set_title('Unsafe rows found, and safe ones with them', fontsize=13, fontweight='bold')
        ax.plot([0, 1], [0, 1], color=GREY, linestyle='--', linewidth=1)
        ax.fill_between(alarms, recalls, color=BLUE, alpha=0.1, linewidth=0)
        ax.plot(alarms, recalls, color=BLUE, linewidth=2, label=f'by the largest probability, AUC {record["auc"]:.3f}')
        style: Any = {'color': ORANGE, 'linestyle': '', 'marker': 'o', 'markersize': 8, 'markeredgecolor': 'white'}
        ax.plot([alarm], [recall], label='by the thresholds of the classes', zorder=3, **style)
        ax.set_xlabel('share of safe rows called unsafe')
        ax.set_ylabel('share of unsafe rows called unsafe')
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.legend(frameon=False, loc='lower right')
    return png(figure)


def plot_classes(record: Mapping[str, Any], names: Sequence[str]) -> bytes:
    """F1 of each class as a bar, with its precision and its recall; classes by their numbers of rows."""
    order = np.argsort(record['support_by_class'], kind='stable').tolist()
    rows = np.arange(len(order))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.34 * len(order)), layout='constrained')
        ax = figure.subplots()
        ax.grid(visible=False, axis='y')
        ax.set_title('Kinds of harm', fontsize=13, fontweight='bold')
        ax.barh(rows, np.array(record['f1_by_class'])[order], height=0.62, color=BLUE, alpha=0.25, label='F1')
        for name, colour, marker in (('precision', ORANGE, 'D'), ('recall', BLUE, 'o')):
            values = np.array(record[f'{name}_by_class'])[order]
            ax.plot(values, rows, marker, color=colour, markersize=5.5, markeredgecolor='white', label=name)
        words = [re.sub(r'_|(?<=,)(?=\S)', ' ', str(names[i])) for i in order]
        ax.set_yticks(
            rows, [f'{word}  ({record["support_by_class"][i]})' for i, word in zip(order, words, strict=True)]
        )
        ax.tick_params(axis='y', length=0, labelcolor=INK)
        ax.set_xlim(0, 1.02)
        figure.legend(frameon=False, loc='outside lower right', ncols=3)
    return png(figure)
