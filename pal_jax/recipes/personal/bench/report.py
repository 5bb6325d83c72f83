"""The report of the bench: the audit of each data set at its head, tables of methods with intervals by people, and
pictures.

Records are the lines that the parts of a run wrote: `{'data': ..., 'method': ..., ...}` with a row of `bench.run`, or
with `findings` of the audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pal_jax.recipes.personal import judged
from pal_jax.recipes.personal.bench.audit import ROWS, fails
from pal_jax.recipes.personal.bench.leakage import ASYMMETRY, NOTHING, Finding
from pal_jax.recipes.personal.figures import METHODS
from pal_jax.recipes.personal.interface import without_rows
from pal_jax.recipes.personal.judged import JudgedPairs, MethodFigures, Paired
from pal_jax.recipes.personal.pictures import plot_by_comparisons
from pal_jax.run import intervals, pages
from pal_jax.run.curve import BLUE, GREY, INK, STYLE, png
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

SHARED = 'shared'
NOBODY = 'memory', 'shallow', 'majority'  # rules that know nobody, so that shuffled people change nothing
VOTES = 'memory', 'majority'  # rules whose margins are counts of votes and no log-odds
LEAKED = 0.01  # a gain with shuffled people above it is itself a flag
BY_PEOPLE = (
    'Accuracy with each person alike; in brackets the 95 % interval over people. Gains are paired differences to the '
    'shared model on the same people and pairs, ± the standard error over people. A gain counts where it is '
    'above 0 and above the gain with shuffled people, both by their 95 % intervals.'
)

CALIBRATION = 'ECE', 'too sure', 'log loss'

Key = tuple[str, str, int, bool]  # method, part, known, shuffled


class Set(NamedTuple):
    """The records of one data set."""

    name: str
    findings: list[Finding]
    rows: dict[Key, list[JudgedPairs]]
    about: dict[str, dict[str, Any]]  # by method
    unfit: dict[str, str]  # reasons, by method

    @property
    def methods(self) -> list[str]:
        """The methods in their order, the shared model first."""
        names = list(dict.fromkeys(method for method, *_ in self.rows))
        return [name for name in names if name == SHARED] + [name for name in names if name != SHARED]

    @property
    def counts(self) -> list[int]:
        """The numbers of known choices of new people."""
        return sorted({known for method, part, known, _ in self.rows if (method, part) == (SHARED, 'new')})

    @property
    def audited(self) -> Sequence[Finding]:
        """The findings, after the tables have been seen."""
        first = next((row for row in self.findings if row.words.endswith(NOTHING)), None)
        won = [name for part in ('seen', 'new') if (name := _best(self, part))] if first else []
        if not first or not won:
            return self.findings
        # What T1's simple models do not find is there where a method of the tables wins by it.
        milder = first._replace(verdict='warn', words=f'{first.words} by simple models, but {words(won[0])} gains')
        return [milder if row is first else row for row in self.findings]

    @property
    def mark(self) -> str:
        """Words behind the name of a data set that failed a test; empty for one that did not."""
        flagged = fails(self.audited)
        return f' (FAILS {", ".join(flagged)})' if flagged else ''

    def figures(self, method: str, part: str, known: int, *, shuffled: bool = False) -> MethodFigures | None:
        """The figures of a method with its gain over the shared model; None where it was not measured."""
        rows = self.rows.get((method, part, known, shuffled))
        # People who are asked, or known by strangers' choices, are compared with the shared model on all new people.
        base = self.rows.get((SHARED, 'seen' if part == 'seen' else 'new', known, shuffled))
        return judged.figures(rows, base or ()) if rows else None

    def gain(self, method: str, part: str, *, shuffled: bool = False) -> Paired | None:
        """The gain over the shared model on seen people, or on new ones of whom all choices are known."""
        figures = self.figures(method, part, -1 if part == 'seen' else self.counts[-1], shuffled=shuffled)
        return figures.gain if figures else None

    def lines(self) -> list[tuple[str, str, str]]:
        """The methods on new people and on those who are asked: name, part and words."""
        parts = {'new': '', 'asked': ', its own questions'}
        return [(name, part, words(name) + suffix) for name in self.methods for part, suffix in parts.items()]


def by_set(records: Sequence[Mapping[str, Any]]) -> list[Set]:
    """The records by data set, in their order."""
    sets: dict[str, Set] = {}
    for record in records:
        _, findings, rows, about, unfit = sets.setdefault(record['data'], Set(record['data'], [], {}, {}, {}))
        method = record.get('method', '')
        if 'findings' in record:
            findings += [Finding(**row) for row in record['findings']]
        elif 'unfit' in record:
            unfit[method] = record['unfit']
        elif 'about' in record:
            # Sizes are those of the first split; looks add up.
            before, split = about.get(method, {}), record['about']
            about[method] = {**split, **before, 'looks': before.get('looks', 0) + split['looks']}
        else:
            key = method, record['part'], record['known'], record['shuffled']
            rows.setdefault(key, []).append(judged.from_json(record))
    # A method that could not be fitted on one split is compared on none.
    return [
        data._replace(rows={key: row for key, row in data.rows.items() if key[0] not in data.unfit})
        for data in sets.values()
    ]


def make_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over data sets of each method's gains over the shared model, and the number of sets that fail the audit."""
    sets = by_set(records)
    record: dict[str, Any] = {'data_sets': len(sets), 'failed_data_sets': sum(bool(data.mark) for data in sets)}
    if known := [data for data in sets if data.methods]:
        record |= intervals.average([_best_gain(data) for data in known]).named('best_gain')
    for name in dict.fromkeys(method for data in sets for method in data.methods if method != SHARED):
        for part in ('seen', 'new'):
            gains = [gain.mean.value for data in sets if (gain := data.gain(name, part))]
            if gains:
                record[f'{part}_gain_{name}'] = float(np.mean(gains))
    return record


