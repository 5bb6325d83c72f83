"""The learning curve of a run, and its evaluations by turn, as pictures."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pal_jax.run.glossary import OWN
from pal_jax.run.verdict import estimate, known

# The first of these that was logged is drawn large.
HEADLINES = {
    'reward': 'Mean reward of a step',
    'accuracy': 'Accuracy on the training pairs of a step',
    'likelier': 'Training pairs whose chosen answer is likelier',
    'training_accuracy': 'Training accuracy, the largest K',
    'loss': 'Mean loss of a step',
    'legal': 'Share of legal moves',
    'attack_success': 'Share of unsafe answers to attacks',
    'return_first': 'What the first seat wins in self-play',
}
PANELS = {
    'profile': 'Profile F1',
    'response': 'Reply score',
    'format': 'Format rate',
    'plain_success': 'Unsafe answers to plain seeds',
    'overrefusal': 'Refused harmless seeds',
    'mean_cost': 'Mean cost and its limit',
    'multiplier': 'Multiplier of costs',
    'kl': 'KL to the reference',
    'margin': 'Margin of pairs',
    'chosen': 'Reward of chosen',
    'rejected': 'Reward of rejected',
    'sign_accuracy': 'Signs right',
    'loss': 'Loss',
    'length': 'Tokens of an answer',
    'grad_norm': 'Norm of the gradient',
    'lr': 'Learning rate',
}
WIDE = 4  # panels side by side
INK, BLUE, GREY, RULE, RED, GREEN = '#1f2937', '#2563eb', '#9ca3af', '#d1d5db', '#dc2626', '#059669'

Rows = Sequence[Mapping[str, Any]]

STYLE: Any = {
    'font.size': 10,
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': RULE,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#f0f1f3',
    'xtick.color': INK,
    'ytick.color': INK,
}


def learning_curve(rows: Rows, evals: Rows = (), shares: Sequence[str] = ()) -> bytes:
    """A PNG of the metric of `HEADLINES` by step, with smaller panels for those of `PANELS` that were logged.

    A step's value is a mean over `samples` samples, with the standard deviation `reward_std` (or `accuracy_std`). Where
    evaluations have a figure of the same name, they stand beside the steps, with their intervals; `shares` has the
    figures that go from 0 to 1.
    """
    headline = headline_of(rows)
    titles = {key: title for key, title in panels_of(rows).items() if key != headline}
    with matplotlib.rc_context(STYLE):
        wide = min(len(titles), WIDE) or 1
        lines = [list(titles)[k : k + wide] for k in range(0, len(titles), wide)]
        figure = Figure(figsize=(9, 4.2 + 2.2 * len(lines)), layout='constrained')
        mosaic: Any = [[headline] * wide, *(line + ['.'] * (wide - len(line)) for line in lines)]
        axes = figure.subplot_mosaic(mosaic, height_ratios=[2.4, *[1] * len(lines)])
        _draw_headline(axes[headline], rows, evals, shares, headline)
        for key, title in titles.items():
            axes[key].set_title(title)
            _draw_series(axes[key], rows, key, size=2)
            _draw_evaluations(axes[key], evals, shares, key, size=3)
            # The limit stands beside the cost that it bounds.
            if key == 'mean_cost':
                axes[key].plot(counted_steps(rows), column(rows, 'limit'), color=RED, linestyle=(0, (4, 3)))
        for key, ax in axes.items():
            _draw_phase_ends(ax, rows, name=key == headline)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=8 if key == headline else 4, integer=True))
        return png(figure)


def headline_of(rows: Rows) -> str:
    """The metric of `HEADLINES` that stands for a run."""
    # The loss of a warm-up is no headline of what comes after it.
    last = [row for row in rows if row.get('phase') == rows[-1].get('phase')]
    # Of a run that a later version resumed, the steps of both have other names.
    new = [key for key in HEADLINES if any(key in row for row in rows[-1:])]
    tried = (last, new), (last, HEADLINES), (rows, HEADLINES)
    return next((key for part, keys in tried for key in keys if logged(part, key)), 'reward')


def panels_of(rows: Rows) -> dict[str, str]:
    """The titles of the metrics that have a panel of their own, and of a user's own functions (`own_<name>`)."""
    custom = {key: f'{key.removeprefix(OWN)}, your own' for row in rows for key in row if key.startswith(OWN)}
    return {key: title for key, title in (PANELS | custom).items() if logged(rows, key)}


def logged(rows: Rows, key: str) -> bool:
    """True where a row has a finite value of a metric."""
    return bool(np.isfinite(column(rows, key)).any())


def png(figure: Figure) -> bytes:
    """The figure as a picture."""
    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(picture, format='png', dpi=160)
    return picture.getvalue()


