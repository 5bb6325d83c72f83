"""Rows of files in common formats, each read as a prompt and the replies to it.

A format is recognised by a record's keys (`IMITATED`, `PREFERRED`); further keys are ignored. Messages are OpenAI's and
TRL's (`role`, `content`) or ShareGPT's (`from`, `value`). The content of a message is a text, or a list of parts of
type `text`, which are joined. A row's `system` text goes before its messages, and its `tools` go to the chat template.

A new format is a function and its row in `IMITATED` or `PREFERRED`. A question and its answers become messages, which
the chat template puts apart; texts stay texts only where a row has rendered chats (`prompt`, `completion`), for they
are joined as they are.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pal_jax.data import marks, records
from pal_jax.data.holdouts import normal

Message = dict[str, Any]
TextOrMessages = str | list[Message]


class PromptedReplies(NamedTuple):
    """A prompt and one reply to imitate, or two replies of which the first was preferred.

    Prompt and replies are all texts, or all messages, for which there may be `tools`. The prompt is None where a whole
    text is learnt, which is the reply.
    """

    prompt: TextOrMessages | None
    replies: tuple[TextOrMessages, ...]
    tools: list[Message] | None = None

    @property
    def content(self) -> str:
        """The text by which rows are compared (`holdouts.normal`): the prompt, or the whole text without a prompt."""
        prompt = self.replies[0] if self.prompt is None else self.prompt
        if isinstance(prompt, str):
            return normal(prompt)
        # An empty system prompt only keeps a template's own one away, so it makes no difference.
        messages = [message for message in prompt if message['role'] != 'system' or normal(message['content'])]
        if [message['role'] for message in messages] == ['user']:
            # A single question is compared as if it were a text.
            return normal(messages[0]['content'])
        return '\n'.join(map(_content, messages))


def _content(message: Message) -> str:
    """A message as a text for comparisons."""
    # The ids of tool calls carry no content.
    fields = {key: value for key, value in message.items() if key != 'tool_call_id'}
    if calls := fields.get('tool_calls'):
        fields['tool_calls'] = [call['function'] for call in calls]
    # OpenAI calls the role of system prompts developer in newer models.
    role = 'system' if message['role'] == 'developer' else message['role']
    return json.dumps({**fields, 'role': role, 'content': normal(message['content'])}, sort_keys=True)


class Format(NamedTuple):
    """The keys that a record of a format has, and the function that reads such a record."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], PromptedReplies]


def imitated(record: Any) -> PromptedReplies:
    """The prompt and the reply of a record to imitate. A pair gives its chosen reply.

    Raises:
      ValueError: the record has no known format, or several, a field is wrong, or its reply is marked as unwanted.
    """
    format_ = _format(record, IMITATED, PREFERRED, (WHOLE,))
    marks.check_row(record, () if format_ in PREFERRED else marks.KTO if format_ is WHOLE else marks.WANTED)
    known = _known(record)
    row = format_.read(known)
    return _rendered(known, row._replace(replies=row.replies[:1]))


def is_pair(record: Any) -> bool:
    """True of a record that `imitated` reads as a pair. Raises ValueError where it has no known format, or several."""
    return _format(record, IMITATED, PREFERRED, (WHOLE,)) in PREFERRED


def preferred(record: Any) -> PromptedReplies:
    """The prompt and both replies of a pair, the better one first. Raises ValueError as `imitated` does."""
    format_, known = _format(record, PREFERRED), _known(record)
    marks.check_row(known)
    row = _rendered(known, format_.read(known))
    if row.replies[0] == row.replies[1]:
        raise ValueError(SAME)
    for side, reply in zip(('chosen', 'rejected'), row.replies, strict=True):
        if not isinstance(reply, str) and reply and reply[-1]['role'] != 'assistant':
            raise ValueError(f"the {side} reply ends with a {reply[-1]['role']}'s message; take that out")
    return row


SAME = 'the chosen and the rejected reply are the same; delete the row'


# --- the format of a record -------------------------------------------------------------------------------------------


