"""Scores of records by a run of PAL, for a person: options of a table, pairs of them, and texts."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import special

from pal_jax.data import records, surveys
from pal_jax.recipes.personal import logit_people
from pal_jax.recipes.personal.attributes import columns_of, in_order
from pal_jax.recipes.personal.logit_people import Effects
from pal_jax.recipes.personal.pal import by_logit, tables
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal.kept import Kept
from pal_jax.recipes.personal.pal.person import file_and_name, open_person, read_person
from pal_jax.recipes.personal.pal.reward import TrainedPAL, reward_of_replies
from pal_jax.recipes.personal.pal.settings import Settings
from pal_jax.run import files
from pal_jax.run.record_scorer import RecordScorer
from pal_jax.run.runs import read_settings
from pal_jax.run.summary import read_summary
from pal_jax.run.verdict import is_trial

# The score of an option; the probability of a choice, of a pair's first side or of an option in its situation; and the
# ends of the interval of a share of all people.
KEYS = 'score', 'probability', 'probability_low', 'probability_high'
CHUNK, ROWS, SITUATIONS = 64, 4096, 1024  # people, rows and situations that are predicted at once

# An option, or both sides of a pair: their vectors `[1, H]`, and of prompts in variant B.
Items = tuple[tuple[np.ndarray, np.ndarray | None], ...]


class TableRow(NamedTuple):
    """The items of a record of a table; `choice` has the ids of the person, where there is one, and of the situation of
    an option, by the names of their columns, and is empty where a record is no option or names no situation."""

    items: Items
    choice: tuple[tuple[str, str], ...] = ()


def open_scorer(workdir: str, person: str) -> RecordScorer:
    """Open a run for a person: a file of a mixture, the id of a person of the training, or '' for the mean over them.

    The difference of two scores is the log-odds of the choice between them.

    Options of a table that name their situation have the probability with which each is chosen from its situation, as a
    mean over people or over what a person's effects may be.

    Where the run takes its mixed logit for people (`pal/by_logit.py`), a file of effects takes the place of one of a
    mixture, and everybody of the survey has an id.

    Raises:
      ValueError, RuntimeError: as `person.open_person`.
    """
    if is_trial(read_summary(Path(workdir)).get('name', '')):
        print(f'warning: {workdir} is a trial, and what it has learnt is rough: train without :smoke', file=sys.stderr)
    run, effects = by_logit.open_effects(workdir, person)
    if run and effects:
        return _by_effects(run, effects, everybody=not person)
    run, w = open_person(workdir, person, run)
    # A share of all people is a mean over them, and not the choice of their mean.
    mixtures = w[None] if person else run.mixtures
    score = functools.partial(_score_rows, run, w, mixtures)
    if run.reading:
        return _scorer_of_texts(run, score)
    return _scorer_of(run, score, functools.partial(_by_mixtures, run, mixtures))


def _by_effects(run: TrainedPAL, person: Effects, *, everybody: bool) -> RecordScorer:
    """The scorer of a person by effects of attributes: an option has its utility at their mean, and a choice between
    two its probability, which is a mean over what the effects may be. `everybody` is the mixed logit's distribution
    over people, whose shares have intervals where its estimates have a covariance."""
    model = run.logit.model if run.logit and everybody else None

    def score(read: Sequence[Items]) -> np.ndarray:
        sides = [np.concatenate([items for items, _ in side]) for side in zip(*read, strict=True)]
        return sides[0] @ person.mean if len(sides) == 1 else logit_people.probability(person, sides[0] - sides[1])

    def chances(read: Sequence[Items], situations: Sequence[np.ndarray]) -> list[np.ndarray]:
        items = np.concatenate([item for ((item, _),) in read])
        if model is None or model.covariance is None:
            return [logit_people.chances_of_options(person, items[index]).mean(axis=0)[:, None] for index in situations]
        return [np.stack(logit_people.shares_of_options(model, items[index]), axis=1) for index in situations]

    return _scorer_of(run, score, chances)


def _scorer_of_texts(run: TrainedPAL, score: Callable[[Sequence[Any]], np.ndarray]) -> RecordScorer:
    """The scorer of texts and of pairs of texts by a function of what `to_replies` reads."""

    def details(read: Sequence[Any]) -> list[dict[str, Any]]:
        return [{KEYS[len(sides) - 1]: float(x)} for sides, x in zip(read, score(read), strict=True)]

    return RecordScorer(functools.partial(to_replies, run), score, functools.partial(_form, run), KEYS, details)


def _scorer_of(
    run: TrainedPAL,
    score: Callable[[Sequence[Items]], np.ndarray],
    chances: Callable[[Sequence[Items], Sequence[np.ndarray]], list[np.ndarray]],
) -> RecordScorer:
    """The scorer of a table's rows by two functions of their items: `score` gives the score of each option, or the
    probability of each pair; `chances` gives the probabilities `[J, F]` of the J options of situations, and where F is
    3 the ends of their intervals. A situation is an array of the numbers of its rows."""

    def scores(read: Sequence[TableRow]) -> np.ndarray:
        starts = range(0, len(read), ROWS)
        return np.concatenate([score([row.items for row in read[start : start + ROWS]]) for start in starts])

    def in_situations(read: Sequence[TableRow]) -> np.ndarray:
        shares: dict[int, np.ndarray] = {}
        situations = list(situations_of(read).values())
        for start in range(0, len(situations), SITUATIONS):
            part = situations[start : start + SITUATIONS]
            rows = np.concatenate(part)
            places = np.split(np.arange(len(rows)), np.cumsum([len(index) for index in part])[:-1])
            shares |= zip(
                rows.tolist(), np.concatenate(chances([read[row].items for row in rows], places)), strict=True
            )
        return np.stack([shares[row] for row in range(len(read))])

    def are_chosen_among(read: Sequence[TableRow]) -> bool:
        # A column that numbers all options, each apart, is no situation.
        if not read[0].choice or len(situations_of(read)) == len(read):
            return False
        columns = ' and '.join(column for column, _ in read[0].choice)
        print(f'options with the same {columns} are offered together', file=sys.stderr)
        return True

    def of_rows(read: Sequence[TableRow]) -> np.ndarray:
        return in_situations(read)[:, 0] if are_chosen_among(read) else scores(read)

    def details(read: Sequence[TableRow]) -> list[dict[str, Any]]:
        key = KEYS[len(read[0].items) - 1]
        fields = [{key: float(x)} for x in scores(read)]
        if are_chosen_among(read):
            shares = in_situations(read).tolist()
            fields = [row | dict(zip(KEYS[1:], share, strict=False)) for row, share in zip(fields, shares, strict=True)]
        return fields

    # All rows are scored at once, so no situation is cut.
    return RecordScorer(
        functools.partial(to_row, run), of_rows, functools.partial(_form, run), KEYS, details,
        functools.partial(_doubt, run.kept), run.kept.attributes, chunk=None,
    )  # fmt: skip


def situations_of(read: Sequence[TableRow]) -> dict[tuple[tuple[str, str], ...], np.ndarray]:
    """The numbers `[J]` of the rows of each situation; rows that name none have the situation ()."""
    rows_of: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, row in enumerate(read):
        rows_of.setdefault(row.choice, []).append(number)
    return {choice: np.array(rows) for choice, rows in rows_of.items()}


def to_replies(run: TrainedPAL, record: Any) -> tuple[tuple[Any, Any], ...]:
    """The prompt and reply of a record, or of both sides of a pair in columns such as `text_A` and `text_B`.

    Raises:
      ValueError: as `to_reply`, or a side is empty.
    """
    columns = _text_columns(record)
    if empty := [column for column in columns if records.is_missing(record[column])]:
        raise ValueError(f'{empty[0]} is empty; give a text')
    key = 'completion' if run.kept.prompted else 'text'
    return tuple(to_reply({**record, key: record[side]}, run) for side in columns) or (to_reply(record, run),)


def _text_columns(record: Any) -> tuple[str, ...]:
    """The columns of a pair of texts; () for a record of one text."""
    is_pair = isinstance(record, Mapping) and not record.keys() & {'text', 'completion', 'messages'}
    return surveys.text_columns(record) if is_pair else ()


def to_reply(record: Any, run: TrainedPAL) -> tuple[Any, Any]:
    """A record's prompt and reply, as the run reads them. A run on statements reads `text` alone, with an empty prompt.

    Raises:
      ValueError: the record does not have the keys that the run reads.
    """
    record = record if isinstance(record, Mapping) else {}
    if not run.kept.prompted:
        if not record.get('text'):
            raise ValueError(
                "expected an object with 'text' (or a pair in 'text_A' and 'text_B'), which is not empty: "
                f'{run.workdir} learnt from statements'
            )
        pal_reward.check_form(run, '', record['text'])
        return '', record['text']
    talk = record.get('messages')
    prompt, reply = (talk[:-1], talk[-1:]) if isinstance(talk, list) else map(record.get, ('prompt', 'completion'))
    if not prompt or not reply or not all(isinstance(side, str | list) for side in (prompt, reply)):
        raise ValueError("expected an object with 'prompt' and 'completion', or with 'messages'")
    pal_reward.check_form(run, prompt, reply)
    return prompt, reply


def to_items(run: TrainedPAL, record: Any) -> Items:
    """The items of a record: its `item`, or those that its columns give as the table that the run learnt from had them,
    one option or both sides of a pair.

    Raises:
      ValueError: as `to_item`.
    """
    if not isinstance(record, Mapping) or 'item' in record:
        return (to_item(record, run),)
    return tuple(to_item({**record, 'item': item or None}, run) for item in run.kept.items(record))


def to_row(run: TrainedPAL, record: Any) -> TableRow:
    """A record of a table with its choice. Raises ValueError as `to_items`, or the id of the choice is none."""
    items, columns = to_items(run, record), columns_of_choice(run.kept, record)
    is_option = len(items) == 1
    choice = ((column, records.identity('', record, column)) for column in columns if is_option)
    return TableRow(items, tuple(choice))


def columns_of_choice(kept: Kept, record: Any) -> list[str]:
    """The columns of a record that name its person, where there is one, and its situation; none without a situation."""
    known = columns_of(kept.attributes)
    columns = [column for column in record if column not in known] if isinstance(record, Mapping) else []
    situation, person = surveys.situation_column(columns), surveys.person_column(columns)
    return [column for column in (person, situation) if column] if situation else []


def _form(run: TrainedPAL, record: Mapping[str, Any]) -> str:
    """The form of a record: 'a pair', or 'an option', which is a text in a run on texts."""
    if run.reading:
        return 'a pair' if _text_columns(record) else 'a text'
    pair = 'item' not in record and len(run.kept.items(record)) == 2
    option = 'an option of a situation' if columns_of_choice(run.kept, record) else 'an option'
    return 'a pair' if pair else option


def _doubt(kept: Kept, row: TableRow) -> str:
    """The words for a number beyond those of the run's data; '' where there is none, or the run knows no ranges."""
    for vector, _ in row.items:
        values = vector[0] * kept.scale
        # Scales and float32 change the last digits of a number.
        if kept.constant and np.allclose(values, kept.constant, rtol=1e-5):
            continue
        for name, x, ends in zip(kept.attributes, values.tolist(), kept.ranges, strict=False):
            if not np.isclose(x, np.clip(x, *ends), rtol=1e-5):
                return f'{name} {x:.6g} is outside {ends[0]:.6g} to {ends[1]:.6g} of the survey'
    return ''