def make_exhibits(records: Sequence[Mapping[str, Any]], missing: Sequence[str] = ()) -> list[Exhibit]:
    """The exhibits of the report; `missing` names kinds of data that were not given."""
    sets = by_set(records)
    absent = f' Not given: {", ".join(missing)}.' if missing else ''
    exhibits = [Exhibit('Data and their audit', f'{_told(sets)}{absent}', _summary(sets))]
    exhibits += [Exhibit(f'Audit: {data.name}', table=_audit(data)) for data in sets]
    for data in sets:
        name, by_count = f'{data.name}{data.mark}', plot_by_comparisons(_curves(data), data.counts)
        exhibits += [
            Exhibit(f'Seen people: {name}', BY_PEOPLE + without_rows(data.unfit), _seen(data)),
            Exhibit(f'New people: {name}', _worst(data), _new(data)),
            Exhibit(f'Gains: {name}', picture=plot_gains(data)),
            Exhibit(f'By known choices: {name}', picture=by_count),
        ]
    return exhibits


def words(method: str) -> str:
    """The method in words, or its name where it has none."""
    return METHODS.get(method, method)


# --- tables -----------------------------------------------------------------------------------------------------------


def _told(sets: Sequence[Set]) -> str:
    flagged = [f'{data.name}{data.mark}' for data in sets if data.mark]
    looks = sum(int(about.get('looks', 0)) for data in sets for about in data.about.values())
    verdict = f'Marked in every table: {"; ".join(flagged)}.' if flagged else 'No data set failed the audit.'
    return (
        f'{verdict} A method wins where its gain over one model for all counts and is the largest, and where no rule '
        f'that does not know the person gains as much. {looks} results were read off test parts. Scales and '
        'coordinates of items are those of all items, labels unread. T3 and T4 are shortcuts that anybody may use; '
        f'they are the row "{words("shallow")}" and void no data set.'
    )


def _summary(sets: Sequence[Set]) -> list[list[str]]:
    rows = [['data', 'people tested', 'flags', 'warnings', 'shortcuts', 'wins on known people', 'wins on new people']]
    for data in sets:
        seen = data.figures(SHARED, 'seen', -1)
        by_verdict = {v: [row.test for row in data.audited if row.verdict == v] for v in ('flag', 'warn')}
        # Shortcuts have a column of their own, for they void no data set.
        tests = fails(data.audited), by_verdict['warn'], [test for test in by_verdict['flag'] if test in ROWS]
        winners = _winner(data, 'seen'), _winner(data, 'new')
        rows.append([data.name, str(seen.tested if seen else 0), *(', '.join(row) or '–' for row in tests), *winners])
    return rows