def _format(record: Any, *tables: Sequence[Format]) -> Format:
    """The format that has most of a record's keys, from the first table with a format that fits."""
    if isinstance(record, dict):
        present = {key for key, value in record.items() if value is not None}
        for formats in tables:
            fitting = [format for format in formats if present.issuperset(format.keys)]
            # A format gives way to one that has all of its keys and more.
            finest = [format for format in fitting if not any(set(format.keys) < set(wider.keys) for wider in fitting)]
            if len(finest) > 1:
                candidates = ', or '.join(map(_named, finest))
                raise ValueError(
                    f'ambiguous: its keys {", ".join(map(str, record))} may be {candidates}; leave one of them'
                )
            if finest:
                return finest[0]
        present_text = f'keys {", ".join(map(str, record)) or "none"}'
        # Of a record that has a part of a format's keys, the others are told: those of the format that lacks fewest.
        partial = [format.keys for formats in tables for format in formats if present & {*format.keys}]
        if missing := [[key for key in keys if key not in present] for keys in partial]:
            lacking = min(missing, key=len)
            others = [str(key) for key in record if key not in lacking]
            near = [name for key in lacking for name in difflib.get_close_matches(key, others, 1)]
            meant = f'; is {near[0]!r} meant?' if near else ''
            fault = 'null' if all(key in record for key in lacking) else 'missing or empty'
            raise ValueError(f'{" and ".join(lacking)} is {fault}, got {present_text}{meant}')
    else:
        present_text = type(record).__name__
    known = ' | '.join(dict.fromkeys(', '.join(format.keys) for formats in tables for format in formats))
    raise ValueError(f'got {present_text}; rows have: {known}')


def _named(format_: Format) -> str:
    return ' and '.join(format_.keys)


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without keys whose value is None at any depth, as a table has, or a file written from one, for missing
    values.

    Raises:
      ValueError: the record has images, videos or another field that is not supported.
    """
    # A call's arguments that are JSON in a text keep their null values.
    fields = records.without_gaps(record)
    for key in ('images', 'image', 'videos', 'video', 'audios', 'audio', 'functions', 'chat_template_kwargs'):
        if fields.get(key):
            raise ValueError(f'{key!r} of a row is not supported; texts and tools are')
    return fields


def _rendered(record: Mapping[str, Any], row: PromptedReplies) -> PromptedReplies:
    """The row with the tools of its record, and with the record's system text before its messages."""
    tools, system = record.get('tools'), record.get('system')
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, "'tools'")
    if tools and (not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"'tools' must be a list of objects, got {_short(tools)}")
    has_system = system is not None and bool(_text(system, 'system').strip())
    if not isinstance(row.prompt, list):
        if tools or has_system:
            raise ValueError(f'{"tools" if tools else "system"!r} is for messages, and this row has texts')
        return row
    if has_system:
        # The same system prompt may be written in both places.
        if row.prompt[0]['role'] != 'system':
            row = row._replace(prompt=[{'role': 'system', 'content': system}, *row.prompt])
        elif row.prompt[0]['content'] != system:
            raise ValueError("the row has a 'system' text and another system message; leave one of them")
    return row._replace(tools=tools or row.tools)


# --- to imitate -------------------------------------------------------------------------------------------------------


def _conversation(messages: list[Message], key: str) -> PromptedReplies:
    """The row of a conversation. The messages before the assistant's first one are the prompt, all others the reply."""
    first = next((i for i, message in enumerate(messages) if message['role'] == 'assistant'), None)
    if first is None:
        raise ValueError(f'{key!r} has no assistant message; nothing in it can be learnt')
    if first == 0:
        raise ValueError(
            f"{key}[0] is the assistant's, and what is learnt answers something; put a system or user message before "
            'it, or delete it'
        )
    return PromptedReplies(messages[:first], (messages[first:],))


def _chat(record: Mapping[str, Any]) -> PromptedReplies:
    return _conversation(messages_of(record, 'messages'), 'messages')


def _sharegpt(record: Mapping[str, Any]) -> PromptedReplies:
    return _conversation(messages_of(record, 'conversations'), 'conversations')


def _completion(record: Mapping[str, Any]) -> PromptedReplies:
    return _after(record['prompt'], [record['completion']], ['completion'])


def _instruction(record: Mapping[str, Any]) -> PromptedReplies:
    reply = [{'role': 'assistant', 'content': _text(record['output'], 'output')}]
    messages = [*_history(record), _instructed(record), *reply]
    return _conversation(messages, 'history')


