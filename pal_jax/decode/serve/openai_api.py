"""OpenAI's requests and answers as records: the accepted parameters, and the JSON of answers.

Every parameter of OpenAI's API is handled. Parameters that this server lacks (tools, images, penalties) are refused by
name, not ignored, unless their value asks for nothing. null stands for a parameter that is left out. Text ends before a
stop string, and the tokens that made the string are counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.requests import ALTERNATIVES, CONTEXT, Alternatives, PromptLogprobs, RequestProgress
from pal_jax.types import FinishReason

MAX_CHOICES = 128
MAX_PROMPTS = 2048
HALF = '\ufffd'  # stands in decoded text for a character that is not complete yet


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python allows half of a surrogate pair in a str
        raise ValueError(f'half of a surrogate pair, {ascii(text[error.start])[1:-1]}, is no character') from None
    return text


def _nullable(schema: dict[str, Any]) -> None:
    """Change a schema so that null is allowed for every optional key."""
    for name, entry in schema.get('properties', {}).items():
        kinds = [kind.get('type') for kind in (entry, *entry.get('anyOf', ()))]
        if name not in schema.get('required', ()) and 'null' not in kinds:
            schema['properties'][name] = {'anyOf': [entry, {'type': 'null'}]}


Text = Annotated[str, AfterValidator(_encodable)]
Word = Annotated[Text, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1)]
# The description of the API has bounds as floats, and this is the last one below 2**63.
SEEDS = {'type': 'integer', 'minimum': -(2**63), 'maximum': 2**63 - 1024}
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), WithJsonSchema(SEEDS)]
Limit = Annotated[int, Field(ge=1, le=1 << 20)]
Nothing = Annotated[list[Any], Field(max_length=0)]  # a list that asks for nothing


class StrictRecord(BaseModel):
    """A record that a caller sends. Other keys are refused, and null stands for the default of a key."""

    model_config = ConfigDict(extra='forbid', allow_inf_nan=False, json_schema_extra=_nullable)

    @model_validator(mode='before')
    @classmethod
    def _without_nulls(cls, record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in record.items() if value is not None or key not in optional}


class SamplingOptions(StrictRecord):
    """The options of sampling, which every kind of request shares. Those that OpenAI lacks are other servers'."""

    model: str = ''
    temperature: float = Field(1.0, ge=0.0, le=100.0)
    top_p: float = Field(1.0, ge=0.0, le=1.0)
    top_k: int = Field(0, ge=-1, le=1 << 20)  # 0 and -1 keep all tokens
    seed: Seed | None = None
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None
    stream: bool = False
    user: str | None = None
    mixture: Annotated[list[float], Field(max_length=1024)] | None = None  # weights of a soup's adapters
    # Only values that ask for nothing:
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    repetition_penalty: Literal[1] = 1
    min_p: Literal[0] = 0
    typical_p: Literal[1] = 1
    min_tokens: Literal[0] = 0
    length_penalty: Literal[1] = 1
    use_beam_search: Literal[False] = False
    ignore_eos: Literal[False] = False
    stop_token_ids: Nothing = Field([])
    skip_special_tokens: Literal[True] = True
    include_stop_str_in_output: Literal[False] = False
    logit_bias: dict[str, Literal[0]] = {}

    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class StreamOptions(StrictRecord):
    """The options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Options(SamplingOptions):
    """The options that both kinds of completion share, under OpenAI's names."""

    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream_options: StreamOptions = StreamOptions()


class TextPart(StrictRecord):
    """A text within the content of a message."""

    type: Literal['text']
    text: Text
    prompt_cache_breakpoint: None = None


class ChatMessage(StrictRecord):
    """A message of a chat."""

    role: Literal['system', 'developer', 'user', 'assistant']
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None
    # Keys that an answer has beside its text, for answers that are sent back:
    refusal: None = None
    parsed: None = None
    reasoning_content: None = None
    annotations: Nothing = []
    audio: None = None
    tool_calls: Nothing = []
    function_call: None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates read it, with its content as one text."""
        role = 'system' if self.role == 'developer' else self.role
        content = self.content if isinstance(self.content, str) else ''.join(part.text for part in self.content)
        return {'role': role, 'content': content} | ({'name': self.name} if self.name else {})


class TextFormat(StrictRecord):
    """The response format of plain text, the only one."""

    type: Literal['text']


class ChatRequest(Options):
    """A request for completions of a chat."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=ALTERNATIVES)
    # Keys for OpenAI's own records and caches, which change no answer:
    metadata: Annotated[dict[str, str], Field(max_length=16)] = {}
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Only values that ask for nothing, or for the default behaviour:
    audio: None = None
    function_call: Literal['none', 'auto'] = 'none'
    functions: Nothing = []
    modalities: Annotated[list[Literal['text']], Field(min_length=1)] = ['text']
    moderation: None = None
    parallel_tool_calls: bool = True
    prediction: None = None
    prompt_cache_options: Annotated[dict[str, Any], Field(max_length=0)] = {}
    prompt_cache_retention: Literal['in_memory'] = 'in_memory'
    reasoning_effort: Literal['none'] = 'none'
    response_format: TextFormat | None = None
    service_tier: Literal['auto', 'default'] = 'auto'
    store: Literal[False] = False
    tool_choice: Literal['none', 'auto'] = 'none'
    tools: Nothing = []
    verbosity: Literal['medium'] = 'medium'
    web_search_options: None = None


