"""Files of replies to imitate or to prefer, as tokens. `data/formats.py` has the formats of their records.

Messages go through the model's chat template. The assistant's words are learnt, with the token that ends its turn. A
text stays as it is, after the tokenizer's opening (a beginning-of-sequence token). The model's end-of-sequence token is
added to a completion that does not end with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pal_jax.data import formats, records
from pal_jax.data.formats import Message, TextOrMessages
from pal_jax.data.packing import Example
from pal_jax.data.tokenizer import Tokenizer

Row = TypeVar('Row')


class Pair(NamedTuple):
    """Two completions of one prompt, the better one first."""

    chosen: Example
    rejected: Example


def read(path: str | Path, convert: Callable[[Any], Row]) -> list[Row]:
    """The results of `convert` for all records of a source (`records.values`).

    Raises:
      ValueError: a record is wrong, or there is none. The message names file and line.
    """
    rows = []
    for place, record in records.values(str(path)):
        try:
            rows.append(convert(record))
        except ValueError as error:
            raise ValueError(f'{place}: {error}') from None
    if not rows:
        raise ValueError(f'{path} has no rows; write one JSON record a line')
    return rows


def to_imitate(record: Any, tokenizer: Tokenizer) -> Example:
    """The example of a record to imitate. A pair gives its chosen reply. Raises ValueError for a wrong record."""
    row = formats.imitated(record)
    return _example(tokenizer, row.prompt, row.replies[0], row.tools)


def to_prefer(record: Any, tokenizer: Tokenizer) -> Pair:
    """The pair of a record. Raises ValueError where the record is wrong, or its replies have the same tokens."""
    row = formats.preferred(record)
    pair = Pair(*(_example(tokenizer, row.prompt, reply, row.tools) for reply in row.replies))
    if pair.chosen == pair.rejected:
        raise ValueError(formats.SAME)
    return pair


def as_chat(text: str) -> list[Message]:
    """A question as the messages of a chat."""
    return [{'role': 'user', 'content': text}]


def _example(
    tokenizer: Tokenizer, prompt: TextOrMessages | None, reply: TextOrMessages, tools: list[Message] | None
) -> Example:
    if isinstance(prompt, list) and isinstance(reply, list):
        return _chat(tokenizer, prompt, reply, tools)
    assert isinstance(prompt, str | None) and isinstance(reply, str)
    if prompt is None:  # a whole text is learnt except its first token, which has no token before it
        start, *tokens = tokenizer.prompt(reply)
        return Example([start], tokens if tokens[-1:] == [tokenizer.stop_ids[0]] else [*tokens, tokenizer.stop_ids[0]])
    tokens = tokenizer.prompt(prompt)
    if not tokens:
        raise ValueError("'prompt' is empty; there must be something before what is learnt")
    return Example(tokens, tokenizer.completion(prompt, reply))


def _chat(
    tokenizer: Tokenizer, prompt: Sequence[Message], reply: Sequence[Message], tools: list[Message] | None
) -> Example:
    """The example of a conversation.

    The assistant's turns in the reply are learnt, from their first token to their last. A turn of weight 0 is not.
    """
    if not reply or reply[0]['role'] != 'assistant':
        raise ValueError('what is learnt must begin with an assistant message')
    learnt = [message['role'] == 'assistant' and message.get('weight', 1) for message in reply]
    if not any(learnt):
        raise ValueError('every assistant message has weight 0; nothing in it can be learnt')
    messages = [{key: value for key, value in message.items() if key != 'weight'} for message in (*prompt, *reply)]
    _check_tools(tokenizer, messages, tools)
    tokens = _render(tokenizer, messages, tools, whole=True)
    start = len(_render(tokenizer, messages[: len(prompt)], tools))
    acts = [False] * len(tokens)
    for k in (len(prompt) + i for i, acted in enumerate(learnt) if acted):
        first, end = _turn(tokenizer, messages, k, tokens, tools)
        acts[first:end] = [True] * (end - first)
    if not any(acts):
        raise ValueError("the model's chat template writes nothing of what the assistant says; take another")
    end = len(tokens) - acts[::-1].index(True)
    return Example(tokens[:start], tokens[start:end], acts[start:end])


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Message] | None, *, whole: bool = False
) -> list[int]:
    """The tokens of a `whole` conversation, or of one that the assistant's next turn follows."""
    return tokenizer.chat(messages, add_generation_prompt=not whole, tools=tools)


def _turn(
    tokenizer: Tokenizer, messages: Sequence[Message], k: int, tokens: Sequence[int], tools: list[Message] | None
) -> tuple[int, int]:
    """The first token of the assistant's message `k` in the conversation, and the index after the token that ends it.

    Raises:
      ValueError: the template writes this turn otherwise once other turns follow.
    """
    before, through = _render(tokenizer, messages[:k], tools), _render(tokenizer, messages[: k + 1], tools, whole=True)
    if tokens[: len(through)] != through or through[: len(before)] != before:
        raise ValueError(
            "the model's chat template writes a turn otherwise once others follow; give a row for each answer"
        )
    ends = (i + 1 for i in range(len(before), len(through)) if through[i] in tokenizer.stop_ids)
    return len(before), next(ends, len(through))


def _check_tools(tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Message] | None) -> None:
    """Raise ValueError where the chat template would leave out a row's tools, their calls or their results."""
    called = any('tool_calls' in message for message in messages)
    if not tools and not called and all(message['role'] != 'tool' for message in messages):
        return
    plain = [{key: value for key, value in message.items() if key != 'tool_calls'} for message in messages]
    tokens = _render(tokenizer, messages, tools, whole=True)
    left_out = (tools and tokens == _render(tokenizer, messages, None, whole=True)) or (
        called and tokens == _render(tokenizer, plain, tools, whole=True)
    )
    if left_out or 'tool' not in str(tokenizer.fast.get_chat_template(tools=tools)):
        raise ValueError("the model's chat template knows no tools, and the row has some; take another model or row")