def _whole(record: Mapping[str, Any]) -> PromptedReplies:
    if not _text(record['text'], 'text').strip():
        raise ValueError("'text' is empty; nothing in it can be learnt")
    return PromptedReplies(None, (record['text'],))


def _instructed(record: Mapping[str, Any]) -> Message:
    """The user's message of an instruction, with its input in the line below."""
    texts = [_text(record[key], key) for key in ('instruction', 'input') if record.get(key)]
    return {'role': 'user', 'content': '\n'.join(texts)}


def _history(record: Mapping[str, Any]) -> list[Message]:
    """The messages of a row's earlier exchanges, which are lists of two texts."""
    messages: list[Message] = []
    history = record.get('history') or []
    if not isinstance(history, list):
        raise ValueError(f"'history' must be a list of exchanges, got {_short(history)}")
    for i, exchange in enumerate(history):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise ValueError(f'history[{i}] must be a list of two texts, got {_short(exchange)}')
        roles = zip(('user', 'assistant'), exchange, strict=True)
        messages += [{'role': role, 'content': _text(text, f'history[{i}]')} for role, text in roles]
    return messages


# --- to prefer --------------------------------------------------------------------------------------------------------

SIDES = 'chosen', 'rejected'


def _pair(record: Mapping[str, Any]) -> PromptedReplies:
    beside = [key for key in ('question', 'query', 'input', 'context', 'post') if record.get(key)]
    if 'prompt' not in record and isinstance(record['chosen'], str) and beside:
        raise ValueError(f"{beside[0]!r} stands beside texts without a prompt; call it 'prompt', or take it out")
    return _after(record.get('prompt'), [record[side] for side in SIDES], SIDES)


def _sharegpt_pair(record: Mapping[str, Any]) -> PromptedReplies:
    messages = messages_of(record, 'conversations')
    return _after(messages, [record[side] for side in SIDES], SIDES)


def _instruction_pair(record: Mapping[str, Any]) -> PromptedReplies:
    texts = [record[side] for side in SIDES]
    replies = [[{'role': 'assistant', 'content': text}] if isinstance(text, str) else text for text in texts]
    return _after([*_history(record), _instructed(record)], replies, SIDES)


def _openai_pair(record: Mapping[str, Any]) -> PromptedReplies:
    """A pair of OpenAI's fine-tuning, whose tools stand beside the messages of its input."""
    keys, inputs = ('preferred_output', 'non_preferred_output'), record['input']
    if not isinstance(inputs, dict) or not inputs.get('messages'):
        raise ValueError(f"'input' must be an object with messages, got {_short(inputs)}")
    row = _after(inputs['messages'], [record[key] for key in keys], keys)
    return _rendered({'tools': inputs.get('tools')}, row)


def _after(prompt: Any, raw_replies: Sequence[Any], keys: Sequence[str]) -> PromptedReplies:
    """The row of a prompt and its replies. The prompt stands apart from the replies, at their beginning, or both."""
    # A message by itself is a list of one message.
    replies: list[Any] = [[reply] if isinstance(reply, dict) else reply for reply in raw_replies]
    if all(isinstance(reply, str) for reply in replies):
        if prompt is None:
            return _split_texts(replies)
        if isinstance(prompt, str):
            return PromptedReplies(prompt, tuple(replies))
    if not all(isinstance(reply, list) for reply in replies) or not isinstance(prompt, str | list | None):
        raise ValueError(f"'prompt' and {_listed(keys)} must all be texts or all lists of messages")
    if isinstance(prompt, str) and keys == ['completion']:
        raise ValueError("'prompt' and 'completion' must both be texts or both lists of messages")
    return _in_messages(
        prompt, [messages_of({key: reply}, key) for key, reply in zip(keys, replies, strict=True)], keys
    )


