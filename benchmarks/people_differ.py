"""The size and power of two tests of whether people differ, at 5 %, on surveys of made-up people.

  python -m benchmarks.people_differ             300 surveys of each kind: some ten minutes
  python -m benchmarks.people_differ --quick     40 of each

In a survey 50 people choose 12 times between two options with random attributes. Their wants are normal about means
from .3 to 1; where the standard deviation is 0 nobody differs. In a bent survey nobody differs, either, but the utility
of the first attribute is a curve, and half of the people are asked about larger values of it, so that one logit errs in
another direction for each half. The tests are the permutations of a run of PAL (`recipes/personal/heterogeneity.py`),
and the likelihood ratio of xlogit's mixed logit against a logit, with a degree of freedom for each attribute. Shares
are of surveys, with their 95 % intervals. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal import heterogeneity, logit, mixed_logit
from pal_jax.run import intervals

SURVEYS, QUICK = 300, 40
PEOPLE, CHOICES = 50, 12
KINDS = [(width, deviation) for width in (2, 5) for deviation in (0.0, 0.2, 0.4, 0.7)]
BENT = 2.0  # how much the utility of the square of the first attribute is taken off in bent surveys


def survey(rng: np.random.Generator, width: int, deviation: float, bend: float = 0.0) -> Comparisons:
    """The choices of the people of a survey."""
    person = np.repeat(np.arange(PEOPLE, dtype=np.int32), CHOICES)
    wants = np.linspace(0.3, 1.0, width) + deviation * rng.normal(size=(PEOPLE, width))
    left, right = rng.normal(size=(2, len(person), width))
    if bend:
        # Everybody of a half is asked the same questions.
        questions = rng.normal(size=(2, 2, CHOICES, width))
        questions[:, 1, :, 0] += 2.0
        left, right = (np.concatenate([np.tile(part, (PEOPLE // 2, 1)) for part in side]) for side in questions)
    margin = np.sum((left - right) * wants[person], axis=1) - bend * (left[:, 0] ** 2 - right[:, 0] ** 2)
    first = (rng.random(len(person)) < 1.0 / (1.0 + np.exp(-margin)))[:, None]
    chosen, rejected = (np.where(first, *sides).astype(np.float32) for sides in ((left, right), (right, left)))
    names, attributes = tuple(map(str, range(PEOPLE))), tuple(f'x{i}' for i in range(width))
    return Comparisons(person, np.arange(len(person), dtype=np.int32), chosen, rejected, None, names, attributes)


def likelihood_ratio(data: Comparisons) -> float:
    """The p-value of the likelihood ratio of a mixed logit against a logit."""
    choices = logit.choices_in(data)
    alike = logit.log_likelihood(choices, logit.of_all(choices).weights)
    gain = mixed_logit.fit_xlogit(choices, seed=0).log_likelihood - alike
    return float(stats.chi2.sf(2.0 * gain, len(data.attributes)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help=f'{QUICK} surveys of each kind')
    count, results = QUICK if parser.parse_args(argv).quick else SURVEYS, []
    for width, deviation, bend in [*((*kind, 0.0) for kind in KINDS), (2, 0.0, BENT)]:
        surveys = [survey(np.random.default_rng([width, seed]), width, deviation, bend) for seed in range(count)]
        tests = {'permutations': heterogeneity.p_of_same_wants, 'likelihood ratio': likelihood_ratio}
        shares = {
            name: intervals.share(np.array([p_of(data) <= 0.05 for data in surveys], float))
            for name, p_of in tests.items()
        }
        kind = 'bent, nobody differs' if bend else f'standard deviation {deviation:g}'
        line = '; '.join(f'{name} {share.value:.3f} ({share.ends()})' for name, share in shares.items())
        print(f'{width} attributes, {kind}: {line}', flush=True)
        figures = {name: share.named('share') for name, share in shares.items()}
        results.append({'attributes': width, 'deviation': deviation, 'bent': bool(bend), 'surveys': count} | figures)
    print(json.dumps({'people': PEOPLE, 'choices': CHOICES, 'results': results}))


if __name__ == '__main__':
    main()
