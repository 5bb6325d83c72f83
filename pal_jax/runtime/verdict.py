"""Did a run learn? One sentence from the figures of its files, with how far chance may have moved them.

A figure of `LEVELS` in the last evaluation is held against a value that needs no learning, such as chance, and against
what it was before the main part of the run. Otherwise a figure of `CHANGES` is: its value before that part against its
last one, or, where an evaluation has no standard error of it or there is one evaluation, the first fifth of the steps
against the last one. What differs by less than 1.96 standard errors does not differ beyond noise.

A run that trains an attacker alone says so in its evaluations (`learner`); then more unsafe answers are better.

A run whose costs have a limit, or limits by group, is also judged by whether its last evaluation keeps them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.runtime.metrics import EVALS, METRICS, read_records
from pal_jax.runtime.summary import fifths, main_part, observed

# What is told of the last evaluation, and the value that needs no learning, or the name of the figure that has it.
LEVELS: dict[str, tuple[str, float | str]] = {
    'sign_accuracy': ('the share of answers whose cost has the right sign', 'sign_accuracy_of_commoner'),
    'auc': ('the chance that it has an unsafe held-out answer above a safe one (AUC)', 0.5),
    'seen_gain': ("PAL's accuracy on new choices of people it knows, less that of one model for all", 0.0),
    'winrate_psoups': ('the share of prompts that merged policies win against all other systems', 0.5),
    'safety_gain': (
        'the fall of the share of unsafe answers, from the start to those that learnt to defend,',
        0.0,
    ),
    'accuracy': ('the share of held-out choices that it gets right', 0.5),
}
CHANGES: dict[str, tuple[float, str]] = {  # the sign of what is better, and the words
    'attack_success': (-1.0, 'share of unsafe answers to attacks on harmful requests'),
    'reward': (1.0, 'mean reward'),
    'loss': (-1.0, 'mean loss'),
    'winrate': (1.0, 'mean winrate'),
    'nashconv': (-1.0, 'mean nashconv'),
}
SHARES = 'accuracy', 'attack_success'  # whose error follows from how many were tested
# What else has to be told of a change: an attack also fails where everything is refused.
BESIDE = {'attack_success': ('overrefusal', 'the share of harmless requests that are refused')}
COUNTS = 'people', 'rows', 'seeds'  # of what an evaluation tested
FEW = 10  # of which nothing can be told
WIDTH = 1.96  # standard errors to either end of a 95 % interval

Record = Mapping[str, Any]


class Verdict(NamedTuple):
    """`answer` is a word or two, `sentence` the figures, `basis` how they were had."""

    answer: str
    sentence: str
    basis: str


def judge(rows: Sequence[Record], evals: Sequence[Record]) -> Verdict | None:
    """The verdict on a run's steps and evaluations; None where it has no figure that tells of learning."""
    verdict, limits = _learning(rows, evals), limits_of(evals[-1] if evals else {})
    if verdict is None or not limits:
        return verdict
    kept, sentence = _kept(limits)
    return verdict._replace(answer=f'{verdict.answer}, {kept}', sentence=f'{verdict.sentence} {sentence}')


def limits_of(record: Record) -> dict[str, Record]:
    """The mean cost, its standard error and the limit of each group with a limit of its own; '' is all answers."""
    if all(known(record, key) for key in ('cost', 'cost_se', 'limit')):
        return {'': record}
    groups = record.get('by_group')
    return dict(groups) if isinstance(groups, Mapping) else {}


def _kept(limits: Mapping[str, Record]) -> tuple[str, str]:
    """The verdict on limits in words, and a sentence with the costs of groups that are not clearly within theirs.

    Below a limit, or above it, is what differs from it by `WIDTH` standard errors.
    """
    tested = {name: record for name, record in limits.items() if record['cost_se'] is not None}
    above = [name for name, r in tested.items() if r['cost'] - WIDTH * r['cost_se'] > r['limit']]
    near = [name for name, r in tested.items() if abs(r['cost'] - r['limit']) <= WIDTH * r['cost_se']]
    one = len(limits) == 1
    limit = 'its limit' if one else 'its limits'
    word = f'above {limit}' if above else f'at {limit} within noise' if near else f'within {limit}'
    parts = [
        f'the mean cost{f" of {name}" if name else ""} is {r["cost"]:.3f}'
        f'{between(*interval(r["cost"], r["cost_se"]))}, and the limit {r["limit"]:g}'
        for name, r in tested.items()
        if one or name in (*above, *near)
    ]
    if not one and len(parts) < len(tested):
        parts.append(f'{len(tested) - len(parts)} of {len(limits)} groups are within their limits')
    if unknown := [name for name in limits if name not in tested]:
        parts.append(f'too few prompts test {" and ".join(unknown)}')
    sentence = '; '.join(parts)
    return word, f'{sentence[0].upper()}{sentence[1:]}.'


def _learning(rows: Sequence[Record], evals: Sequence[Record]) -> Verdict | None:
    start = main_part(rows)[0]['step'] if rows else 0
    after = evals[-1] if evals else {}
    before = next((record for record in reversed(evals[:-1]) if record['step'] <= start), {})
    for key in LEVELS:
        if known(after, key):
            return _level(key, before, after)
    for key in CHANGES:
        if known(before, key) and known(after, key) and (f'{key}_se' in after or key in SHARES):
            return _evaluated(key, before, after)
        if observed(main_part(rows), key):
            return _trained(key, main_part(rows), before, after)
    return None


