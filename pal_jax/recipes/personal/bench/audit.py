"""The audit of a data set and one of its splits: all tests of `leakage.py` and `shortcuts.py`, before any method.

Where items are shared (a hundred jokes for thousands of people), pairs are no independent evidence about texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pal_jax.data.comparisons import (
    Comparisons,
    Lookup,
    Split,
    choices_at,
    questions,
    rank_within,
    row_keys,
    same_texts,
)
from pal_jax.data.holdouts import normal
from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.bench import leakage, shortcuts
from pal_jax.recipes.personal.bench.leakage import Finding, not_applied
from pal_jax.recipes.personal.evaluation import MethodResult
from pal_jax.recipes.personal.judged import judge
from pal_jax.recipes.personal.logit import logistic
from pal_jax.recipes.personal.panel import Trial
from pal_jax.run.accuracy import hits

MOST = 20_000  # pairs of a part that are read; more say the same
PEOPLE = 300  # people who have a model of their own in T1
PULLS = 1.0, 10.0, 100.0  # of a person's model to the shared one in T1
DIRECTIONS = 1, 2, 4  # numbers of directions in which people differ in T1
LONG = 20  # characters: T12 counts replies of more, since short ones are alike by chance
WIDE, MOST_FOR_AXES = 64, 5000  # coordinates of items that the models of the audit read, and pairs that choose them
SHARED = 2.0  # pairs for each text, above which people share items
ROWS = ('T3', 'T4')  # shortcuts that are rows of the table and void no data set


Rule = Callable[[Trial, np.ndarray], np.ndarray]  # margins [n] of the pairs with these numbers


def audit(
    data: Comparisons, split: Split, *, alone: Comparisons | None = None, prompts_matter: bool = False, seed: int = 0
) -> list[Finding]:
    """The findings T1 to T12.

    Args:
      alone: the same pairs by vectors that were made without the prompts, for T2.
      prompts_matter: False where prompts are mere topics, so that T2 warns at most.
    """
    rng = np.random.default_rng([seed, 7])
    part = Split._make(np.sort(rng.permutation(index)[:MOST]) for index in split)
    # A random direction (T10) is one of the items as they are; models of the other tests need few coordinates.
    direction, data = _direction(data, rng), narrow(data, part.train)
    alone = None if alone is None else narrow(alone, part.train)
    findings = [direction, _person(data, part, rng), _prompt(data, alone, part, prompts_matter)]
    if data.texts:
        findings += _texts(data, part, rng)
    else:
        textless = 'T3', 'T4', 'T6', 'T7', 'T9'
        findings += [not_applied(test, 'items are attributes, there is no text') for test in textless]
    order_unknown = 'the order in which items were shown is not known; methods are asked with swapped sides'
    findings += [not_applied('T5', order_unknown), _repeated(data, split), _known(data, split)]
    findings.append(_flipped(data, part, rng))
    return sorted(findings, key=lambda row: int(row.test[1:]))


def fails(findings: Sequence[Finding]) -> list[str]:
    """The tests that flag a data set, but for shortcuts that are rows of the table."""
    return [row.test for row in findings if row.verdict == 'flag' and row.test not in ROWS]


# --- models -----------------------------------------------------------------------------------------------------------


def differences(data: Comparisons, index: np.ndarray) -> np.ndarray:
    """Differences chosen - rejected `[n, H]` in float64."""
    return np.asarray(data.chosen[index], np.float64) - np.asarray(data.rejected[index], np.float64)


def narrow(data: Comparisons, train: np.ndarray) -> Comparisons:
    """The pairs by the `WIDE` coordinates along which training differences are largest, where there are more."""
    if data.chosen.shape[-1] <= WIDE:
        return data
    x = differences(data, train[:MOST_FOR_AXES])
    # Eigenvalues come in rising order, so the last axes are the longest.
    axes = np.linalg.eigh(x.T @ x)[1][:, -WIDE:]

    def along(side: np.ndarray | Lookup) -> np.ndarray | Lookup:
        if isinstance(side, Lookup):
            return Lookup(np.asarray(side.table, np.float64) @ axes, side.numbers)
        return np.asarray(side[:], np.float64) @ axes

    return data._replace(chosen=along(data.chosen), rejected=along(data.rejected))


def _shared(data: Comparisons, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The scale of attributes, which training pairs have, and the weights of a model of everybody."""
    x = differences(data, split.train)
    scale = leakage.sizes(x)
    return scale, logistic(x / scale)