def to_item(record: Any, run: TrainedPAL) -> tuple[np.ndarray, np.ndarray | None]:
    """A record's item `[1, H]`, and its prompt `[1, H]` in variant B, as the run sees them.

    Raises:
      ValueError: the record has other attributes than the run, or no prompt.
    """
    item: Any = record.get('item') if isinstance(record, Mapping) else None
    names = run.kept.attributes
    item = run.kept.numbers(item) if isinstance(item, Mapping) else item
    prompt = record.get('prompt') if run.pal.variant == 'B' else None
    for key, numbers in {'item': item, **({'prompt': prompt} if run.pal.variant == 'B' else {})}.items():
        if not isinstance(numbers, list) or len(numbers) != len(names):
            attributes = ', '.join(in_order(names))
            raise ValueError(
                f'expected an object with {key!r}: an object of {attributes}, or {len(names)} numbers in their order'
            )
        if wrong := [name for name, x in zip(names, numbers, strict=True) if not _is_number(x)]:
            value = files.short_repr(numbers[names.index(wrong[0])])
            raise ValueError(f'{key!r} has {value} for {wrong[0]!r}; give a number that is finite in float32')
    return pal_reward.item_vectors(run, [item], None if prompt is None else [prompt])


def _is_number(x: Any) -> bool:
    """True for a number, and no truth value, that float32 can have."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= tables.LARGEST


def _score_rows(run: TrainedPAL, w: Array, mixtures: Array, read: Sequence[Any]) -> np.ndarray:
    """The scores of options to a mixture, or the chance that the first of each pair is chosen, as a mean over the
    `mixtures` `[P, K]`."""
    # All first sides stand before the second ones.
    sides = zip(*(side for row in zip(*read, strict=True) for side in row), strict=True)
    if run.reading:
        flat, of_prompts = pal_reward.reply_vectors(run, *map(list, sides))
    else:
        items, prompts = sides
        flat, of_prompts = np.concatenate(items), np.concatenate(prompts) if run.pal.variant == 'B' else None
    if len(read[0]) == 1:
        return run.factor * np.asarray(pal_reward.rewards(run, w, flat, of_prompts))

    def chance(mixture: Array) -> Array:
        first, second = jnp.split(pal_reward.rewards(run, mixture, flat, of_prompts), 2)
        return jax.nn.sigmoid(run.factor * (first - second))

    return np.asarray(jax.lax.map(chance, mixtures, batch_size=CHUNK).mean(axis=0))


def _by_mixtures(
    run: TrainedPAL, mixtures: Array, read: Sequence[Items], situations: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The probabilities of the options of each situation, as means over the `mixtures` `[P, K]`."""
    of_people = run.factor * utilities(run, mixtures, read)
    return [special.softmax(of_people[:, index], axis=1).mean(axis=0)[:, None] for index in situations]