def told(workdir: str | os.PathLike[str]) -> str:
    """The verdict on the run in a folder as a line with its end; nothing where there is none."""
    verdict = judge(*(read_records(Path(workdir, name)) for name in (METRICS, EVALS)))
    return f'did it learn? {verdict.answer}: {verdict.sentence}\n' if verdict else ''


def known(record: Record, key: str) -> bool:
    return isinstance(record.get(key), int | float)


def error_of(record: Record, key: str) -> float | None:
    """The standard error of a figure. That of a share, where the evaluation tells none, is by how many were tested;
    where all or none of them were right it is by the rule of three, for that is no proof that others would be."""
    error, share = record.get(f'{key}_se'), record[key]
    if key in SHARES and (count := tested(record)):
        if not error and share in (0.0, 1.0):
            return 3.0 / count[0] / WIDTH
        return math.sqrt(share * (1.0 - share) / count[0]) if error is None else error
    return error


def tested(record: Record) -> tuple[int, str] | None:
    """The number of things that an evaluation tested, and the name of that figure; None where none is known."""
    return next(((int(record[key]), key) for key in COUNTS if known(record, key)), None)


def _level(key: str, before: Record, after: Record) -> Verdict:
    said, level = LEVELS[key]
    floor = float(after[level]) if isinstance(level, str) else level
    value, error, earlier = after[key], error_of(after, key), before.get(key)
    low, high = interval(value, error)
    if floor:  # a share
        low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (low, high))
    sentence = f'{said} is {value:.3f}{between(low, high)}; without learning it would be {floor:.3g}'
    basis = 'The last evaluation'
    gap, of_gap = value - floor, error
    if earlier is not None and before.get('margin') != 0.0:  # at which nothing tells the replies apart
        sentence += f', and before training it was {earlier:.3f}'
        if earlier > floor:  # to be better than chance is then no news
            gap, of_gap = value - earlier, both(error, error_of(before, key))
            basis += ' beside the one before training'
    return Verdict(answer(gap, of_gap, after), f'{sentence}.', f'{basis}{_of(after)}.')


def _better(key: str, after: Record) -> float:
    """1 where a larger figure is better, -1 where a smaller one is. An attacker by itself wants attacks to succeed."""
    sign = CHANGES[key][0]
    return -sign if after.get('learner') == 'attacker' else sign


def _evaluated(key: str, before: Record, after: Record) -> Verdict:
    gap, error = after[key] - before[key], both(*(error_of(record, key) for record in (before, after)))
    sentence = f'the {CHANGES[key][1]} {moved(before[key], after[key])}'
    basis = (
        f'Evaluations "{before["stage"]}" and "{after["stage"]}"{_of(after)}, as if of different samples, which '
        'widens the interval.'
    )
    sentence += f': {gap:+.3f}{between(*interval(gap, error))}'
    if key in BESIDE and known(before, BESIDE[key][0]) and known(after, BESIDE[key][0]):
        other, words = BESIDE[key]
        sentence += f'; {words} {moved(before[other], after[other])}'
    return Verdict(answer(_better(key, after) * gap, error, after), f'{sentence}.', basis)


def _trained(key: str, steps: Sequence[Record], before: Record, after: Record) -> Verdict:
    part, sign = fifths(steps, key), _better(key, after)
    gap, error = part['gain'], part['gain_se']
    sentence = f'the {CHANGES[key][1]} of a training step {moved(part["first"], part["last"])}'
    sentence += f': {gap:+.3f}{between(*interval(gap, error))}'
    word = answer(sign * gap, error, {})
    if known(before, key) and known(after, key):
        held = after[key] - before[key]
        sentence += f'; on what was held out it {moved(before[key], after[key])}'
        word = 'Only what it was taught' if word == 'Yes' and sign * held <= 0 else word
    basis = f'The first and the last fifth of {len(steps)} steps; errors allow for steps that resemble those before.'
    return Verdict(word, f'{sentence}.', basis)


def answer(gap: float, error: float | None, after: Record) -> str:
    """The answer to a difference, of which more is better."""
    too_few = (count := tested(after)) is not None and count[0] < FEW
    if error is None or too_few:
        return 'Too little to tell'
    if gap == 0.0:
        return 'No'
    if abs(gap) <= WIDTH * error:
        return 'Not beyond noise'
    return 'Yes' if gap > 0 else 'No, it became worse'


def both(first: float | None, second: float | None) -> float | None:
    """The standard error of a difference of two that are independent."""
    return None if first is None or second is None else math.hypot(first, second)


def interval(value: float, error: float | None) -> tuple[float | None, float | None]:
    return (None, None) if error is None else (value - WIDTH * error, value + WIDTH * error)


def between(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ' (no standard error is known)'
    return f' (95 % interval {low:.3f} to {high:.3f})'


def moved(first: float, last: float) -> str:
    if first == last:
        return f'stayed at {first:.3f}'
    return f'{"rose" if last > first else "fell"} from {first:.3f} to {last:.3f}'


def _of(record: Record) -> str:
    count = tested(record)
    return f', of {count[0]} {count[1]}' if count else ''
