"""Did a run learn? One sentence from the figures of its files, with how far chance may have moved them.

A method's words (`run/glossary.py`) say which figures tell of learning. One of its `levels` in the last evaluation is
held against a value that needs no learning, such as chance, and against what it was before the main part of the run.
Otherwise one of its `changes` is: its value before that part against its last one. A difference whose 95 % interval
(`intervals.py`) holds 0 is not one beyond noise, and nothing is said of a figure that too few observations have
decided. Where an evaluation has no interval of it or there is one evaluation, the first fifth of the steps is told
against the last one, without a word on chance: steps of one run resemble each other, and no interval of them is known.

Where an own function, such as a reward, has changed between two evaluations, they are not compared. A run whose costs
have a limit, or limits by group, is also judged by whether its last evaluation keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from pal_jax.run import intervals
from pal_jax.run.forecast import counted
from pal_jax.run.glossary import Question, Rivals, Test, Words, meaning, words_of
from pal_jax.run.intervals import Estimate
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.summary import fifths, finite_values, main_part, read_summary
from pal_jax.run.workdir import read_run

# Of what an evaluation tested: rows of one prompt are not independent, so its prompts come before its rows.
COUNTS = 'people', 'prompts', 'rows', 'seeds', 'networks', 'data_sets'
ONE = {'people': 'person'}
YES, TOO_LITTLE, UNTESTED = 'Yes', 'Too little to tell', 'Not tested'
UNLIKE = 'Not comparable'
TRIAL = 'A trial does not tell'
TRIALS = ':smoke', '-smoke'  # how the names of variants for trials end
UNCLEAR, WORSE = 'Not beyond noise', 'No, it became worse'
OF_COMMONER = '_of_commoner'  # ends the name of what a level is where the commoner label is always given
BEFORE, WITHOUT, LIMIT = 'before training', 'without learning', 'the limit'

Record = Mapping[str, Any]


class RunVerdict(NamedTuple):
    """`answer` is a word or two that answers `question`, `sentence` the figures, `basis` how they were had, and `units`
    are the things that were tested. `of_data`: the answer is that of a test of the data, which needs no training, and
    `details` are sentences with the figures of what was learnt."""

    answer: str
    sentence: str
    basis: str
    question: str = Question().words
    units: str = 'people, prompts or rows'
    of_data: bool = False
    details: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The verdict in one line with its end."""
        return f'{self.question} {self.answer}: {" ".join((self.sentence, *self.details))}\n'


class Claim(NamedTuple):
    """A figure of the last evaluation that tells of learning, and its control.

    Attributes:
      key: the name of the figure.
      said: the words for it.
      better: 1 where more of it is better, -1 where less is.
      value: the figure after training.
      control: the figure that it is held against.
      against: the words for that one.
    """

    key: str
    said: str
    better: float
    value: Estimate
    control: Estimate
    against: str

    @property
    def gap(self) -> Estimate:
        """The figure less its control, as if both were of different samples."""
        return intervals.difference(self.value, self.control)


def claims(rows: Sequence[Record], evals: Sequence[Record], words: Words) -> list[Claim]:
    """The claims of a run's last evaluation, those that decide first: levels and the leads of their rivals, or else
    changes with what stands beside them; and the cost where that has a limit."""
    before, after = _ends(rows, evals)
    if _changed_functions(before, after):
        return []
    listed = []
    for key in (key for key in words.levels if known(after, key)):
        listed.append(_above_level(key, before, after, words))
        leads = words.rivals[key].leads if key in words.rivals else ()
        for rival in (rival for rival in leads if known(after, rival)):
            lead = estimate(after, rival, ()), intervals.constant(0.0)
            listed.append(Claim(rival, meaning(rival, words).words, -1.0, *lead, 'no lead'))
    if not listed:
        for key, change in words.changes.items():
            if known(before, key) and known(after, key):
                listed.append(_changed(key, change, before, after, words))
                other, sign, said = words.beside.get(key, ('', 0.0, ''))
                if known(before, other) and known(after, other):
                    listed.append(_changed(other, (sign, said), before, after, words))
    if limit := limits_of(after).get(''):
        cost, most = estimate(limit, 'cost', ()), intervals.constant(limit['limit'])
        listed.append(Claim('cost', 'mean cost of an answer', -1.0, cost, most, LIMIT))
    return listed


