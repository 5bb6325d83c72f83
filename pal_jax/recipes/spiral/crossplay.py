"""Cross-play: policies of several steps of a run against each other, as a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pal_jax.run.curve import INK, STYLE, png
from pal_jax.types import Exhibit

Means = Mapping[tuple[str, str, str], float]  # mean reward by game, player and other player

KEY = (
    'The mean reward of the policy of a row against that of a column, both seats alike. Steps are those of self-play: '
    'step 0 is the policy before it, and end the last one. A run that gets better wins in its last row.'
)


def matrix(means: Means, game: str, names: Sequence[str]) -> np.ndarray:
    """The mean rewards of rows against columns `[n, n]`; NaN where two have not played."""
    return np.array([[means.get((game, row, column), np.nan) for column in names] for row in names])


def make_exhibit(means: Means, names: Sequence[str]) -> Exhibit:
    """A picture with a matrix for each game."""
    return Exhibit('Cross-play of the run with its past selves', KEY, picture=plot(means, names))


def plot(means: Means, names: Sequence[str]) -> bytes:
    """A PNG of the matrices of all games, blue where the row wins."""
    games = list(dict.fromkeys(game for game, _, _ in means))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 3.2 * len(games), 3.6), layout='constrained')
        for ax, game in zip(np.atleast_1d(figure.subplots(1, len(games))), games, strict=True):
            values = matrix(means, game, names)
            # The colours are symmetric around 0, where row and column win as much.
            most = float(np.nanmax(np.abs(values))) or 1.0
            ax.imshow(values, cmap='RdBu', vmin=-most, vmax=most)
            ax.grid(False)
            ax.set_title(game)
            ax.set_xticks(range(len(names)), names, rotation=45, ha='right')
            ax.set_yticks(range(len(names)), names)
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    # White ink can be read on dark cells.
                    ink = 'white' if abs(value) > 0.6 * most else INK
                    ax.text(column, row, f'{value:+.2f}', ha='center', va='center', fontsize=9, color=ink)
    return png(figure)
