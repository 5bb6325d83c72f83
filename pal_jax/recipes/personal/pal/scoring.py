"""A run of PAL as a function that scores replies, statements or items of a table for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal.reward import TrainedPAL
from pal_jax.recipes.personal.pal.tables import LARGEST
from pal_jax.run import files
from pal_jax.run.record_scorer import RecordScorer


def open_scorer(workdir: str, person: str) -> RecordScorer:
    """Open a run for a person: a file of a mixture, the id of a person of the training, or '' for the mean over them.

    Raises:
      ValueError, RuntimeError: as `person.open_person`.
    """
    run, w = pal_person.open_person(workdir, person)
    if run.reading is None:
        return RecordScorer(lambda record: to_item(record, run), _score_items(run, w))
    reward_of = pal_reward.reward_of_replies(run, w)

    def score(pairs: Sequence[tuple[Any, Any]]) -> np.ndarray:
        return reward_of(*zip(*pairs, strict=True))

    return RecordScorer(lambda record: to_reply(record, run), score)


def to_reply(record: Any, run: TrainedPAL) -> tuple[Any, Any]:
    """A record's prompt and reply, as the run reads them. A run on statements reads `text` alone, with an empty prompt.

    Raises:
      ValueError: the record does not have the keys that the run reads.
    """
    record = record if isinstance(record, Mapping) else {}
    if not run.kept.prompted:
        if not record.get('text'):
            raise ValueError(
                f"expected an object with 'text', which is not empty: {run.workdir} learnt from statements"
            )
        pal_reward.check_form(run, '', record['text'])
        return '', record['text']
    talk = record.get('messages')
    prompt, reply = (talk[:-1], talk[-1:]) if isinstance(talk, list) else map(record.get, ('prompt', 'completion'))
    if not prompt or not reply or not all(isinstance(side, str | list) for side in (prompt, reply)):
        raise ValueError("expected an object with 'prompt' and 'completion', or with 'messages'")
    pal_reward.check_form(run, prompt, reply)
    return prompt, reply


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
            raise ValueError(f'expected an object with {key!r}: {len(names)} numbers, for {", ".join(names)}')
        if wrong := [name for name, x in zip(names, numbers, strict=True) if not _is_number(x)]:
            value = files.short_repr(numbers[names.index(wrong[0])])
            raise ValueError(f'{key!r} has {value} for {wrong[0]!r}; give a number that is finite in float32')
    return pal_reward.item_vectors(run, [item], None if prompt is None else [prompt])


def _is_number(x: Any) -> bool:
    """True for a number, and no truth value, that float32 can have."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST


def _score_items(run: TrainedPAL, w: jax.Array) -> Callable[[Sequence[Any]], np.ndarray]:
    def score(vectors: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        items, prompts = zip(*vectors, strict=True)
        prompts = np.concatenate(prompts) if run.pal.variant == 'B' else None
        return np.asarray(pal_reward.rewards(run, w, np.concatenate(items), prompts))

    return score
