"""Win rates of systems against each other (Personalized Soups, part I.3).

A verdict is +1, 0 or -1 on one criterion, for the first system of a pair; the outcome of a prompt is the sign of the
sum over the criteria of a combination. Outcomes are [combinations, prompts].
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import matplotlib
import numpy as np
import scipy
from jaxtyping import Float
from matplotlib.figure import Figure

from pal_jax.run import intervals
from pal_jax.run.bootstrap import interval, means, resampled_means
from pal_jax.run.curve import BLUE, GREY, STYLE, png
from pal_jax.types import Exhibit

Ties = Literal['drop', 'half']
Pair = tuple[str, str]
# For each soup the second pole's weight, and its mean score by both rules.
Front = Sequence[tuple[float, float, float]]
KEY = (
    'The share of prompts that a system wins by most criteria, mean over the combinations of preferences; 0.5 is '
    'neither better nor worse. Ties half: a tie counts half; intervals are of 95 % over prompts.'
)
ENDS = '', '_se', '_interval'  # of the names of a figure in a record
Cells = Float[np.ndarray, 'prompts combinations']


def outcome(verdicts: Float[np.ndarray, 'criteria ...']) -> Float[np.ndarray, '...']:
    """The outcome of a prompt by most criteria: the sign of the verdicts' sum."""
    return np.sign(np.sum(verdicts, axis=0))


def cells(outcomes: Float[np.ndarray, 'combinations prompts'], ties: Ties) -> Cells:
    """The points of each prompt for the first system: 1 won, 0 lost; a tie is a half, or NaN where it is left out."""
    won = (np.asarray(outcomes, float).T + 1.0) / 2.0
    return won if ties == 'half' else np.where(won == 0.5, np.nan, won)


def winrate(outcomes: Float[np.ndarray, 'combinations prompts'], ties: Ties) -> float:
    """The mean over combinations of `wins / (wins + losses)`, or of `(wins + ties / 2) / all`.

    A combination in which nothing was won or lost is left out; without any the rate is 1/2.
    """
    return float(_mean(means(cells(outcomes, ties), nothing=np.nan)))


def _mean(rates: Float[np.ndarray, '... combinations']) -> Float[np.ndarray, '...']:
    return means(rates[..., None], nothing=0.5)[..., 0]


def measure(outcomes: Float[np.ndarray, 'combinations prompts'], seed: int = 0) -> dict[str, Any]:
    """Win rates with ties counted either way, each with a standard error and a 95 % interval, and the share of ties."""
    record: dict[str, Any] = {'ties': float(np.mean(np.asarray(outcomes) == 0)), 'drop': winrate(outcomes, 'drop')}
    counted = cells(outcomes, 'drop')
    if np.isfinite(counted).any():
        # Intervals are over prompts; a prompt's outcomes in all combinations stay together.
        draws = _mean(resampled_means(counted, seed=seed, nothing=np.nan))
        record |= {'drop_se': float(draws.std()), 'drop_interval': interval(draws, len(counted))}
    return record | intervals.share(cells(outcomes, 'half').mean(axis=1)).named('half')


def table(outcomes: Mapping[Pair, np.ndarray], ties: Ties) -> tuple[list[str], np.ndarray]:
    """The systems, and the win rates of the row's system against the column's; NaN on the diagonal."""
    systems = list(dict.fromkeys(itertools.chain.from_iterable(outcomes)))
    rates = np.full((len(systems), len(systems)), np.nan)
    for (first, second), signs in outcomes.items():
        i, j = systems.index(first), systems.index(second)
        rates[i, j], rates[j, i] = winrate(signs, ties), winrate(-np.asarray(signs), ties)
    return systems, rates


def against_all(outcomes: Mapping[Pair, np.ndarray], system: str) -> Float[np.ndarray, 'more prompts']:
    """The outcomes of a system against each of the others, all combinations side by side."""
    # Outcomes are those of the first system of a pair; the second one has them with the other sign.
    sides = [(signs, 1 if pair[0] == system else -1) for pair, signs in outcomes.items() if system in pair]
    return np.concatenate([side * np.asarray(signs) for signs, side in sides])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of them is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    ranks: Any = scipy.stats.spearmanr(x, y)
    return float(ranks.statistic)


# --- what a report shows ----------------------------------------------------------------------------------------------


