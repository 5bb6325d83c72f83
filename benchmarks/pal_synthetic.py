"""PAL on people whose prototypes are known: the table of docs/evidence/pal.md.

  python -m benchmarks.pal_synthetic                     # the whole table
  python -m benchmarks.pal_synthetic --seeds=5 --dims=16 --projectors=linear

Prints accuracies on training pairs, new pairs of seen people and new people with 50 pairs, the curve by comparisons for
K = 3, the same with questions chosen by what they tell, how pure its clusters are (partition) and how its weights
correlate with the true ones (mixture).
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.pal_population import Setting, make_population, side_by_side
from pal_jax.data.comparisons import shares, take
from pal_jax.data.passes import shuffled
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.judged import judge
from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, NewUsers, Rates, put
from pal_jax.recipes.personal.panel import Trial, new_margins, newcomers, questions, seen_margins
from pal_jax.run import devices

PROJECTORS = {'linear': 'mlp0-linear-nobias', 'mlp': 'mlp1-gelu-residual'}
COUNTS = (0, 1, 2, 5, 10, 20, 50)
ASKED = (1, 2, 5, 10, 20)
BATCH, UPDATES, STEPS = 512, 150, 10


class Outcome(NamedTuple):
    """Figures by seed; `new` by number of comparisons first. `found`: purity of clusters, or correlation of weights.

    `asked`: twice as `new`, with a pull of 1 to the middle: comparisons at random, and those that tell most.
    """

    train: list[float]
    seen: list[float]
    new: list[list[float]]
    found: list[float]
    asked: list[list[list[float]]]


def run(
    setting: Setting, d: int, projector: str, K: int, seeds: Sequence[int], counts: Sequence[int] = (50,),
    asked: Sequence[int] = (),
) -> Outcome:  # fmt: skip
    """One cell of the table: all seeds side by side, each with a population of its own; new people also by `asked`
    numbers of comparisons that come at random, or are chosen."""
    populations = [make_population(setting, seed, d=d) for seed in seeds]
    data, splits = side_by_side(populations)
    trials = [Trial(split, data.users, seed, False) for split, seed in zip(splits, seeds, strict=True)]
    rates = Rates(projector=1e-2, projector_decay=0.0, prototypes=1e-2, users=1e-2)
    make = functools.partial(
        IdealPointLearner,
        PAL(d, K, projector=PROJECTORS[projector], prototype_init='expected'),
        Loss('hinge'),
        rates,
        devices.make_mesh(devices=jax.devices()[:1]),
        users=len(data.names),
        replicas=len(trials),
        z_std=1.0,
    )
    learner, asking = (make(new=NewUsers(300, 5e-2, pull)) for pull in (0.0, 1.0))
    state = learner.init(jnp.array(list(seeds), jnp.int32))
    for i in range(STEPS):
        size = UPDATES * BATCH
        index = np.stack(
            [t.split.train[shuffled(len(t.split.train), start=i * size, size=size, seed=t.seed)] for t in trials]
        )
        share = np.stack([shares(data.users[t.split.train])[0].repeat(UPDATES * BATCH) for t in trials])
        index, share = (x.reshape(len(trials), UPDATES, BATCH) for x in (index, share))
        pairs = take(data, index, data.users[index], share)
        state, _ = learner.update(state, put(pairs, learner.mesh))
    known, middle = newcomers(data, trials), jnp.zeros((len(trials), K))
    new = new_margins(learner, state, known, counts, middle)
    orders = (known, questions(asking, state, known, middle, max(asked))) if asked else ()
    curves = [new_margins(asking, state, order, asked, middle) for order in orders]
    weights = np.asarray(ideal_point.weights(learner.pal, state.users.z.reshape(-1, K))).reshape(len(trials), -1, K)
    people = [np.unique(data.users[trial.split.train]) for trial in trials]
    true = [population.mixtures[: len(rows)] for population, rows in zip(populations, people, strict=True)]
    measure = purity if setting == 'partition' else correlation
    return Outcome(
        [judge(*part).accuracy for part in seen_margins(learner, state, data, trials, 'train')],
        [judge(*part).accuracy for part in seen_margins(learner, state, data, trials, 'test')],
        [[judge(*part).accuracy for part in row] for row in new],
        [measure(weights[r][rows], true[r]) for r, rows in enumerate(people)],
        [[[judge(*part).accuracy for part in row] for row in curve] for curve in curves],
    )


def purity(weights: np.ndarray, true: np.ndarray) -> float:
    """Share of people whose largest weight is on the prototype that most of their kind hold."""
    counts = np.zeros((weights.shape[1], true.shape[1]))
    np.add.at(counts, (weights.argmax(axis=1), true.argmax(axis=1)), 1)
    return float(counts.max(axis=1).sum() / len(weights))


def correlation(weights: np.ndarray, true: np.ndarray) -> float:
    """Mean correlation of weights and true weights, prototypes matched as is best."""
    K = weights.shape[1]
    table = np.nan_to_num(np.corrcoef(weights.T, true.T)[:K, K:]) if K > 1 else np.zeros((1, true.shape[1]))
    return float(table[linear_sum_assignment(-table)].mean())


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--settings', default='partition,mixture')
    parser.add_argument('--dims', default='2,16')
    parser.add_argument('--projectors', default='linear,mlp')
    parser.add_argument('--prototypes', default='1,2,3,4')
    options = parser.parse_args(args)
    prototypes = [int(K) for K in options.prototypes.split(',')]
    print('| setting, d, f | ' + ' | '.join(f'K={K}' for K in prototypes) + ' |\n|---|' + '---|' * len(prototypes))
    curves: dict[str, Any] = {}
    every = itertools.product(
        options.settings.split(','), map(int, options.dims.split(',')), options.projectors.split(',')
    )
    for setting, d, projector in every:
        if d == 2 and projector == 'mlp':
            continue  # the specification's table has no such row
        cells = []
        for K in prototypes:
            with_curve = K == 3 and d == 16 and projector == 'linear'
            outcome = run(setting, d, projector, K, range(options.seeds), *((COUNTS, ASKED) if with_curve else ()))
            cells.append('/'.join(f'{np.mean(x):.3f}'[1:] for x in (outcome.train, outcome.seen, outcome.new[-1])))
            if with_curve:
                curves[setting] = outcome
        print(f'| {setting}, {d}, {projector} | ' + ' | '.join(cells) + ' |', flush=True)
    print('\n| n | ' + ' | '.join(map(str, COUNTS)) + ' |\n|---|' + '---|' * len(COUNTS))
    for setting, outcome in curves.items():
        print(f'| {setting} | ' + ' | '.join(f'{np.mean(row):.3f}' for row in outcome.new) + ' |')
    print('\n| new people with a prior, n | ' + ' | '.join(map(str, ASKED)) + ' |\n|---|' + '---|' * len(ASKED))
    for setting, outcome in curves.items():
        for how, rows in zip(('at random', 'asked'), outcome.asked, strict=True):
            print(f'| {setting}, {how} | ' + ' | '.join(f'{np.mean(row):.3f}' for row in rows) + ' |')
    for setting, outcome in curves.items():
        print(f'\n{setting}, K=3: {"purity" if setting == "partition" else "correlation"} by seed', end=' ')
        print(', '.join(f'{value:.2f}' for value in outcome.found))


if __name__ == '__main__':
    main()
