"""People with a history and choices: the records that PLUS learns from (rlpa_plus III.1), from JSON lines or made of
anybody's choices between texts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data import records
from pal_jax.data.holdouts import normal, together
from pal_jax.data.records import Row
from pal_jax.runtime import files
from pal_jax.types import Choice

FORMS = 'labelled', 'chosen', 'guide'
PARTS = {
    'reward': ('reward_prompt', 'chosen', 'rejected'),
    'train': ('train_prompt', 'train_chosen', 'train_rejected'),
    'held': ('eval_prompt', 'eval_chosen', 'eval_rejected'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of a person before a summary is written: `context`, a text. `ask` has the messages that ask for
    the summary, where a file gives them.
    """

    user: str
    context: str
    ask: tuple[Mapping[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class History(Told):
    """A person's record with four disjoint uses of the person's choices: `past` made the context, `reward` pays for a
    summary, `train` teaches the reward model, `held` tests both.

    `past` is empty where a file gives the context as a text. `kind` is the person's group, '' where it is not known.
    """

    reward: Choice
    train: tuple[Choice, ...]
    held: tuple[Choice, ...]
    kind: str = ''
    past: tuple[Choice, ...] = ()


def from_choices(
    choices: Mapping[str, Sequence[Choice]], *, told: int, held: int, max_words: int, form: str, seed: int,
    taught: int = 1, each: int = 1,
) -> list[list[History]]:  # fmt: skip
    """`each` histories of every user with enough choices: `told` of them are the context, one pays, `taught` teach,
    `held` test.

    Which is which is random; no reply stands in two of them, or in another. Choices with a reply of more than
    `max_words` words are left out. Prompts are told where they differ. The histories of a user pay and test with the
    same choices; what is told and what teaches is drawn anew for each from all others.
    """
    asked, needed = len({c.prompt for own in choices.values() for c in own}) > 1, told + 1 + taught + held
    found = []
    for user, own in choices.items():
        rng = random.Random(f'{user} {seed}')
        short = [c for c in own if max(len(text.split()) for text in (c.chosen, c.rejected)) <= max_words]
        apart = _apart(rng.sample(short, len(short)))
        if len(apart) < needed:
            continue
        reward, tests = apart[told], tuple(apart[needed - held : needed])
        others = [*apart[:told], *apart[told + 1 : needed - held], *apart[needed:]]
        histories = []
        for k in range(each):
            drawn = rng.sample(others, told + taught) if k else others
            past, train = tuple(drawn[:told]), tuple(drawn[told : told + taught])
            context = context_of(past, rng, form, asked=asked)
            histories.append(History(user=user, context=context, past=past, reward=reward, train=train, held=tests))
            check_disjoint(histories[-1], f'user {user!r}')
        found.append(histories)
    return found


def _apart(choices: Sequence[Choice]) -> list[Choice]:
    """Those of which no reply is part of another's or of a prompt, as a chat that goes on has it; the first of them
    where one is."""
    found: list[Choice] = []
    replies: list[str] = []
    prompts: list[str] = []
    for choice in choices:
        sides, prompt = [normal(choice.chosen), normal(choice.rejected)], normal(choice.prompt)
        among = [*replies, prompt] if prompt else replies
        alike = sides[0] == sides[1] or any(a in b or b in a for a in sides for b in among)
        before = any(side in other for other in prompts for side in sides)
        if not alike and not before and not any(reply in prompt for reply in replies):
            found.append(choice)
            replies += sides
            prompts.append(prompt)
    return found


def content(person: History) -> str:
    """The text by which people are compared: what is told of the person, and the choices, in whatever order."""
    return together([person.context, *map(said, (person.reward, *person.train, *person.held))])


def said(choice: Choice) -> str:
    """A choice as a text, for comparisons."""
    return '\n'.join((choice.prompt, choice.chosen, choice.rejected))


def context_of(past: Sequence[Choice], rng: random.Random, form: str, kind: str = '', *, asked: bool = False) -> str:
    """What is told of a person, in one of `FORMS`: `labelled`, past choices with their sides in random order; `chosen`,
    the chosen sides alone; `guide`, what the person says of themselves. Choices follow their prompts if `asked`."""
    if form == 'guide':
        return f'I prefer {kind}.'

    def line(choice: Choice) -> str:
        sides = [f'Liked: {choice.chosen}', f'Disliked: {choice.rejected}']
        rng.shuffle(sides)
        told = ' '.join(sides) if form == 'labelled' else choice.chosen
        return f'{choice.prompt} {told}' if asked else told

    return '\n'.join(map(line, past))


def load(path: str | Path) -> list[list[History]]:
    """The histories of each person: one a line, with the three choices of `PARTS` and either `context`, a text, or
    `context_messages`, which ask for the summary as they stand; `user` and `kind` may be there, and lines of the same
    user, as `records.identity` names it, are of one person; a line without the key is a person of its own.

    Raises:
      ValueError: a line that is no such record, or whose held-out choice is told before; its number is named.
    """
    found: dict[str, list[History]] = {}
    for where, record in _records(path):
        person = _person(where, record)
        own = found.setdefault(person.user, [])
        own.append(person)
        check_disjoint(dataclasses.replace(person, held=own[0].held), where)  # the first history of a person tests
    return list(found.values())


def load_told(path: str | Path) -> list[tuple[Told, Choice | None]]:
    """What is told of a person a line, which is all that has to be there, and the held-out choice of those with one.

    Raises:
      ValueError: a line that is no such record; its number is named.
    """
    return [
        (_told(where, record), _choice(where, record, 'held') if any(key in record for key in PARTS['held']) else None)
        for where, record in _records(path)
    ]


def _records(path: str | Path) -> list[Row]:
    """Where each record stands, and the record."""
    found = list(records.jsonl(Path(path)))
    if not found:
        raise ValueError(f'{path} has no person; give a JSON object a line')
    return found


def _person(where: str, record: Mapping[str, Any]) -> History:
    reward, train, held = (_choice(where, record, part) for part in PARTS)
    told = _told(where, record)
    kind = records.known(where, record, 'kind')
    person = History(**vars(told), reward=reward, train=(train,), held=(held,), kind=kind)
    check_disjoint(person, where)
    return person


def _told(where: str, record: Mapping[str, Any]) -> Told:
    ask = _messages(where, record.get('context_messages', ()))
    context = record.get('context') or '\n'.join(message['content'] for message in ask)
    if not isinstance(context, str) or not context:
        raise ValueError(f'{where} has neither context nor context_messages; give one of them')
    user = records.identity(where, record, 'user') if 'user' in record else where
    return Told(user=user, context=context, ask=ask)


def _choice(where: str, record: Mapping[str, Any], part: str) -> Choice:
    return Choice(*(_text(where, record, field) for field in PARTS[part]))


def check_disjoint(person: History, where: str) -> None:
    """Raises ValueError where a reply that tests is told in the context or taught by another choice."""
    if reply := repeated(person):
        raise ValueError(f'{where} tests with a reply it has told before: {reply[:60]!r}; hold others out')


def repeated(person: History) -> str:
    """A reply that tests and is told of the person, or taught by another choice or its prompt, in whatever case
    and white space; '' if there is none."""
    others = person.reward, *person.train
    taught = {normal(reply) for choice in others for reply in (choice.chosen, choice.rejected)}
    told = [person.context, *(message['content'] for message in person.ask), *(choice.prompt for choice in others)]
    heard = list(map(normal, told))
    held = (reply for choice in person.held for reply in (choice.chosen, choice.rejected))
    return next((r for r in held if normal(r) in taught or any(normal(r) in text for text in heard)), '')


def _text(where: str, record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        found = f'has {field}={value!r}' if field in record else f'has no {field}'
        raise ValueError(f'{where} {found}; give a text')
    return value


def _messages(where: str, given: Any) -> tuple[dict[str, str], ...]:
    given = [{'role': 'user', 'content': given}] if isinstance(given, str) else given or ()
    if not isinstance(given, list | tuple):
        raise ValueError(f'{where} has context_messages={files.shown(given)}; give a list of messages')
    for message in given:
        known = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ('role', 'content'))
        if not known:
            raise ValueError(f'{where} has a message {message!r} in context_messages; give a role and a content')
    return tuple({'role': message['role'], 'content': message['content']} for message in given)
