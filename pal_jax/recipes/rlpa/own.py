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
from typing import Any

from pal_jax.judges.functions import RewardFunction, values
from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.run import own
from pal_jax.run.glossary import OWN
from pal_jax.types import Dialogue, RewardFn, Sample, Verdict

EXTRA = 'replies', 'profiles', 'people', 'rounds', 'seed'
PARTS = 'profile', 'response', 'format'  # of the reward


def with_functions(
    reward: RewardFn,
    functions: Sequence[RewardFunction],
    messages: Callable[[Dialogue], Sequence[Mapping[str, str]]],
    *,
    weights: Mapping[str, float],
    apart: bool,
) -> RewardFn:
    """`reward` plus the weighted values of the functions, which see every answer, malformed ones too.

    A function's value of None is no reward: the sample is then `ok=False`. Its values are figures `own_<name>`.

    Args:
      messages: the chat that the policy read of a dialogue.
      weights: the weights of `PARTS`.
      apart: samples get their parts as further channels behind the sum, in the order of `part_weights`.
    """
    if not functions and not apart:
        return reward

    def total(samples: Sequence[Sample], seed: int) -> list[Sample]:
        scored = reward(samples, seed)
        lists = lists_of(samples, seed, messages) if functions else {}
        columns = [values(function, lists, len(samples)) for function in functions]
        return [
            _joined(sample, [column[i] for column in columns], functions, weights if apart else {})
            for i, sample in enumerate(scored)
        ]

    return total


def lists_of(samples: Sequence[Sample], seed: int, messages: Callable[[Dialogue], Any]) -> dict[str, Any]:
    """The lists that a reward function may take, by their names; `seed` is one number."""
    parsed = [sample.parsed for sample in samples]
    return {
        'prompts': [messages(sample.source) for sample in samples],
        'completions': [sample.completion.text for sample in samples],
        'replies': [None if p is None else p.reply for p in parsed],
        'profiles': [None if p is None else list(p.facts) for p in parsed],
        'people': [list(sample.source.person.facts) for sample in samples],
        'rounds': [sample.source.round for sample in samples],
        'seed': seed,
    }


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
    # Profile and response of a malformed answer are NaN: it has none.
    parts = [sample.info[part] if formed or part == 'format' else math.nan for part in PARTS] if weights else []
    return dataclasses.replace(
        sample,
        rewards=(sample.reward + added if ok else 0.0, *((*parts, *known) if weights else ())),
        info={**sample.info, **{f'{OWN}{f.name}': number for f, number in zip(functions, known, strict=True)}},
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
        # Too few or too many values would go to the wrong answers.
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
