"""The report of a run: one HTML page without further files, made from the files of the run alone.

The page opens with the verdict on the run's learning (`run/verdict.py`), an example before and after, and the
learning curve. Figures are folded away, each with its meaning in the words of the run's method (`run/glossary.py`).

`commands/report.py` makes it (and `learning_curve.png`) again at any time.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe

from pal_jax.run import pages
from pal_jax.run.advice import advice, uses
from pal_jax.run.curve import HEADLINES, learning_curve
from pal_jax.run.files import write_whole
from pal_jax.run.glossary import GROUPS, PHASES, Words, explained, meaning, words_of
from pal_jax.run.metrics import DIALOGUES, EVALS, EXHIBITS, METRICS, PICTURES, ROLLOUTS, read_records
from pal_jax.run.summary import by_stage, fifths, finite_values, headline, read_summary, scalars
from pal_jax.run.verdict import judge
from pal_jax.run.workdir import REPORT, read_run

CURVE = 'learning_curve.png'
SHOWN_DIALOGUES = 3
# The largest number of characters of all of the training's samples together, and of a text.
ROOM, LONGEST = 400_000, 1200

Record = Mapping[str, Any]


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Write `report.html` and, where a figure has a curve, `learning_curve.png` into a run's folder.

    The result is the path of the page.

    Raises:
      ValueError: as `make_report`.
    """
    page, curve = make_report(workdir := Path(workdir))
    if curve:
        (workdir / CURVE).write_bytes(curve)
    # A run counts as finished when its report exists.
    return write_whole(workdir / REPORT, page, 'xmlcharrefreplace')


def make_report(workdir: Path) -> tuple[str, bytes]:
    """The report of a run as HTML, and its learning curve as a PNG; b'' where no figure has a curve.

    Raises:
      ValueError: the folder has no training steps to report on, or is that of no run, or of no method.
    """
    rows, evals, dialogues = (read_records(workdir / name) for name in (METRICS, EVALS, DIALOGUES))
    if not rows:
        raise ValueError(f'{workdir / METRICS}: no steps to report on; train first, or name the folder of a run')
    config = read_run(workdir)
    words = words_of(config['recipe'])
    curve = learning_curve(rows, evals, words.shares) if any(finite_values(rows, key) for key in HEADLINES) else b''
    summary = read_summary(workdir)
    rollouts = read_records(workdir / ROLLOUTS)
    folder = workdir.resolve()
    name = f'{folder.parent.name}: {folder.name}' if config.get('part_of') else folder.name
    head = [name, *described(config, summary)], uses(workdir, config, words, summary)
    return render(head, words, rows, evals, dialogues, summary, curve, exhibits(workdir), rollouts), curve


def exhibits(workdir: Path) -> tuple[Sequence[Record], Sequence[Record]]:
    """The exhibits of the first and of the last evaluation that had any; none of the first where both are one.

    Pictures of the last are base64, those of the first are left out.
    """
    records = read_records(workdir / EXHIBITS)
    if not records:
        return [], []
    first, last = (
        [record for record in records if _moment(record) == _moment(end)] for end in (records[0], records[-1])
    )

    def encoded(name: str) -> str:
        return base64.b64encode((workdir / PICTURES / name).read_bytes()).decode() if name else ''

    earlier = [] if _moment(records[0]) == _moment(records[-1]) else [{**record, 'picture': ''} for record in first]
    return earlier, [{**record, 'picture': encoded(record['picture'])} for record in last]


def described(config: Record, summary: Record) -> list[str]:
    """The method with its variant, the model, the seed and the day of a run, where they are known."""
    model = config.get('policy', {}).get('source', '').removeprefix('gguf:').removeprefix('package:')
    seed = [f'seed {config["seed"]}'] if 'seed' in config else []
    return [
        summary.get('name') or config['recipe'],
        *filter(None, [model.removeprefix('hf:')]),
        *seed,
        *filter(None, [summary.get('day')]),
    ]


def render(
    head: tuple[Sequence[str], Sequence[tuple[str, str, str]]],
    words: Words,
    rows: Sequence[Record],
    evals: Sequence[Record],
    dialogues: Sequence[Record],
    summary: Record,
    curve: bytes,
    exhibits: tuple[Sequence[Record], Sequence[Record]] = ((), ()),
    rollouts: Sequence[Record] = (),
) -> str:
    """The page as HTML; `head` has the parts of its title and the uses of the run."""
    template = pages.template(
        'report.html.jinja', **{f.__name__: functools.partial(f, words=words) for f in (meaning, explained)}
    )
    evaluations, (earlier, last) = by_stage(evals), exhibits
    by_turn = [(stage, lists) for stage, record in evaluations.items() if (lists := turn_lists(record))]
    verdict = judge(rows, evals, words, summary.get('name', ''))
    pairs = before_and_after(dialogues) or side_by_side(dialogues)
    return template.render(
        title=head[0],
        uses=head[1],
        facts=headline(rows, evals),
        verdict=verdict,
        advice=advice(rows, verdict, summary.get('config', {}), summary.get('name', ''), words.more),
        evaluations=evaluations,
        numbers=grouped(number_rows(list(evaluations.values())), words),
        phases=[(phase, len(steps), grouped(step_rows(steps), words)) for phase, steps in phases(rows).items()],
        by_turn=by_turn,
        turns=max((len(values) for _, lists in by_turn for values in lists.values()), default=0),
        pairs=pairs,
        dialogues=[] if pairs else of_last_evaluation(dialogues)[:SHOWN_DIALOGUES],
        exhibit=None if pairs or words.unfolded else lead_exhibit(earlier, last),
        exhibits=last,
        unfolded=[shown for title in words.unfolded for shown in last if shown['title'] == title],
        rollouts=few_samples(rollouts),
        script=markupsafe.Markup(pages.text_of('report.js')),
        times=PHASES,
        steps=words.steps,
        summary=summary,
        curve=base64.b64encode(curve).decode(),
    )


