"""The share of surveys of made-up people in which 95 % intervals of the mixed logit contain the truth.

  python -m benchmarks.mixed_logit             200 surveys: about 20 minutes
  python -m benchmarks.mixed_logit --quick     20 surveys

In a survey 100 people choose 12 times between three options with random attributes. Their wants are normal, and about
one attribute nearly all agree. The intervals are those of a run of PAL: means and deviations ± 1.96 standard errors,
and shares of three offers as `pal-jax score` has them. The printed shares are of surveys, with their 95 % intervals.
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pal_jax.recipes.personal import logit, logit_people, mixed_logit
from pal_jax.recipes.personal.interface import Unfit
from pal_jax.run import intervals

SURVEYS, QUICK = 200, 20
PEOPLE, CHOICES, OPTIONS = 100, 12, 3
MEAN, DEVIATION = np.array([1.0, -1.5, 0.5, 0.0]), np.array([0.8, 0.5, 0.3, 1.2])
OFFERS = np.random.default_rng(0).normal(size=(3, len(MEAN)))


class Contained(NamedTuple):
    """The truths that a survey's intervals contain: means `[H]`, deviations `[H]` and shares of offers `[J]`."""

    means: np.ndarray
    deviations: np.ndarray
    shares: np.ndarray


def survey(rng: np.random.Generator) -> logit.ChoiceSets:
    """The choices of the people of a survey."""
    person = np.repeat(np.arange(PEOPLE), CHOICES)
    wants = MEAN + DEVIATION * rng.normal(size=(PEOPLE, len(MEAN)))
    items = rng.normal(size=(len(person), OPTIONS, len(MEAN)))
    utility = np.einsum('njh,nh->nj', items, wants[person]) + rng.gumbel(size=items.shape[:2])
    chosen = utility.argmax(axis=1)
    number, other = np.nonzero(np.arange(OPTIONS) != chosen[:, None])
    return logit.choice_sets(items[number, chosen[number]], items[number, other], person[number], number)


def contained(rng: np.random.Generator, true_shares: np.ndarray) -> Contained | None:
    """The truths that the intervals of a survey contain; None where its estimates have no standard errors."""
    choices = survey(rng)
    try:
        model = mixed_logit.improved(mixed_logit.fit_xlogit(choices, seed=0), choices)
    except Unfit:
        return None
    if model.errors is None or not model.converged:
        return None
    means, deviations = (
        np.abs(estimate - truth) < logit_people.NORMAL * error
        for estimate, truth, error in zip(model[:2], (MEAN, DEVIATION), model.errors, strict=True)
    )
    shares = logit_people.shares_of_options(model, OFFERS)
    return Contained(means, deviations, (shares.low < true_shares) & (true_shares < shares.high))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help=f'{QUICK} surveys')
    count = QUICK if parser.parse_args(argv).quick else SURVEYS
    wants = MEAN + DEVIATION * np.random.default_rng(1).normal(size=(1_000_000, len(MEAN)))
    true_shares = special.softmax(wants @ OFFERS.T, axis=1).mean(axis=0)
    known: list[Contained] = []
    for seed in range(count):
        if (of_survey := contained(np.random.default_rng(seed), true_shares)) is not None:
            known.append(of_survey)
        if (seed + 1) % QUICK == 0 or seed == 0:
            print(f'{seed + 1} of {count} surveys, {len(known)} with standard errors', flush=True)
    results = {}
    for name in Contained._fields:
        of_surveys = np.stack([getattr(of_survey, name) for of_survey in known]).astype(float)
        shares = [intervals.share(column) for column in of_surveys.T]
        print(f'{name}: {", ".join(f"{share.value:.3f} ({share.ends()})" for share in shares)}')
        results[name] = [share.named('share') for share in shares]
    print(json.dumps({'people': PEOPLE, 'choices': CHOICES, 'surveys': count, 'fits': len(known), 'results': results}))


if __name__ == '__main__':
    main()
