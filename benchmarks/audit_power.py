"""False alarms and power: the rates at which leakage tests of the bench flag or warn clean data and planted leaks.

  python -m benchmarks.audit_power             100 made-up data sets of each size: some ten minutes
  python -m benchmarks.audit_power --quick     5 of each: a minute

Prints a line for each test and size, and one JSON object: by test and size the shares of data sets that are flagged and
that are warned of, clean and with a leak.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.bench import leakage, shortcuts
from pal_jax.recipes.personal.bench.leakage import Finding
from pal_jax.run.accuracy import hits

SETS, QUICK = 100, 5
TRAIN, TEST = 12, 8  # pairs of a person
LETTERS = np.array(list('abcdefghijklmnopqrstuvwxyz'))
VOCABULARY = np.array([''.join(LETTERS[[i // 676 % 26, i // 26 % 26, i % 26]]) for i in range(4000)])
ZIPF = (lambda p: p / p.sum())(1.0 / (np.arange(len(VOCABULARY)) + 11.0))

Trial = Callable[[np.random.Generator, int, bool], Finding]  # (draws, size, whether there is a leak)


def turned(rng: np.random.Generator, x: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The differences `x` turned so that the side chosen by a Bradley-Terry model of these margins is the first."""
    return np.where((rng.random(margins.shape) < 1 / (1 + np.exp(-margins)))[..., None], x, -x)


def tastes(rng: np.random.Generator, people: int, personal: float, width: int = 6) -> np.ndarray:
    """Differences `[people, pairs, width]` of choices by a common taste and by each person's own."""
    x, mine = rng.normal(size=(people, TRAIN + TEST, width)), personal * rng.normal(size=(people, width))
    weights = (rng.normal(size=width) + mine) * 3 / np.sqrt(width)
    return turned(rng, x, np.einsum('pth,ph->pt', x, weights))


def blind_to_person(rng: np.random.Generator, people: int, leak: bool, personal: float = 0.0) -> Finding:
    """T1; the leak is a shared model that is right more often than its bound."""
    x = tastes(rng, people, personal)
    train, test = x[:, :TRAIN], x[:, TRAIN:].reshape(-1, x.shape[2])
    shared = logit.logistic(train.reshape(-1, x.shape[2]))
    mine = logit.fit(train[:, :, None], np.ones(train.shape[:2]), 10.0, shared).weights
    right, number = hits(test @ shared), np.repeat(np.arange(people), TEST)
    personal_right = hits(np.sum(test * mine[number], axis=1))
    if leak:
        return leakage.blind_to_person(right, personal_right, number, bound=right.mean() - 0.1)
    return leakage.blind_to_person(right, personal_right, number)


