"""JSON-lines files of what to imitate or to prefer, in the formats that TRL's users have.

To imitate, one of
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}
    {"prompt": [messages], "completion": [messages]}
    {"prompt": "text", "completion": "text"}
To prefer, one of
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}
    {"prompt": "text", "chosen": "text", "rejected": "text"}
    {"chosen": [messages], "rejected": [messages]}, whose prompt is what both begin with

Messages go through the model's chat template, and what the assistant says is learnt, with the token that ends its turn.
Text stands as it is, after what the tokenizer puts before a text (a beginning-of-sequence token); the model's
end-of-sequence token is added to a completion that does not end with one. Further keys are ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pal_jax.data import records
from pal_jax.data.packing import Example
from pal_jax.data.tokenizer import Tokenizer

Row = TypeVar('Row')


class Pair(NamedTuple):
    """Two completions of one prompt, the better one first."""

    chosen: Example
    rejected: Example


def read(path: str | Path, convert: Callable[[Any], Row]) -> list[Row]:
    """`convert` of every line's record.

    Raises:
      ValueError: what is wrong, with file and line.
    """
    rows = []
    for number, record in records.lines(path):
        try:
            rows.append(convert(record))
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: {error}') from None
    if not rows:
        raise ValueError(f'{path} has no rows; write one JSON record a line')
    return rows


def to_imitate(record: Any, tokenizer: Tokenizer) -> Example:
    """The example that a record of the first kind is; ValueError if it is none."""
    _check_keys(record, 'messages', ('prompt', 'completion'))
    if 'messages' in record:
        messages = _messages(record, 'messages')
        first = next((i for i, message in enumerate(messages) if message['role'] == 'assistant'), None)
        if first is None:
            raise ValueError("'messages' has no assistant message; nothing in it can be learnt")
        if first == 0:
            raise ValueError(
                "messages[0] is the assistant's, and what is learnt answers something; put a system or user message "
                'before it, or delete it'
            )
        return _chat(tokenizer, messages[:first], messages[first:])
    return _example(tokenizer, record, 'completion')


def to_prefer(record: Any, tokenizer: Tokenizer) -> Pair:
    """The pair that a record of the second kind is; ValueError if it is none."""
    _check_keys(record, ('chosen', 'rejected'))
    if 'prompt' in record:
        return Pair(*(_example(tokenizer, record, key) for key in ('chosen', 'rejected')))
    chosen, rejected = (_messages(record, key) for key in ('chosen', 'rejected'))
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = len(list(both))
    if not shared:
        raise ValueError("'chosen' and 'rejected' begin differently; give their common messages as 'prompt'")
    return Pair(*(_chat(tokenizer, each[:shared], each[shared:]) for each in (chosen, rejected)))


def _check_keys(record: Any, *kinds: str | tuple[str, ...]) -> None:
    names = [(kind,) if isinstance(kind, str) else kind for kind in kinds]
    if not isinstance(record, dict) or not any(all(key in record for key in kind) for kind in names):
        found = f'keys {", ".join(map(str, record)) or "none"}' if isinstance(record, dict) else type(record).__name__
        wanted = ' or '.join(' and '.join(kind) for kind in names)
        raise ValueError(f'expected an object with {wanted}, got {found}')


def _example(tokenizer: Tokenizer, record: dict[str, Any], key: str) -> Example:
    prompt, completion = record['prompt'], record[key]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _chat(tokenizer, _messages(record, 'prompt'), _messages(record, key))
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise ValueError(f"'prompt' and {key!r} must both be texts or both lists of messages")
    tokens = tokenizer.prompt(prompt)
    if not tokens:
        raise ValueError("'prompt' is empty; there must be something before what is learnt")
    return Example(tokens, tokenizer.completion(prompt, completion))


def _messages(record: dict[str, Any], key: str) -> list[dict[str, str]]:
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{key!r} must be a list of messages, got {json.dumps(messages)[:60]}')
    for i, message in enumerate(messages):
        parts = [message.get(part) for part in ('role', 'content')] if isinstance(message, dict) else [None]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{key}[{i}] must have 'role' and 'content' as text, got {json.dumps(message)[:60]}")
    return [{part: message[part] for part in ('role', 'content')} for message in messages]


def _chat(tokenizer: Tokenizer, prompt: Sequence[dict[str, str]], completion: Sequence[dict[str, str]]) -> Example:
    """Tokens of a conversation; the assistant's turns in the completion act, from their first token to their last."""
    if not completion or completion[0]['role'] != 'assistant':
        raise ValueError('what is learnt must begin with an assistant message')
    messages = [*prompt, *completion]
    tokens, start = tokenizer.chat(messages, add_generation_prompt=False), len(tokenizer.chat(prompt))
    acts = [False] * len(tokens)
    for k in range(len(prompt), len(messages)):
        if messages[k]['role'] == 'assistant':
            first, end = _turn(tokenizer, messages, k, tokens)
            acts[first:end] = [True] * (end - first)
    end = len(tokens) - acts[::-1].index(True)
    return Example(tokens[:start], tokens[start:end], acts[start:end])


def _turn(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], k: int, tokens: Sequence[int]) -> tuple[int, int]:
    """Where the assistant's message `k` begins and ends in the conversation's tokens, with the token that ends it."""
    before, through = tokenizer.chat(messages[:k]), tokenizer.chat(messages[: k + 1], add_generation_prompt=False)
    if tokens[: len(through)] != through or through[: len(before)] != before:
        raise ValueError(
            "the model's chat template writes a turn otherwise once others follow; give a row for each answer"
        )
    ends = (i + 1 for i in range(len(before), len(through)) if through[i] in tokenizer.stop_ids)
    return len(before), next(ends, len(through))
