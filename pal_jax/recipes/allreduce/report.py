"""The report of AllReduce schedules: rounds by rule beside the least number, and the chunk of each link by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pal_jax.run import intervals
from pal_jax.run.curve import STYLE, png
from pal_jax.types import Exhibit

NAMED = 64  # the largest number of links whose names stand in a picture
APART: Any = matplotlib.colormaps['tab20']
RULES = {  # as docs/methods/allreduce.md names them
    'ring': 'ring',
    'random': 'random',
    'greedy': 'greedy',
    'spread': 'spread',
    'back': 'there and back',
    'symmetric': 'symmetric',
    'exchange': 'exchange',
    'programme': 'programme',
}

WAYS = {  # how a schedule was made
    'ring': 'around a ring',
    'random': 'drawn at random',
    'greedy': 'drawn greedily',
    'spread': 'of trees made together',
    'back': 'there and back along the same trees',
    'symmetric': 'moved from chunk to chunk by symmetries',
    'exchange': 'by an exchange of sums',
    'programme': 'by an integer programme',
}


def make_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all networks the mean ratio of the shortest schedule and of the greedy one to the least rounds."""
    best, greedy = (
        np.array([rounds(record) / record['least'] for record in records])
        for rounds in (lambda record: min(record['rounds'].values()), lambda record: record['rounds']['greedy'])
    )
    return {'to_least': float(best.mean()), 'greedy_to_least': float(greedy.mean())} | saved(greedy, best)


def saved(greedy: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """The rounds that the shortest schedules save over greedy ones, in units of the least rounds, over networks."""
    return intervals.mean(greedy - best).named('saved_to_least') | {'networks': len(best)}


def make_exhibits(records: Sequence[Mapping[str, Any]]) -> list[Exhibit]:
    """A table of networks by rule, and a picture of each network's shortest schedule."""
    rules = [rule for rule in RULES if any(rule in record['rounds'] for record in records)]
    rows = [['network', 'servers', 'at least', 'server', *(RULES[rule] for rule in rules), 'best to least']]
    for record in records:
        rounds = record['rounds']
        rows.append(
            [
                record['network'],
                *(str(record[key]) for key in ('servers', 'least', 'server')),
                *(str(rounds.get(rule, '')) for rule in rules),
                f'{min(rounds.values()) / record["least"]:.2f}',
            ]
        )
    text = (
        'Rounds of an AllReduce. At least: no schedule has fewer. Server: without merging. Ring: nothing stands there '
        'where a search saw no circle of all servers whose hops share no link. Random: breadth-first trees, sends at '
        'random. Greedy: the same trees, the longest chains first. Spread: trees that are made together, the longest '
        'chains first. There and back: an AllGather on such trees, and before it the same backwards. Symmetric: one '
        'plan for every chunk, only where the network has symmetries. Exchange: a chunk is summed towards both ends of '
        'a hop, which exchange their sums, and goes back. Programme: a shortest AllGather by integer programme, '
        'mirrored.'
    )
    table = Exhibit('Rounds by network', text, rows)
    return [table, *(Exhibit(title(record), picture=plot(record)) for record in records)]


def learned_exhibit(records: Sequence[Mapping[str, Any]]) -> Exhibit:
    """A table of the learned policies' plans by network."""
    counts = 'servers', 'symmetries', 'least', 'best'
    rows = [['network', 'trained on it', 'servers', 'symmetries', 'at least', 'learned, best', 'learned, mean',
             'unlearned, best', 'unlearned, mean', 'greedy', 'spread', 'best to least']]  # fmt: skip
    for record in records:
        rows.append([
            record['network'], 'yes' if record['trained'] else 'no', *(str(record[key]) for key in counts),
            f'{record["mean"]:.2f}', str(record['unlearned']), f'{record["unlearned_mean"]:.2f}',
            str(record['greedy']), str(record['spread']), f'{record["best"] / record["least"]:.2f}',
        ])  # fmt: skip
    text = (
        'Rounds of an AllReduce. Symmetries: by so many a plan for some chunks is moved to the others; 1 for none. '
        'Learned: trees by one policy and transfers by the other. Unlearned: all picks at random, by the same '
        'symmetries. Greedy: breadth-first trees, the longest chains first. Spread: trees made together by rule. '
        'Best: the shortest of as many plans of each.'
    )
    return Exhibit('Rounds by learned policies', text, rows)


def title(record: Mapping[str, Any]) -> str:
    return f'{record["network"]}: a schedule of {len(record["used"])} rounds, {WAYS[record["rule"]]}'


def plot(record: Mapping[str, Any]) -> bytes:
    """Links by rounds, each cell in the colour of the chunk that the link carries, by its root; white: free."""
    used, servers, links = np.array(record['used']).T, record['servers'], record.get('links', [])
    # Twenty colours differ to the eye; of more servers neighbours look alike.
    apart = servers <= len(APART.colors)
    named = links if len(links) <= NAMED else []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.5 + (0.16 if named else 0.06) * len(used)), layout='constrained')
        ax = figure.subplots()
        ax.set_title(title(record))
        ax.grid(False)
        colours = ListedColormap(APART.colors[:servers]) if apart else 'turbo'
        # A link that is free has no colour.
        shown = np.ma.masked_less(used, 0)
        ends = {'vmin': -0.5, 'vmax': servers - 0.5}
        extent = (0.5, used.shape[1] + 0.5, len(used) - 0.5, -0.5)
        picture = ax.imshow(shown, aspect='auto', cmap=colours, interpolation='none', extent=extent, **ends)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
        ax.set_xlabel(f'round ({np.mean(used >= 0):.0%} of the links are busy)')
        if named:
            ax.set_yticks(range(len(named)), named, fontsize=7)
        ax.set_ylabel('directed link')
        bar = figure.colorbar(picture, ax=ax, label='chunk, by the server of its root')
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
    return png(figure)
