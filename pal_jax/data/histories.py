"""People with a history and choices, which PLUS learns from (rlpa_plus III.1). They come from JSON lines, or are made
from any choices between texts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data import records
from pal_jax.data.holdouts import joint_content, normal
from pal_jax.data.records import Row
from pal_jax.run import files
from pal_jax.types import Choice

FORMS = 'labelled', 'chosen', 'guide'
PARTS = {
    'reward': ('reward_prompt', 'chosen', 'rejected'),
    'train': ('train_prompt', 'train_chosen', 'train_rejected'),
    'held': ('eval_prompt', 'eval_chosen', 'eval_rejected'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersonContext:
    """A person as known before a summary is written, by the text `context`.

    `ask` has the messages that ask for the summary, where a file gives them.
    """

    user: str
    context: str
    ask: tuple[Mapping[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class History(PersonContext):
    """A person's record with four disjoint uses of the person's choices.

    `past` made the context, `reward` scores a summary, `train` teaches the reward model, and `held` tests both.

    `past` is empty where a file gives the context as a text. `kind` is the person's group, '' where it is not known.
    """

    reward: Choice
    train: tuple[Choice, ...]
    held: tuple[Choice, ...]
    kind: str = ''
    past: tuple[Choice, ...] = ()


def from_choices(
    choices: Mapping[str, Sequence[Choice]], *, in_context: int, held: int, max_words: int, form: str, seed: int,
    taught: int = 1, per_user: int = 1,
) -> list[list[History]]:  # fmt: skip
    """The histories of every user with enough choices, `per_user` of them for each user.

    In a history, `in_context` choices make the context, one scores a summary, `taught` teach the reward model, and
    `held` test. The choices are drawn at random. No reply occurs in two of them, nor within another reply. Choices with
    a reply of more than `max_words` words are left out. The context has the prompts where they differ.
    """
    with_prompts, needed = (
        len({c.prompt for user_choices in choices.values() for c in user_choices}) > 1,
        in_context + 1 + taught + held,
    )
    people = []
    for user, user_choices in choices.items():
        # A person's draw depends neither on the other people nor on their order.
        rng = random.Random(f'{user} {seed}')
        short = [c for c in user_choices if max(len(text.split()) for text in (c.chosen, c.rejected)) <= max_words]
        apart = _apart(rng.sample(short, len(short)))
        if len(apart) < needed:
            continue
        # The histories of a user share the choices that score and test; the others are drawn anew for each history.
        reward, tests = apart[in_context], tuple(apart[needed - held : needed])
        others = [*apart[:in_context], *apart[in_context + 1 : needed - held], *apart[needed:]]
        histories = []
        for k in range(per_user):
            # The first history takes the choices as they were drawn.
            sampled = rng.sample(others, in_context + taught) if k else others
            past, train = tuple(sampled[:in_context]), tuple(sampled[in_context : in_context + taught])
            context = context_of(past, rng, form, asked=with_prompts)
            histories.append(History(user=user, context=context, past=past, reward=reward, train=train, held=tests))
            check_disjoint(histories[-1], f'user {user!r}')
        people.append(histories)
    return people


def _apart(choices: Sequence[Choice]) -> list[Choice]:
    """The choices without those that repeat an earlier one: no reply of them is part of another reply or of a prompt.

    The first of such choices is kept.
    """
    kept: list[Choice] = []
    replies: list[str] = []
    prompts: list[str] = []
    for choice in choices:
        sides, prompt = [normal(choice.chosen), normal(choice.rejected)], normal(choice.prompt)
        among = [*replies, prompt] if prompt else replies
        alike = sides[0] == sides[1] or any(a in b or b in a for a in sides for b in among)
        # In a chat that goes on, a reply is part of the next prompt.
        before = any(side in earlier for earlier in prompts for side in sides)
        if not alike and not before and not any(reply in prompt for reply in replies):
            kept.append(choice)
            replies += sides
            prompts.append(prompt)
    return kept


def content(person: History) -> str:
    """The text by which people are compared: the context and the choices. Their order makes no difference."""
    return joint_content([person.context, *map(choice_text, (person.reward, *person.train, *person.held))])


def choice_text(choice: Choice) -> str:
    """A choice as a text, for comparisons."""
    return '\n'.join((choice.prompt, choice.chosen, choice.rejected))


def context_of(past: Sequence[Choice], rng: random.Random, form: str, kind: str = '', *, asked: bool = False) -> str:
    """The context of a person, in one of `FORMS`.

    `labelled` has past choices with their sides in random order, `chosen` has the chosen sides alone, and `guide` is
    the person's own description, 'I prefer `kind`.' Choices follow their prompts if `asked`.
    """
    if form == 'guide':
        return f'I prefer {kind}.'

    def line(choice: Choice) -> str:
        sides = [f'Liked: {choice.chosen}', f'Disliked: {choice.rejected}']
        rng.shuffle(sides)
        text = ' '.join(sides) if form == 'labelled' else choice.chosen
        return f'{choice.prompt} {text}' if asked else text

    return '\n'.join(map(line, past))


def load(path: str | Path) -> list[list[History]]:
    """The histories of each person, one a line of the file.

    A line has the three choices of `PARTS` and either `context`, a text, or `context_messages`, which ask for the
    summary as they stand. `user` and `kind` are optional. Lines with the same `user` (`records.identity`) are one
    person's, and a line without it is a person of its own.

    Raises:
      ValueError: a line is no such record, or its held-out choice occurs in the context. The message names the line.
    """
    people: dict[str, list[History]] = {}
    who = records.first_spelling()
    for where, record in _records(path):
        person = _person(where, record)
        person = dataclasses.replace(person, user=who(person.user))
        histories = people.setdefault(person.user, [])
        histories.append(person)
        # The first history of a person tests, so its held-out choices may occur in no later one.
        check_disjoint(dataclasses.replace(person, held=histories[0].held), where)
    return list(people.values())


def load_contexts(path: str | Path) -> list[tuple[PersonContext, Choice | None]]:
    """The context of each person, one a line, and the held-out choice, None where a line has none.

    Raises:
      ValueError: a line is no such record. The message names the line.
    """
    return [
        (_told(where, record), _choice(where, record, 'held') if any(key in record for key in PARTS['held']) else None)
        for where, record in _records(path)
    ]


def _records(path: str | Path) -> list[Row]:
    """The records of a file with their places. Raises ValueError where there are none."""
    rows = list(records.rows(str(path)))
    if not rows:
        raise ValueError(f'{path} has no person; give a JSON object a line')
    return rows


def _person(where: str, record: Mapping[str, Any]) -> History:
    reward, train, held_choice = (_choice(where, record, part) for part in PARTS)
    context = _told(where, record)
    kind = records.known(where, record, 'kind')
    person = History(**vars(context), reward=reward, train=(train,), held=(held_choice,), kind=kind)
    check_disjoint(person, where)
    return person


def _told(where: str, record: Mapping[str, Any]) -> PersonContext:
    ask = _messages(where, record.get('context_messages', ()))
    # A file may give the context only within the messages that ask for the summary.
    context = record.get('context') or '\n'.join(message['content'] for message in ask)
    if not isinstance(context, str) or not context:
        raise ValueError(f'{where} has neither context nor context_messages; give one of them')
    user = records.identity(where, record, 'user') if 'user' in record else where
    return PersonContext(user=user, context=context, ask=ask)


def _choice(where: str, record: Mapping[str, Any], part: str) -> Choice:
    return Choice(*(_text(where, record, field) for field in PARTS[part]))


def check_disjoint(person: History, where: str) -> None:
    """Raise ValueError where a held-out reply occurs in the context or in another choice of the person."""
    if reply := repeated(person):
        raise ValueError(f'{where} tests with a reply it has told before: {reply[:60]!r}; hold others out')


def repeated(person: History) -> str:
    """A held-out reply that occurs in the context, another choice or its prompt, '' if there is none.

    Texts that differ in case and white space alone are the same.
    """
    others = person.reward, *person.train
    taught = {normal(reply) for choice in others for reply in (choice.chosen, choice.rejected)}
    texts_read = [
        person.context,
        *(message['content'] for message in person.ask),
        *(choice.prompt for choice in others),
    ]
    normal_texts = list(map(normal, texts_read))
    # A reply that was chosen between before is known as a whole; a text may also contain one.
    held_replies = (reply for choice in person.held for reply in (choice.chosen, choice.rejected))
    return next((r for r in held_replies if normal(r) in taught or any(normal(r) in text for text in normal_texts)), '')


def _text(where: str, record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        fault = f'has {field}={value!r}' if field in record else f'has no {field}'
        raise ValueError(f'{where} {fault}; give a text')
    return value


def _messages(where: str, messages: Any) -> tuple[dict[str, str], ...]:
    messages = [{'role': 'user', 'content': messages}] if isinstance(messages, str) else messages or ()
    if not isinstance(messages, list | tuple):
        raise ValueError(f'{where} has context_messages={files.short_repr(messages)}; give a list of messages')
    for message in messages:
        well_formed = isinstance(message, dict) and all(
            isinstance(message.get(key), str) for key in ('role', 'content')
        )
        if not well_formed:
            raise ValueError(f'{where} has a message {message!r} in context_messages; give a role and a content')
    return tuple({'role': message['role'], 'content': message['content']} for message in messages)