def grouped(rows: Sequence[tuple[str, Any]], words: Words) -> list[tuple[str, list[tuple[str, str, Any]]]]:
    """Figures with their meaning, by group (`run/glossary.py`). A group without figures is left out."""
    explained_rows = [(meaning(name, words), name, cells) for name, cells in rows]
    of = {group: [(name, m.words, cells) for m, name, cells in explained_rows if m.group == group] for group in GROUPS}
    return [(group, figures) for group, figures in of.items() if figures]


def phases(rows: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of steps by the phase that they belong to."""
    return {name: [row for row in rows if row['phase'] == name] for name in dict.fromkeys(row['phase'] for row in rows)}


def step_rows(steps: Sequence[Record]) -> list[tuple[str, list[tuple[Any, Any]]]]:
    """The mean of each figure over the first and over the last fifth of the steps, and the difference."""
    names = [name for name in dict.fromkeys(key for row in steps for key in scalars(row)) if finite_values(steps, name)]
    parts = {name: fifths(steps, name) for name in names}
    return [(name, [(part[end], None) for end in ('first', 'last', 'gain')]) for name, part in parts.items()]


def lead_exhibit(earlier: Sequence[Record], last: Sequence[Record]) -> tuple[Record | None, Record] | None:
    """The exhibit that a page without dialogues opens with: a table before and after training, or else a picture.

    The table is the first that both the first and the last evaluation have. None where there is neither.
    """
    for before in earlier:
        if after := next(
            (exhibit for exhibit in last if exhibit['table'] and exhibit['title'] == before['title']), None
        ):
            return before, after
    picture = next((exhibit for exhibit in last if exhibit['picture']), None)
    return (None, picture) if picture else None


def number_rows(evals: Sequence[Record]) -> list[tuple[str, list[tuple[Any, Any]]]]:
    """The value of each number and its standard error (`<name>_se`), None where it has none, in each evaluation."""
    keys = dict.fromkeys(key for record in evals for key in scalars(record) if not key.endswith('_se'))
    return [(key, [(record.get(key), record.get(f'{key}_se')) for record in evals]) for key in keys]


def turn_lists(record: Record) -> Record:
    """The lists by turn of an evaluation: `f1_by_turn`, its bound and its controls. A list that is None is empty."""
    return {key.removesuffix('_by_turn'): value or [] for key, value in record.items() if key.endswith('_by_turn')}


def before_and_after(dialogues: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pairs of dialogues with the same person at the first and at the last evaluation that had any, at most three."""
    if not dialogues or _moment(dialogues[0]) == _moment(dialogues[-1]):
        return []
    first, last = (
        {record['person']: record for record in dialogues if _moment(record) == _moment(end)}
        for end in (dialogues[0], dialogues[-1])
    )
    return [(first[person], last[person]) for person in first if person in last][:SHOWN_DIALOGUES]


def side_by_side(dialogues: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The first and the last dialogue that answer the same message, of the last evaluation, at most three such pairs.

    There are some where the evaluation is of several systems.
    """
    by_message: dict[str, list[Record]] = {}
    for record in of_last_evaluation(dialogues):
        by_message.setdefault(json.dumps(record['turns'][0]), []).append(record)
    pairs = [(same[0], same[-1]) for same in by_message.values()]
    return [(one, other) for one, other in pairs if one['person'] != other['person']][:SHOWN_DIALOGUES]


def of_last_evaluation(dialogues: Sequence[Record]) -> list[Record]:
    """The dialogues of the last evaluation that had any."""
    return [record for record in dialogues if _moment(record) == _moment(dialogues[-1])]


def few_samples(rollouts: Sequence[Record], room: int = ROOM, longest: int = LONGEST) -> list[Record]:
    """Samples of the training for a page that stays small.

    Texts are cut at `longest` characters.
    """
    cut: list[Record] = [{**record, 'turns': [_cut(turn, longest) for turn in record['turns']]} for record in rollouts]
    steps = sorted({record['step'] for record in cut})
    fitting = len(steps) * room // max(len(json.dumps(cut)), 1)
    if fitting >= len(steps):
        return cut
    # Steps are left out at even distances until the rest has about `room` characters; at least two steps stay.
    places = max(fitting, 2)
    kept_steps = {steps[i * (len(steps) - 1) // (places - 1)] for i in range(places)}
    return [record for record in cut if record['step'] in kept_steps]


def _cut(turn: Record, longest: int) -> Record:
    texts = {key: text for key, text in turn.items() if isinstance(text, str)}
    return {**turn, **{key: f'{text[:longest]} …' for key, text in texts.items() if len(text) > longest}}


def _moment(record: Record) -> tuple[int, str]:
    return record['step'], record['stage']
