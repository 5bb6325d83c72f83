"""Scores of records by a run of PAL, for a person: options of a table, pairs of them, and texts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import records, surveys
from pal_jax.recipes.personal import logit_people
from pal_jax.recipes.personal.logit_people import Effects
from pal_jax.recipes.personal.pal import by_logit, tables
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal.attributes import in_order, items_of
from pal_jax.recipes.personal.pal.kept import Kept
from pal_jax.recipes.personal.pal.person import file_and_name, open_person, read_person
from pal_jax.recipes.personal.pal.reward import TrainedPAL, reward_of_replies
from pal_jax.recipes.personal.pal.settings import Settings
from pal_jax.run import files
from pal_jax.run.record_scorer import RecordScorer
from pal_jax.run.runs import read_settings

KEYS = 'score', 'probability'  # of an option, and of the choice of a pair's first side
CHUNK = 64  # people whose choices are predicted at once

# An option, or both sides of a pair: their vectors `[1, H]`, and of prompts in variant B.
Items = tuple[tuple[np.ndarray, np.ndarray | None], ...]


def open_scorer(workdir: str, person: str) -> RecordScorer:
    """Open a run for a person: a file of a mixture, the id of a person of the training, or '' for the mean over them.

    The difference of two scores is the log-odds of the choice between them.

    Where the run takes its mixed logit for people (`pal/by_logit.py`), a file of effects takes the place of one of a
    mixture, and everybody of the survey has an id.

    Raises:
      ValueError, RuntimeError: as `person.open_person`.
    """
    run, effects = by_logit.open_effects(workdir, person)
    if run and effects:
        return _by_effects(run, effects)
    run, w = open_person(workdir, person, run)
    # A share of all people is a mean over them, and not the choice of their mean.
    score = functools.partial(_score_rows, run, w, w[None] if person else run.mixtures)
    return _scorer_of(run, score)


def _by_effects(run: TrainedPAL, person: Effects) -> RecordScorer:
    """The scorer of a person by effects of attributes: an option has its utility at their mean, and a choice between
    two its probability, which is a mean over what the effects may be."""

    def score(read: Sequence[Any]) -> np.ndarray:
        sides = [np.concatenate([items for items, _ in side]) for side in zip(*read, strict=True)]
        return sides[0] @ person.mean if len(sides) == 1 else logit_people.probability(person, sides[0] - sides[1])

    return _scorer_of(run, score)


def _scorer_of(run: TrainedPAL, score: Callable[[Sequence[Any]], np.ndarray]) -> RecordScorer:
    """The scorer of records in the run's form by a function of what `to_replies` or `to_items` reads."""

    def details(read: Sequence[Any]) -> list[dict[str, Any]]:
        return [{KEYS[len(sides) - 1]: float(x)} for sides, x in zip(read, score(read), strict=True)]

    form = functools.partial(_form, run)
    if run.reading:
        return RecordScorer(functools.partial(to_replies, run), score, form, KEYS, details)
    doubt = functools.partial(_doubt, run.kept)
    return RecordScorer(functools.partial(to_items, run), score, form, KEYS, details, doubt, run.kept.attributes)


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
    given = items_of(record, run.kept.attributes)
    return tuple(to_item({**record, 'item': item or None}, run) for item in given)


def _form(run: TrainedPAL, record: Mapping[str, Any]) -> str:
    """The form of a record: 'a pair', or 'an option', which is a text in a run on texts."""
    if run.reading:
        return 'a pair' if _text_columns(record) else 'a text'
    pair = 'item' not in record and len(items_of(record, run.kept.attributes)) == 2
    return 'a pair' if pair else 'an option'


def _doubt(kept: Kept, items: Items) -> str:
    """The words for a number beyond those of the run's data; '' where there is none, or the run knows no ranges."""
    for vector, _ in items:
        for name, x, ends in zip(kept.attributes, (vector[0] * kept.scale).tolist(), kept.ranges, strict=False):
            # Scales and float32 change the last digits of a number.
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
