"""Rewards that are functions of a user: of a file, which a config names, or of the Python program that trains.

    def score(prompts, completions): ...

A function is called with lists that have an entry for each answer, and returns a number, or None, for each answer. It
takes `prompts` and `completions`, and of the further lists those that it names, or all by `**columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pal_jax.run import own
from pal_jax.run.forecast import counted

REQUIRED = 'prompts', 'completions'


class RewardFunction(NamedTuple):
    """A function that pays answers, and its weight.

    Attributes:
      text: the value of the config that names it, for messages, such as FILE.py:NAME.
      name: its name in figures.
      key: the key of the config that has the value.
    """

    text: str
    name: str
    call: Callable[..., Any]
    weight: float = 1.0
    key: str = 'reward.function'


def open_functions(key: str, text: str, weights: Sequence[float], extra: Sequence[str]) -> tuple[RewardFunction, ...]:
    """The reward functions of a config's value FILE.py:NAME,...; () for ''.

    Args:
      weights: a weight for each function; (): 1 for each.
      extra: the names of the lists that a function may take beside `REQUIRED`.

    Raises:
      ValueError: a function cannot be had, two have one name, or the weights are not as many as the functions.
    """
    texts = own.split(key, text) if text else []
    check_weights(weights, len(texts))
    names = [part.rpartition(':')[2] for part in texts]
    if len(set(names)) < len(names):
        raise ValueError(f'{key}={text!r} has two functions of one name; rename one, figures are called by it')
    calls = [own.load(key, part, *REQUIRED, may=extra) for part in texts]
    return tuple(map(RewardFunction, texts, names, calls, weights or [1.0] * len(texts)))


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raises ValueError where `reward.weights` is neither empty nor has a finite number for each of `count` rewards."""
    if weights and len(weights) != count:
        numbers, of = counted(len(weights), 'number'), counted(count, 'function')
        raise ValueError(f'reward.weights={tuple(weights)} has {numbers} for {of}')
    if not all(map(math.isfinite, weights)):
        raise ValueError(f'reward.weights={tuple(weights)} must be finite numbers')


def values(function: RewardFunction, lists: Mapping[str, Any], count: int) -> list[float | None]:
    """The values of a function for `count` answers, of which `lists` has a list for each name that it may take.

    Raises:
      RuntimeError: the function fails, or returns something else than a finite number or None for each answer.
    """
    if not count:
        return []
    # A function is called with the lists that it names, and with no others.
    given = {name: lists[name] for name in lists if name in REQUIRED or own.takes(function.call, name)}
    results, name = _called(function, given), f'{function.key}={function.text!r}'
    if results is None:
        raise RuntimeError(f'{name} returned None, and no list of numbers; does it end with a return?')
    if isinstance(results, Iterable):
        # A generator gives its values once.
        results = list(results)
    try:
        # A text such as '7' would be a number to `float`.
        if texts := [value for value in results if isinstance(value, str)]:
            raise TypeError(f'{texts[0]!r} is a text')
        numbers = [None if value is None else float(value) for value in results]
    except (TypeError, ValueError) as error:
        raise RuntimeError(f'{name} must return a list of numbers: {error}') from None
    if len(numbers) != count:
        raise RuntimeError(f'{name} returned {counted(len(numbers), "number")} for {counted(count, "answer")}')
    if wrong := [number for number in numbers if number is not None and not math.isfinite(number)]:
        raise RuntimeError(f'{name} returned {wrong[0]}; return finite numbers, or None')
    return numbers


def _called(function: RewardFunction, given: Mapping[str, Any]) -> Any:
    """Whatever a function returns. A function of TRL that reads texts as lists of messages is told so."""
    try:
        return function.call(**given)
    except RuntimeError as error:
        if 'string indices' in str(error.__cause__) and isinstance(given['completions'][0], str):
            raise RuntimeError(f'{error}; prompts are texts, so completions are texts') from error
        raise


def check_failed(
    failed: int,
    total: int,
    what: str,
    whom: str,
    max_failed: float,
    why: str = '',
    *,
    section: str = 'reward',
    served: bool = True,
) -> None:
    """Raises RuntimeError where more than the share `max_failed` of `total` have failed.

    Args:
      whom: the key of the config that names who answers.
      why: the last error of the servers.
      section: the section of the config that has `max_failed`.
      served: whether servers may be asked anew.
    """
    if failed > max_failed * total:
        if failed == total and not served:
            raise RuntimeError(f'all {total} {what} ({why}); check {whom}')
        anew = ", or with --config.answers='', by which servers are asked anew" if served else ''
        raise RuntimeError(
            f'{failed} of {total} {what}, more than {section}.max_failed={max_failed} '
            f'({why or "no answer could be read"}); check {whom}, then run this again with a higher limit{anew}'
        )
