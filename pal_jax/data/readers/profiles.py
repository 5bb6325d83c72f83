"""Benchmarks of replies that suit one person, as choices between texts (`types.Choice`). The prompt begins with what is
known of the person.

    rewardbench:<source>   Personalized RewardBench (Ma et al. 2026, arXiv 2604.07343): both replies are good, and one
                           fits the person's rubrics
    personamem:<folder>    PersonaMem (Jiang et al. 2025, arXiv 2504.14225): the option that fits earlier dialogues

Of a long profile or dialogue, the `SHOWN` parts that share most words with the question are in the prompt, in their
order. What says which reply is right is not: the rubrics and the narrative that they were made from, the description of
the persona, and all messages after the question.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data.records import field, identity, listed, rows, text_of
from pal_jax.run import files
from pal_jax.types import Choice

SHOWN = 3  # parts of a profile or dialogue in a prompt
OPTION = re.compile(r'\s*\(([a-z])\)\s*(.*)', re.DOTALL)
QUESTIONS, CONTEXTS = 'questions_*.csv', 'shared_contexts_*.jsonl'


def rewardbench(source: str) -> Iterator[Choice]:
    """The choices in Personalized RewardBench, one of each person.

    A row has id, question, profile (a list of earlier questions, each with a text), chosen and rejected. Its
    rubric_aspects and narrative are not read.

    Raises:
      ValueError: a field is missing. The message names the row.
    """
    for place, row in rows(source):
        entries = [text_of(place, _object(place, entry), 'text') for entry in listed(place, row, 'profile')]
        question, chosen, rejected = (text_of(place, row, name) for name in ('question', 'chosen', 'rejected'))
        if chosen != rejected:
            yield Choice(_asked(entries, question), chosen, rejected, identity(place, row, 'id'))


def personamem(folder: str) -> Iterator[Choice]:
    """The choices in PersonaMem: the right option of a question against each other option.

    The folder has one `questions_*.csv` of persona_id, user_question_or_message, correct_answer such as (b),
    all_options (a list such as ['(a) ...', '(b) ...'] in words), shared_context_id and end_index_in_shared_context, and
    one `shared_contexts_*.jsonl` of {id: messages}. Messages from the index on come after the question, and those of
    the system describe the persona.

    Raises:
      ValueError: there is not one file of each, a field is missing, or an answer is none of the options. The message
        names the row.
    """
    contexts = {key: (place, messages) for place, row in rows(_one(folder, CONTEXTS)) for key, messages in row.items()}
    for place, row in rows(_one(folder, QUESTIONS)):
        user, question = identity(place, row, 'persona_id'), text_of(place, row, 'user_question_or_message')
        answer, options = str(field(place, row, 'correct_answer')).strip(), _options(place, row)
        if answer not in options:
            raise ValueError(f'{place}: correct_answer is {answer!r}, and the options are {", ".join(options)}')
        end, key = _index(place, row), identity(place, row, 'shared_context_id')
        if key not in contexts:
            raise ValueError(f'{place}: shared_context_id {key!r} is not in the file of contexts')
        entries = _said(*contexts[key], end)
        for letter, text in options.items():
            if letter != answer and text != options[answer]:
                yield Choice(_asked(entries, question), options[answer], text, user)


def _said(place: str, messages: Any, end: int) -> list[str]:
    """The texts of the first `end` messages, but for those of the system."""
    if not isinstance(messages, list):
        raise ValueError(f'{place}: a context is {files.short_repr(messages)}; give a list of messages')
    earlier = [_object(place, message) for message in messages[:end]]
    return [text_of(place, message, 'content') for message in earlier if message.get('role') != 'system']


def _options(place: str, row: Mapping[str, Any]) -> dict[str, str]:
    """The options of a question by their letters such as (a)."""
    value = field(place, row, 'all_options')
    try:
        given = ast.literal_eval(value) if isinstance(value, str) else value
        matches = [match for option in given if (match := OPTION.fullmatch(option))]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        matches = given = []
    if len(matches) < 2 or len(matches) != len(given):
        raise ValueError(
            f"{place}: all_options is {files.short_repr(value)}; give a list such as ['(a) ...', '(b) ...']"
        )
    return {f'({match[1]})': match[2].strip() for match in matches}


def _index(place: str, row: Mapping[str, Any]) -> int:
    value = str(field(place, row, 'end_index_in_shared_context')).strip()
    if not value.isdecimal():
        raise ValueError(f'{place}: end_index_in_shared_context is {value!r}; give the number of earlier messages')
    return int(value)


def _object(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f'{place}: expected an object, got {files.short_repr(value)}')
    return value


def _one(folder: str, pattern: str) -> str:
    """The one file of a folder with a name of this pattern."""
    paths = sorted(Path(folder).glob(pattern))
    if len(paths) != 1:
        raise ValueError(f'{folder} has {len(paths)} files {pattern}; give a folder with one')
    return str(paths[0])


def _asked(entries: Sequence[str], question: str) -> str:
    """A question after the entries that share most words with it."""
    question_words = _words(question)

    def likeness(k: int) -> float:
        words = _words(entries[k])
        return len(words & question_words) / max(len(words | question_words), 1)

    shown = sorted(sorted(range(len(entries)), key=likeness, reverse=True)[:SHOWN])
    return '\n\n'.join([*(entries[k].strip() for k in shown), question])


def _words(text: str) -> set[str]:
    return set(re.findall(r'\w+', text.lower()))


SOURCES: Mapping[str, Callable[[str], Iterator[Choice]]] = {'rewardbench': rewardbench, 'personamem': personamem}