def plot_turns(stages: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """A PNG of the profile F1 by turn, a line for each evaluation, beside its bound and the best constant guess."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout='constrained')
        ax = figure.subplots()
        ax.set_title('Profile F1 by turn', fontsize=13, fontweight='bold')
        ax.set_xlabel('turn')
        for number, (stage, record) in enumerate(stages.items(), 1):
            _draw_turns(ax, record, 'f1', label=stage, color=BLUE, alpha=number / len(stages), marker='o')
        last = list(stages.values())[-1] if stages else {}
        _draw_turns(ax, last, 'bound', label='bound', color=INK, linestyle='--')
        _draw_turns(ax, last, 'guesser', label='best constant guess', color=GREY, linestyle=':')
        _draw_turns(ax, last, 'shuffled', label='against another person', color=GREY, linestyle='-.')
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax.lines:
            ax.legend(frameon=False)
        figure.savefig(path, format='png', dpi=160)


def plot_alignment(records: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """A PNG of AL(k) and of the profile F1 by turn, a line with its 95 % interval for each policy."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout='constrained')
        panels = {'al': 'Alignment level AL(k), %', 'f1': 'Profile F1'}
        axes = figure.subplots(1, len(panels))
        for ax, (key, title) in zip(axes, panels.items(), strict=True):
            ax.set_title(title, fontsize=13, fontweight='bold')
            ax.set_xlabel('turn')
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number, (name, record) in enumerate(records.items()):
                _draw_turns(ax, record, key, label=name, color=f'C{number}', marker='o', markersize=4)
                low, high = record['intervals'][f'{key}_by_turn'] or ((), ())
                ax.fill_between(range(1, len(low) + 1), low, high, color=f'C{number}', alpha=0.12, linewidth=0)
        axes[-1].legend(frameon=False)
        figure.savefig(path, format='png', dpi=160)


def _draw_turns(ax: Axes, record: Mapping[str, Any], key: str, **style: Any) -> None:
    values = record.get(f'{key}_by_turn')
    if values:
        ax.plot(range(1, len(values) + 1), values, **style)


def column(rows: Rows, key: str) -> np.ndarray:
    """A metric as an array, NaN where it was not logged."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def running_mean(values: np.ndarray, errors: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the `window` steps around each step, an odd number, and its standard error made from theirs.

    The error is that of sampling alone: sqrt(sum of errors^2) / count.
    """
    spans = [slice(max(0, i - window // 2), i + window // 2 + 1) for i in range(len(values))]
    # Steps without a value (NaN) are left out.
    kept = [(values[span][seen], errors[span][seen]) for span in spans for seen in [np.isfinite(values[span])]]
    mean = [v.mean() if v.size else np.nan for v, _ in kept]
    error = [np.sqrt((e**2).sum()) / e.size if e.size else np.nan for _, e in kept]
    return np.array(mean), np.array(error)


def window_of(count: int, share: float) -> int:
    """The window of the running mean of so many steps: an odd number near a share of them, which is 1 of a few."""
    return int(count * share) | 1


def _draw_headline(ax: Axes, rows: Rows, evals: Rows, shares: Sequence[str], key: str) -> None:
    ax.set_title(HEADLINES[key], fontsize=13, fontweight='bold')
    ax.set_xlabel('step')
    window = _draw_series(ax, rows, key, size=3)
    if window > 1:
        marks: dict[str, Artist] = {
            'one step': Line2D([], [], color=GREY, marker='o', markersize=3, linestyle=''),
            f'mean of {window} steps': Line2D([], [], color=BLUE, linewidth=2),
        }
    else:
        marks = {'one step': Line2D([], [], color=BLUE, marker='o', markersize=5, linewidth=2)}
    # A loss has no samples whose error could be drawn.
    if key == 'reward':
        marks['± 1 s.e. of its samples'] = Patch(color=BLUE, alpha=0.18, linewidth=0)
    if _draw_evaluations(ax, evals, shares, key, size=6):
        marks['evaluation, 95 % interval'] = Line2D([], [], color=GREEN, marker='D', markersize=5, linewidth=1)
    style: Any = {'frameon': False, 'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'ncols': 2, 'fontsize': 9}
    ax.legend(marks.values(), marks, **style)


def _draw_evaluations(ax: Axes, evals: Rows, shares: Sequence[str], key: str, size: float) -> bool:
    """Draws the figures of this name of evaluations with their intervals; the result is whether there are any."""
    # An evaluation before step i, counted from 0, is one after i steps.
    shown = [row for row in evals if known(row, key)]
    line: Any = {'color': GREEN, 'marker': 'D', 'markersize': size, 'markeredgewidth': 0, 'linewidth': 0.8}
    # A line joins only figures of the same own functions.
    for _, alike in itertools.groupby(shown, key=lambda row: row.get('mended', {})):
        figures = [(row['step'], estimate(row, key, shares)) for row in alike]
        for step, figure in figures:
            if figure.interval:
                ax.plot([step] * 2, figure.interval, color=GREEN, linewidth=1)
        ax.plot([step for step, _ in figures], [figure.value for _, figure in figures], **line, zorder=3)
    return bool(shown)


def counted_steps(rows: Rows) -> np.ndarray:
    """The steps `[rows]` of rows, counted from 1 as on the console; in files they are counted from 0."""
    return column(rows, 'step') + 1


def _draw_series(ax: Axes, rows: Rows, key: str, size: float) -> int:
    """Draws steps, running mean and band of each phase by itself; returns the window of the last phase."""
    window = 0
    for _, group in itertools.groupby(rows, key=lambda row: row['phase']):
        part = list(group)
        steps, values = counted_steps(part), column(part, key)
        samples = column(part, 'samples')
        # A step of 0 samples is one in which none was judged.
        errors = column(part, f'{key}_std') / np.sqrt(np.where(samples > 0, samples, np.nan))
        window = window_of(int(np.isfinite(values).sum()), 0.1)
        mean, error = running_mean(values, errors, window)
        # A line of a few steps joins their dots.
        dots: Any = {'color': GREY, 'markersize': size} if window > 1 else {'color': BLUE, 'markersize': 2 * size}
        ax.plot(steps, values, 'o', markeredgewidth=0, **dots)
        ax.fill_between(steps, mean - error, mean + error, color=BLUE, alpha=0.18, linewidth=0)
        ax.plot(steps, mean, color=BLUE, linewidth=size / 1.5)
    return window


def _draw_phase_ends(ax: Axes, rows: Rows, name: bool) -> None:
    for row, after in itertools.pairwise(rows):
        if row['phase'] != after['phase']:
            end = counted_steps([row, after]).mean()
            ax.axvline(end, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            if name:
                ax.text(end, 0.99, f' {row["phase"]} ends', transform=ax.get_xaxis_transform(), va='top', fontsize=9)