def _winner(data: Set, part: str) -> str:
    """The best method of `_best` with its gain."""
    if best := _best(data, part):
        return f'{words(best)}: {_of_gain(data.gain(best, part))}'
    impersonal = _impersonal(data, part)
    return f'none beats {words(max(impersonal, key=lambda name: impersonal[name]))}'


def _best(data: Set, part: str) -> str | None:
    """The personal method with the largest gain of those that count, if it beats all that do not know the person."""
    # A method has to beat the rules that know nobody: else its gain is none of persons.
    blind = max(_impersonal(data, part).values())
    gains = {name: gain for name in data.methods[1:] if name not in NOBODY and (gain := data.gain(name, part))}
    won = {
        name: gain.mean.value
        for name, gain in gains.items()
        if gain.mean.value > blind and _counts(gain, data.gain(name, part, shuffled=True)) == 'yes'
    }
    return max(won, key=lambda name: won[name], default=None)


def _best_gain(data: Set) -> Estimate:
    """The gain of the best method on seen people, which is 0 where none counts."""
    best = _best(data, 'seen')
    gain = data.gain(best, 'seen') if best else None
    return gain.mean if gain else Estimate(0.0, 0.0, 0.0, 0.0)


def _impersonal(data: Set, part: str) -> dict[str, float]:
    """The gains of the rules that do not know the person."""
    gains = {name: gain for name in NOBODY if (gain := data.gain(name, part))}
    return {SHARED: 0.0} | {name: gain.mean.value for name, gain in gains.items()}


def _audit(data: Set) -> list[list[str]]:
    rows = [['test', 'verdict', 'figure', '95 %', 'chance', 'why']]
    for row in data.audited:
        verdict = {'none': 'not applied', 'warn': 'WARN', 'flag': 'FLAG', 'pass': 'pass'}[row.verdict]
        ends = f'{row.low:.3f} to {row.high:.3f}' if np.isfinite(row.low) else '–'
        rows.append([f'{row.test} {row.name}', verdict, _number(row.figure), ends, _number(row.chance), row.words])
    return rows


def _number(value: float) -> str:
    return f'{value:.3g}' if np.isfinite(value) else '–'


def _of_gain(gain: Paired | None) -> str:
    return gain.mean.with_error('+.3f') if gain else '–'


def _seen(data: Set) -> list[list[str]]:
    rows = [['method', 'each person alike', 'gain', 'by pairs', 'gain, shuffled people', 'counts']]
    rows[0] += ['worst tenth (if all were alike)', *CALIBRATION, 'parameters', 'a person', 'ms a person']
    for name in data.methods:
        figures, about = data.figures(name, 'seen', -1), data.about.get(name, {})
        if not figures:
            continue
        shuffled, control = data.gain(name, 'seen', shuffled=True), ('–', '–')
        # Shuffled people change nothing for a method that knows nobody.
        if name not in (SHARED, *NOBODY):
            control = _leaked(shuffled), _counts(figures.gain, shuffled)
        sizes = [about.get(key, np.nan) for key in ('shared_parameters', 'parameters_a_person', 'seconds_a_person')]
        row = [_marked(name, about), f'{figures.people.value:.3f} [{figures.people.ends()}]']
        row += ['–' if name == SHARED else _of_gain(figures.gain), figures.pairs.with_error(), *control]
        row += [f'{figures.worst:.3f} ({figures.worst_alike:.3f})', *_calibration(name, figures)]
        rows.append([*row, _number(sizes[0]), _number(sizes[1]), _number(1000 * sizes[2])])
    return rows


def _marked(name: str, about: Mapping[str, Any]) -> str:
    """The method in words; one whose margins change with the order of the sides is marked by T5."""
    return words(name) + (' (FAILS T5)' if about.get('asymmetry', 0.0) > ASYMMETRY else '')


def _calibration(name: str, figures: MethodFigures) -> tuple[str, str, str]:
    # A count of votes is no log-odds, so it has no confidence to be right or wrong.
    if name in VOTES:
        return '–', '–', '–'
    return f'{figures.ece:.3f}', f'{figures.overconfidence:+.3f}', f'{figures.log_loss:.3f}'


def _leaked(gain: Paired | None) -> str:
    return _of_gain(gain) + (' (FLAG)' if gain and gain.mean.place(LEAKED) == 1 else '')