def judge(rows: Sequence[Record], evals: Sequence[Record], words: Words, name: str = '') -> RunVerdict | None:
    """The verdict on a run's steps and evaluations; None where it has no figure that tells of learning.

    `name` is that of the config, with its variant.
    """
    before, after = _ends(rows, evals)
    if keys := _changed_functions(before, after):
        sentence = f'an own function has changed during the run ({", ".join(keys)}), so earlier figures do not compare.'
        verdict = RunVerdict(UNLIKE, sentence, '')
    else:
        verdict = _learning(rows, evals, words)
    # A random tiny model may well learn in a few steps, which says nothing of the model that is to be trained.
    if verdict and is_trial(name) and not verdict.of_data:
        verdict = verdict._replace(answer=TRIAL)
    limits = limits_of(after)
    if verdict is None or not limits:
        return verdict
    kept, sentence = _kept(limits)
    return verdict._replace(answer=f'{verdict.answer}, {kept}', sentence=f'{verdict.sentence} {sentence}')


def is_trial(name: str) -> bool:
    """True of the name of a config with a variant for trials."""
    return name.endswith(TRIALS)


def _changed_functions(before: Record, after: Record) -> list[str]:
    """The keys of own functions that have changed between two evaluations, or since a run without a first one began."""
    then, now = before.get('mended', {}), after.get('mended', {})
    return [key for key in now if now[key] != then.get(key, 0)]


def limits_of(record: Record) -> dict[str, Record]:
    """The mean cost, its interval and the limit of each group with a limit of its own; '' is all answers."""
    if known(record, 'cost') and known(record, 'limit'):
        return {'': record}
    groups = record.get('by_group')
    return dict(groups) if isinstance(groups, Mapping) else {}


def _kept(limits: Mapping[str, Record]) -> tuple[str, str]:
    """The verdict on limits in words, and a sentence with the costs of groups that are not clearly within theirs."""
    costs = {name: estimate(r, 'cost', ()) for name, r in limits.items() if known(r, 'cost')}
    places = {name: cost.place(limits[name]['limit']) for name, cost in costs.items()}
    tested = [name for name, place in places.items() if place is not None]
    unclear = [name for name in tested if places[name] != -1]
    one = len(limits) == 1
    limit = 'its limit' if one else 'its limits'
    # A mean cost is within a limit, or above it, where its interval is.
    if 1 in places.values():
        word = f'above {limit}'
    elif unclear:
        word = f'at {limit} within noise'
    else:
        # All limits are kept only where all groups have been tested.
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


def _learning(rows: Sequence[Record], evals: Sequence[Record], words: Words) -> RunVerdict | None:
    before, after = _ends(rows, evals)
    for key in words.levels:
        if known(after, key):
            verdict = _level(key, before, after, words)
            return verdict._replace(units=_units(after))
    for key in words.changes:
        measured = f'{key}_se' in after or (key in words.shares and test_size(after))
        if known(before, key) and known(after, key) and measured:
            return _evaluated(key, before, after, words)._replace(units=_units(after))
        if finite_values(main_part(rows), key):
            return _trained(key, main_part(rows), before, after, words)
    return None


def _ends(rows: Sequence[Record], evals: Sequence[Record]) -> tuple[Record, Record]:
    """The last evaluation before the main part of a run and its last one, {} where there is none."""
    start = main_part(rows)[0]['step'] if rows else 0
    before = next((record for record in reversed(evals[:-1]) if record['step'] <= start), {})
    return before, evals[-1] if evals else {}


def of_folder(workdir: str | os.PathLike[str]) -> RunVerdict | None:
    """The verdict on the run in a folder; None where there is none."""
    rows, evals = (read_records(Path(workdir, name)) for name in (METRICS, EVALS))
    name = read_summary(Path(workdir)).get('name', '')
    return judge(rows, evals, words_of(read_run(Path(workdir))['recipe']), name)


def verdict_line(workdir: str | os.PathLike[str]) -> str:
    """The verdict on the run in a folder as a line with its end; nothing where there is none."""
    verdict = of_folder(workdir)
    return verdict.line if verdict else ''


def known(record: Record, key: str) -> bool:
    return isinstance(record.get(key), int | float)


def estimate(record: Record, key: str, shares: Sequence[str]) -> Estimate:
    """A figure of an evaluation with its interval. Where the record has none it follows from the standard error, or in
    the case of one of `shares` without one, from the number of things tested."""
    value, error, count = record[key], record.get(f'{key}_se'), test_size(record)
    if f'{key}_interval' in record or count is None:
        return intervals.from_record(record, key)
    return (intervals.of_share if key in shares else intervals.of_mean)(value, error, count[0])


