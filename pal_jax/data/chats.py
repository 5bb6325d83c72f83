"""Files of replies to imitate or to prefer, as tokens. `data/readers/formats.py` has the formats of their records.

Messages go through the model's chat template. The assistant's words are learnt, with the token that ends its turn. A
text stays as it is, after the tokenizer's opening (a beginning-of-sequence token). The model's end-of-sequence token is
added to a completion that does not end with one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pal_jax.data import thoughts
from pal_jax.data.packing import Example
from pal_jax.data.readers import formats
from pal_jax.data.readers.formats import Message, TextOrMessages
from pal_jax.data.tokenizer import Tokenizer


class ExamplePair(NamedTuple):
    """Two completions of one prompt, the better one first."""

    chosen: Example
    rejected: Example


def to_imitate(record: Any, tokenizer: Tokenizer) -> Example:
    """The example of a record to imitate. A pair gives its chosen reply. Raises ValueError for a wrong record."""
    row = formats.imitated(record)
    return _example(tokenizer, row.prompt, row.replies[0], row.tools)


def to_prefer(record: Any, tokenizer: Tokenizer) -> ExamplePair:
    """The pair of a record. Raises ValueError where the record is wrong, or its replies have the same tokens."""
    row = formats.preferred(record)
    pair = ExamplePair(*(_example(tokenizer, row.prompt, reply, row.tools) for reply in row.replies))
    if pair.chosen == pair.rejected:
        raise ValueError(formats.SAME)
    return pair


def of_texts(record: Any, tokenizer: Tokenizer) -> Any:
    """A record of a prompt and replies that are texts, as a record of messages; any other record as it is.

    Raises:
      ValueError: the prompt is written in the chat template already.
    """
    prompt = record.get('prompt') if isinstance(record, dict) else None
    replies = (
        {key: record[key] for key in ('completion', *formats.SIDES) if record.get(key) is not None} if prompt else {}
    )
    if not isinstance(prompt, str) or not replies or not all(isinstance(reply, str) for reply in replies.values()):
        return record
    if not is_plain(prompt, tokenizer):
        raise ValueError("'prompt' has special tokens of the model, so it is written as a chat already; leave out chat")
    return {**record, 'prompt': as_chat(prompt)} | {
        key: [{'role': 'assistant', 'content': reply}] for key, reply in replies.items()
    }


def is_plain(text: str, tokenizer: Tokenizer) -> bool:
    """True of a text that a chat template would write otherwise: there is one, and no special token in the text."""
    return bool(tokenizer.fast.chat_template) and not _special(tokenizer).search(text)


# A tokenizer makes the list of its tokens anew for each question, and there are thousands of them.
@functools.lru_cache(maxsize=4)
def _special(tokenizer: Tokenizer) -> re.Pattern[str]:
    """A pattern of the special tokens."""
    special = [re.escape(str(token)) for token in tokenizer.fast.added_tokens_decoder.values() if token.special]
    return re.compile('|'.join(special) or '(?!)')


def as_chat(text: str) -> list[Message]:
    """A question as the messages of a chat."""
    return [{'role': 'user', 'content': text}]


def _example(
    tokenizer: Tokenizer, prompt: TextOrMessages | None, reply: TextOrMessages, tools: list[Message] | None
) -> Example:
    if isinstance(prompt, list) and isinstance(reply, list):
        return _chat(tokenizer, prompt, reply, tools)
    assert isinstance(prompt, str | None) and isinstance(reply, str)
    # A whole text is learnt except its first token, which has no token before it.
    if prompt is None:
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

    The assistant's turns in the reply are learnt. A turn of weight 0 is not learnt.
    """
    if not reply or reply[0]['role'] != 'assistant':
        raise ValueError('what is learnt must begin with an assistant message')
    learnt = [message['role'] == 'assistant' and message.get('weight', 1) for message in reply]
    if not any(learnt):
        raise ValueError('every assistant message has weight 0; nothing in it can be learnt')
    messages = [{key: value for key, value in message.items() if key != 'weight'} for message in (*prompt, *reply)]
    _check_tools(tokenizer, messages, tools)
    done = tokenizer.written(messages[: len(prompt)], tools=tools)
    tokens, acts, closed = tokenizer.chat(messages[: len(prompt)], tools=tools), [], True
    # Each of the assistant's turns continues the tokens before it as if it were sampled, and is learnt from its first
    # token to its last.
    for k in (len(prompt) + i for i, acted in enumerate(learnt) if acted):
        before, through, closed = _turn(tokenizer, messages, k, tools)
        for text, act in ((before, False), (through, True)):
            # The tokens so far stay as they are, which needs a template that never rewrites an earlier turn.
            if not text.startswith(done):
                raise ValueError(CHANGED)
            ids = tokenizer.continued(tokens, done, text[len(done) :]) if text != done else []
            done, tokens, acts = text, [*tokens, *ids], [*acts, *[act] * len(ids)]
    # A turn that the template leaves open ends with the model's own end-of-sequence token.
    if not closed:
        tokens, acts = [*tokens, tokenizer.stop_ids[0]], [*acts, True]
    start = len(tokens) - len(acts)
    return Example(tokens[:start], tokens[start:], acts)