def utilities(run: TrainedPAL, mixtures: Array, read: Sequence[Items]) -> np.ndarray:
    """The rewards `[P, n]` of options to the `mixtures` `[P, K]`."""
    items, prompts = zip(*(side for (side,) in read), strict=True)
    flat, of_prompts = np.concatenate(items), np.concatenate(prompts) if run.pal.variant == 'B' else None

    def of_person(mixture: Array) -> Array:
        return pal_reward.rewards(run, mixture, flat, of_prompts)

    return np.asarray(jax.lax.map(of_person, mixtures, batch_size=CHUNK))


def make_score(source: str, person: str) -> Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], np.ndarray]:
    """Scores of replies to questions by `pal:<workdir>`, as `psoups.judges.Score` has them.

    `person` is a seen user, a file of a mixture, or '' for the population's mixture.

    Raises:
      ValueError: the source is no run of PAL, or a run on vectors.
    """
    kind, _, workdir = source.partition(':')
    if kind != 'pal' or not workdir:
        raise ValueError(f'reward model {source!r} is unknown; use pal:<workdir>')
    settings = read_settings(workdir)
    if not isinstance(settings, Settings) or not settings.text.source:
        raise ValueError(f'{source} is no run of PAL on texts, and replies are texts; name one of pal:text')
    file, name = file_and_name(person)
    if file:
        # A wrong file is refused now, and not when the training has begun.
        read_person(file, name)
    opened: list[Callable[..., np.ndarray]] = []

    def score(readings: Sequence[Sequence[str]], replies: Sequence[Sequence[str]]) -> np.ndarray:
        if not opened:
            # The run is read at the first call, when its scores are needed.
            opened.append(reward_of_replies(*open_person(workdir, person)))
        # Each reading of a question is paired with each reply to it, and a reply has its mean over readings.
        flat = [pair for rows in zip(readings, replies, strict=True) for pair in itertools.product(*rows)]
        rewards = opened[0](*zip(*flat, strict=True))
        return rewards.reshape(len(readings), -1, len(replies[0])).mean(axis=1)

    return score