class TextRequest(Options):
    """A request for completions of texts. `prompt` is required, and is null to begin a document."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Tokens
        | (Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)] | None)
    )
    max_tokens: int | None = Field(None, ge=0, le=1 << 20)
    logprobs: int | None = Field(None, ge=0, le=ALTERNATIVES)
    echo: bool = False
    # Only values that ask for nothing:
    best_of: Literal[1] = 1
    suffix: Literal[''] = ''

    def prompts(self) -> list[str | list[int] | None]:
        """The prompts as a list, in order."""
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return list(self.prompt)  # type: ignore[arg-type]
        return [self.prompt]  # type: ignore[list-item]


class Row(NamedTuple):
    """A token in the log-probs of an answer: its bytes, its offset in the text, its log-prob and its alternatives.

    The first token of a prompt has no log-prob and no alternatives.
    """

    raw: bytes
    offset: int
    logprob: float | None
    others: tuple[tuple[bytes, float], ...] = ()


class Echo(NamedTuple):
    """A prompt as an answer repeats it. `rows` are its tokens where log-probs are asked for."""

    text: str
    rows: Sequence[Row] = ()
    version: int | None = None


def echo_of(
    tokenizer: Tokenizer, prompt: str | Sequence[int] | None, ids: Sequence[int], scored: PromptLogprobs | None
) -> Echo:
    """The prompt as the caller sent it. Token ids are decoded with their special tokens, except the opening."""
    prompt_text = prompt if isinstance(prompt, str) else '' if prompt is None else None
    if prompt_text is not None and scored is None:
        return Echo(prompt_text)
    opened = len(tokenizer.opening) if list(ids[: len(tokenizer.opening)]) == tokenizer.opening else 0
    choice = AnswerStream(tokenizer, (), decode=tokenizer.decode)
    choice.take(RequestProgress(0, tuple(ids[opened:]), (), None))
    text = choice.text if prompt_text is None else prompt_text
    if scored is None:
        return Echo(text)
    spelled = [(tokenizer.bytes_of(token), 0) for token in ids[:opened]]
    spelled += [(raw, min(at, len(text))) for raw, at in zip(choice.bytes, choice.offsets, strict=True)]
    rows = [
        Row(raw, at, logprob, choice.spell(others, False))
        for (raw, at), logprob, others in zip(spelled, scored.logprobs, scored.alternatives, strict=True)
    ]
    return Echo(text, rows, scored.version)


class AnswerStream:
    """The text of one answer as its tokens come in, up to the first stop string.

    Text that is not certain is held back until the next token.

    `offsets` are the places in the text where tokens begin; tokens that share a character begin with it. `versions` are
    those of the weights that sampled the tokens.

    Args:
      before: tokens that the text continues. The text then begins with the space of its first word.
      decode: turns tokens into text, by default without special tokens.
      echo: the prompt, where the answer repeats it.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], *, before: Sequence[int] = (),
        decode: Callable[[Sequence[int]], str] | None = None, echo: Echo | None = None,
    ):  # fmt: skip
        self._tokenizer, self._stops, self._decode = tokenizer, stops, decode or tokenizer.text_of
        self._context = list(before)[-CONTEXT:]  # before the first settled text
        self._before, self._open = 0, 0  # the first token of the last settled text, and the index after its last
        self.echo = echo
        self._settled, self._tail, self._told = '', '', 0
        self._over = False
        self.stop_reason: str | None = None  # the stop string that ended the text
        self.tokens: list[int] = []
        self.bytes: list[bytes] = []
        self.logprobs: list[float] = []
        self.others: list[tuple[tuple[bytes, float], ...]] = []
        self.offsets: list[int] = []
        self.versions: set[int] = {echo.version} if echo and echo.version is not None else set()
        self.text = ''

    def take(self, progress: RequestProgress) -> None:
        """Add the tokens of a progress, and the refusal where the progress is one."""
        searched = len(self._settled)
        alternatives: Sequence[Alternatives] = progress.alternatives or ((),) * len(progress.tokens)
        for token, others in zip(progress.tokens, alternatives, strict=True):
            bare = self._add(token)
            self.others.append(self.spell(others, bare))
            self.versions.add(progress.version)
        self.logprobs += progress.logprobs
        if not self._over:
            self._cut(self._settled + self._tail, searched)
        if progress.completion is not None and progress.completion.finish_reason == 'content_filter':
            self.text = progress.completion.text  # the refusal, which was not sampled

    def _cut(self, text: str, searched: int) -> None:
        """End the text before the first stop string in it. No stop string ends before `searched`."""
        ends = [(text.find(stop, max(searched - len(stop) + 1, 0)), stop) for stop in self._stops]
        at, self.stop_reason = min((end for end in ends if end[0] >= 0), default=(len(text), None))
        self.text = text[:at]
        self._over = self.stop_reason is not None and at + len(self.stop_reason) <= len(self._settled)

    def _add(self, token: int) -> bool:
        """Add a token. The result is True where the tokenizer drops the token's space, as before the first word."""
        self.offsets.append(len(self._settled) + len(self._tail.rstrip(HALF)))
        self.tokens.append(token)
        first = not self._settled and not self._tail
        # A token is decoded with the last tokens that made text, since some tokenizers drop the space before a first
        # word.
        decoded = self._decode(self._context + self.tokens[self._before : self._open])
        self._tail = self._decode(self._context + self.tokens[self._before :])[len(decoded) :]
        raw = self._tokenizer.bytes_of(token)
        bare = first and raw.startswith(b' ') and not self._tail.startswith(' ')
        self.bytes.append(raw[bare:])
        if self._tail and not self._tail.endswith(HALF):
            self._settled, self._tail = self._settled + self._tail, ''
            self._before, self._open = self._open, len(self.tokens)
            self._context = self._context if not self._before else []
        return bare

    def spell(self, others: Alternatives, bare: bool) -> tuple[tuple[bytes, float], ...]:
        """The alternatives as bytes, without their first space where the sampled token is `bare`, without its space."""
        spelled = ((self._tokenizer.bytes_of(token), logprob) for token, logprob in others)
        return tuple((raw.removeprefix(b' ') if bare else raw, logprob) for raw, logprob in spelled)

    def rows(self, at: int) -> list[Row]:
        """The rows of the tokens from `at` on, with offsets in the text with its echo."""
        start = len(self.echo.text) if self.echo else 0
        columns = self.bytes[at:], self.offsets[at:], self.logprobs[at:], self.others[at:]
        fields = zip(*columns, strict=True)
        return [Row(raw, start + offset, logprob, others) for raw, offset, logprob, others in fields]

    def news(self, ended: bool) -> str:
        """The text that is certain by now and was not returned before."""
        sure = len(self.text) if ended else self._sure()
        start, self._told = self._told, max(sure, self._told)
        return self.text[start : self._told]

    def _sure(self) -> int:
        # Text that may be the beginning of a stop string, or a part of a character, is held back until the next token.
        certain = len(self.text.rstrip(HALF))
        for stop in self._stops:
            for size in range(len(stop) - 1, 0, -1):
                if self.text.endswith(stop[:size]):
                    certain = min(certain, len(self.text) - size)
                    break
        return certain


