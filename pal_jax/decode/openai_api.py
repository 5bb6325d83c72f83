"""OpenAI's requests and answers as records: what is accepted, and the JSON that is told.

What OpenAI's API has and this one has not (tools, images, penalties, top_logprobs) is refused, not ignored. Text ends
before a stop string; the tokens that made it are counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.requests import Progress
from pal_jax.types import FinishReason

MAX_CHOICES = 64
HALF = '\ufffd'  # what a decoder shows where the rest of a character is still to come


def _encodable(text: str) -> str:
    text.encode()  # half of a surrogate pair is a str to Python and to nobody else
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Word = Annotated[Text, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, lt=2**31)]


class Options(BaseModel):
    """What both kinds of completion share, under OpenAI's names."""

    model_config = ConfigDict(extra='forbid')

    model: str = ''
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    temperature: float = Field(1.0, ge=0.0, le=100.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, le=1 << 20)  # not OpenAI's, but every other server's
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: dict[Literal['include_usage'], bool] | None = None
    user: str | None = None
    mixture: Annotated[list[float], Field(max_length=1024)] | None = None  # weights of a soup's adapters
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Part(BaseModel):
    type: Literal['text']
    text: Text


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra='forbid')

    role: Literal['system', 'developer', 'user', 'assistant']
    content: Text | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        role = 'system' if self.role == 'developer' else self.role
        content = self.content if isinstance(self.content, str) else ''.join(part.text for part in self.content)
        return {'role': role, 'content': content}


class ChatRequest(Options):
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None


class TextRequest(Options):
    prompt: Text | Annotated[list[Token], Field(min_length=1)]
    logprobs: Literal[0] | None = None
    echo: Literal[False] = False
    best_of: Literal[1] | None = None


