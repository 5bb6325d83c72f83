"""Leakage tests T3, T4, T6 and T9: shortcuts that stand in the texts themselves, whoever chooses.

A symmetric shortcut that is known (length, formatting) does not void a data set: its model becomes a row of the table,
and gains count over it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from pal_jax.recipes.personal.bench.leakage import (
    Finding,
    Verdict,
    cross_fitted,
    finding,
    folds_of,
    judged,
    not_applied,
    units_of,
)
from pal_jax.run import intervals
from pal_jax.run.accuracy import hits
from pal_jax.run.intervals import Estimate

OVER, UNDER = 0.55, 0.45  # T3 and T4: the accuracy of a shortcut that flags, by an end of its interval
TRIED, CORRECTED = 512, 0.01  # T6: tests of bytes, and the corrected p
ONE_WAY = 0.9  # T6: the share of pairs on one side from which lengths are no excuse
AUC, WORD_FLAG, WORD_WARN = 0.60, 0.001, 0.025  # T9: of a bag of words, and p of a word times the number of words
WORDS = 2000  # T9: the most frequent words that are read
RARE = 5  # T9: texts that a word must stand in

MARKS = {  # T4: formatting that is counted
    'headings': re.compile(r'^#{1,6} ', re.M),
    'bullets': re.compile(r'^\s*[-*+] ', re.M),
    'numbers': re.compile(r'^\s*\d+[.)] ', re.M),
    'bold': re.compile(r'\*\*[^*\n]+\*\*'),
    'code': re.compile(r'`[^`\n]+`'),
    'new lines': re.compile(r'\n'),
    'question marks': re.compile(r'\?'),
    'digits': re.compile(r'\d'),
}
WORD = re.compile(r"[^\W\d_][\w'-]*")


def marks(text: str) -> list[int]:
    """The numbers of `MARKS` in a text."""
    return [len(pattern.findall(text)) for pattern in MARKS.values()]


def shallow(texts: Sequence[str]) -> np.ndarray:
    """Length and formatting of texts `[n, 2 + len(MARKS)]`: characters, their logarithm, and the marks."""
    lengths = np.array([[len(text), np.log1p(len(text))] for text in texts], float)
    return np.concatenate([lengths, np.array([marks(text) for text in texts], float).reshape(len(texts), -1)], axis=1)


def length_only(lengths: np.ndarray, people: np.ndarray) -> Finding:
    """T3: the share of choices of the longer text, by lengths `[n, 2]` of the chosen and of the other one.

    The words have the accuracy of a logistic model of lengths, which is fitted on other people, and that of each
    person's own taste: the longer or the shorter, whichever the person chose more often in one half of the pairs.
    """
    longer = lengths[:, 0] - lengths[:, 1]
    right = intervals.share(hits(longer), units_of(people))
    words = f'the longer text was chosen in {right.value:.3f}'
    if len(np.unique(people)) > 1:
        logs = np.log1p(lengths)
        x = np.stack([longer, logs[:, 0] - logs[:, 1]], axis=1).astype(float)
        words += f'; logistic {hits(cross_fitted(x, people)).mean():.3f}'
    words += f'; by person {_by_person(longer, people):.3f}'
    return finding('T3', right, judged(right, 0.5, over=OVER, under=UNDER), words, 0.5)


def _by_person(signs: np.ndarray, people: np.ndarray) -> float:
    """The accuracy of each person's majority of signs in one half of the pairs on the other half, both ways."""
    _, person = np.unique(people, return_inverse=True)
    half = np.random.default_rng(0).permutation(len(signs)) % 2
    # A taste is read from one half of the pairs, and tested on the other.
    taste = np.zeros((2, person.max() + 1))
    np.add.at(taste, (half, person), np.sign(signs))
    return float(hits(np.sign(signs) * taste[1 - half, person]).mean())


