"""Rows of rules that know nobody: the wins of items in training (T8), and length and formatting of texts (T3, T4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal import bradley_terry
from pal_jax.recipes.personal.bench import leakage, shortcuts
from pal_jax.recipes.personal.bench.audit import item_numbers
from pal_jax.recipes.personal.evaluation import MethodResult
from pal_jax.recipes.personal.judged import judge
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
        return x[index] / scale @ bradley_terry.logistic(train / scale)

    return margins


def evaluate(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int], rule: Rule) -> MethodResult:
    """A rule on all splits; new people are the same for any number of known choices."""
    seen, new = (
        [judge(rule(trial, index), data.users[index]) for trial in trials for index in [getattr(trial.split, part)]]
        for part in ('test', 'new_test')
    )
    return MethodResult(seen, [new for _ in counts])
