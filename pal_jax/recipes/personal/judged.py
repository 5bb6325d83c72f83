"""Figures of a bench of personal rewards, by person: accuracy with each person alike, the worst tenth, calibration, and
differences to another method on the same people.

A method's result on one part of a split is a `JudgedPairs`: sums by person, small enough to be written down. Figures of
several splits add up a person's sums, and intervals are over people, whose pairs stay together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.calibration import calibration_error, reliability
from pal_jax.run.intervals import Estimate


class JudgedPairs(NamedTuple):
    """The sums over a person's test pairs, and over bins of confidence.

    Attributes:
      people: numbers of the people.
      pairs, hits: the number of pairs, and of those predicted right; a tie is 1/2.
      loss: the sum of log losses in nats.
      choices, first: the number of choices, and of those whose chosen option is put before all others of its choice.
      bins: see `run.calibration.reliability`.
    """

    people: np.ndarray  # [P]
    pairs: np.ndarray  # [P]
    hits: np.ndarray  # [P]
    loss: np.ndarray  # [P]
    choices: np.ndarray  # [P]
    first: np.ndarray  # [P]
    bins: np.ndarray  # [10, 3]

    @property
    def accuracy(self) -> float:
        """The share of pairs predicted right."""
        return float(self.hits.sum() / self.pairs.sum())

    def to_json(self) -> dict[str, Any]:
        """The sums as lists, rounded to eight decimals."""
        return {name: np.round(value, 8).tolist() for name, value in self._asdict().items()}


def from_json(record: Mapping[str, Any]) -> JudgedPairs:
    """The inverse of `to_json`. In a record of an earlier version each pair is a choice."""
    record = {'choices': record['pairs'], 'first': record['hits'], **record}
    return JudgedPairs(*(np.array(record[name]) for name in JudgedPairs._fields))


def judge(margins: np.ndarray, users: ArrayLike, choices: np.ndarray | None = None) -> JudgedPairs:
    """The sums of margins `[n]` by their users.

    Args:
      choices: the number of each pair's choice `[n]` (`comparisons.choice_numbers`); None: each pair is one of its own.

    Raises:
      ValueError: a margin is not finite.
    """
    margins = _finite(margins)
    people, person = np.unique(np.asarray(users), return_inverse=True)
    pairs, total, loss = (
        np.bincount(person, w) for w in (np.ones(len(margins)), hits(margins), np.logaddexp(0.0, -margins))
    )
    # A choice is predicted right where the chosen option is ahead of the one that comes nearest to it.
    _, place, choice = np.unique(
        np.arange(len(margins)) if choices is None else choices, return_index=True, return_inverse=True
    )
    least = np.full(len(place), np.inf)
    np.minimum.at(least, choice, margins)
    count, first = (np.bincount(person[place], w, len(people)) for w in (np.ones(len(place)), hits(least)))
    return JudgedPairs(people, pairs, total, loss, count, first, reliability(margins))


def _finite(margins: np.ndarray) -> np.ndarray:
    margins = np.asarray(margins, np.float64)
    if not np.isfinite(margins).all():
        raise ValueError(f'{int((~np.isfinite(margins)).sum())} of {len(margins)} margins are not finite')
    return margins


def temperature(margins: np.ndarray) -> float:
    """The factor above 0 that makes the mean log loss of margins `[n]` least, to make them log-odds.

    It is 1 where there are no margins, or all are 0.

    Raises:
      ValueError: a margin is not finite.
    """
    margins = _finite(margins)
    if not np.any(margins):
        return 1.0
    # One pair more on either side (Platt 1999) keeps the factor finite where all are right.
    largest, right = np.abs(margins).max(), (len(margins) + 1) / (len(margins) + 2)

    def loss(log_factor: float) -> float:
        # Margins are in units of the largest, so that the same bounds of the factor suit every method.
        m = np.exp(log_factor) * margins / largest
        return float(np.mean(right * np.logaddexp(0.0, -m) + (1 - right) * np.logaddexp(0.0, m)))

    best: Any = optimize.minimize_scalar(loss, bounds=(-8.0, 12.0), method='bounded')
    return float(np.exp(best.x) / largest)


def together(parts: Sequence[JudgedPairs]) -> JudgedPairs:
    """The sums of several splits; a person who was tested in several has the sums of all."""
    people, person = np.unique(np.concatenate([part.people for part in parts]), return_inverse=True)
    sums = {
        name: np.bincount(person, np.concatenate([getattr(part, name) for part in parts]), len(people))
        for name in ('pairs', 'hits', 'loss', 'choices', 'first')
    }
    return JudgedPairs(people=people, bins=np.sum([part.bins for part in parts], axis=0), **sums)


# --- figures ----------------------------------------------------------------------------------------------------------


def by_person(judged: JudgedPairs) -> np.ndarray:
    """The accuracy of each person `[P]`."""
    return judged.hits / judged.pairs


def alike(parts: Sequence[JudgedPairs]) -> Estimate:
    """The accuracy with each person alike, over splits."""
    return intervals.share(by_person(together(parts)))


def put_first(parts: Sequence[JudgedPairs]) -> Estimate | None:
    """The share of choices whose chosen option is put before all others, with each person alike, over splits; None
    where no choice has more than two options."""
    judged = together(parts)
    return intervals.share(judged.first / judged.choices) if judged.choices.sum() < judged.pairs.sum() else None


def worst_tenth(shares: np.ndarray) -> float:
    """The mean of the lowest tenth of people, rounded up."""
    return float(np.sort(shares)[: math.ceil(len(shares) / 10)].mean())


def worst_if_alike(pairs: np.ndarray, share: float, *, draws: int = 2000, seed: int = 0) -> float:
    """The worst tenth to expect if all people were predicted right on the same share of their `pairs` `[P]`."""
    rng = np.random.default_rng(seed)
    # People who are alike differ by luck, the more the fewer pairs they have.
    shares = rng.binomial(np.asarray(pairs, int), share, (draws, len(pairs))) / pairs
    return float(np.sort(shares, axis=1)[:, : math.ceil(len(pairs) / 10)].mean())


class Paired(NamedTuple):
    """The mean difference of two methods over people, and the standard deviation between people."""

    mean: Estimate
    spread: float


def paired(ours: np.ndarray, theirs: np.ndarray) -> Paired:
    """The difference of the accuracies of the same people `[P]` under two methods."""
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    return Paired(intervals.gain(gaps), float(np.std(gaps, ddof=1)) if len(gaps) > 1 else math.nan)


def people_needed(gain: float, spread: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """The number of people that show a gain at a level with a power, if gains have a deviation of `spread`."""
    # The formula is that of a two-sided test of a mean whose deviation is known.
    quantiles = special.ndtri(1 - level / 2) + special.ndtri(power)
    return math.ceil((quantiles * spread / gain) ** 2)


class MethodFigures(NamedTuple):
    """The figures of a method on one part of the data, over all its splits.

    Attributes:
      people: the accuracy with each person alike, the headline.
      pairs: the accuracy over pairs, whose units are people.
      worst, worst_alike: the worst tenth of people, and the one to expect if all were alike.
      ece, overconfidence: the mean distance of confidence from accuracy, and the mean confidence less accuracy, above 0
        where a method is too sure.
      gain: the difference to another method on the same people, or None.
    """

    people: Estimate
    pairs: Estimate
    worst: float
    worst_alike: float
    ece: float
    overconfidence: float
    log_loss: float
    tested: int
    gain: Paired | None


def gain(parts: Sequence[JudgedPairs], other: Sequence[JudgedPairs]) -> Paired:
    """The difference of a method's results to another's on the same splits, paired by person.

    Raises:
      ValueError: the two methods were not tested on the same people.
    """
    ours, theirs = together(parts), together(other)
    if not np.array_equal(theirs.people, ours.people) or not np.array_equal(theirs.pairs, ours.pairs):
        raise ValueError(f'{len(ours.people)} and {len(theirs.people)} people were tested, or on other pairs')
    # Differences are paired by person, which takes out that some people are easier to predict.
    return paired(by_person(ours), by_person(theirs))


def figures(parts: Sequence[JudgedPairs], other: Sequence[JudgedPairs] = ()) -> MethodFigures:
    """The figures of a method's results by split, and the difference to another method's (`gain`), if there is one."""
    judged = together(parts)
    shares, bins = by_person(judged), judged.bins
    people = alike(parts)
    return MethodFigures(
        people=people,
        pairs=intervals.share(shares, weights=judged.pairs),
        worst=worst_tenth(shares),
        worst_alike=worst_if_alike(judged.pairs, people.value, draws=200),
        ece=calibration_error(bins),
        overconfidence=float((bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1)),
        log_loss=float(judged.loss.sum() / judged.pairs.sum()),
        tested=len(shares),
        gain=gain(parts, other) if other else None,
    )


def counts(gain: Paired, shuffled: Paired) -> bool:
    """True where a gain of persons is above 0 and above that with shuffled people, both beyond noise."""
    # A gain with shuffled people is no gain of persons, so only what is above it counts.
    return gain.mean.place(0.0) == 1 and intervals.difference(gain.mean, shuffled.mean).place(0.0) == 1