def formatting_only(chosen: Sequence[str], rejected: Sequence[str], people: np.ndarray) -> Finding:
    """T4: the accuracy of a logistic model of the differences of `marks`, fitted on other people."""
    x = np.array([marks(text) for text in chosen], float) - np.array([marks(text) for text in rejected], float)
    margins = cross_fitted(x, people)
    right = intervals.share(hits(margins), units_of(people))
    words = f'counts of marks predict {right.value:.3f}; {np.mean(margins == 0):.0%} of pairs have the same counts'
    return finding('T4', right, judged(right, 0.5, over=OVER), words, 0.5)


def artefacts(chosen: Sequence[str], rejected: Sequence[str]) -> Finding:
    """T6: characters that stand first or last, or bytes that occur, on one side alone, by exact binomial tests.

    Pairs must be independent: no text may be in two of them.
    """
    longer = np.array([len(one) - len(other) for one, other in zip(chosen, rejected, strict=True)])
    # The longer text's chance to be chosen, by pair: as often as in all pairs.
    by_length = np.where(longer == 0, 0.5, np.mean(hits(longer)))
    # By trace, for the chosen and for the other side: the chances by length of the sides that have the trace.
    features: dict[str, list[list[float]]] = {}
    for i, sides in enumerate(zip(chosen, rejected, strict=True)):
        mine, other = map(_traces, sides)
        for name in mine ^ other:
            has_longer = (longer[i] > 0) == (name in mine)
            expected = float(by_length[i] if has_longer else 1.0 - by_length[i])
            features.setdefault(name, [[], []])[name in other].append(expected)
    p_of = {name: _p_of(*of_sides) for name, of_sides in features.items()}
    if not p_of:
        return finding('T6', 1.0, 'pass', 'both sides have the same characters', 1.0)
    name = min(p_of, key=lambda key: (p_of[key], key))
    p, (a, b) = min(p_of[name] * TRIED, 1.0), map(len, features[name])
    words = f'{name} on the chosen side alone in {a} pairs, on the other alone in {b}; corrected p {p:.2g}'
    verdict: Verdict = 'flag' if p < CORRECTED else 'warn' if p < 0.05 else 'pass'
    return finding('T6', p, verdict, words, 1.0)


def _p_of(won: Sequence[float], lost: Sequence[float]) -> float:
    """The p of a trace against chance, and where it is on both sides against the chances by length too, the larger."""
    count = len(won) + len(lost)
    p = float(stats.binomtest(len(won), count).pvalue)
    # Longer texts have more of all bytes. So a trace that is on one side in less than `ONE_WAY` of its pairs must also
    # differ from how often its side would be chosen by length.
    if max(len(won), len(lost)) >= ONE_WAY * count:
        return p
    return max(p, float(stats.binomtest(len(won), count, float(np.mean([*won, *lost]))).pvalue))


def _traces(text: str) -> set[str]:
    stands = {f'byte {byte:#04x} ({chr(byte)!r})' for byte in set(text.encode('utf-8', 'surrogatepass'))}
    return stands | ({f'first character {text[0]!r}', f'last character {text[-1]!r}'} if text else set())


# --- T9 ---------------------------------------------------------------------------------------------------------------


def log_odds(won: int, won_all: int, lost: int, lost_all: int) -> tuple[float, float]:
    """The log-odds of a word that stands in `won` of `won_all` texts and in `lost` of `lost_all`, and its z."""
    # Half a text is added to each of the four counts, so that none is 0.
    counts = np.array([won, won_all - won, lost, lost_all - lost]) + 0.5
    value = float(np.log(counts[0] / counts[1]) - np.log(counts[2] / counts[3]))
    return value, value / float(np.sqrt(np.sum(1.0 / counts)))


def words_of(text: str) -> set[str]:
    """The different words of a text, in lower case."""
    return set(WORD.findall(text.lower()))