def _person(data: Comparisons, split: Split, rng: np.random.Generator) -> Finding:
    """T1 on the new choices of at most `PEOPLE` seen people, by the best of a few simple personal models."""
    scale, shared = _shared(data, split)
    people = np.sort(rng.permutation(np.unique(data.users[split.train]))[:PEOPLE])
    train, validation, test = (
        part[np.isin(data.users[part], people)] for part in (split.train, split.validation, split.test)
    )
    parts = {'train': train, 'validation': validation, 'test': test}
    person_of = {name: np.searchsorted(people, data.users[part]) for name, part in parts.items()}
    x_of = {name: differences(data, part) / scale for name, part in parts.items()}
    # Training pairs as rows of people.
    rank = rank_within(person_of['train'], np.arange(len(train)))
    x, weight = np.zeros((len(people), rank.max() + 1, len(scale))), np.zeros((len(people), rank.max() + 1))
    x[person_of['train'], rank], weight[person_of['train'], rank] = x_of['train'], 1.0
    # A person's weights are pulled to the shared ones in all directions.
    models = {f'pull {pull}': logit.fit(x[:, :, None], weight, pull, shared).weights for pull in PULLS}
    # In further models a person has weights only in the few directions in which people differ most.
    axes = np.linalg.svd(models[f'pull {PULLS[1]}'] - shared, full_matrices=False)[2]
    for count in (k for k in DIRECTIONS if k < len(scale)):
        # The shared margin is one more coordinate, whose weight is pulled to 1.
        along = np.concatenate([x @ axes[:count].T, (x @ shared)[..., None]], axis=2)
        within = logit.fit(along[:, :, None], weight, 1.0, np.eye(count + 1)[count]).weights
        models[f'{count} directions'] = within[:, count:] * shared + within[:, :count] @ axes[:count]
    right_of = {
        key: {name: hits(np.sum(x_of[name] * w[person_of[name]], axis=1)) for name in ('validation', 'test')}
        for key, w in models.items()
    }
    # The validation part chooses the model.
    best = max(right_of, key=lambda key: right_of[key]['validation'].mean() if len(validation) else 0.0)
    blind, personal = hits(x_of['test'] @ shared), right_of[best]['test']
    return leakage.blind_to_person(blind, personal, data.users[test], *_bound(data, test))


def _bound(data: Comparisons, index: np.ndarray) -> tuple[float, np.ndarray]:
    """The bound of blind models on pairs that several people judged, and a mask of these pairs."""
    left, right = (items[index] for items in item_numbers(data))
    prompt = _prompts(data)[index]
    # A pair is the same whichever side was chosen.
    key = np.stack([prompt, np.minimum(left, right), np.maximum(left, right)], axis=1)
    _, pair = np.unique(key, axis=0, return_inverse=True)
    votes = np.stack([np.bincount(pair, left < right), np.bincount(pair, left >= right)], axis=1)
    several = votes.sum(axis=1) > 1
    return leakage.vote_bound(votes[several]) if several.any() else np.nan, several[pair]


