"""The protocol of the bench: one method (`recipes/personal/interface.py`) on a split of a data set.

    rows = run(method, task, counts)        # task, ... = make_tasks(data, trials)

A method's margins are multiplied by one factor, which is chosen by log loss on seen people's validation choices. It
changes no accuracy and makes confidence that of a forecast.

A row is the `Judged` of one part of the split as JSON, with the keys

    part     seen (people's new choices), new (people), asked (new people who answer the method's own questions), or
             strangers (new people by known choices that were shuffled among them, under the true model)
    known    the number of known choices of each new person; -1 for seen people
    seed     that of the split
    shuffled whether people were shuffled among the training and the known pairs
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.comparisons import Comparisons, rank_within
from pal_jax.recipes.personal.bench.leakage import asymmetry
from pal_jax.recipes.personal.bench.protocol import by_person, judge, temperature
from pal_jax.recipes.personal.interface import Choices, Fitted, Margins, Method
from pal_jax.recipes.personal.panel import PADDING, Trial, newcomers, padded

HELD = 5  # every fifth seen person is held out to choose a method's option
TIMES = 5  # fits of a person that are timed

Row = dict[str, Any]


class Task(NamedTuple):
    """A split in the form that methods read.

    Attributes:
      train, validation, test: choices of seen people, numbered from 0.
      known, asked: choices of new people, numbered from 0.
      rank: the rank `[B]` at which each of `known` becomes known among those of its person.
      seen, new: numbers of these people in the data.
    """

    trial: Trial
    train: Choices
    validation: Choices
    test: Choices
    known: Choices
    rank: np.ndarray
    asked: Choices
    seen: np.ndarray
    new: np.ndarray


def make_tasks(data: Comparisons, trials: Sequence[Trial]) -> list[Task]:
    """The tasks of all splits. Parts of the same name have the same shapes, so that programs are compiled once."""
    new, tasks = newcomers(data, trials), []
    indices = {name: padded([getattr(trial.split, name) for trial in trials]) for name in trials[0].split._fields}
    seen = [np.unique(trial.users[trial.split.train]) for trial in trials]
    new_people = [np.unique(data.users[trial.split.new_test]) for trial in trials]
    sizes = max(map(len, seen)), max(map(len, new_people))

    def choices(name: str, r: int, people: np.ndarray, size: int) -> Choices:
        index, exists = (column[r] for column in indices[name])
        # Models are told shuffled people in training and among known choices; tests have the true ones.
        users = trials[r].users if name in ('train', 'fit') else data.users
        number = np.zeros(len(data.names), np.int32)
        number[people] = np.arange(len(people))
        rows = [None if column is None else column[index] for column in (data.chosen, data.rejected, data.prompt)]
        return Choices(
            np.where(exists, number[users[index]], 0).astype(np.int32), np.asarray(rows[0]), np.asarray(rows[1]),
            exists.astype(np.float32), size, rows[2],
        )  # fmt: skip

    for r, trial in enumerate(trials):
        train, validation, test = (choices(name, r, seen[r], sizes[0]) for name in ('train', 'validation', 'test'))
        known, asked = (choices(name, r, new_people[r], sizes[1]) for name in ('fit', 'new_test'))
        tasks.append(Task(trial, train, validation, test, known, new.rank[r], asked, seen[r], new_people[r]))
    return tasks


def after(task: Task, count: int, rank: np.ndarray | None = None) -> Choices:
    """New people's choices of which the first `count` of each person are known."""
    counted = (task.rank if rank is None else rank) < count
    return task.known._replace(weight=task.known.weight * counted)


def run(method: Method, task: Task, counts: Sequence[int], *, measured: bool = True) -> list[Row]:
    """The rows of a method on a split, after one row `about` with its option; if `measured`, also with its sizes, its
    time and its asymmetry, for which one split of a data set is enough."""
    # 1. Choose the option on people who are left out, and fit all seen people with it.
    option = choose(method, task)
    fitted = method.fit(task.train, task.trial.seed, **option)
    # Margins are made log-odds on validation choices, which the method has not learnt from.
    known = task.validation.weight > 0
    factor = temperature(np.asarray(method.margins(fitted, None, task.validation))[known])
    method = method._replace(margins=_times(method.margins, factor))
    # 2. Seen people's new choices, and new people by the number of their known choices.
    margins = method.margins(fitted, None, task.test)
    rows = [row(task, 'seen', -1, margins)]
    for count in counts:
        rows.append(row(task, 'new', count, method.margins(fitted, after(task, count), task.asked)))
    # 3. Where people are the true ones: known choices of strangers, and the answers to the method's own questions.
    if method.personal and not task.trial.shuffled:
        strangers = method.margins(fitted, shuffled_known(task), task.asked)
        rows.append(row(task, 'strangers', counts[-1], strangers))
        if method.ask:
            # More questions than the largest number but one would only rank what all of them know.
            most = max((count for count in counts if count < counts[-1]), default=counts[-1])
            rank = in_order(task, method.ask(fitted, task.known, most), most)
            for count in counts:
                known = after(task, count, rank)
                rows.append(row(task, 'asked', count, method.margins(fitted, known, task.asked)))
    about = _about(method, fitted, task, margins) if measured else {}
    return [{'about': about | {'option': dict(option), 'looks': len(rows), 'factor': factor}}, *rows]