def _in_messages(prompt: str | list[Any] | None, replies: list[list[Message]], keys: Sequence[str]) -> PromptedReplies:
    """The row of replies that are messages. Their prompt is messages, a text, or the messages that all begin with."""
    if isinstance(prompt, list):
        before = messages_of({'prompt': prompt}, 'prompt')
        # Some files repeat the prompt at the beginning of every reply.
        repeated = all(reply[: len(before)] == before for reply in replies)
        return PromptedReplies(before, tuple(reply[len(before) :] if repeated else reply for reply in replies))
    if prompt is not None and all(reply[0]['role'] == 'assistant' for reply in replies):
        return PromptedReplies([{'role': 'user', 'content': prompt}], tuple(replies))
    # Without a prompt of messages, the messages that both replies begin with are the prompt.
    shared = replies[0][: len([*itertools.takewhile(lambda pair: pair[0] == pair[-1], zip(*replies, strict=False))])]
    questions = (message['content'].strip() for message in shared if message['role'] == 'user')
    if prompt is not None and prompt.strip() not in questions:
        raise ValueError(f"'prompt' is not among the messages that {_listed(keys)} begin with; give one of the two")
    if replies[0] == replies[1]:
        raise ValueError(SAME)
    if not shared:
        raise ValueError("'chosen' and 'rejected' begin differently; give their common messages as 'prompt'")
    return PromptedReplies(shared, tuple(reply[len(shared) :] for reply in replies))


def _split_texts(texts: Sequence[str]) -> PromptedReplies:
    """The row of two texts that begin alike: transcripts in hh-rlhf's form, or texts with a common start."""
    if all(map(_TRANSCRIPT.match, texts)):
        return _after(None, [_transcript(text) for text in texts], SIDES)
    if texts[0] == texts[1]:
        raise ValueError(SAME)
    least = min(map(len, texts))
    # Where one text begins with the whole other one, a character stays for the reply.
    shared = next((i for i in range(least) if texts[0][i] != texts[1][i]), max(least - 1, 0))
    # The space before the first word that differs belongs to the replies, as in TRL.
    shared -= texts[0][:shared].endswith(' ')
    if not texts[0][:shared].strip():
        raise ValueError("'chosen' and 'rejected' begin differently; give a 'prompt'")
    return PromptedReplies(texts[0][:shared], tuple(text[shared:] for text in texts))


_TRANSCRIPT = re.compile(r'\s*Human:.*?\n\nAssistant:', re.DOTALL)
_TURN = re.compile(r'(?:^|\n\n)(Human|Assistant):')
_SPEAKERS = {'Human': 'user', 'Assistant': 'assistant'}


