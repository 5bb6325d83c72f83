"""Figures of a reward model on pairs it was not taught: its accuracy, its calibration, and whether length leads it.

Scores and lengths (in tokens) are `[pairs, 2]`, of the chosen reply and of the rejected one. A model's confidence in a
pair is the probability that it gives to the reply it prefers, `sigmoid(|gap|)`, from 1/2 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.curve import BLUE, GREY, RULE, STYLE, png
from pal_jax.types import Exhibit

BINS = 10


def measure(scores: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """The record of an evaluation.

    `accuracy_se` and `accuracy_interval` are over prompts. `prompts` has the number of each pair's prompt; pairs of one
    prompt stay together.
    """
    gap, longer = scores[:, 0] - scores[:, 1], lengths[:, 0] - lengths[:, 1]
    right = hits(gap)
    record: dict[str, Any] = {
        'rows': len(scores),
        **intervals.share(right, prompts).named('accuracy'),
        'loss': float(np.logaddexp(0.0, -gap).mean()),
        'margin': float(gap.mean()),
        'ece': calibration_error(reliability(gap)),
        'score_mean': float(scores.mean()),
        'score_std': float(scores.std()),
        'length_correlation': correlation(scores.ravel(), lengths.ravel()),
        'length_correlation_in_pairs': correlation(gap, longer, centred=False),
        'accuracy_of_longer': float(hits(longer).mean()),
    }
    for name, part in (('longer', longer > 0), ('shorter', longer < 0)):
        record[f'rows_chosen_{name}'] = int(part.sum())
        if part.any():
            record[f'accuracy_chosen_{name}'] = float(right[part].mean())
    return record


def reliability(gap: np.ndarray) -> np.ndarray:
    """The number of pairs, the sum of their confidences and that of their hits, `[BINS, 3]`, in equal bins of
    confidence from 1/2 to 1. Bins of several parts add up."""
    confidence = 1.0 / (1.0 + np.exp(-np.abs(gap)))
    place = np.minimum((2.0 * (confidence - 0.5) * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(place, w, BINS) for w in (np.ones(len(gap)), confidence, hits(gap))], axis=1)


def calibration_error(bins: np.ndarray) -> float:
    """The expected calibration error: the mean distance of confidence from accuracy, over bins (Guo et al. 2017)."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1))


def correlation(x: np.ndarray, y: np.ndarray, *, centred: bool = True) -> float:
    """Pearson's correlation; without `centred` it is taken about 0.

    The sign of a difference only depends on the reply that was named first, so differences are not centred.
    """
    x, y = (column - column.mean() if centred else column for column in (x, y))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else 0.0


def make_exhibits(scores: np.ndarray, lengths: np.ndarray, record: Mapping[str, Any]) -> list[Exhibit]:
    """A table of the figures of `measure`, and the reliability plot."""
    right = intervals.from_record(record, 'accuracy')
    cells = [
        ['pairs right', f'{right.value:.3f} (95 %: {right.ends()}), of {record["rows"]}'],
        ['always the longer reply', f'{record["accuracy_of_longer"]:.3f}'],
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


def plot_reliability(bins: np.ndarray) -> bytes:
    """A picture of accuracy by confidence, beside the line where they are equal; a point's area is its number of
    pairs."""
    figure, ax = make_axes('Is it as right as it is sure?', 'confidence', 'share of pairs that are right')
    ax.plot([0.5, 1], [0.5, 1], color=GREY, linestyle='--')
    counts, confidence, accuracy = bins[bins[:, 0] > 0].T
    confidence, accuracy = confidence / counts, accuracy / counts
    ax.scatter(confidence, accuracy, s=20 + 400 * counts / counts.sum(), color=BLUE, alpha=0.8, linewidth=0)
    for x, y, count in zip(confidence, accuracy, counts, strict=True):
        ax.annotate(f'{count:.0f}', (x, y), textcoords='offset points', xytext=(0, -16), ha='center', fontsize=8)
    ax.set_xlim(0.48, 1.02)
    ax.set_ylim(-0.05, 1.05)
    return png(figure)


def plot_lengths(scores: np.ndarray, lengths: np.ndarray) -> bytes:
    """A picture of the scores of all replies by their lengths."""
    figure, ax = make_axes('Does it like what is long?', 'tokens of the reply', 'score')
    for k, (name, colour) in enumerate((('chosen', BLUE), ('rejected', '#d97706'))):
        ax.scatter(lengths[:, k], scores[:, k], s=12, color=colour, alpha=0.6, linewidth=0, label=name)
    ax.legend(frameon=False, edgecolor=RULE)
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
