"""OpenAI's Responses API with texts alone: its requests, and its answers whole and as events.

Nothing is stored, so a conversation is sent whole, as `input`. What this server lacks (tools, images, reasoning, stored
responses) is refused by name, unless its value asks for nothing. `stop`, `seed`, `top_k` and `mixture` are those of
the other routes.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.requests import ALTERNATIVES
from pal_jax.decode.serve.openai_api import (
    AnswerStream,
    ChatForm,
    Limit,
    Nothing,
    Row,
    SamplingOptions,
    StrictRecord,
    Text,
    TextFormat,
    usage_of,
)
from pal_jax.types import FinishReason

LOGPROBS = 'message.output_text.logprobs'
INCOMPLETE = {'length': 'max_output_tokens', 'aborted': 'max_output_tokens', 'content_filter': 'content_filter'}


class InputPart(StrictRecord):
    """A text within the content of a message, as a caller or an answer has it."""

    type: Literal['input_text', 'output_text']
    text: Text
    logprobs: list[Any] = Field([])
    # Only values that ask for nothing:
    annotations: Nothing = Field([])
    parsed: None = None
    prompt_cache_breakpoint: None = None


class InputMessage(StrictRecord):
    """A message of a conversation. `id` and `status` are of an answer that is sent back, and change nothing."""

    type: Literal['message'] = 'message'
    role: Literal['system', 'developer', 'user', 'assistant']
    content: Text | Annotated[list[InputPart], Field(min_length=1)]
    id: str | None = None
    status: Literal['completed', 'incomplete'] | None = None
    phase: Literal['final_answer'] | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates read it, with its content as one text."""
        role = 'system' if self.role == 'developer' else self.role
        content = self.content if isinstance(self.content, str) else ''.join(part.text for part in self.content)
        return {'role': role, 'content': content}


class TextConfig(StrictRecord):
    """The form of an answer's text."""

    format: TextFormat | None = None
    verbosity: Literal['medium'] = 'medium'


class Reasoning(StrictRecord):
    """The settings of reasoning, which this server has not."""

    effort: Literal['none'] = 'none'
    summary: None = None
    generate_summary: None = None


class NoObfuscation(StrictRecord):
    """The options of a streamed response."""

    include_obfuscation: Literal[False] = False