def item_numbers(data: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `[n]` of the chosen and of the other items; equal texts, or equal vectors, have equal numbers."""
    if isinstance(data.chosen, Lookup) and isinstance(data.rejected, Lookup):
        same = same_texts(data)
        return same[data.chosen.numbers], same[data.rejected.numbers]
    keys = row_keys(np.concatenate([np.asarray(data.chosen[:]), np.asarray(data.rejected[:])]))
    numbers = np.unique(keys, return_inverse=True)[1]
    return numbers[: len(data.users)], numbers[len(data.users) :]


def _prompts(data: Comparisons) -> np.ndarray:
    """Numbers `[n]` of prompts; 0 where there are none."""
    if isinstance(data.prompt, Lookup):
        return same_texts(data)[data.prompt.numbers] if data.texts else data.prompt.numbers
    return np.zeros(len(data.users), np.int64)


def _prompt(data: Comparisons, alone: Comparisons | None, split: Split, matter: bool) -> Finding:
    """T2 by the shared model, on vectors of replies after their prompts and on vectors of replies alone."""
    if data.prompt is None:
        return not_applied('T2', 'there are no prompts')
    if alone is None:
        return not_applied('T2', 'all prompts are the same, or replies are read without them anyway')
    right = []
    for table in (data, alone):
        scale, w = _shared(table, split)
        right.append(hits(differences(table, split.test) / scale @ w))
    finding = leakage.blind_to_prompt(right[0], right[1], data.users[split.test])
    if finding.verdict == 'flag' and not matter:
        return finding._replace(verdict='warn', words=f'{finding.words} (prompts are topics here)')
    return finding


def _direction(data: Comparisons, rng: np.random.Generator) -> Finding:
    if not data.texts:
        return not_applied('T10', 'attributes have a meaning, and so has a random weighing of them')
    left, right = item_numbers(data)
    # T10 reads pairs of which no two have a text in common.
    index = leakage.disjoint(left, right, rng, most=leakage.MOST_PAIRS)
    return leakage.random_direction(differences(data, index), rng)


def _flipped(data: Comparisons, split: Split, rng: np.random.Generator) -> Finding:
    scale, _ = _shared(data, split)
    x, tested = (differences(data, part) / scale for part in (split.train, split.test))

    def fit_and_judge(signs: np.ndarray) -> np.ndarray:
        return tested @ logistic(x * signs[:, None])

    return leakage.flipped_labels(fit_and_judge, len(x), data.users[split.test], rng)


# --- texts ------------------------------------------------------------------------------------------------------------


def _texts(data: Comparisons, split: Split, rng: np.random.Generator) -> list[Finding]:
    """T3, T4, T6, T7 and T9."""
    assert isinstance(data.chosen, Lookup) and isinstance(data.rejected, Lookup)
    index = np.sort(np.concatenate(split))
    index = index if len(index) <= MOST else np.sort(rng.permutation(index)[:MOST])
    chosen, rejected = ([data.texts[i] for i in side.numbers[index]] for side in (data.chosen, data.rejected))
    lengths = np.array([[len(a), len(b)] for a, b in zip(chosen, rejected, strict=True)])
    left, right = (side[index] for side in item_numbers(data))
    # T6 reads pairs of which no two have a text in common.
    apart = leakage.disjoint(left, right, rng)
    return [
        shortcuts.length_only(lengths, data.users[index]),
        shortcuts.formatting_only(chosen, rejected, data.users[index]),
        shortcuts.artefacts([chosen[i] for i in apart], [rejected[i] for i in apart]),
        _near(data, split),
        _label(data, index),
    ]


def _near(data: Comparisons, split: Split) -> Finding:
    """T7 by prompts, or by statements where there are no prompts."""
    sides = [data.prompt] if isinstance(data.prompt, Lookup) else [data.chosen, data.rejected]
    numbers = [side.numbers for side in sides if isinstance(side, Lookup)]
    learnt, tested = (np.unique(np.concatenate([side[part] for side in numbers])) for part in (split.train, split.test))
    alike = np.zeros(len(data.texts))
    alike[tested] = leakage.nearest([data.texts[i] for i in tested], [data.texts[i] for i in learnt])
    scale, w = _shared(data, split)
    right = hits(differences(data, split.test) / scale @ w)
    of_pair = np.max([alike[side[split.test]] for side in numbers], axis=0)
    table = sides[0].table if isinstance(sides[0], Lookup) else np.zeros((0, 0))
    return leakage.near_duplicates(of_pair, right, data.users[split.test], _cosine(table, tested, learnt))


def _cosine(table: np.ndarray, tested: np.ndarray, learnt: np.ndarray, most: int = 2000) -> float:
    """The mean over tested states of the largest cosine with a state of training."""
    one, other = (np.asarray(table[index[:most]], np.float64) for index in (tested, learnt))
    one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (one, other))
    return float((one @ other.T).max(axis=1).mean())


def _label(data: Comparisons, index: np.ndarray) -> Finding:
    """T9, by texts of other people, or by other texts where people share them."""
    left, right = (side[index] for side in item_numbers(data))
    named = [name for name in data.names if len(name) > 3 and any(letter.isalpha() for letter in name)]
    # Where people share texts T9 counts each text once, by whether it won more often than it lost.
    if len(index) > SHARED * len(np.unique(np.concatenate([left, right]))):
        wins = np.bincount(left, minlength=len(data.texts)) - np.bincount(right, minlength=len(data.texts))
        items = np.flatnonzero(wins)
        texts = [data.texts[i] for i in items]
        return shortcuts.label_in_text(texts, wins[items] > 0, items, named, popularity=True)
    texts = [data.texts[i] for i in np.concatenate([left, right])]
    won = np.repeat([True, False], len(index))
    return shortcuts.label_in_text(texts, won, np.tile(data.users[index], 2), named)


def _repeated(data: Comparisons, split: Split) -> Finding:
    """T8 on the new choices of seen people and on those of new people."""
    pairs = np.stack(item_numbers(data), axis=1)
    tested = np.concatenate([split.test, split.new_test])
    new = np.concatenate([split.fit, split.new_test])
    shared = len(np.intersect1d(data.users[split.train], data.users[new]))
    return leakage.in_training(
        pairs[split.train], pairs[tested], data.users[tested], shared_people=shared, by_design=not data.texts
    )


def _known(data: Comparisons, split: Split) -> Finding:
    """T12: the prompts and long replies, the statements, or the questions of tables."""

    def contents(part: np.ndarray) -> set[tuple[int, str]]:
        users = data.users[part].tolist()
        if not isinstance(data.chosen, Lookup) or not isinstance(data.rejected, Lookup):
            return set(zip(users, map(str, questions(data)[data.situations[part]]), strict=True))
        sides = [data.chosen, data.rejected, *([data.prompt] if isinstance(data.prompt, Lookup) else [])]
        # Short replies are alike by chance, so of replies to prompts only long ones count.
        words = [(side is data.prompt or data.prompt is None, side.numbers[part]) for side in sides]
        normals = [normal(text) for text in data.texts]
        return {
            (user, normals[i])
            for counts, column in words
            for user, i in zip(users, column.tolist(), strict=True)
            if counts or len(normals[i]) > LONG
        }

    kind = 'prompts, texts or dialogues' if data.texts else 'questions'
    return leakage.known_and_tested(contents(split.fit), contents(split.new_test), kind)


# --- rows of rules that know nobody -----------------------------------------------------------------------------------


def rules(data: Comparisons) -> dict[str, Rule]:
    """The rules that a data set allows, by name: the wins of items in training (T8), and a logistic model of length and
    formatting of texts (T3, T4), fitted on the training pairs of all seen people."""
    # A text that was in no training pair has neither wins nor losses, so its pair ties.
    pairs = np.stack(item_numbers(data), axis=1)
    by_name: dict[str, Rule] = {
        'memory': lambda trial, index: leakage.memory(pairs[trial.split.train], pairs[index])[0]
    }
    if data.texts and isinstance(data.chosen, Lookup) and isinstance(data.rejected, Lookup):
        table = shortcuts.shallow(data.texts)
        x = table[data.chosen.numbers] - table[data.rejected.numbers]

        def shallow(trial: Trial, index: np.ndarray) -> np.ndarray:
            scale = leakage.sizes(x[trial.split.train])
            return x[index] / scale @ logistic(x[trial.split.train] / scale)

        by_name['shallow'] = shallow
    return by_name


def evaluate_rule(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int], rule: Rule) -> MethodResult:
    """A rule on all splits; new people are the same for any number of known choices."""
    seen, new = (
        [
            judge(rule(trial, index), data.users[index], choices_at(data, index))
            for trial in trials
            for index in [getattr(trial.split, part)]
        ]
        for part in ('test', 'new_test')
    )
    return MethodResult(seen, [new for _ in counts])
