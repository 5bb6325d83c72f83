"""Leakage tests of choices and splits, T1 to T12, which run before any method: could a number be high for another
reason than that a method knows what a person likes?

Each test is a pure function and returns a `Finding`; its docstring says when it flags. An interval is the 95 %
one over people (`run/intervals.py`), in T5 that of pairs. T10 and T12 have none.
Tests of one-sided shortcuts of texts (T3, T4, T6, T9) are in `shortcuts.py`; `audit.py` runs all tests on a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse, stats

from pal_jax.data.holdouts import normal
from pal_jax.recipes.personal import logit
from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.intervals import Estimate

FEW = 5  # people; with fewer the interval is that of pairs that are independent
WORTH = 0.02  # T1: the smallest gain worth a personal model
NOTHING, TOO_FEW = 'nothing to personalise', 'not enough people to tell'
PROMPT_LOSS = 0.01  # T2: the accuracy that is lost without the prompt where prompts matter
POSITION_P, POSITION_SHARE = 0.01, 0.02  # T5: the two-sided p, and the distance from a half
ASYMMETRY = 1e-5  # T5: of margins when the sides are swapped
ALIKE, ALIKE_SHARE, SHINGLE = 0.8, 0.01, 5  # T7: Jaccard's index, the share of test pairs, characters of a shingle
MEMORY, MEMORY_SHARE = 0.55, 0.05  # T8: the accuracy of memory, and the share of test pairs it speaks about
DIRECTIONS, MOST_PAIRS, RATIO = 200, 400, 2.0  # T10: directions, pairs at most, and the ratio to random signs
TASTES, TABLES, TASTE_P = 1000, 10, 0.01  # T10: random tastes on so many drawn tables of pairs, and the p
FLIPPED, COINS = 0.03, 10  # T11: the distance from a half, and the number of models

Verdict = Literal['pass', 'warn', 'flag', 'none']  # none: the test does not apply, and its words say why


class Finding(NamedTuple):
    """The result of a leakage test.

    Attributes:
      test: T1 to T12.
      name: the test in words.
      figure: the measured value; NaN where the test does not apply.
      low, high: the 95 % interval of the figure; NaN where there is none.
      chance: the figure of a model that knows nothing, or of no effect: 0 in T1 and T2, which flag figures near it.
      words: the reason for the verdict.
    """

    test: str
    name: str
    figure: float
    low: float
    high: float
    chance: float
    verdict: Verdict
    words: str


NAMES = {
    'T1': 'blind to the person',
    'T2': 'blind to the prompt',
    'T3': 'length only',
    'T4': 'formatting only',
    'T5': 'position',
    'T6': 'string artefacts',
    'T7': 'near-duplicates',
    'T8': 'test in training',
    'T9': 'label in the text',
    'T10': 'random direction',
    'T11': 'flipped labels',
    'T12': 'known = tested',
}


def finding(test: str, figure: float | Estimate, verdict: Verdict, words: str, chance: float = np.nan) -> Finding:
    """The finding of a test by its number, whose figure may have an interval."""
    low, high = (isinstance(figure, Estimate) and figure.interval) or (np.nan, np.nan)
    value = figure.value if isinstance(figure, Estimate) else figure
    return Finding(test, NAMES[test], float(value), float(low), float(high), chance, verdict, words)


def not_applied(test: str, words: str) -> Finding:
    """The finding of a test that the data do not allow."""
    return finding(test, np.nan, 'none', words)


def judged(figure: Estimate, chance: float, *, over: float = np.inf, under: float = -np.inf) -> Verdict:
    """The verdict on an interval: a flag outside `under` to `over`, a warning where it excludes `chance`."""
    if figure.place(over) == 1 or figure.place(under) == -1:
        return 'flag'
    return 'warn' if figure.place(chance) else 'pass'


def units_of(people: np.ndarray) -> np.ndarray | None:
    """The units of intervals: people, or pairs where fewer than `FEW` people say nothing about other people."""
    return people if len(np.unique(people)) >= FEW else None


# --- small models -----------------------------------------------------------------------------------------------------


def sizes(x: np.ndarray) -> np.ndarray:
    """The root mean squares of the columns of `[n, H]`, above 0; in these units one ridge suits all data."""
    return np.maximum(np.sqrt(np.mean(x**2, axis=0)), 1e-9)


def folds_of(groups: np.ndarray, folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The number `[n]` of each entry's group, and its fold, which a group has at random."""
    names, number = np.unique(groups, return_inverse=True)
    return number, np.random.default_rng(0).permutation(len(names))[number] % min(folds, max(len(names), 2))