def _counts(gain: Paired | None, shuffled: Paired | None) -> str:
    if not gain or not shuffled:
        return '–'
    return 'yes' if judged.counts(gain, shuffled) else 'no'


def _new(data: Set) -> list[list[str]]:
    last = data.counts[-1]
    # Some numbers stand for all, so that the table is not too wide; the picture has the others.
    shown = list(dict.fromkeys([count for count in data.counts if count in (0, 1, 5, 20)] + [last]))
    rows = [['method', *(f'{count} known' for count in shown), 'gain, all known', 'shuffled people']]
    rows[0] += ["strangers' choices", 'counts', *CALIBRATION]
    for name, part, in_words in data.lines():
        by_count = [data.figures(name, part, count) for count in shown]
        if not (known := by_count[-1]):
            continue
        shuffled, strangers = data.gain(name, 'new', shuffled=True), data.figures(name, 'strangers', last)
        control = ('–', '–', '–')
        if name not in (SHARED, *NOBODY):
            control = _leaked(shuffled), _of_gain(strangers and strangers.gain), _counts(known.gain, shuffled)
        row = [in_words, *(f'{x.people.value:.3f}' if x else '–' for x in by_count)]
        row += ['–' if name == SHARED else _of_gain(known.gain), *control, *_calibration(name, known)]
        rows.append(row)
    return rows


def _worst(data: Set) -> str:
    figures = data.figures(SHARED, 'new', data.counts[-1])
    if not figures:
        return ''
    gain = [x for name in data.methods[1:] if (x := data.gain(name, 'new'))]
    spread = float(np.median([x.spread for x in gain])) if gain else np.nan
    # The number of people tells the reader how small a gain these data could show.
    needed = judged.people_needed(0.02, spread) if np.isfinite(spread) and spread else 0
    return (
        f'Accuracy with each of {figures.tested} new people alike, by the number of their known choices. "Strangers\' '
        'choices": the true model reads known choices that were shuffled among people.'
        + (f' A gain of .02 needs {needed} people here.' if needed else '')
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def _curves(data: Set) -> dict[str, list[Estimate]]:
    """The accuracy with each person alike, with its interval over people, by number of known choices."""
    curves = {}
    for name, part, in_words in data.lines():
        points = [data.figures(name, part, count) for count in data.counts]
        # A method that was measured at some numbers alone has no line.
        if all(points):
            curves[in_words] = [x.people for x in points if x]
    return curves


def plot_gains(data: Set) -> bytes:
    """A picture of the gains over the shared model with their 95 % intervals, beside those with shuffled people."""
    names = data.methods[1:]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.4 + 0.34 * len(names)), layout='constrained')
        axes = figure.subplots(1, 2, sharey=True)
    titles = {'seen': "known people's new choices", 'new': 'new people, all known'}
    for ax, (part, title) in zip(axes, titles.items(), strict=True):
        # Both kinds of a gain stand beside each other, a little apart.
        for shuffled, colour, offset in ((False, BLUE, -0.12), (True, GREY, 0.18)):
            for place, name in enumerate(names):
                if gain := data.gain(name, part, shuffled=shuffled):
                    ends, height = gain.mean.interval or [gain.mean.value] * 2, place + offset
                    ax.plot(ends, [height] * 2, color=colour, linewidth=2)
                    ax.plot(gain.mean.value, height, 'o', color=colour, markersize=5)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_title(title[0].upper() + title[1:])
        ax.set_xlabel('gain in accuracy over one model for all')
        ax.set_yticks(range(len(names)), [words(name) for name in names])
    axes[0].invert_yaxis()
    kinds = [Line2D([], [], color=colour, marker='o') for colour in (BLUE, GREY)]
    figure.legend(kinds, ['true people', 'shuffled people'], loc='outside upper right', ncols=2, frameon=False)
    return png(figure)


def markdown(exhibits: Sequence[Exhibit], title: str, picture_names: Sequence[str]) -> str:
    """The exhibits as Markdown; pictures are links to files of these names, in order."""
    names, parts = iter(picture_names), [f'# {title}']
    for exhibit in exhibits:
        parts += [f'## {exhibit.title}', *([exhibit.text] if exhibit.text else [])]
        if exhibit.table:
            parts.append(pages.markdown(exhibit.table))
        if exhibit.picture:
            parts.append(f'![{exhibit.title}]({next(names)})')
    return '\n\n'.join(parts) + '\n'
