"""Rewards, judges, users and matchers that are functions of a user's own file.

A reward function is called with lists, a value for each answer, and returns a number for each:

def score(prompts, completions): ...

It may take further lists by name, see `EXTRA`. So a reward function of TRL that reads `prompts` and `completions` works
as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.run import own
from pal_jax.types import Dialogue, RewardFn, Sample, Verdict

REQUIRED = 'prompts', 'completions'
EXTRA = 'replies', 'profiles', 'people', 'rounds', 'seed'
PARTS = 'profile', 'response', 'format'  # of the reward


class RewardFunction(NamedTuple):
    """A reward function with its weight; `text` is the FILE.py:NAME that names it, and `name` its name in figures."""

    text: str
    name: str
    call: Callable[..., Any]
    weight: float


def open_functions(key: str, text: str, weights: Sequence[float]) -> tuple[RewardFunction, ...]:
    """The reward functions of a config's value; () for ''.

    Raises:
      ValueError: a function cannot be had, or the weights are not as many as the functions.
    """
    texts = own.split(key, text) if text else []
    if weights and len(weights) != len(texts):
        raise ValueError(f'reward.weights={tuple(weights)} has {len(weights)} numbers for {len(texts)} functions')
    for weight in weights:
        if not math.isfinite(weight):
            raise ValueError(f'reward.weights={tuple(weights)} must be finite numbers')
    names = [part.rpartition(':')[2] for part in texts]
    if len(set(names)) < len(names):
        raise ValueError(f'{key}={text!r} has two functions of one name; rename one, figures are called by it')
    pairs = zip(texts, names, weights or [1.0] * len(texts), strict=True)
    return tuple(
        RewardFunction(part, name, own.load(key, part, *REQUIRED, may=EXTRA), weight) for part, name, weight in pairs
    )


def with_functions(
    reward: RewardFn, functions: Sequence[RewardFunction],
    messages: Callable[[Dialogue], Sequence[Mapping[str, str]]], *, weights: Mapping[str, float], apart: bool,
) -> RewardFn:  # fmt: skip
    """`reward` plus the weighted values of the functions, which see every answer, malformed ones too.

    A function's value of None is no reward: the sample is then `ok=False`. Its values are figures `own_<name>`.

    Args:
      messages: the chat that the policy read of a dialogue.
      weights: the weights of `PARTS`.
      apart: samples get their parts as further channels behind the sum, in the order of `part_weights`. Profile and
        response of a malformed answer are NaN there: it has none.
    """
    if not functions and not apart:
        return reward

    def total(samples: Sequence[Sample], seed: int) -> list[Sample]:
        scored = reward(samples, seed)
        columns = [values(function, samples, seed, messages) for function in functions]
        return [
            _joined(sample, [column[i] for column in columns], functions, weights if apart else {})
            for i, sample in enumerate(scored)
        ]

    return total


def values(
    function: RewardFunction, samples: Sequence[Sample], seed: int, messages: Callable[[Dialogue], Any]
) -> list[float | None]:
    """The values of a function for samples.

    Raises:
      RuntimeError: the function fails, or returns something else than a finite number or None for each sample.
    """
    if not samples:
        return []
    parsed = [sample.parsed for sample in samples]
    lists: dict[str, Any] = {
        'prompts': [messages(sample.source) for sample in samples],
        'completions': [sample.completion.text for sample in samples],
        'replies': [None if p is None else p.reply for p in parsed],
        'profiles': [None if p is None else list(p.facts) for p in parsed],
        'people': [list(sample.source.person.facts) for sample in samples],
        'rounds': [sample.source.round for sample in samples],
        'seed': seed,
    }
    given = {name: lists[name] for name in lists if name in REQUIRED or own.takes(function.call, name)}
    results = function.call(**given)
    try:
        numbers = [None if value is None else float(value) for value in results]
    except (TypeError, ValueError) as error:
        raise RuntimeError(f'reward.function={function.text!r} must return a list of numbers: {error}') from None
    if len(numbers) != len(samples):
        raise RuntimeError(
            f'reward.function={function.text!r} returned {len(numbers)} numbers for {len(samples)} answers'
        )
    if wrong := [number for number in numbers if number is not None and not math.isfinite(number)]:
        raise RuntimeError(f'reward.function={function.text!r} returned {wrong[0]}; return finite numbers, or None')
    return numbers


def part_weights(functions: Sequence[RewardFunction], weights: Mapping[str, float]) -> tuple[float, ...]:
    """The weights of the channels behind the sum: those of `PARTS`, then those of the functions."""
    return *(weights[part] for part in PARTS), *(function.weight for function in functions)


def _joined(
    sample: Sample, numbers: Sequence[float | None], functions: Sequence[RewardFunction], weights: Mapping[str, float]
) -> Sample:
    """A rewarded sample with the values of functions; with weights of `PARTS`, also with its parts as channels."""
    ok = sample.ok and None not in numbers
    known = [number or 0.0 for number in numbers]
    added = sum(function.weight * number for function, number in zip(functions, known, strict=True))
    formed = sample.parsed is not None
    parts = [sample.info[part] if formed or part == 'format' else math.nan for part in PARTS] if weights else []
    return dataclasses.replace(
        sample,
        rewards=(sample.reward + added if ok else 0.0, *((*parts, *known) if weights else ())),
        info={**sample.info, **{f'own_{f.name}': number for f, number in zip(functions, known, strict=True)}},
        ok=ok,
    )


# --- a user, a matcher or a judge -----------------------------------------------------------------------------------

ROLES = {  # the keys whose value may be FILE.py:NAME, and what the function is called with
    'dialogue.user': ('dialogues', 'seed'),
    'reward.matcher': ('inferred', 'golden'),
    'reward.judge': ('dialogues', 'inferred', 'replies', 'seed'),
}


def open_role(key: str, text: str) -> Callable[..., Any]:
    """The user, matcher or judge of a file; see `types.py` for their results. A judge may also return a number from 0
    to 1 for each reply, which then is its score by every criterion.

    Raises:
      ValueError: the function cannot be had.
    """
    call = own.load(key, text, *ROLES[key])

    def answered(*args: Any) -> list[Any]:
        results = list(call(**dict(zip(ROLES[key], args, strict=True))))
        if len(results) != len(args[0]):
            raise RuntimeError(f'{key}={text!r} returned {len(results)} values for {len(args[0])}')
        return [_verdict(result, key, text) for result in results] if key == 'reward.judge' else results

    return answered


def _verdict(result: Any, key: str, text: str) -> Verdict:
    """The verdict that a judge of a file means. Raises RuntimeError where it is neither a verdict nor in [0, 1]."""
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict({}, ok=False)
    if not isinstance(result, int | float) or not 0 <= result <= 1:
        raise RuntimeError(f'{key}={text!r} returned {result!r}; return a number from 0 to 1, a Verdict or None')
    return Verdict(dict.fromkeys(SCORES, float(result)))
