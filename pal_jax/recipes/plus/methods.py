"""Methods side by side: the last evaluations of their runs as one table, with pictures.

All runs test the same people. A method's interval is over people, of their means over its seeds, and so is that of the
difference to the first method. Standard errors are over seeds, and missing where there is one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pal_jax.recipes.plus.figures import METHODS
from pal_jax.run import intervals
from pal_jax.run.curve import BLUE, GREY, STYLE, png, running_mean
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

COLUMNS = {  # columns of the table, by the names of figures
    'sampled_accuracy': 'drawn',
    'reward': 'reward',
    'named': 'names the kind',
    'misnamed': 'names another',
    'words': 'words',
    'other_accuracy': 'of another kind',
    'random_accuracy': 'of somebody',
    'none_accuracy': 'of nobody',
}
KEY = (
    'Accuracy is of held-out choices, by the likeliest summary; ± is a standard error over seeds, intervals are of '
    '95 % over people. Drawn: by summaries drawn as in training. Of another kind, of somebody, of nobody: by the '
    'summary of a person of another kind, of somebody at random, or none.'
)
WINDOW = 5  # steps of the running mean that is drawn


class Entry(NamedTuple):
    """One run: its last evaluation, and its steps."""

    method: str
    seed: int
    record: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]


Entries = Mapping[str, Sequence[Entry]]  # by method


def by_method(entries: Sequence[Entry]) -> Entries:
    """The entries by method, in the order in which methods first come."""
    return {name: [e for e in entries if e.method == name] for name in dict.fromkeys(e.method for e in entries)}


def people_of(entries: Sequence[Entry], split: str = '') -> Float[np.ndarray, 'P']:
    """The accuracy of each person, as a mean over seeds."""
    return np.mean([entry.record[f'{split}accuracy_by_person'] for entry in entries], axis=0)


def over_seeds(entries: Sequence[Entry], key: str) -> Estimate:
    """The mean over seeds; NaN where an evaluation has no such figure."""
    return intervals.mean(np.array([entry.record.get(key, np.nan) for entry in entries], float))


def splits_of(record: Mapping[str, Any]) -> list[str]:
    """The prefixes of the figures of each split of people; the first one is ''."""
    # Every split has this figure, whatever the method reads.
    suffix = 'accuracy_by_person'
    return [key.removesuffix(suffix) for key in record if key.endswith(suffix)]


def figures(entries: Sequence[Entry]) -> dict[str, Any]:
    """A record of every method's mean accuracy, with its standard error over seeds and its interval over people."""
    record: dict[str, Any] = {}
    grouped = by_method(entries)
    for name, runs in grouped.items():
        for split in splits_of(runs[0].record):
            mean, people = over_seeds(runs, f'{split}accuracy'), intervals.share(people_of(runs, split))
            record |= {f'{name}_{split}accuracy': mean.value, f'{name}_{split}accuracy_se': mean.error}
            record[f'{name}_{split}interval'] = [people.low, people.high]
    return record


def table(entries: Sequence[Entry]) -> list[list[str]]:
    """The rows of the table, one for each method; the first row is its head."""
    grouped = by_method(entries)
    first, splits = next(iter(grouped)), splits_of(entries[0].record)
    head = ['what the reward model reads', 'seeds', 'accuracy', '95 %', f'{first} is better by']
    head += [split.rstrip('_') for split in splits[1:]]
    # A column stands there if any method has its figure: only written texts have words, for one.
    keys = [key for key in COLUMNS if any(key in entry.record for entry in entries)]
    rows = [[*head, *(COLUMNS[key] for key in keys)]]
    for name, runs in grouped.items():
        # A person's two figures stay together, as both methods tested the same people.
        apart = '' if name == first else _apart(people_of(grouped[first]) - people_of(runs))
        read, ends = METHODS.get(name, name), intervals.share(people_of(runs)).ends()
        row = [read, str(len(runs)), _told(runs, 'accuracy'), ends, apart]
        rows.append([*row, *(_told(runs, f'{split}accuracy') for split in splits[1:]), *(_told(runs, k) for k in keys)])
    return rows


def _told(entries: Sequence[Entry], key: str) -> str:
    figure = over_seeds(entries, key)
    return '' if np.isnan(figure.value) else figure.with_error()


def _apart(differences: np.ndarray) -> str:
    gain = intervals.gain(differences)
    return f'{gain.value:.3f} ({gain.ends()})'


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_exhibits(entries: Sequence[Entry]) -> list[Exhibit]:
    """The table with its picture, and the learning curves."""
    rows, grouped = table(entries), by_method(entries)
    return [
        Exhibit('Accuracy by what the reward model reads', text=KEY, table=rows, picture=plot_accuracy(grouped)),
        Exhibit('Learning curves', picture=plot_curves(grouped)),
    ]


def plot_accuracy(grouped: Entries) -> bytes:
    """A picture with a bar for each method, its interval over people, and a dot for each seed; a panel for each split
    of people."""
    splits = splits_of(next(iter(grouped.values()))[0].record)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(splits) + 1.4, 0.42 * len(grouped) + 1.2), layout='constrained')
        panels: Sequence[Axes] = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
        for ax, split in zip(panels, splits, strict=True):
            for place, runs in enumerate(grouped.values()):
                people = intervals.share(people_of(runs, split))
                ax.barh(place, people.value, color=BLUE if place == 0 else GREY, alpha=0.5)
                ax.plot(people.interval or [people.value] * 2, [place, place], color='black', linewidth=1.2)
                ax.plot([entry.record[f'{split}accuracy'] for entry in runs], [place] * len(runs), 'k.', markersize=4)
            # Half of the choices are right by chance.
            ax.axvline(0.5, color='black', linewidth=0.8, linestyle=':')
            ax.set_xlim(0, 1)
            ax.set_title(f'accuracy, {split.rstrip("_")}' if split else 'accuracy')
        panels[0].set_yticks(range(len(grouped)), list(grouped))
        # The first method stands at the top, as in the table.
        panels[0].invert_yaxis()
    return png(figure)


def rewards_by_step(seed_entries: Sequence[Entry]) -> tuple[list[int], np.ndarray]:
    """The rewards [seeds, steps] of the steps that all seeds have made."""
    # A wait that ends early skips steps, so some seeds may lack some of them.
    steps = sorted(set.intersection(*({row['step'] for row in entry.steps} for entry in seed_entries)))
    return steps, np.array([[row['reward'] for row in entry.steps if row['step'] in steps] for entry in seed_entries])


def plot_curves(grouped: Entries) -> bytes:
    """A picture of the mean reward of a step, with a line for each method: its running mean over seeds, and their
    range."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.6), layout='constrained')
        ax = figure.subplots()
        for number, (name, runs) in enumerate(grouped.items()):
            steps, seeds = rewards_by_step(runs)
            smooth = np.stack([running_mean(row, np.zeros(len(steps)), WINDOW)[0] for row in seeds])
            ax.plot(steps, smooth.mean(axis=0), color=f'C{number}', label=name)
            ax.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=f'C{number}', alpha=0.15, linewidth=0)
        ax.set_title(f'Mean reward of a step, over {WINDOW} steps and all seeds', fontsize=13, fontweight='bold')
        ax.set_xlabel('step')
        ax.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
    return png(figure)