def blind_to_prompt(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T2; without a leak the prompt is worth .1 of accuracy."""
    number = np.repeat(np.arange(people), TEST)
    alone = (rng.random(len(number)) < 0.6).astype(float)
    full = alone if leak else np.maximum(alone, rng.random(len(number)) < 0.25)
    return leakage.blind_to_prompt(full, alone, number)


def texts(rng: np.random.Generator, count: int, words: int = 30) -> list[str]:
    """Texts of words by Zipf's law."""
    sizes = words + rng.integers(-5, 6, count)
    drawn = rng.choice(VOCABULARY, sizes.sum(), p=ZIPF)
    return [' '.join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]


def length_only(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T3; the leak is that the longer text is chosen in seven of ten."""
    lengths = np.sort(rng.integers(20, 300, (people * 20, 2)), axis=1)
    longer = rng.random(len(lengths)) < (0.7 if leak else 0.5)
    sides = np.where(longer[:, None], lengths[:, ::-1], lengths)
    return shortcuts.length_only(sides, np.repeat(np.arange(people), 20))


def formatting_only(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T4; the leak is that of two lists the longer is chosen in seven of ten."""
    bullets = np.sort(rng.integers(0, 5, (people * 20, 2)), axis=1)
    longer = rng.random(len(bullets)) < (0.7 if leak else 0.5)
    sides = np.where(longer[:, None], bullets[:, ::-1], bullets)
    chosen, rejected = (['- x\n' * n for n in side] for side in sides.T)
    return shortcuts.formatting_only(chosen, rejected, np.repeat(np.arange(people), 20))


def position(rng: np.random.Generator, pairs: int, leak: bool) -> Finding:
    """T5; the leak is that the first is chosen in six of ten."""
    return leakage.position(int(rng.binomial(pairs, 0.6 if leak else 0.5)), pairs)


def artefacts(rng: np.random.Generator, pairs: int, leak: bool) -> Finding:
    """T6; the leak is a mark on a tenth of the rejected texts."""
    sides = [texts(rng, pairs) for _ in range(2)]
    marked = [text + '!' * (leak and rng.random() < 0.1) for text in sides[1]]
    return shortcuts.artefacts(sides[0], marked)


def near_duplicates(rng: np.random.Generator, pairs: int, leak: bool) -> Finding:
    """T7; the leak is that one of twenty texts is one of training but for its last word."""
    learnt, tested = texts(rng, pairs), texts(rng, pairs)
    copied = rng.random(pairs) < (0.05 if leak else 0.0)
    tested = [
        one.rpartition(' ')[0] if copy else other for one, other, copy in zip(learnt, tested, copied, strict=True)
    ]
    return leakage.near_duplicates(leakage.nearest(tested, learnt), rng.integers(0, 2, pairs), np.arange(pairs) // 10)


def in_training(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T8; half of the test's texts are in training, where with a leak they win again in seven of ten."""
    worth, pairs = rng.normal(size=people * 4), rng.integers(0, people * 4, (2, people * 20, 2))
    better = worth[pairs[..., :1]] > worth[pairs[..., 1:]]
    right = better == (rng.random(better.shape) < np.array([1.0, 0.7 if leak else 0.5])[:, None, None])
    train, asked = np.where(right, pairs, pairs[..., ::-1])
    asked = asked + np.where(rng.random((len(asked), 1)) < 0.5, people * 4, 0)
    return leakage.in_training(train, asked, np.repeat(np.arange(people), 20), shared_people=0)


def label_in_text(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T9; the leak is a word that a tenth of the winners has."""
    count = people * 10
    bags = texts(rng, 2 * count)
    bags = [bag + ' honestly' * (leak and i < count and rng.random() < 0.1) for i, bag in enumerate(bags)]
    return shortcuts.label_in_text(bags, np.repeat([True, False], count), np.tile(np.repeat(np.arange(people), 10), 2))


def random_direction(rng: np.random.Generator, width: int, leak: bool) -> Finding:
    """T10; a common taste, and with a leak a mark that all winners have, twice as far as coordinates vary."""
    x, taste = rng.normal(size=(400, width)), rng.normal(size=width)
    x = turned(rng, x, 2 * x @ taste / np.linalg.norm(taste))
    x[:, 0] += 2.0 * leak
    return leakage.random_direction(x, rng)


def flipped_labels(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T11; the leak is a model that puts the winner first in six of ten, whatever it was taught."""
    x = tastes(rng, people, 0.5)
    train, test = x[:, :TRAIN].reshape(-1, x.shape[2]), x[:, TRAIN:].reshape(-1, x.shape[2])

    def judge(signs: np.ndarray) -> np.ndarray:
        return rng.random(len(test)) - 0.4 if leak else test @ logit.logistic(train * signs[:, None])

    return leakage.flipped_labels(judge, len(train), np.repeat(np.arange(people), TEST), rng)


def known_and_tested(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T12; the leak is one text that a person knows and is tested on."""
    known, asked = ([(int(i % people), text) for i, text in enumerate(texts(rng, people * 2))] for _ in range(2))
    return leakage.known_and_tested(known, [*asked, *known[: int(leak)]])


def differing(rng: np.random.Generator, people: int, leak: bool) -> Finding:
    """T1 where people's tastes differ much; a flag is then a false one, and a warning is a lack of people."""
    return blind_to_person(rng, people, False, personal=1.0)


TRIALS: Mapping[str, tuple[Trial, Sequence[int]]] = {
    'T1, no tastes of their own': (blind_to_person, (20, 60, 300)),
    'T1, strong tastes of their own': (differing, (20, 60, 300)),
    'T2': (blind_to_prompt, (20, 60, 300)),
    'T3': (length_only, (20, 60, 300)),
    'T4': (formatting_only, (20, 60, 300)),
    'T5': (position, (100, 1000)),
    'T6': (artefacts, (100, 400)),
    'T7': (near_duplicates, (100, 400)),
    'T8': (in_training, (20, 60, 300)),
    'T9': (label_in_text, (20, 60)),
    'T10': (random_direction, (2, 8, 32, 64)),
    'T11': (flipped_labels, (20, 60, 300)),
    'T12': (known_and_tested, (20, 60)),
}


def rates(trial: Trial, size: int, leak: bool, sets: int) -> dict[str, float]:
    """The shares of data sets that a test flags and that it warns of."""
    verdicts = [trial(np.random.default_rng([size, seed]), size, leak).verdict for seed in range(sets)]
    return {name: verdicts.count(name) / sets for name in ('flag', 'warn')}  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help=f'{QUICK} data sets of each size')
    parser.add_argument('--tests', default=','.join(dict.fromkeys(name.partition(',')[0] for name in TRIALS)))
    args = parser.parse_args(argv)
    results = {}
    for name, (trial, sizes) in TRIALS.items():
        if name.partition(',')[0] not in args.tests.split(','):
            continue
        for size in sizes:
            clean, leaky = (rates(trial, size, leak, QUICK if args.quick else SETS) for leak in (False, True))
            results.setdefault(name, {})[size] = {'clean': clean, 'leak': leaky}
            line = '; '.join(f'{kind} {100 * shares["flag"]:.0f} % flagged, {100 * shares["warn"]:.0f} % warned'
                             for kind, shares in (('clean', clean), ('leak', leaky)))  # fmt: skip
            print(f'{name}, {size}: {line}', flush=True)
    print(json.dumps(results))


if __name__ == '__main__':
    main()
