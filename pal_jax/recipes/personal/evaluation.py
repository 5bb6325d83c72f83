"""The one evaluation of methods: on seen people's new choices, on new people by the number of their known choices, on
new people who are asked, and on new people by the known choices of others.

    rows = run(method, task, counts)        # a method of the bench on a split; task, ... = make_tasks(data, trials)
    result = evaluate(method, fitted, task, counts)      # what it is on that split
    result = evaluate_each(method, data, trials, counts) # and on several

Margins of the bench are multiplied by one factor, which is chosen by log loss on seen people's validation choices. It
changes no accuracy and makes confidence that of a forecast.

A row is the `JudgedPairs` of one part of the split as JSON, with the keys

    part     seen (people's new choices), new (people), asked (new people who answer the method's own questions), or
             strangers (new people by known choices that were shuffled among them, under the true model)
    known    the number of known choices of each new person; -1 for seen people
    seed     that of the split
    shuffled whether people were shuffled among the training and the known pairs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data.comparisons import Comparisons, PairBatch, choice_numbers
from pal_jax.recipes.personal.interface import Fitted, Method
from pal_jax.recipes.personal.judged import JudgedPairs, by_person, judge, temperature
from pal_jax.recipes.personal.panel import Trial, asked_first, columns, newcomers

HELD = 5  # every fifth seen person is held out to choose a method's option
TIMES = 5  # fits of a person that are timed

Row = dict[str, Any]


class MethodResult(NamedTuple):
    """The results of a method on some splits.

    Attributes:
      seen: on new choices of seen people, by split.
      new: on new people, by number of known choices, then by split.
      asked: the same of people who answer the method's own questions; () without such.
      strangers: the same by all known choices, which are those of others: one row, or ().
      shared, person: the numbers of parameters that all people share and of one person, means over splits.
    """

    seen: Sequence[JudgedPairs]
    new: Sequence[Sequence[JudgedPairs]]
    asked: Sequence[Sequence[JudgedPairs]] = ()
    strangers: Sequence[Sequence[JudgedPairs]] = ()
    shared: float = 0.0
    person: float = 0.0


# A method takes all pairs, the splits, and numbers of known choices of new people.
Evaluate = Callable[[Comparisons, Sequence[Trial], Sequence[int]], MethodResult]


def picked(models: Sequence[MethodResult], splits: Sequence[int]) -> MethodResult:
    """The results on some splits, on each by its own model of `models`."""

    def of(rows: Sequence[Sequence[JudgedPairs]]) -> list[JudgedPairs]:
        return [row[r] for row, r in zip(rows, splits, strict=True)]

    def by_count(part: str) -> list[list[JudgedPairs]]:
        return [of(rows) for rows in zip(*(getattr(model, part) for model in models), strict=True)]

    shared, person = (float(np.mean([getattr(model, name) for model in models])) for name in ('shared', 'person'))
    seen = of([model.seen for model in models])
    return MethodResult(seen, by_count('new'), by_count('asked'), by_count('strangers'), shared, person)


def rows(trials: Sequence[Trial], result: MethodResult, counts: Sequence[int]) -> list[Row]:
    """The rows of a method's results on these splits; shuffled people are asked nothing and have no strangers."""
    parts = {'seen': ([-1], [result.seen]), 'new': (counts, result.new)}
    parts |= {'asked': (counts, result.asked), 'strangers': (counts[-1:], result.strangers)}
    return [
        {'part': part, 'known': known, 'seed': trial.seed, 'shuffled': trial.shuffled, **judged.to_json()}
        for part, (known_counts, table) in parts.items()
        for known, row in zip(known_counts, table, strict=False)
        for trial, judged in zip(trials, row, strict=True)
        if part in ('seen', 'new') or not trial.shuffled
    ]


# --- methods of the bench ---------------------------------------------------------------------------------------------


class SplitTask(NamedTuple):
    """A split in the form that methods read.

    Attributes:
      train, validation, test: choices of seen people, numbered from 0.
      known, asked: choices of new people, numbered from 0.
      rank: the rank `[B]` at which each of `known` becomes known among those of its person.
      seen, new: numbers of these people in the data.
    """

    trial: Trial
    train: PairBatch
    validation: PairBatch
    test: PairBatch
    known: PairBatch
    rank: np.ndarray
    asked: PairBatch
    seen: np.ndarray
    new: np.ndarray


def make_tasks(data: Comparisons, trials: Sequence[Trial]) -> list[SplitTask]:
    """The tasks of all splits. Parts of the same name have the same shapes, so that programs are compiled once."""
    seen, new = [np.unique(trial.users[trial.split.train]) for trial in trials], newcomers(data, trials)
    seen_parts = [columns(data, trials, part, seen) for part in ('train', 'validation', 'test')]

    def of(r: int, batch: PairBatch) -> PairBatch:
        return jax.tree.map(lambda x: np.asarray(x[r]), batch)

    tasks = []
    for r, trial in enumerate(trials):
        train, validation, test = (of(r, part) for part in seen_parts)
        known, asked = of(r, new.fit), of(r, new.test)
        tasks.append(SplitTask(trial, train, validation, test, known, new.rank[r], asked, seen[r], new.people[r]))
    return tasks