def label_in_text(
    texts: Sequence[str], won: np.ndarray, groups: np.ndarray, names: Iterable[str] = (), *, popularity: bool = False
) -> Finding:
    """T9: one text alone, without the other side: did it win?

    A bag of words is fitted on other groups (people, or the texts themselves where people share them), and each word
    has its log-odds and an exact p. It warns where the AUC's interval is above 1/2 or a word's p times the number of
    words (Bonferroni) below `WORD_WARN`; it is a flag where the interval is above `AUC` or that p below `WORD_FLAG`.
    `names` are ids of people, personas or stated preferences that no text may have.

    Args:
      won: bools `[n]`, True for a text that was chosen.
      popularity: people share the texts, so that words tell a text's popularity. A model of everybody may learn it, and
        gains count over that model, so they warn at most.
    """
    if not len(texts):
        return not_applied('T9', 'every text won as often as it lost')
    bags = [words_of(text) for text in texts]
    total = Counter(word for bag in bags for word in bag)
    vocabulary = sorted((word for word in total if total[word] >= RARE), key=lambda word: (-total[word], word))[:WORDS]
    table = np.array([[word in bag for word in vocabulary] for bag in bags], bool).reshape(len(texts), -1)
    spelled = {name: re.compile(rf'(?<!\w){re.escape(name)}(?!\w)') for name in names}
    if named := sorted(name for name in spelled if any(spelled[name].search(text) for text in texts)):
        return finding('T9', 1.0, 'flag', f'texts name {", ".join(named[:5])}', 0.5)
    winners, losers = int(won.sum()), int((~won).sum())
    in_won, in_lost = table[won].sum(axis=0), table[~won].sum(axis=0)
    # The two-sided binomial p of each word; of two thousand words some stand on one side by chance.
    share, count = winners / len(won), in_won + in_lost
    tail = np.minimum(stats.binom.cdf(in_won, count, share), stats.binom.sf(in_won - 1, count, share))
    p_of = np.minimum(np.minimum(2.0 * tail, 1.0) * len(vocabulary), 1.0)
    best = int(np.argmin(p_of)) if vocabulary else -1
    p = float(p_of[best]) if vocabulary else 1.0
    area = _bag_auc(table, won, groups) if vocabulary else Estimate(0.5, 0.0, 0.5, 0.5)
    words = f'a bag of words tells winners with AUC {area.value:.3f}'
    if vocabulary:
        z = log_odds(int(in_won[best]), winners, int(in_lost[best]), losers)[1]
        words += f'; {vocabulary[best]!r} has z {z:+.2f}, p {p:.2g} among {len(vocabulary)} words'
    flagged = (area.place(AUC) == 1 or p < WORD_FLAG) and not popularity
    warned = area.place(0.5) == 1 or p < WORD_WARN
    verdict: Verdict = 'flag' if flagged else 'warn' if warned else 'pass'
    words += ' (people share the texts: it is their popularity)' if popularity and verdict == 'warn' else ''
    return finding('T9', area, verdict, words, 0.5)


def _bag_auc(table: np.ndarray, won: np.ndarray, groups: np.ndarray) -> Estimate:
    """The AUC of summed log-odds of words, with its interval over groups."""
    number, fold = folds_of(groups)
    score = np.zeros(len(won))
    for k in np.unique(fold):
        # The log-odds of a group's texts are made of other groups' texts.
        learnt = fold != k
        counts = [table[learnt & side].sum(axis=0) + 0.5 for side in (won, ~won)]
        totals = [int((learnt & side).sum()) + 1 for side in (won, ~won)]
        odds = [np.log(c / (t - c)) for c, t in zip(counts, totals, strict=True)]
        score[~learnt] = table[~learnt] @ (odds[0] - odds[1])
    area = intervals.auc(score, won, number)
    if area.error is None or area.interval is None:
        return area
    # What two groups have in common by luck counts twice, in the scores of the one and of the other, by which the
    # variance is twice that of scores made elsewhere.
    low, high = (area.value + np.sqrt(2.0) * (end - area.value) for end in area.interval)
    return Estimate(area.value, float(np.sqrt(2.0)) * area.error, max(float(low), 0.0), min(float(high), 1.0))