CHANGED = "the model's chat template writes a turn otherwise once others follow; give a row for each answer"
SILENT = "the model's chat template writes nothing of what the assistant says; take another"


class _Turn(NamedTuple):
    """The texts of a conversation before a turn of the assistant and through its end, and whether the template closes
    it, that is, writes a token that ends it."""

    before: str
    through: str
    closed: bool


def _turn(tokenizer: Tokenizer, messages: Sequence[Message], k: int, tools: list[Message] | None) -> _Turn:
    """The assistant's message `k` as the template writes it after its prompt for the turn.

    Raises:
      ValueError: the template writes nothing of it, or does not close it though other messages follow.
    """
    before = tokenizer.written(messages[:k], tools=tools)
    through = tokenizer.written(messages[: k + 1], False, tools)
    # The template writes the answer otherwise than it asks for it.
    if not through.startswith(before):
        return _answered(tokenizer, messages[: k + 1], before, through)
    if end := tokenizer.ends.search(through, len(before)):
        return _Turn(before, through[: end.end()], True)
    # Some templates (GLM's) close a turn when the next one begins.
    if k + 1 < len(messages):
        following = tokenizer.written(messages[: k + 2], False, tools)
        end = tokenizer.ends.search(following, len(through))
        if end and following.startswith(through) and not following[len(through) : end.start()].strip():
            return _Turn(before, following[: end.end()], True)
        raise ValueError(
            f"the model's chat template writes no token that ends message {k + 1}, and others follow it; give a row "
            'for each answer, or take a template that ends turns'
        )
    # The last message ends the text unclosed. White space that the template puts after it was not said.
    answer, content = through[len(before) :], tokenizer.guarded(messages[k]['content'])
    said = content if answer.startswith(content) and 'tool_calls' not in messages[k] else answer.rstrip()
    if not answer and content.strip():
        raise ValueError(SILENT)
    return _Turn(before, before + said, False)


def _answered(tokenizer: Tokenizer, messages: Sequence[Message], before: str, through: str) -> _Turn:
    """The last of these messages right after its prompt, where the template writes it otherwise than it asks for it.

    Raises:
      ValueError: the message has calls or a thought of its own; or the template writes nothing of it.
    """
    message = messages[-1]
    # Calls and thoughts of the message itself can be written by the template alone.
    if set(message) - {'role', 'content', 'name'}:
        raise ValueError(CHANGED)
    if message['content'].strip() and through == tokenizer.written(messages[:-1], False):
        raise ValueError(SILENT)
    # Most such templates open a thought at the end of a prompt, and leave it out of messages.
    answer = tokenizer.guarded(thoughts.resumed_reply(before, message['content']))
    ends = [end for end in tokenizer.ends.finditer(through) if not through[end.end() :].strip()]
    return _Turn(before, before + answer + (ends[0][0] if ends else ''), bool(ends))


def _check_tools(tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Message] | None) -> None:
    """Raise ValueError where the chat template would leave out a row's tools, their calls or their results."""
    called = any('tool_calls' in message for message in messages)
    if not tools and not called and all(message['role'] != 'tool' for message in messages):
        return
    # A template that knows no tools writes the same text with them and without.
    plain = [{key: value for key, value in message.items() if key != 'tool_calls'} for message in messages]
    text = tokenizer.written(messages, False, tools)
    left_out = (tools and text == tokenizer.written(messages, False)) or (
        called and text == tokenizer.written(plain, False, tools)
    )
    if left_out or 'tool' not in str(tokenizer.fast.get_chat_template(tools=tools)):
        raise ValueError("the model's chat template knows no tools, and the row has some; take another model or row")