class Choice:
    """The text of one answer as its tokens come in, up to the first stop string.

    A token is decoded once, behind the last ones that made text: some tokenizers drop the space before a first word.
    What could still become a stop string, or half of a character, is held back until the next token tells.

    `offsets`: where in the text each token begins; tokens that share a character begin with it. `versions`: of the
    weights the tokens were made with.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, stops
        self._before, self._open = 0, 0  # where the tokens of the last settled text begin and end
        self._settled, self._tail, self._told = '', '', 0
        self._over = False
        self.stop_reason: str | None = None  # the stop string that ended the text
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.offsets: list[int] = []
        self.versions: set[int] = set()
        self.text = ''

    def take(self, progress: Progress) -> None:
        searched = len(self._settled)
        for token in progress.tokens:
            self._add(token)
            self.versions.add(progress.version)
        self.logprobs += progress.logprobs
        if not self._over:
            self._cut(self._settled + self._tail, searched)

    def _cut(self, text: str, searched: int) -> None:
        """Ends the text before the first stop string in it; up to `searched` none has ended."""
        found = [(text.find(stop, max(searched - len(stop) + 1, 0)), stop) for stop in self._stops]
        at, self.stop_reason = min((each for each in found if each[0] >= 0), default=(len(text), None))
        self.text = text[:at]
        self._over = self.stop_reason is not None and at + len(self.stop_reason) <= len(self._settled)

    def _add(self, token: int) -> None:
        self.offsets.append(len(self._settled) + len(self._tail.rstrip(HALF)))
        self.tokens.append(token)
        known = self._tokenizer.text_of(self.tokens[self._before : self._open])
        self._tail = self._tokenizer.text_of(self.tokens[self._before :])[len(known) :]
        if self._tail and not self._tail.endswith(HALF):
            self._settled, self._tail = self._settled + self._tail, ''
            self._before, self._open = self._open, len(self.tokens)

    def news(self, ended: bool) -> str:
        """The text that is certain and was not told before."""
        sure = len(self.text) if ended else self._sure()
        told, self._told = self._told, max(sure, self._told)
        return self.text[told : self._told]

    def _sure(self) -> int:
        whole = len(self.text.rstrip(HALF))
        for stop in self._stops:
            for size in range(len(stop) - 1, 0, -1):
                if self.text.endswith(stop[:size]):
                    whole = min(whole, len(self.text) - size)
                    break
        return whole


class Form:
    """An answer's id, its model, and whether log-probs are wanted."""

    kind = chunk = ''

    def __init__(self, id: str, model: str, tokenizer: Tokenizer, logprobs: bool):
        self.id, self.model, self.tokenizer, self.logprobs = id, model, tokenizer, logprobs
        self.created = int(time.time())

    def head(self, versions: Iterable[int], whole: bool = False) -> dict[str, Any]:
        """What all answers begin with. OpenAI's `system_fingerprint` tells of the weights: `weights-7`, or
        `weights-7+8` where they changed under the answer."""
        kind, known = self.kind if whole else self.chunk, '+'.join(map(str, sorted(versions)))
        prints = f'weights-{known}' if known else None
        return {
            'id': self.id, 'object': kind, 'created': self.created, 'model': self.model, 'system_fingerprint': prints,
        }  # fmt: skip

    def whole(self, choices: Sequence[Choice], ended: Sequence[FinishReason], prompt: int) -> dict[str, Any]:
        listed = [
            self._entry(i, choice, 0, self.content(choice.text, False), end)
            for i, (choice, end) in enumerate(zip(choices, ended, strict=True))
        ]
        return self.head(_versions(choices), whole=True) | {'choices': listed, 'usage': usage_of(prompt, choices)}

    def piece(self, index: int, choice: Choice, at: int, text: str, ended: FinishReason | None) -> dict[str, Any]:
        entry = self._entry(index, choice, at, self.content(text, True), ended)
        return self.head(choice.versions) | {'choices': [entry]}

    def last(self, choices: Sequence[Choice], prompt: int) -> dict[str, Any]:
        """The end of a stream whose caller wants the count of tokens."""
        return self.head(_versions(choices)) | {'choices': [], 'usage': usage_of(prompt, choices)}

    def _entry(
        self, index: int, choice: Choice, at: int, content: dict[str, Any], ended: FinishReason | None
    ) -> dict[str, Any]:
        words = [self.tokenizer.decode([token]) for token in choice.tokens[at:]] if self.logprobs else []
        scores = self.scores(words, choice.logprobs[at:], choice.offsets[at:]) if self.logprobs else None
        reason = 'length' if ended == 'aborted' else ended  # OpenAI has no word for an answer cut short
        entry = {'index': index, **content, 'logprobs': scores, 'finish_reason': reason}
        return entry | {'stop_reason': choice.stop_reason}  # not OpenAI's: which stop string it was, if any

    def content(self, text: str, streamed: bool) -> dict[str, Any]:
        raise NotImplementedError

    def scores(self, words: Sequence[str], logprobs: Sequence[float], offsets: Sequence[int]) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(Form):
    kind, chunk = 'chat.completion', 'chat.completion.chunk'

    def content(self, text: str, streamed: bool) -> dict[str, Any]:
        message = {'role': 'assistant', 'content': text}
        return {'delta': message} if streamed else {'message': message | {'refusal': None}}

    def scores(self, words: Sequence[str], logprobs: Sequence[float], offsets: Sequence[int]) -> dict[str, Any]:
        listed = [
            {'token': word, 'logprob': logprob, 'bytes': list(word.encode()), 'top_logprobs': []}
            for word, logprob in zip(words, logprobs, strict=True)
        ]
        return {'content': listed, 'refusal': None}


class TextForm(Form):
    kind = chunk = 'text_completion'

    def content(self, text: str, streamed: bool) -> dict[str, Any]:
        return {'text': text}

    def scores(self, words: Sequence[str], logprobs: Sequence[float], offsets: Sequence[int]) -> dict[str, Any]:
        return {'tokens': words, 'token_logprobs': logprobs, 'top_logprobs': None, 'text_offset': offsets}


def _versions(choices: Sequence[Choice]) -> set[int]:
    return set().union(*(choice.versions for choice in choices))


def usage_of(prompt: int, choices: Sequence[Choice]) -> dict[str, int]:
    sampled = sum(len(choice.tokens) for choice in choices)
    return {'prompt_tokens': prompt, 'completion_tokens': sampled, 'total_tokens': prompt + sampled}