def _transcript(text: str) -> list[Message]:
    """The messages of `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    _, *parts = _TURN.split(text.lstrip())
    messages: list[Message] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        # Neighbouring turns of one speaker are one message.
        if messages and messages[-1]['role'] == _SPEAKERS[speaker]:
            messages[-1]['content'] += f'\n\n{words.strip()}'
        else:
            messages.append({'role': _SPEAKERS[speaker], 'content': words.strip()})
    return messages


def _listed(keys: Sequence[str]) -> str:
    return ' and '.join(map(repr, keys))


WHOLE = Format(('text',), _whole)
IMITATED = (
    Format(('messages',), _chat),
    Format(('prompt', 'completion'), _completion),
    Format(('conversations',), _sharegpt),
    Format(('conversations', *SIDES), _sharegpt_pair),
    Format(('instruction', 'output'), _instruction),
)
PREFERRED = (
    Format(SIDES, _pair),
    Format(('prompt', *SIDES), _pair),
    Format(('conversations', *SIDES), _sharegpt_pair),
    Format(('instruction', *SIDES), _instruction_pair),
    Format(('input', 'preferred_output', 'non_preferred_output'), _openai_pair),
)


# --- messages ---------------------------------------------------------------------------------------------------------

# The keys of a message that chat templates read beside its role and its content.
_PASSED = ('name', 'tool_calls', 'tool_call_id', 'reasoning_content', 'thinking')
# The roles that chat templates know.
ROLES = 'system', 'developer', 'user', 'assistant', 'tool', 'function', 'ipython', 'environment'
_ROLES = {'human': 'user', 'gpt': 'assistant', 'observation': 'tool'}
_ROLES |= {role: role for role in ('user', 'assistant', 'system', 'tool')}


def messages_of(record: Mapping[str, Any], key: str) -> list[Message]:
    """The messages of a record, with roles and contents that are texts.

    Those that are marked as not to be learnt (`marks.is_learnt`) have the weight 0.

    Raises:
      ValueError: there is no message, or one is wrong. The error names its key and number.
    """
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{key!r} must be a list of messages, got {_short(messages)}')
    return [_message(message, f'{key}[{i}]') for i, message in enumerate(messages)]


def _message(record: Any, place: str) -> Message:
    if not isinstance(record, dict):
        raise ValueError(f"{place} must have 'role' and 'content' as text, got {_short(record)}")
    message: Message = dict(record)
    if 'from' in message and 'role' not in message:
        message = _from_sharegpt(message, place)
    if 'function_call' in message:
        raise ValueError(f"{place}: 'function_call' is not supported; give tool_calls")
    # Tables write an empty list where a message has no calls.
    if not message.get('tool_calls'):
        message.pop('tool_calls', None)
    content = message.get('content')
    # A message of calls need not say anything.
    if content is None and 'tool_calls' in message:
        content = ''
    if content is None and 'role' in record:
        raise ValueError(f"{place}: 'content' is missing or null; write a text")
    if not isinstance(message.get('role'), str) or not isinstance(content, str | list):
        raise ValueError(f"{place} must have 'role' and 'content' as text, got {_short(record)}")
    if (role := message['role']) not in ROLES:
        meaning = f' ({role!r} is {_ROLES[role]} here)' if role in _ROLES else ''
        raise ValueError(f'{place} has the role {_short(role)}; use {", ".join(ROLES)}{meaning}')
    read: Message = {'role': role, 'content': content if isinstance(content, str) else _joined(content, place)}
    read |= {key: message[key] for key in _PASSED if key in message}
    if 'tool_calls' in read:
        read['tool_calls'] = _calls(read['tool_calls'], place)
    return read if marks.is_learnt(message, place) else read | {'weight': 0}


def _from_sharegpt(message: Message, place: str) -> Message:
    speaker, value = message['from'], message.get('value')
    if speaker == 'function_call':
        calls = _json(_text(value, f'{place}.value'), f'{place}.value')
        # One call may stand without a list.
        calls = calls if isinstance(calls, list) else [calls]
        return {'role': 'assistant', 'content': '', 'tool_calls': [{'function': call} for call in calls]}
    if not isinstance(speaker, str) or speaker not in _ROLES:
        speakers = ', '.join([*_ROLES, 'function_call'])
        raise ValueError(f'{place}: from={_short(speaker)} is unknown; use one of {speakers}')
    others = {key: value for key, value in message.items() if key not in ('from', 'value')}
    return {**others, 'role': _ROLES[speaker], 'content': value}


def _joined(parts: list[Any], place: str) -> str:
    """The joined text of a content's parts. Raises ValueError where a part is no text."""
    for i, part in enumerate(parts):
        kind = part.get('type') if isinstance(part, dict) else type(part).__name__
        if kind != 'text':
            raise ValueError(f'{place}.content[{i}] is of type {_short(kind)}, which is not supported; only text is')
        marks.check_part(part, f'{place}.content[{i}]')
        _text(part.get('text'), f'{place}.content[{i}].text')
    return ''.join(part['text'] for part in parts)


def _calls(calls: Any, place: str) -> list[Message]:
    """The tool calls of a message as chat templates read them."""
    read = []
    for i, call in enumerate(calls if isinstance(calls, list) else [calls]):
        where = f'{place}.tool_calls[{i}]'
        function = call.get('function', call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get('name'), str):
            raise ValueError(f'{where} must have a function with its name, got {_short(call)}')
        arguments = function.get('arguments', {})
        # OpenAI has the arguments as JSON in a text, and templates read an object.
        if isinstance(arguments, str):
            arguments = _json(arguments or '{}', f'{where}.function.arguments')
            arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise ValueError(f'{where}.function.arguments must be an object, got {_short(arguments)}')
        fields = call if 'function' in call else {}
        read.append({'type': 'function'} | fields | {'function': {**function, 'arguments': arguments}})
    return read


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{place!r} must be a text, got {_short(value)}')
    return value


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    # Python raises RecursionError where lists or objects lie too deep in each other.
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place} is no JSON ({error}), got {_short(text)}') from None


def _short(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def system_of(prompt: TextOrMessages | None) -> str:
    """The system prompt that messages begin with; '' where there is none."""
    first = prompt[0] if isinstance(prompt, list) and prompt else {'role': '', 'content': ''}
    return str(first['content']) if first['role'] == 'system' else ''