def cross_fitted(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The margins `[n]` of pairs by models that saw no pair of the same group; columns in units of their size."""
    scaled, (_, fold), margins = x / sizes(x), folds_of(groups), np.zeros(len(x))
    for k in np.unique(fold):
        margins[fold == k] = scaled[fold == k] @ logit.logistic(scaled[fold != k])
    return margins


# --- T1, T2: what the models are blind to -----------------------------------------------------------------------------


def vote_bound(votes: np.ndarray) -> float:
    """The highest accuracy of a model that does not know who chooses, from votes `[pairs, 2]` for either side."""
    return float(votes.max(axis=1).sum() / votes.sum())


def blind_to_person(
    shared: np.ndarray,
    personal: np.ndarray,
    people: np.ndarray,
    bound: float = np.nan,
    bounded: np.ndarray | None = None,
) -> Finding:
    """T1: the gain in accuracy of a personal model over a model of everybody, with each person alike.

    It passes where the gain's interval is above 0. It is a flag where the interval ends below `WORTH`: there is nothing
    to personalise. In between there are too few people to tell, a warning. It is also a flag where the model of
    everybody is above the bound of models that do not know the person.

    Args:
      shared, personal: the hits `[n]` of both models on the same test pairs.
      bound: see `vote_bound`; NaN where no pair has several judges.
      bounded: a mask of the test pairs that the bound is of; all by default.
    """
    gain = _gain(personal - shared, people)
    part = np.ones(len(shared), bool) if bounded is None else bounded
    words = f'shared model {shared.mean():.3f}, personal model {gain.with_error("+.3f")}'
    if np.isfinite(bound) and part.any():
        words += f', bound of blind models {bound:.3f}'
        # No model that does not know the person can beat the majority of each pair, unless it has seen the test.
        if intervals.share(shared[part], units_of(people[part])).place(bound) == 1:
            return finding('T1', gain, 'flag', f'{words}: a blind model is above its bound, so it leaks', 0.0)
    if gain.place(0.0) == 1:
        return finding('T1', gain, 'pass', words, 0.0)
    if gain.place(WORTH) == -1:
        return finding('T1', gain, 'flag', f'{words}, below {WORTH}: {NOTHING}', 0.0)
    return finding('T1', gain, 'warn', f'{words}: {TOO_FEW}', 0.0)


def _gain(differences: np.ndarray, people: np.ndarray) -> Estimate:
    """The mean difference of two models' hits `[n]` with each person alike; of pairs where people are few."""
    if units_of(people) is None:
        return intervals.gain(differences)
    _, unit = np.unique(people, return_inverse=True)
    return intervals.gain(np.bincount(unit, differences) / np.bincount(unit))


def blind_to_prompt(full: np.ndarray, alone: np.ndarray, people: np.ndarray) -> Finding:
    """T2: the accuracy that is lost without the prompt, with each person alike.

    It passes where the loss's interval is above `PROMPT_LOSS`, is a flag where it is below, and else a warning.

    Args:
      full, alone: the hits `[n]` (1 right, 0 wrong, 1/2 a tie) of a model that reads prompts, and of one that does not.
    """
    loss = _gain(full - alone, people)
    words = f'with the prompt {full.mean():.3f}, the reply alone {alone.mean():.3f}'
    match loss.place(PROMPT_LOSS):
        case 1:
            return finding('T2', loss, 'pass', words, 0.0)
        case -1:
            return finding('T2', loss, 'flag', f'{words}: the prompt decides little', 0.0)
    return finding('T2', loss, 'warn', f'{words}: {TOO_FEW}', 0.0)


# --- T5: position -----------------------------------------------------------------------------------------------------


def position(first_won: int, pairs: int) -> Finding:
    """T5: the share of pairs in which the item that was shown first won, `first_won` of `pairs`.

    It is a flag where the two-sided p is below `POSITION_P` and the share farther than `POSITION_SHARE` from a half.
    """
    p, share = float(stats.binomtest(first_won, pairs).pvalue), first_won / pairs
    flagged = p < POSITION_P and abs(share - 0.5) > POSITION_SHARE
    words = f'the first shown won {first_won} of {pairs}, p {p:.4f}'
    verdict: Verdict = 'flag' if flagged else 'warn' if p < 0.05 else 'pass'
    return finding('T5', intervals.of_share(share, None, pairs), verdict, words, 0.5)


# --- T7, T8, T12: what stands on both sides ---------------------------------------------------------------------------


def shingles(text: str) -> set[str]:
    """The pieces of five characters of a text in normal form (`holdouts.normal`)."""
    squeezed = normal(text)
    return {squeezed[i : i + SHINGLE] for i in range(max(len(squeezed) - SHINGLE + 1, 1))}


def nearest(texts: Sequence[str], others: Sequence[str], chunk: int = 512) -> np.ndarray:
    """The largest Jaccard index of each text with one of the others `[texts]`; 0 where there are none."""
    if not len(texts) or not len(others):
        return np.zeros(len(texts))
    number: dict[str, int] = {}
    pieces = [[number.setdefault(s, len(number)) for s in shingles(text)] for text in (*texts, *others)]
    sizes = np.array([len(piece) for piece in pieces])
    rows = np.repeat(np.arange(len(pieces)), sizes)
    table = sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, np.concatenate(pieces))), (len(pieces), len(number))
    )
    left, right, best = table[: len(texts)], table[len(texts) :].T.tocsc(), []
    # A chunk of rows at a time is dense, since all of them would be too many.
    for start in range(0, len(texts), chunk):
        common = (left[start : start + chunk] @ right).toarray()
        # What both texts have is counted twice in the sum of their sizes.
        union = sizes[start : min(start + chunk, len(texts)), None] + sizes[None, len(texts) :] - common
        best.append((common / union).max(axis=1))
    return np.concatenate(best)