def test_size(record: Record) -> tuple[int, str] | None:
    """The number of things that an evaluation tested, and the name of that figure; None where none is known."""
    return next(((int(record[key]), key) for key in COUNTS if known(record, key)), None)


def _floor(key: str, after: Record, words: Words) -> float:
    """The value of a level that needs no learning."""
    return float(after.get(f'{key}{OF_COMMONER}', words.levels[key][1]))


def _earlier(key: str, before: Record) -> float | None:
    """A level before training, None where it is not known."""
    # At a margin of 0 nothing tells the replies apart.
    return before[key] if known(before, key) and before.get('margin') != 0.0 else None


def _above_level(key: str, before: Record, after: Record, words: Words) -> Claim:
    floor, earlier, better = _floor(key, after, words), _earlier(key, before), -1.0 if key in words.less else 1.0
    control, against = intervals.constant(floor), WITHOUT
    # Where the run began better than chance, to be so at its end is no news.
    if earlier is not None and better * (earlier - floor) > 0:
        control, against = estimate(before, key, words.shares), BEFORE
    return Claim(key, words.levels[key][0], better, estimate(after, key, words.shares), control, against)


def _changed(key: str, change: tuple[float, str], before: Record, after: Record, words: Words) -> Claim:
    sign, said = change
    value, control = (estimate(record, key, words.shares) for record in (after, before))
    return Claim(key, said, _better(sign, after), value, control, BEFORE)


def _level(key: str, before: Record, after: Record, words: Words) -> RunVerdict:
    claim, earlier = _above_level(key, before, after, words), _earlier(key, before)
    sentence = f'{claim.said} is {claim.value.value:.3f}{between(claim.value)}; without learning it would be '
    sentence += f'{_floor(key, after, words):.3g}'
    if earlier is not None:
        sentence += f', and before training it was {earlier:.3f}'
    asking = words.questions.get(key, Question())
    if asking.figures and _has_all(after, asking.figures):
        exact = asking.exact if claim.value.low == claim.value.high == claim.value.value else ''
        sentence = f'{asking.figures.format_map(after)}{exact or between(claim.value)}'
    basis = 'The last evaluation' + (' beside the one before training' if claim.against == BEFORE else '')
    said, of = answer(claim.gap, claim.better), f'{basis}{_of(after)}.'
    if said == UNCLEAR:
        said = asking.unclear
    # Where no level of before is known, it has not become anything.
    elif said == WORSE and (key in words.questions or earlier is None):
        said, sentence = asking.worse, f'{asking.reason}{sentence}'
    leads = _leads(after, words.rivals[key]) if key in words.rivals else {}
    further = [asking.more.format_map(after)] if asking.more and _has_all(after, asking.more) else []
    further += _rivals_in_words(after, words.rivals[key], leads) if leads else []
    if asking.test and known(after, asking.test.key):
        tested = _tested(asking, asking.test, after, claim, sentence.removeprefix(asking.reason))
        return tested._replace(basis=of, details=(*tested.details, *further))
    if said == YES and 1 in {lead.place(0.0) for lead in leads.values()}:
        said += f', but another method is ahead of {words.rivals[key].own}'
    return RunVerdict(said, ' '.join([f'{sentence}.', *further]), of, asking.words)


def _has_all(record: Record, words: str) -> bool:
    """True where a record has all figures that words name in braces."""
    return all(known(record, name) for _, name, *_ in Formatter().parse(words) if name)


def _tested(asking: Question, test: Test, after: Record, claim: Claim, figures: str) -> RunVerdict:
    """The verdict by the test of a question, with the figures of the level as its details."""
    # A level that does not say the same as the test gets a word on it.
    shown, by_level = _is_shown(test, after), answer(claim.gap, claim.better)
    if shown != (by_level == YES):
        alone = test.worse if by_level == WORSE and test.worse else test.alone
        figures += f', {alone if shown else test.beside}'
    proofs = [_proof(test, after)]
    if asking.also and known(after, asking.also.key):
        proof = _proof(asking.also, after)
        proofs.append(f'{proof[0].upper()}{proof[1:]}')
    said, details = YES if shown else asking.unclear, f'{figures[0].upper()}{figures[1:]}.'
    return RunVerdict(said, f'{". ".join(proofs)}.', '', asking.words, of_data=True, details=(details,))