class ResponseRequest(SamplingOptions):
    """A request for a response to a text or to messages."""

    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    max_output_tokens: Limit | None = None
    include: Annotated[list[Literal['message.output_text.logprobs']], Field(max_length=1)] = Field([])
    top_logprobs: int = Field(0, ge=0, le=ALTERNATIVES)
    text: TextConfig = TextConfig()
    # Keys for OpenAI's own records and caches, which change no answer:
    metadata: Annotated[dict[str, str], Field(max_length=16)] = Field({})
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Only values that ask for nothing, or for the default behaviour:
    access_programs: None = None
    background: Literal[False] = False
    background_options: None = None
    context_management: Nothing = Field([])
    conversation: None = None
    image: None = None
    max_tool_calls: None = None
    moderation: None = None
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    prompt: None = None
    prompt_cache_options: Annotated[dict[str, Any], Field(max_length=0)] = Field({})
    prompt_cache_retention: Literal['in_memory'] = 'in_memory'
    reasoning: Reasoning = Reasoning()
    service_tier: Literal['auto', 'default'] = 'auto'
    store: Literal[False] = False
    stream_options: NoObfuscation = NoObfuscation()
    tool_choice: Literal['none', 'auto'] = 'none'
    tools: Nothing = Field([])
    truncation: Literal['disabled'] = 'disabled'

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates read it, with the instructions as its first system message."""
        said = [{'role': 'user', 'content': self.input}] if isinstance(self.input, str) else None
        said = said or [message.plain() for message in self.input if isinstance(message, InputMessage)]
        return [{'role': 'system', 'content': self.instructions}, *said] if self.instructions else said


class ResponseForm(ChatForm):
    """The form of a response, which has one choice: the message of its output."""

    kind = chunk = 'response'
    asks = 'input'
    done = ''

    def __init__(self, model: str, tokenizer: Tokenizer, body: ResponseRequest):
        # Either key asks for log-probs.
        with_logprobs = LOGPROBS in body.include or body.top_logprobs > 0
        super().__init__(f'resp_{uuid.uuid4().hex}', model, tokenizer, with_logprobs, body.top_logprobs)
        self._body, self._message, self._numbers = body, f'msg_{uuid.uuid4().hex}', itertools.count()

    def whole(self, choices: Sequence[AnswerStream], ended: Sequence[FinishReason], prompt: int) -> dict[str, Any]:
        (choice,), (end,) = choices, ended
        counts = usage_of(prompt, choices)
        usage = {
            'input_tokens': prompt,
            'input_tokens_details': {'cached_tokens': 0, 'cache_write_tokens': 0},
            'output_tokens': counts['completion_tokens'],
            'output_tokens_details': {'reasoning_tokens': 0},
            'total_tokens': counts['total_tokens'],
        }
        # Only an answer that came to its own end is complete.
        reason = INCOMPLETE.get(end)
        return self._response(
            'incomplete' if reason else 'completed',
            completed_at=time.time(),
            incomplete_details={'reason': reason} if reason else None,
            output=[self._output(choice, end)],
            usage=usage,
            stop_reason=choice.stop_reason,
            system_fingerprint=self.head(choice.versions)['system_fingerprint'],
        )

    def piece(
        self,
        index: int,
        choice: AnswerStream,
        rows: Sequence[Row],
        text: str,
        ended: FinishReason | None,
        *,
        first: bool,
    ) -> dict[str, Any]:
        logprobs = self.scores(rows)['content'] if self.logprobs else []
        return self._numbered('response.output_text.delta', **self._place(), delta=text, logprobs=logprobs)

    def opening(self) -> Sequence[dict[str, Any]]:
        message = self._message_of('in_progress', [])
        return [
            self._numbered('response.created', response=self._response('in_progress')),
            self._numbered('response.in_progress', response=self._response('in_progress')),
            self._numbered('response.output_item.added', output_index=0, item=message),
            self._numbered('response.content_part.added', **self._place(), part=_part('', [])),
        ]

    def closing(
        self, choices: Sequence[AnswerStream], ended: Sequence[FinishReason], prompt: int, usage: bool
    ) -> Sequence[dict[str, Any]]:
        # The last events repeat the text whole, as clients that skip the pieces read it.
        whole = self.whole(choices, ended, prompt)
        (message,) = whole['output']
        (part,) = message['content']
        said = {'text': part['text'], 'logprobs': part['logprobs']}
        return [
            self._numbered('response.output_text.done', **self._place(), **said),
            self._numbered('response.content_part.done', **self._place(), part=part),
            self._numbered('response.output_item.done', output_index=0, item=message),
            self._numbered(f'response.{whole["status"]}', response=whole),
        ]

    def failure(self, error: dict[str, Any]) -> dict[str, Any]:
        shown = {key: error[key] for key in ('code', 'message', 'param')}
        return self._numbered('error', **shown)

    def event(self, record: dict[str, Any]) -> str:
        return f'event: {record["type"]}\ndata: {json.dumps(record)}\n\n'

    def _numbered(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {'type': kind, 'sequence_number': next(self._numbers), **fields}

    def _place(self) -> dict[str, Any]:
        """The place of the text in the response."""
        return {'item_id': self._message, 'output_index': 0, 'content_index': 0}

    def _output(self, choice: AnswerStream, end: FinishReason) -> dict[str, Any]:
        logprobs = self.scores(choice.rows(0))['content'] if self.logprobs else []
        return self._message_of('incomplete' if end in INCOMPLETE else 'completed', [_part(choice.text, logprobs)])

    def _message_of(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {'type': 'message', 'id': self._message, 'status': status, 'role': 'assistant', 'content': content}

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        """A response with the settings that it was asked for, and with no output unless the fields have some."""
        kept = (
            'instructions', 'max_output_tokens', 'metadata', 'parallel_tool_calls', 'previous_response_id',
            'prompt_cache_key', 'safety_identifier', 'store', 'temperature', 'tool_choice', 'tools', 'top_logprobs',
            'top_p', 'truncation', 'user', 'background',
        )  # fmt: skip
        return {
            'id': self.id, 'object': 'response', 'created_at': self.created, 'status': status, 'model': self.model,
            'completed_at': None, 'error': None, 'incomplete_details': None, 'output': [], 'usage': None,
            **{name: getattr(self._body, name) for name in kept},
            'text': {'format': {'type': 'text'}, 'verbosity': self._body.text.verbosity},
            'reasoning': {'effort': None, 'summary': None}, 'service_tier': 'default', **fields,
        }  # fmt: skip


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {'type': 'output_text', 'text': text, 'annotations': [], 'logprobs': logprobs}