def _times(margins: Margins, factor: float) -> Margins:
    """Margins times a factor."""
    return lambda fitted, known, asked: factor * np.asarray(margins(fitted, known, asked), np.float64)


def in_order(task: Task, asked: np.ndarray, most: int) -> np.ndarray:
    """The rank of each known choice in its person: the first `most` as they were `asked`, then all others."""
    keys = np.where(asked < most, asked, most + np.minimum(task.rank, PADDING - most - 1))
    rank = rank_within(task.known.users, np.where(task.known.weight > 0, keys, PADDING))
    return np.where(task.known.weight > 0, rank, PADDING)


def _about(method: Method, fitted: Fitted, task: Task, margins: np.ndarray) -> Row:
    """The sizes of a fitted method, the time of a person, and the asymmetry of seen people's margins (T5)."""
    swapped = np.asarray(method.margins(fitted, None, task.test.swapped()))
    exists = task.test.weight > 0
    return {
        'shared_parameters': fitted.shared, 'parameters_a_person': fitted.person,
        'seconds_a_person': seconds_a_person(method, fitted, task),
        'asymmetry': asymmetry(np.asarray(margins)[exists], swapped[exists]),
    }  # fmt: skip


def row(task: Task, part: str, known: int, margins: np.ndarray) -> Row:
    """The sums of margins on seen people's test pairs, or on those of new people, whose people have the data's
    numbers."""
    choices, people = (task.test, task.seen) if part == 'seen' else (task.asked, task.new)
    exists = choices.weight > 0
    judged = judge(np.asarray(margins)[exists], people[choices.users[exists]])
    return row_of(task.trial, part, known, judged.to_json())


def row_of(trial: Trial, part: str, known: int, judged: Mapping[str, Any]) -> Row:
    """A row from its keys."""
    return {'part': part, 'known': known, 'seed': trial.seed, 'shuffled': trial.shuffled, **judged}


def choose(method: Method, task: Task) -> Mapping[str, Any]:
    """The option with the highest accuracy on validation people, each alike; the first one of equals.

    The validation people are every fifth seen person at random. They are left out of training, are known by their
    training choices and are tested on their validation choices.
    """
    if len(method.options) == 1:
        return method.options[0]
    held = np.random.default_rng([task.trial.seed, 4]).permutation(task.train.people) % HELD == 0
    train = task.train._replace(weight=task.train.weight * ~held[task.train.users])
    known = task.train._replace(weight=task.train.weight * held[task.train.users])
    asked, best = task.validation, (-1.0, method.options[0])
    counted = (asked.weight > 0) & held[asked.users]
    if not counted.any():
        return method.options[0]
    for option in method.options:
        fitted = method.fit(train, task.trial.seed, **option)
        margins = np.asarray(method.margins(fitted, known, asked))[counted]
        score = float(by_person(judge(margins, asked.users[counted])).mean())
        if score > best[0]:
            best = score, option
    return best[1]


def shuffled_known(task: Task) -> Choices:
    """All known choices of new people, whose users are shuffled among them."""
    exists = task.known.weight > 0
    users = task.known.users.copy()
    users[exists] = np.random.default_rng([task.trial.seed, 5]).permutation(users[exists])
    return task.known._replace(users=users)


def seconds_a_person(method: Method, fitted: Fitted, task: Task) -> float:
    """The median time in seconds to predict one new person's choices from all known ones, after a first call."""
    columns = task.known, task.asked

    def of_first(choices: Choices) -> Choices:
        index = np.flatnonzero((choices.weight > 0) & (choices.users == 0))
        prompt = None if choices.prompt is None else choices.prompt[index]
        users, chosen, rejected, weight = (column[index] for column in choices[:4])
        return Choices(users, chosen, rejected, weight, 1, prompt)

    known, asked = map(of_first, columns)
    method.margins(fitted, known, asked)
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        np.asarray(method.margins(fitted, known, asked))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