def _is_shown(test: Test, record: Record) -> bool:
    return record[test.key] <= 1.0 - intervals.LEVEL


def _proof(test: Test, record: Record) -> str:
    return f'{test.yes if _is_shown(test, record) else test.no} ({test.name}, p = {record[test.key]:.3f})'


def _leads(record: Record, rivals: Rivals) -> dict[str, Estimate]:
    """The leads of the baselines that a verdict tells of, by the names of their figures."""
    leads = {name: estimate(record, name, ()) for name in rivals.leads if known(record, name)}
    return {name: lead for name, lead in leads.items() if rivals.beaten or lead.place(0.0) != -1}


def _rivals_in_words(record: Record, rivals: Rivals, leads: Mapping[str, Estimate]) -> list[str]:
    """The figures of baselines, and theirs less the method's, in a sentence for each place."""
    places = 'Better than', 'Not shown to be better or worse than', 'Worse than'
    parts: dict[str, list[str]] = {f'{place} {rivals.own}': [] for place in places}
    ahead, unclear, behind = parts.values()
    for name, lead in leads.items():
        rival, other = rivals.leads[name]
        differences = [(lead, rivals.own)]
        if known(record, gained := rivals.gains.get(name, '')):
            differences.insert(0, (estimate(record, gained, ()), rivals.over))
        over = (f'{gap.value:+z.3f} over {whom}, 95 % interval {gap.ends("+.3f")}' for gap, whom in differences)
        part = f'{rival} {record[other]:.1%} ({"; ".join(over)})'
        {1: ahead, -1: behind}.get(lead.place(0.0) or 0, unclear).append(part)
    return [f'{said}: {"; ".join(part)}.' for said, part in parts.items() if part]


def _better(sign: float, after: Record) -> float:
    """1 where a larger figure is better, -1 where a smaller one is."""
    # An attacker that is trained by itself (`learner`) wants attacks to succeed.
    return -sign if after.get('learner') == 'attacker' else sign


def _evaluated(key: str, before: Record, after: Record, words: Words) -> RunVerdict:
    claim = _changed(key, words.changes[key], before, after, words)
    sentence = f'the {claim.said} {moved(before[key], after[key])}'
    basis = f'Evaluations "{before["stage"]}" and "{after["stage"]}"{_of(after)}.'
    sentence += f': {claim.gap.value:+.3f}{between(claim.gap)}'
    other, _, said = words.beside.get(key, ('', 0.0, ''))
    if known(before, other) and known(after, other):
        sentence += f'; the {said} {moved(before[other], after[other])}'
    return RunVerdict(answer(claim.gap, claim.better), f'{sentence}.', basis)


def _trained(key: str, steps: Sequence[Record], before: Record, after: Record, words: Words) -> RunVerdict:
    part, (_, said) = fifths(steps, key), words.changes[key]
    sentence = f'the {said} of a training step {moved(part["first"], part["last"])}: {part["gain"]:+.3f}'
    if known(before, key) and known(after, key):
        sentence += f'; on what was held out it {moved(before[key], after[key])}'
    basis = f'The first and the last fifth of {len(steps)} steps, which give no interval, as they resemble each other.'
    advice = 'evaluations or several seeds (compare) tell whether that is chance'
    return RunVerdict(UNTESTED, f'{sentence}; {advice}.', basis)


def answer(gap: Estimate, better: float = 1.0) -> str:
    """The answer to a difference, of which more is better, or less where `better` is -1."""
    place = gap.place(0.0)
    if place is None:
        return TOO_LITTLE
    if not place:
        return UNCLEAR
    return YES if place * better > 0 else WORSE


def between(figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return ' (too few, or all alike, which gives no interval)'
    return f' (95 % interval {figure.low:.3f} to {figure.high:.3f})'


def moved(first: float, last: float) -> str:
    if first == last:
        return f'stayed at {first:.3f}'
    return f'{"rose" if last > first else "fell"} from {first:.3f} to {last:.3f}'


def _units(record: Record) -> str:
    size = test_size(record)
    return size[1].replace('_', ' ') if size else RunVerdict._field_defaults['units']


def _of(record: Record) -> str:
    if not (size := test_size(record)):
        return ''
    count, units = size
    return f', of {counted(count, ONE.get(units, units[:-1]).replace("_", " "))}'