def make_exhibits(
    outcomes: Mapping[Pair, np.ndarray],
    by_criterion: Mapping[str, Mapping[str, float]],
    alone: Mapping[str, np.ndarray],
    fronts: Mapping[Pair, Front],
    wishes: Mapping[str, str] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Exhibit]:
    """Win rates as a table with intervals and as a heat map, systems by criterion, policies of one preference against
    the base, and soups between two poles.

    Args:
      by_criterion: the mean win rate (ties half) of each system on each criterion.
      alone: the outcomes `[draws, prompts]` of each preference's policy against the base.
      fronts: soups between two poles, by their ids.
      wishes: the texts of preferences, by their ids.
      names: the systems in words, by their names.
    """
    named = '; '.join(f'{name}: {names.get(name, name)}' for name in dict.fromkeys(itertools.chain(*outcomes)))
    legend = ' '.join(f'{name}: {text}' for name, text in wishes.items())
    systems, rates = table(outcomes, 'half')
    head = ['', 'ties half', '95 %', 'ties left out', 'ties']
    rows = [head, *([f'{a} against {b}', *_told(measure(signs))] for (a, b), signs in outcomes.items())]
    averages = [head, *([name, *_told(measure(against_all(outcomes, name)))] for name in systems)]
    policies = [head, *([name, *_told(measure(signs))] for name, signs in alone.items())]
    criteria = [['', *by_criterion[systems[0]]]]
    criteria += [[name, *(f'{rate:.3f}' for rate in rates_of.values())] for name, rates_of in by_criterion.items()]
    exhibits = [
        Exhibit('Win rates against all others', f'{KEY} {named}.', averages),
        Exhibit('Win rates by pair', KEY, rows),
        Exhibit('Who wins against whom', picture=plot_heat(systems, rates)),
        Exhibit('Win rates by criterion', legend, criteria, picture=plot_radar(by_criterion)),
        Exhibit('Policies of one preference against the base', legend, policies),
    ]
    if fronts:
        exhibits.append(Exhibit('Soups between two poles', picture=plot_fronts(fronts)))
    return exhibits


def _told(record: Mapping[str, Any]) -> list[str]:
    return [
        f'{record["half"]:.3f}',
        intervals.from_record(record, 'half').ends(),
        f'{record["drop"]:.3f}',
        f'{record["ties"]:.3f}',
    ]


def plot_heat(systems: Sequence[str], rates: np.ndarray) -> bytes:
    """A heat map of the win rates of the row's system against the column's."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5), layout='constrained')
        ax = figure.subplots()
        ax.grid(visible=False)
        image = ax.imshow(rates, cmap='RdBu', vmin=0, vmax=1)
        ax.set_xticks(range(len(systems)), systems, rotation=30, ha='right')
        ax.set_yticks(range(len(systems)), systems)
        for (i, j), rate in np.ndenumerate(rates):
            if np.isfinite(rate):
                ink = 'white' if abs(rate - 0.5) > 0.3 else 'black'
                ax.text(j, i, f'{rate:.2f}', ha='center', va='center', color=ink)
        figure.colorbar(image, label='the row wins, ties half')
    return png(figure)


def plot_radar(by_criterion: Mapping[str, Mapping[str, float]]) -> bytes:
    """A picture of the win rates of each system by criterion, around a circle."""
    criteria = list(next(iter(by_criterion.values())))
    angles = np.linspace(0, 2 * np.pi, len(criteria), endpoint=False)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 5.4), layout='constrained')
        ax: Any = figure.add_subplot(projection='polar')
        for name, rates in by_criterion.items():
            # The first point comes again at the end, so that the line closes.
            around = [rates[criterion] for criterion in (*criteria, criteria[0])]
            ax.plot([*angles, angles[0]], around, label=name)
        ax.set_xticks(angles, criteria)
        ax.set_ylim(0, 1)
        ax.legend(loc='lower left', bbox_to_anchor=(0.9, 0.9), frameon=False)
    return png(figure)


def plot_fronts(fronts: Mapping[Pair, Front]) -> bytes:
    """A picture of soups by both poles' rules; a soup is better the further it is to the right and to the top."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 3.2 * len(fronts), 4), layout='constrained')
        axes = figure.subplots(1, len(fronts), squeeze=False)[0]
        for ax, ((one, other), front) in zip(axes, fronts.items(), strict=True):
            weights, first, second = np.array(front).T
            ax.plot(first, second, color=GREY)
            ax.scatter(first, second, color=BLUE)
            for weight, x, y in zip(weights, first, second, strict=True):
                ax.annotate(f'{weight:g}', (x, y), textcoords='offset points', xytext=(6, 4))
            ax.set_xlabel(f'score by the rule of {one}')
            ax.set_ylabel(f'score by the rule of {other}')
    return png(figure)