def near_duplicates(alike: np.ndarray, right: np.ndarray, people: np.ndarray, cosine: float = np.nan) -> Finding:
    """T7: the largest Jaccard index `[n]` of each test pair's text with one of training, and a model's hits `[n]`.

    `cosine` is the mean largest cosine of test states with training states, for the words.
    """
    near = alike >= ALIKE
    share = intervals.share(near, units_of(people))
    words = f'{near.sum()} of {len(near)} test pairs have a text like one of training'
    if near.any() and not near.all():
        words += f'; shared model {right.mean():.3f}, without them {right[~near].mean():.3f}'
    words += f'; nearest state of training at cosine {cosine:.3f}' if np.isfinite(cosine) else ''
    verdict: Verdict = 'flag' if share.value > ALIKE_SHARE else 'warn' if near.any() else 'pass'
    return finding('T7', share, verdict, words, 0.0)


def memory(train: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margins `[m]` by wins less losses in training, and a mask of the pairs that have a text of training.

    Args:
      train, asked: numbers of the texts of pairs `[n, 2]` and `[m, 2]`, the chosen one first.
    """
    size = int(max(train.max(initial=-1), asked.max(initial=-1))) + 1
    won, lost = (np.bincount(train[:, side], minlength=size) for side in (0, 1))
    score, seen = won - lost, (won + lost) > 0
    return (score[asked[:, 0]] - score[asked[:, 1]]).astype(float), np.asarray(seen[asked].any(axis=1))


def in_training(
    train: np.ndarray, asked: np.ndarray, people: np.ndarray, *, shared_people: int, by_design: bool = False
) -> Finding:
    """T8: the accuracy of memory, wins less losses in training, on the test pairs with a text of training.

    It is a flag where new people are in training, and its figure is then the share of test pairs with a text of
    training; also where the interval is above `MEMORY` and the share above `MEMORY_SHARE`.

    Args:
      train, asked: see `memory`.
      people: the person of each pair of `asked`.
      shared_people: the number of new people who have a choice in training.
      by_design: items are shared by all people, as tariffs are; memory is then a row of the bench's table and no flag.
    """
    margins, known = memory(train, asked)
    share = float(known.mean()) if len(known) else 0.0
    if shared_people:
        return finding('T8', share, 'flag', f'{shared_people} new people of the test are in training', 0.5)
    if not known.any():
        return finding('T8', 0.5, 'pass', 'no person, dialogue or text of the test is in training', 0.5)
    right = intervals.share(hits(margins[known]), units_of(people[known]))
    words = f'{share:.1%} of test pairs have a text of training; wins less losses predict {right.value:.3f} of them'
    verdict = judged(right, 0.5, over=MEMORY)
    # Memory that speaks about few pairs, or of items that all people share, cannot make a table wrong.
    if verdict == 'flag' and (by_design or share <= MEMORY_SHARE):
        verdict = 'warn'
        words += ' (items are shared by design: memory is a row of the table)' if by_design else ''
    return finding('T8', right, verdict, words, 0.5)


def known_and_tested(
    known: Iterable[tuple[int, str]], asked: Iterable[tuple[int, str]], kind: str = 'prompts, texts or dialogues'
) -> Finding:
    """T12: the contents that a new person has both among known choices and among tested ones.

    Args:
      known, asked: pairs of a person and a content: a prompt, a text, or the id of a dialogue.
    """
    both = set(known) & set(asked)
    people = len({person for person, _ in both})
    words = f'{len(both) or "no"} {kind}' + (f' of {people} new people' if both else '') + ' are known and tested'
    return finding('T12', len(both), 'flag' if both else 'pass', words, 0.0)


# --- T10, T11: models that know nothing -------------------------------------------------------------------------------


def random_direction(x: np.ndarray, rng: np.random.Generator) -> Finding:
    """T10: the mean distance from 1/2 of the accuracies of random rewards on differences `[n, H]`, over that with the
    pairs' signs drawn at random.

    It is a flag above `RATIO` where random rewards also agree with people more than they do with people who have a
    random reward themselves and make no error, at a p below `TASTE_P`.

    Pairs must be independent: no text may be in two of them.
    """
    v = rng.normal(size=(DIRECTIONS, x.shape[1]))
    signs = rng.choice([-1, 1], len(x))
    won = x @ v.T > 0
    distance, by_luck = (float(np.abs(right.mean(axis=0) - 0.5).mean()) for right in (won, won == (signs > 0)[:, None]))
    # In few coordinates any two rewards agree, so that people's taste alone makes the ratio large: the p is of that.
    ratio, p = distance / max(by_luck, 1e-12), _p_of_taste(x, v, distance, rng.spawn(1)[0])
    words = f'random rewards are {distance:.4f} from a half on {len(x)} pairs, {by_luck:.4f} with random signs'
    words += f'; p {p:.3f} that a taste does it'
    return finding('T10', ratio, 'flag' if ratio > RATIO and p < TASTE_P else 'pass', words, 1.0)


def _p_of_taste(x: np.ndarray, v: np.ndarray, distance: float, rng: np.random.Generator) -> float:
    """The share of random tastes from whose choices the rewards `v` are as far from a half, or farther."""
    # The measured rewards count as a taste too, so that the p is never 0.
    mean, farther = x.mean(axis=0), 1
    for _ in range(TABLES):
        # The pairs of these tastes have no winner's mean, and the second moments of `x`.
        pairs = rng.choice([-1.0, 1.0], (len(x), 1)) * (x - mean) + rng.normal(size=(len(x), 1)) * mean
        tastes = rng.normal(size=(TASTES // TABLES, x.shape[1]))
        agree = np.sign(pairs @ v.T).T @ np.sign(pairs @ tastes.T) / (2 * len(x))
        farther += int(np.sum(np.abs(agree).mean(axis=0) >= distance))
    return farther / (TASTES + 1)


def flipped_labels(
    fit_and_judge: Callable[[np.ndarray], np.ndarray], pairs: int, people: np.ndarray, rng: np.random.Generator
) -> Finding:
    """T11: a model whose training labels are drawn by a coin, on true test labels.

    Args:
      fit_and_judge: the margins `[m]` of the test pairs after a fit whose training pairs `[pairs]` have these signs.
      people: the person of each test pair.
    """
    # Models with coins of their own, since one of them is a random direction.
    rights = np.array([hits(fit_and_judge(rng.choice([-1, 1], pairs))) for _ in range(COINS)])
    mean, luck = float(rights.mean()), float(np.std(rights.mean(axis=1), ddof=1)) / np.sqrt(COINS)
    by_people = intervals.share(rights.mean(axis=0), units_of(people))
    # Coins and people are two sources of luck; the fewer of both know the error worse.
    count = min(COINS, len(np.unique(people)))
    right = intervals.of_mean(mean, float(np.hypot(luck, by_people.error or 0.0)), count)
    verdict: Verdict = 'pass' if not right.place(0.5) else 'flag' if abs(mean - 0.5) > FLIPPED else 'warn'
    words = f'taught by a coin, {COINS} models are right on {mean:.3f} of the test pairs'
    return finding('T11', right, verdict, words, 0.5)


def disjoint(left: np.ndarray, right: np.ndarray, rng: np.random.Generator, most: int = 2**31) -> np.ndarray:
    """Numbers of pairs of which no two have a text in common, in random order and at most `most`."""
    used, kept = set[int](), []
    for i in rng.permutation(len(left)):
        sides = {int(left[i]), int(right[i])}
        # Greedily in random order, a pair is kept if both of its texts are new.
        if not used & sides:
            used |= sides
            kept.append(int(i))
        if len(kept) == most:
            break
    return np.array(kept, np.int64)
