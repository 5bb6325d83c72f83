"""Pictures of a population: accuracy by number of prototypes and of comparisons, and people among the prototypes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pal_jax.run.curve import BLUE, GREY, INK, RULE, STYLE, png
from pal_jax.run.forecast import counted
from pal_jax.run.intervals import Estimate

COLOURS = (BLUE, '#d97706', '#059669', '#9333ea', '#dc2626', GREY, INK, '#0891b2', '#65a30d', '#db2777')

# Lines of one picture: those after the first five are dashed, as more colours would be too alike.
LINES = tuple((colour, dashes) for dashes in ('-', '--') for colour in COLOURS[:5])

Curve = Sequence[Estimate]


def plot_by_prototypes(curves: Mapping[str, Curve], prototypes: Sequence[int]) -> bytes:
    """A picture of accuracy against K, with a line for each part of the data."""
    figure, ax = _axes('Accuracy by number of prototypes', 'K')
    for (name, curve), line in zip(curves.items(), itertools.cycle(LINES), strict=False):
        _draw(ax, prototypes, curve, name, line)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return png(figure)


def plot_by_comparisons(curves: Mapping[str, Curve], counts: Sequence[int]) -> bytes:
    """A picture of accuracy on new people against the number of their known comparisons, with a line for each
    method."""
    figure, ax = _axes('New people: accuracy by known comparisons', 'comparisons known of each person', width=9.5)
    places = range(len(counts))
    for (name, curve), line in zip(curves.items(), itertools.cycle(LINES), strict=False):
        _draw(ax, places, curve, name, line)
    # The last number stands for all comparisons that a person has.
    ax.set_xticks(places, [str(count) for count in counts[:-1]] + [f'all (≤ {counts[-1]})'])
    ax.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
    return png(figure)


def plot_simplex(mixtures: np.ndarray) -> bytes:
    """A picture of people by their weights `[people, K]`: a histogram for K = 2, a triangle for 3, two principal axes
    for more."""
    K = mixtures.shape[1]
    figure, ax = _axes(f'{counted(len(mixtures), "person")} among {counted(K, "prototype")}', '')
    if K <= 2:
        # Of two weights that sum to 1, one tells both.
        ax.hist(mixtures[:, -1], bins=30, range=(0, 1), color=BLUE)
        ax.set_xlabel(f'weight of prototype {K}')
        ax.set_ylabel('people')
        return png(figure)
    corners = _corners(mixtures)
    points = mixtures @ corners
    if K == 3:
        ax.plot(*corners[[0, 1, 2, 0]].T, color=RULE)
    ax.scatter(*points.T, s=14, c=[COLOURS[k % len(COLOURS)] for k in mixtures.argmax(axis=1)], alpha=0.7, linewidth=0)
    for k, corner in enumerate(corners):
        ax.plot(*corner, marker='^', color=COLOURS[k % len(COLOURS)], markersize=9)
        ax.annotate(f' {k + 1}', corner, fontweight='bold')
    ax.set_aspect('equal')
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel('triangles: prototypes; a point: a person, coloured by the largest weight')
    return png(figure)


def plot_effects(effects: np.ndarray, attributes: Sequence[str]) -> bytes:
    """A picture of the effects of attributes on the rewards of each prototype `[K, attributes]`, in rows of bars."""
    K = len(effects)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.6 + 0.28 * len(attributes) + 1.2), layout='constrained')
        axes = figure.subplots(1, K, sharex=True, sharey=True, squeeze=False)[0]
    for k, ax in enumerate(axes):
        ax.barh(range(len(attributes)), effects[k], color=[BLUE if value > 0 else '#d97706' for value in effects[k]])
        # With many prototypes there is room for their numbers alone.
        ax.set_title(f'prototype {k + 1}' if K <= 4 else str(k + 1))
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_yticks(range(len(attributes)), attributes)
    axes[0].invert_yaxis()
    return png(figure)


def plot_wants(effects: np.ndarray, attributes: Sequence[str]) -> bytes:
    """A picture of the effects of attributes on the rewards of people `[people, attributes]`, a box for each
    attribute."""
    label = 'effect on the log-odds: median, middle half of the people (box), 5th to 95th percentile (line)'
    figure, ax = _axes('What people want', label)
    figure.set_size_inches(9, 1.8 + 0.35 * len(attributes))
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.boxplot(effects, orientation='horizontal', whis=(5, 95), showfliers=False, tick_labels=list(attributes))
    ax.invert_yaxis()
    return png(figure)


def plot_intervals(rows: Mapping[str, Sequence[Estimate | None]], attributes: Sequence[str], label: str) -> bytes:
    """A picture of estimates with their intervals: a place for each attribute, and in it a point for each row, such as
    a group of people. An estimate that is None has no point."""
    figure, ax = _axes('Effects with 95 % intervals', label)
    figure.set_size_inches(9, 1.6 + len(attributes) * max(0.45, 0.25 * len(rows)))
    ax.axvline(0, color=INK, linewidth=0.8)
    for k, ((name, estimates), colour) in enumerate(zip(rows.items(), itertools.cycle(COLOURS), strict=False)):
        # The points of an attribute stand a little apart.
        apart = 0.6 * (k - (len(rows) - 1) / 2) / len(rows)
        known = [(place + apart, of) for place, of in enumerate(estimates) if of]
        ax.plot([of.value for _, of in known], [place for place, _ in known], 'o', color=colour, label=name)
        for place, of in known:
            if of.interval:
                ax.plot(of.interval, [place] * 2, color=colour, linewidth=1.5)
    ax.set_yticks(range(len(attributes)), list(attributes))
    ax.invert_yaxis()
    if len(rows) > 1:
        ax.legend(frameon=False)
    return png(figure)


def in_words(effects: np.ndarray, attributes: Sequence[str], count: int = 2) -> tuple[str, str]:
    """The attributes that one prototype likes most and least: 'local company +1.9, well known +1.5'."""
    order = np.argsort(effects)
    likes = [f'{attributes[i]} {effects[i]:+.2f}' for i in order[::-1][:count] if effects[i] > 0]
    dislikes = [f'{attributes[i]} {effects[i]:+.2f}' for i in order[:count] if effects[i] < 0]
    return ', '.join(likes) or '–', ', '.join(dislikes) or '–'


def linear_effects(rewards: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The effects `[K, H]` of attributes on rewards `[K, n]` of items `[n, H]`: the slopes of a least-squares fit."""
    # Centred columns leave out the intercept.
    centred = items - items.mean(axis=0)
    return np.linalg.lstsq(centred, (rewards - rewards.mean(axis=1, keepdims=True)).T, rcond=None)[0].T


def _corners(mixtures: np.ndarray) -> np.ndarray:
    """The places of the K corners of the simplex in the picture, `[K, 2]`."""
    if mixtures.shape[1] == 3:
        return np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    centred = mixtures - mixtures.mean(axis=0)
    # The first two principal axes show most of what sets people apart.
    return np.linalg.svd(centred, full_matrices=False)[2][:2].T


def _axes(title: str, label: str, width: float = 7.0):
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 4.4), layout='constrained')
        ax = figure.subplots()
        ax.set_title(title, fontsize=13, fontweight='bold')
        ax.set_xlabel(label)
    return figure, ax


def _draw(ax, places, curve: Curve, name: str, line: tuple[str, str]) -> None:
    colour, dashes = line
    # One split has no error, and so a band of no width.
    mean, error = (np.array([point[k] or 0.0 for point in curve]) for k in (0, 1))
    ax.fill_between(places, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
    ax.plot(places, mean, color=colour, linestyle=dashes, label=name, marker='o', markersize=4)
