"""Did a run learn? One sentence from the figures of its files, with how far chance may have moved them.

A figure of `LEVELS` in the last evaluation is held against a value that needs no learning, such as chance, and against
what it was before the main part of the run. Otherwise a figure of `CHANGES` is: its value before that part against its
last one, or, where an evaluation has no interval of it or there is one evaluation, the first fifth of the steps
against the last one. A difference whose 95 % interval (`intervals.py`) holds 0 is not one beyond noise, and nothing is
said of a figure that too few observations have decided.

A run that trains an attacker alone says so in its evaluations (`learner`); then more unsafe answers are better.

A run whose costs have a limit, or limits by group, is also judged by whether its last evaluation keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.summary import fifths, main_part, observed
from pal_jax.run.uncertainty import WIDTH

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
SHARES = 'accuracy', 'attack_success', 'auc', 'sign_accuracy', 'winrate', 'winrate_psoups'  # from 0 to 1
# What else has to be told of a change: an attack also fails where everything is refused.
BESIDE = {'attack_success': ('overrefusal', 'the share of harmless requests that are refused')}
COUNTS = 'people', 'rows', 'seeds', 'prompts'  # of what an evaluation tested
TOO_LITTLE = 'Too little to tell'

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
    """The mean cost, its interval and the limit of each group with a limit of its own; '' is all answers."""
    if known(record, 'cost') and known(record, 'limit'):
        return {'': record}
    groups = record.get('by_group')
    return dict(groups) if isinstance(groups, Mapping) else {}


def _kept(limits: Mapping[str, Record]) -> tuple[str, str]:
    """The verdict on limits in words, and a sentence with the costs of groups that are not clearly within theirs.

    A mean cost is within a limit, or above it, where its interval is. All limits are kept only where all groups have
    been tested.
    """
    costs = {name: estimate(r, 'cost') for name, r in limits.items() if known(r, 'cost')}
    places = {name: cost.place(limits[name]['limit']) for name, cost in costs.items()}
    tested = [name for name, place in places.items() if place is not None]
    unclear = [name for name in tested if places[name] != -1]
    one = len(limits) == 1
    limit = 'its limit' if one else 'its limits'
    if 1 in places.values():
        word = f'above {limit}'
    elif unclear:
        word = f'at {limit} within noise'
    else:
        word = f'within {limit}' if len(tested) == len(limits) else f'too few prompts to tell if within {limit}'
    parts = [
        f'the mean cost{f" of {name}" if name else ""} is {costs[name].value:.3f}{between(costs[name])}, and the limit '
        f'{limits[name]["limit"]:g}'
        for name in tested
        if one or name in unclear
    ]
    if not one and len(parts) < len(tested):
        parts.append(f'{len(tested) - len(parts)} of {len(limits)} groups are within their limits')
    if unknown := [name or 'the limit' for name in limits if name not in tested]:
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
        if known(before, key) and known(after, key) and (f'{key}_se' in after or (key in SHARES and tested(after))):
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


def estimate(record: Record, key: str) -> Estimate:
    """A figure of an evaluation with its interval. Where the record has none it follows from the standard error, or in
    a share's case without one, from the number of things tested."""
    value, error, count = record[key], record.get(f'{key}_se'), tested(record)
    if f'{key}_interval' in record or count is None:
        return intervals.from_record(record, key)
    return (intervals.of_share if key in SHARES else intervals.of_mean)(value, error, count[0])


def tested(record: Record) -> tuple[int, str] | None:
    """The number of things that an evaluation tested, and the name of that figure; None where none is known."""
    return next(((int(record[key]), key) for key in COUNTS if known(record, key)), None)


def _level(key: str, before: Record, after: Record) -> Verdict:
    said, level = LEVELS[key]
    floor = float(after[level]) if isinstance(level, str) else level
    figure, earlier = estimate(after, key), before.get(key)
    sentence = f'{said} is {figure.value:.3f}{between(figure)}; without learning it would be {floor:.3g}'
    basis = 'The last evaluation'
    gap = figure.scaled(1.0, -floor)
    if earlier is not None and before.get('margin') != 0.0:  # at which nothing tells the replies apart
        sentence += f', and before training it was {earlier:.3f}'
        if earlier > floor:  # to be better than chance is then no news
            gap = intervals.difference(figure, estimate(before, key))
            basis += ' beside the one before training'
    return Verdict(answer(gap), f'{sentence}.', f'{basis}{_of(after)}.')


def _better(key: str, after: Record) -> float:
    """1 where a larger figure is better, -1 where a smaller one is. An attacker by itself wants attacks to succeed."""
    sign = CHANGES[key][0]
    return -sign if after.get('learner') == 'attacker' else sign


def _evaluated(key: str, before: Record, after: Record) -> Verdict:
    gap = intervals.difference(estimate(after, key), estimate(before, key))
    sentence = f'the {CHANGES[key][1]} {moved(before[key], after[key])}'
    basis = (
        f'Evaluations "{before["stage"]}" and "{after["stage"]}"{_of(after)}, as if of different samples, which '
        'widens the interval.'
    )
    sentence += f': {gap.value:+.3f}{between(gap)}'
    if key in BESIDE and known(before, BESIDE[key][0]) and known(after, BESIDE[key][0]):
        other, words = BESIDE[key]
        sentence += f'; {words} {moved(before[other], after[other])}'
    return Verdict(answer(gap, _better(key, after)), f'{sentence}.', basis)


def _trained(key: str, steps: Sequence[Record], before: Record, after: Record) -> Verdict:
    part, sign = fifths(steps, key), _better(key, after)
    gain, error = part['gain'], part['gain_se']
    half = None if error is None else WIDTH * error
    gap = Estimate(gain, error, *((None, None) if half is None else (gain - half, gain + half)))
    sentence = f'the {CHANGES[key][1]} of a training step {moved(part["first"], part["last"])}'
    sentence += f': {gap.value:+.3f}{between(gap)}'
    word = answer(gap, sign)
    if known(before, key) and known(after, key):
        held = after[key] - before[key]
        sentence += f'; on what was held out it {moved(before[key], after[key])}'
        word = 'Only what it was taught' if word == 'Yes' and sign * held <= 0 else word
    basis = f'The first and the last fifth of {len(steps)} steps; errors allow for steps that resemble those before.'
    return Verdict(word, f'{sentence}.', basis)


def answer(gap: Estimate, better: float = 1.0) -> str:
    """The answer to a difference, of which more is better, or less where `better` is -1."""
    place = gap.place(0.0)
    if place is None:
        return TOO_LITTLE
    if not place:
        return 'Not beyond noise' if gap.value else 'No'
    return 'Yes' if place * better > 0 else 'No, it became worse'


def between(figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return ' (too few to give an interval)'
    return f' (95 % interval {figure.low:.3f} to {figure.high:.3f})'


def moved(first: float, last: float) -> str:
    if first == last:
        return f'stayed at {first:.3f}'
    return f'{"rose" if last > first else "fell"} from {first:.3f} to {last:.3f}'


def _of(record: Record) -> str:
    count = tested(record)
    return f', of {count[0]} {count[1]}' if count else ''