def word_of(raw: bytes) -> str:
    """A token as a text. Bytes that are no text by themselves are written as OpenAI writes them."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in raw)


class Form:
    """The form of an answer's JSON: its id and model, and whether it has log-probs and how many alternatives."""

    kind = chunk = ''
    asks = 'messages'  # the key of a request that has its prompt
    done = 'data: [DONE]\n\n'  # ends a stream
    continues = False  # True where an answer goes on with the text of its prompt

    def __init__(self, id: str, model: str, tokenizer: Tokenizer, logprobs: bool, alternatives: int = 0):
        self.id, self.model, self.tokenizer, self.logprobs = id, model, tokenizer, logprobs
        self.alternatives, self.created = alternatives, int(time.time())

    def head(self, versions: Iterable[int], whole: bool = False) -> dict[str, Any]:
        """The keys that all answers begin with.

        OpenAI's `system_fingerprint` names the version of the weights: `weights-7`, or `weights-7+8` where they changed
        during the answer.
        """
        kind, version_text = self.kind if whole else self.chunk, '+'.join(map(str, sorted(versions)))
        prints = f'weights-{version_text}' if version_text else None
        return {
            'id': self.id, 'object': kind, 'created': self.created, 'model': self.model, 'system_fingerprint': prints,
        }  # fmt: skip

    def whole(self, choices: Sequence[AnswerStream], ended: Sequence[FinishReason], prompt: int) -> dict[str, Any]:
        """The whole answer, with `prompt` tokens of prompts in its usage."""
        listed = [
            {'index': i, **self.content((choice.echo.text if choice.echo else '') + choice.text)}
            | self._entry(choice, [*choice.echo.rows, *choice.rows(0)] if choice.echo else choice.rows(0), end)
            for i, (choice, end) in enumerate(zip(choices, ended, strict=True))
        ]
        return self.head(_versions(choices), whole=True) | {'choices': listed, 'usage': usage_of(prompt, choices)}

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
        """One event of a streamed answer: a text of one choice, its `first` or a later one, and the rows of its tokens.

        A client puts the texts of a choice together, and so it does with all else that an event says of it.
        """
        entry = {'index': index, **self.delta(text, first)} | self._entry(choice, rows, ended)
        return self.head(choice.versions) | {'choices': [entry]}

    def opening(self) -> Sequence[dict[str, Any]]:
        """The events before the first piece."""
        return ()

    def closing(
        self, choices: Sequence[AnswerStream], ended: Sequence[FinishReason], prompt: int, usage: bool
    ) -> Sequence[dict[str, Any]]:
        """The events after the last piece: the counts of tokens, where the caller wants these."""
        return [self.head(_versions(choices)) | {'choices': [], 'usage': usage_of(prompt, choices)}] if usage else ()

    def failure(self, error: dict[str, Any]) -> dict[str, Any]:
        """The event that ends a stream with OpenAI's error JSON."""
        return {'error': error}

    def event(self, record: dict[str, Any]) -> str:
        """An event as the server sends it."""
        return f'data: {json.dumps(record)}\n\n'

    def _entry(self, choice: AnswerStream, rows: Sequence[Row], ended: FinishReason | None) -> dict[str, Any]:
        scores = self.scores(rows) if self.logprobs else None
        reason = 'length' if ended == 'aborted' else ended  # OpenAI has no word for an answer that was aborted
        # OpenAI's API lacks the stop string.
        return {'logprobs': scores, 'finish_reason': reason, 'stop_reason': choice.stop_reason}

    def content(self, text: str) -> dict[str, Any]:
        """The keys of a choice that have its whole text."""
        raise NotImplementedError

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        """The keys of a choice that have a piece of its text."""
        return self.content(text)

    def scores(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The log-probs of a choice's tokens in the API's form."""
        raise NotImplementedError


class ChatForm(Form):
    """The form of answers to chats."""

    kind, chunk = 'chat.completion', 'chat.completion.chunk'

    def content(self, text: str) -> dict[str, Any]:
        return {'message': {'role': 'assistant', 'content': text, 'refusal': None}}

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        return {'delta': {'role': 'assistant', 'content': text} if first else {'content': text}}

    def scores(self, rows: Sequence[Row]) -> dict[str, Any]:
        def entry(raw: bytes, logprob: float | None) -> dict[str, Any]:
            return {'token': word_of(raw), 'logprob': logprob, 'bytes': list(raw)}

        listed = [
            entry(row.raw, row.logprob)
            | {'top_logprobs': [entry(*alternative) for alternative in row.others[: self.alternatives]]}
            for row in rows
        ]
        return {'content': listed, 'refusal': None}


class TextForm(Form):
    """The form of answers to texts."""

    kind = chunk = 'text_completion'
    asks = 'prompt'
    continues = True

    def content(self, text: str) -> dict[str, Any]:
        return {'text': text}

    def scores(self, rows: Sequence[Row]) -> dict[str, Any]:
        def likeliest(row: Row) -> dict[str, float] | None:
            """The alternatives of a token, with the token itself where it is none of them."""
            if row.logprob is None:
                return None
            listed: dict[str, float] = {}
            for raw, logprob in (*row.others[: self.alternatives], (row.raw, row.logprob)):
                listed.setdefault(word_of(raw), logprob)
            return listed

        return {
            'tokens': [word_of(row.raw) for row in rows],
            'token_logprobs': [row.logprob for row in rows],
            'top_logprobs': [likeliest(row) for row in rows] if self.alternatives else None,
            'text_offset': [row.offset for row in rows],
        }


def _versions(choices: Sequence[AnswerStream]) -> set[int]:
    return set().union(*(choice.versions for choice in choices))


def usage_of(prompt: int, choices: Sequence[AnswerStream]) -> dict[str, int]:
    """The counts of tokens in an answer."""
    sampled = sum(len(choice.tokens) for choice in choices)
    return {'prompt_tokens': prompt, 'completion_tokens': sampled, 'total_tokens': prompt + sampled}
