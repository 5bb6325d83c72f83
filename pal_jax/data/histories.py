"""People with a history and choices, from JSON lines: the records that PLUS learns from (rlpa_plus III.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pal_jax.types import Choice, History

PARTS = {
    'reward': ('reward_prompt', 'chosen', 'rejected'),
    'train': ('train_prompt', 'train_chosen', 'train_rejected'),
    'held': ('eval_prompt', 'eval_chosen', 'eval_rejected'),
}


def load(path: str | Path) -> list[History]:
    """A person a line, with the three choices of `PARTS` and either `context`, a text, or `context_messages`, which ask
    for the summary as they stand; `user` and `kind` may be there.

    Raises:
      ValueError: a line that is no such record, or whose held-out choice is told before; its number is named.
    """
    lines = Path(path).read_text(encoding='utf-8').splitlines()
    people = [_person(f'{path}, line {i}', line) for i, line in enumerate(lines, 1) if line.strip()]
    if not people:
        raise ValueError(f'{path} has no person; give a JSON object a line')
    return people


def _person(where: str, line: str) -> History:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where} is no JSON object: {error}') from None
    if not isinstance(record, dict):
        raise ValueError(f'{where} is no JSON object')
    reward, train, held = (Choice(*(_text(where, record, field) for field in fields)) for fields in PARTS.values())
    ask = _messages(where, record.get('context_messages', ()))
    context = record.get('context') or '\n'.join(message['content'] for message in ask)
    if not isinstance(context, str) or not context:
        raise ValueError(f'{where} has neither context nor context_messages; give one of them')
    person = History(
        record.get('user', where), context, reward, train, (held,), kind=str(record.get('kind', '')), ask=ask
    )
    check_disjoint(person, where)
    return person


def check_disjoint(person: History, where: str) -> None:
    """Raises ValueError where a reply that tests is told in the context or taught by another choice."""
    taught = {reply for choice in (person.reward, person.train) for reply in (choice.chosen, choice.rejected)}
    for choice in person.held:
        for reply in (choice.chosen, choice.rejected):
            if reply in taught or reply in person.context:
                raise ValueError(f'{where} tests with a reply it has told before: {reply[:60]!r}; hold others out')


def _text(where: str, record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{where} has {field}={value!r}; give a text')
    return value


def _messages(where: str, given: Any) -> tuple[dict[str, str], ...]:
    given = [{'role': 'user', 'content': given}] if isinstance(given, str) else given
    for message in given:
        known = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ('role', 'content'))
        if not known:
            raise ValueError(f'{where} has a message {message!r} in context_messages; give a role and a content')
    return tuple({'role': message['role'], 'content': message['content']} for message in given)