def run(method: Method, task: SplitTask, counts: Sequence[int], *, measured: bool = True) -> list[Row]:
    """The rows of a method on a split, after one row `about` with its option; if `measured`, also with its sizes, its
    time and its asymmetry, for which one split of a data set is enough."""
    # 1. Choose the option on people who are left out, and fit all seen people with it.
    option = choose(method, task)
    fitted = method.fit(task.train, task.trial.seed, **option)
    # Margins are made log-odds on validation choices, which the method has not learnt from.
    valid = np.asarray(method.margins(fitted, None, task.validation))[task.validation.counts]
    factor = temperature(valid)
    # 2. Seen people's new choices, and new people by the number of their known choices.
    result = evaluate(method, fitted, task, counts, factor)
    # 3. Where people are the true ones: known choices of strangers, and the answers to the method's own questions.
    if method.personal and not task.trial.shuffled:
        users, exists = np.array(task.known.users), task.known.counts
        users[exists] = np.random.default_rng([task.trial.seed, 5]).permutation(users[exists])
        strangers = method.margins(fitted, task.known.replace(users=users), task.asked)
        result = result._replace(strangers=[[_judged(task.asked, task.new, strangers, factor)]])
        if method.ask:
            # More questions than the largest number but one would only rank what all of them know.
            most = max((count for count in counts if count < counts[-1]), default=counts[-1])
            rank = asked_first(task.known.users, method.ask(fitted, task.known, most), task.rank, most)
            result = result._replace(asked=evaluate(method, fitted, task._replace(rank=rank), counts, factor).new)
    lines = rows([task.trial], result, counts)
    about = _about(method, fitted, task, factor) if measured else {}
    return [{'about': about | {'option': dict(option), 'looks': len(lines), 'factor': factor}}, *lines]


def evaluate(
    method: Method, fitted: Fitted, task: SplitTask, counts: Sequence[int], factor: float = 1.0
) -> MethodResult:
    """A fitted method on seen and new people of a split, whose known choices come in the order of `task.rank`."""
    seen = _judged(task.test, task.seen, method.margins(fitted, None, task.test), factor)
    new = (method.margins(fitted, task.known.where(task.rank < count), task.asked) for count in counts)
    by_count = [[_judged(task.asked, task.new, margins, factor)] for margins in new]
    return MethodResult([seen], by_count, shared=fitted.shared, person=fitted.person)


def evaluate_each(method: Method, data: Comparisons, trials: Sequence[Trial], counts: Sequence[int]) -> MethodResult:
    """A method without options on several splits."""
    tasks = make_tasks(data, trials)
    parts = [evaluate(method, method.fit(task.train, task.trial.seed), task, counts) for task in tasks]
    return picked(parts, [0] * len(parts))


def _judged(choices: PairBatch, people: np.ndarray, margins: np.ndarray, factor: float) -> JudgedPairs:
    """The sums of margins by people, who have the data's numbers."""
    exists = choices.counts
    sides = (np.asarray(side)[exists] for side in (choices.situation, choices.chosen, choices.rejected))
    return judge(
        factor * np.asarray(margins, np.float64)[exists], people[choices.users[exists]], choice_numbers(*sides)
    )


def _about(method: Method, fitted: Fitted, task: SplitTask, factor: float) -> Row:
    """The sizes of a fitted method, the time of a person, and the asymmetry of seen people's margins (T5)."""
    margins, swapped = (
        factor * np.asarray(method.margins(fitted, None, choices), np.float64)[task.test.counts]
        for choices in (task.test, task.test.swapped())
    )
    row: Row = {'shared_parameters': fitted.shared, 'parameters_a_person': fitted.person}
    return row | {'seconds_a_person': _seconds(method, fitted, task), 'asymmetry': asymmetry(margins, swapped)}


def asymmetry(margins: np.ndarray, swapped: np.ndarray) -> float:
    """The largest sum of a margin and of that with swapped sides, in units of the largest margin; above
    `leakage.ASYMMETRY` a method knows which side was chosen."""
    return float(np.max(np.abs(margins + swapped), initial=0.0) / max(float(np.max(np.abs(margins), initial=0.0)), 1.0))


def choose(method: Method, task: SplitTask) -> Mapping[str, Any]:
    """The option with the highest accuracy on validation people, each alike; the first one of equals."""
    asked, train = task.validation, task.train
    # The validation people are every fifth seen person at random.
    held = np.random.default_rng([task.trial.seed, 4]).permutation(train.people) % HELD == 0
    counted = asked.counts & held[asked.users]
    if len(method.options) == 1 or not counted.any():
        return method.options[0]
    # Validation people teach nothing: they are known by their training choices and tested on their validation choices.
    train, known = train.where(~held[train.users]), train.where(held[train.users])
    scores = []
    for option in method.options:
        fitted = method.fit(train, task.trial.seed, **option)
        margins = np.asarray(method.margins(fitted, known, asked))[counted]
        scores.append(float(by_person(judge(margins, asked.users[counted])).mean()))
    return method.options[int(np.argmax(scores))]


def _seconds(method: Method, fitted: Fitted, task: SplitTask) -> float:
    """The median time in seconds to predict one new person's choices from all known ones, after a first call."""

    def of_first(choices: PairBatch) -> PairBatch:
        index = np.flatnonzero(choices.counts & (choices.users == 0))
        return jax.tree.map(lambda x: x[index], choices).replace(people=1)

    known, asked = map(of_first, (task.known, task.asked))
    return median_seconds(lambda: np.asarray(method.margins(fitted, known, asked)))


def median_seconds(call: Callable[[], Any]) -> float:
    """The median time in seconds of `TIMES` calls after a first one."""
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    # The first call compiles.
    return float(np.median(seconds[1:]))
