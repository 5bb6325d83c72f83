"""Judgements of things by people, one for each thing and person: of several the last one by time counts."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pal_jax.data.holdouts import normal

# Fields that say when a judgement was given.
TIMES = 'timestamp', 'time', 'modified', 'created', 'created_at'


class Judgement(NamedTuple):
    """A value that a person gave a thing, with its time where that is known; `place` is the row's, for messages."""

    place: str
    person: str
    thing: str
    value: Any
    time: float | None = None


def time_of(place: str, row: Mapping[str, Any]) -> float | None:
    """The time of a row, None where no field says it. Raises ValueError where a field has another content."""
    name = next((name for name in TIMES if row.get(name) not in (None, '')), '')
    if not name:
        return None
    # A value that is no number may be a date.
    with contextlib.suppress(TypeError, ValueError):
        return float(row[name])
    try:
        return datetime.datetime.fromisoformat(str(row[name])).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f'{place}: {name} is {row[name]!r}; give seconds, or a date such as 2024-05-01') from None


def settled(judgements: Iterable[Judgement]) -> list[Judgement]:
    """One judgement for each person and thing: of several that differ the last by time, and by row at one time.

    Raises:
      ValueError: two differ, and it is not known when both were given. The message names row, person and thing.
    """
    kept: dict[tuple[str, str], Judgement] = {}
    for new in judgements:
        key = normal(new.person), new.thing
        old = kept.setdefault(key, new)
        # Without both times nobody knows which of two different judgements came last.
        if None in (old.time, new.time) and old.value != new.value:
            raise ValueError(
                f'{new.place}: {new.person!r} judges {new.thing!r} a second time, and otherwise than at {old.place}; '
                f'delete one of the rows, or give a column {TIMES[0]}, by which the last one counts'
            )
        # At one time the later row counts.
        if None not in (old.time, new.time) and new.time >= old.time:  # type: ignore[operator]
            kept[key] = new
    return list(kept.values())
