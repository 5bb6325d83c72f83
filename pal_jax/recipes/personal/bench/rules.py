"""Rows of rules that know nobody: the wins of items in training (T8), and length and formatting of texts (T3, T4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal.bench import leakage, shortcuts
from pal_jax.recipes.personal.bench.audit import item_numbers
from pal_jax.recipes.personal.bench.evaluation import Row, row_of
from pal_jax.recipes.personal.bench.protocol import judge
from pal_jax.recipes.personal.panel import Trial

Rule = Callable[[Trial, np.ndarray], np.ndarray]  # margins [n] of the pairs with these numbers


def of(data: Comparisons) -> dict[str, Rule]:
    """The rules that a data set allows, by name."""
    rules = {'memory': memory(data)}
    return rules | {'shallow': shallow(data)} if data.texts else rules


def memory(data: Comparisons) -> Rule:
    """A rule by wins less losses of an item in training."""
    # A text that was in no training pair has neither wins nor losses, so its pair ties.
    pairs = np.stack(item_numbers(data), axis=1)
    return lambda trial, index: leakage.memory(pairs[trial.split.train], pairs[index])[0]


def shallow(data: Comparisons) -> Rule:
    """A logistic model of length and formatting, fitted on the training pairs of all seen people."""
    assert isinstance(data.chosen, Lookup) and isinstance(data.rejected, Lookup)
    table = shortcuts.shallow(data.texts)
    x = table[data.chosen.numbers] - table[data.rejected.numbers]

    def margins(trial: Trial, index: np.ndarray) -> np.ndarray:
        train = x[trial.split.train]
        scale = leakage.sizes(train)
        return x[index] / scale @ leakage.logistic(train / scale)

    return margins


def rows(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int], rule: Rule) -> list[Row]:
    """The rows of a rule on all splits; new people are the same for any number of known choices."""
    lines: list[Row] = []
    for trial in trials:
        for part, index, known in (('seen', trial.split.test, [-1]), ('new', trial.split.new_test, counts)):
            judged = judge(rule(trial, index), data.users[index]).to_json()
            lines += [row_of(trial, part, count, judged) for count in known]
    return lines
