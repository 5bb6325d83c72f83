"""Chat models behind an OpenAI-compatible server: many requests at once, each answered once and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import openai

from pal_jax.data.thoughts import closes, spoken_reply
from pal_jax.run import stores
from pal_jax.run.credentials import secret
from pal_jax.types import Chat

_ADAPTATIONS = {'max_tokens': 'max_completion_tokens', 'temperature': ''}  # of settings that servers refuse
_ONE_TEMPERATURE = re.compile(r'\btemperature\b.*not support|unsupported.*\btemperature\b', re.IGNORECASE | re.DOTALL)
_UNFINISHED = 'a thought without an answer; raise max_tokens of the endpoint'

FATAL = openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError


@dataclasses.dataclass
class Usage:
    """Counts of requests so far.

    `cost` is in the currency of the prices. `unkept` counts faults of the cache, whose only cost is an answer asked
    again. `adapted` counts settings that the server takes by another name or not at all.
    """

    requests: int = 0
    cached: int = 0
    unkept: int = 0
    adapted: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Reply(NamedTuple):
    """The answer to a request; without a text there is an error."""

    text: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ''
    cut: bool = False  # the answer was cut at the limit of tokens


class Endpoint:
    """A `ChatModel` of a server. Its key is read from the environment and is never written anywhere.

    The client tries again after connection errors, time-outs, 408, 409, 429 and 5xx, waiting longer each time with some
    jitter, and as the server asks for it. A request that still fails, or gets an empty answer, has no answer; a wrong
    key, model or address ends the run.

    Args:
      name: the name that errors have.
      key_env: the environment variable with the key; '' for a server that wants none.
      concurrency: requests under way at once.
      timeout: seconds of one attempt.
      prices: the prices of a million tokens of prompts and of completions.
      cache: an SQLite file of answers by their whole request.
    Raises:
      ValueError: no address or model, an address that is none, or the variable is not set or holds what no header can
        carry.
    """

    def __init__(
        self, name: str, *, address: str, model: str, key_env: str = '', temperature: float = 1.0,
        max_tokens: int = 512, concurrency: int = 64, timeout: float = 60.0, retries: int = 5,
        prices: tuple[float, float] = (0.0, 0.0), cache: Path | None = None,
    ):  # fmt: skip
        if not address or not model:
            raise ValueError(
                f'endpoint {name!r} has address={address!r} and model={model!r}; give both, as in '
                f'--config.endpoints.{name}.address=http://127.0.0.1:8000/v1 --config.endpoints.{name}.model=...'
            )
        if not _is_url(address):
            raise ValueError(
                f'endpoint {name!r} has address={address!r}, which is no address of a server; give scheme, host and '
                'port, as http://127.0.0.1:8000/v1'
            )
        key = secret(key_env) if key_env else 'none'
        if not key:
            raise ValueError(f'endpoint {name!r} takes its key from {key_env}, which is not set')
        self.name, self.usage, self.last_error = name, Usage(), ''
        self._address, self._prices = address, prices
        self._settings = {'model': model, 'temperature': temperature, 'max_tokens': max_tokens}
        self.concurrency = concurrency
        self._pool, self._lock = ThreadPoolExecutor(concurrency), threading.Lock()
        self._waiting: dict[str, Future[Reply]] = {}  # asked early, for the call that will ask the same
        # Settings that the server refuses, and what is sent in their place.
        self._adaptations: dict[str, str] = {}
        # The server's template begins a thought.
        self._opens = False
        self._client = openai.OpenAI(base_url=address, api_key=key, timeout=timeout, max_retries=retries)
        self._answers = AnswerCache(cache) if cache else None

    def __call__(self, chats: Sequence[Chat], seed: int) -> list[str | None]:
        """Answers in the order of the chats; None where none could be had. Equal chats are asked once.

        Raises:
          RuntimeError: the server refuses us: a wrong key, model or address.
        """
        return self._answer(chats, seed, early=False)

    def early(self, chats: Sequence[Chat], seed: int) -> list[str | None]:
        """Answers to questions that will be asked again soon, for a caller in a thread of its own."""
        return self._answer(chats, seed, early=True)

    def _answer(self, chats: Sequence[Chat], seed: int, *, early: bool) -> list[str | None]:
        requests = [self._settings | {'messages': list(chat), 'seed': seed} for chat in chats]
        keys = [_digest({'address': self._address} | request) for request in requests]
        answers: dict[str, str | None] = {}
        under_way: dict[Future[Reply], str] = {}
        cut: dict[str, Reply] = {}
        with self._lock:
            for key, request in dict(zip(keys, requests, strict=True)).items():
                # A question that waits is taken by the first call that is not early.
                waiting = self._waiting.get(key) if early else self._waiting.pop(key, None)
                known = self._known(key) if waiting is None else None
                if known is not None:
                    answers[key] = known
                    self.usage.cached += not early
                else:
                    future = waiting or self._pool.submit(self._ask, key, request)
                    under_way[future] = key
                    # The result, also if it is none, waits for the call that asks the same. So both together ask once,
                    # and `usage` counts one request.
                    if early:
                        self._waiting[key] = future
        try:
            for future in as_completed(under_way):
                reply, key = future.result(), under_way[future]
                answers[key] = reply.text or None
                if reply.cut:
                    cut[key] = reply
            # Now that all answers have been read, it is known whether the server begins thoughts.
            for key, reply in cut.items():
                answers[key] = self._keep(key, reply) or None
        finally:
            # Where a request has failed, nobody waits for the others; early ones stay for the call that asks the same.
            for future in () if early else under_way:
                future.cancel()
        return [answers[key] for key in keys]

    def _ask(self, key: str, request: Mapping[str, Any]) -> Reply:
        reply = self._request(request)
        with self._lock:
            self._account(reply)
            # A reply that was cut is kept only when all replies have been read, see `_keep`.
            if not reply.cut:
                self._put(key, reply)
        return reply

    def _keep(self, key: str, reply: Reply) -> str | None:
        """Keep a reply that was cut and return its text; None where it is a thought that the template began."""
        if self._opens:
            self.last_error = _UNFINISHED
            return None
        with self._lock:
            self._put(key, reply)
        return reply.text

    def _put(self, key: str, reply: Reply) -> None:
        if reply.text and self._answers:
            self._of_cache(self._answers.put, key, reply.text)

    def _known(self, key: str) -> str | None:
        return self._of_cache(self._answers.get, key) if self._answers else None

    def _of_cache(self, call: Callable[..., str | None], *args: str) -> str | None:
        """The result of a call to the cache; None where its file is locked, full or damaged."""
        try:
            return call(*args)
        except sqlite3.Error as error:
            self.usage.unkept += 1
            self.last_error = f'the cache of answers: {error}'
            return None

    def _request(self, request: Mapping[str, Any]) -> Reply:
        try:
            answer = self._create(request)
            choice, usage = answer.choices[0], answer.usage
            text, aside = _content(choice.message)
            cut = choice.finish_reason == 'length' and not aside
            # Half of a surrogate pair is a str to Python and to nobody else.
            text.encode()
            tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        except FATAL as error:
            raise RuntimeError(f'endpoint {self.name!r} at {self._address} refuses us: {error}') from error
        except (openai.OpenAIError, ValueError, LookupError, AttributeError, TypeError) as error:
            # The last four mean that the answer does not follow the protocol.
            return Reply(error=f'{type(error).__name__}: {error}'.splitlines()[0])
        # A server whose template begins thoughts is known by an answer that ends one; once it is known, an answer that
        # was cut and ends no thought is none.
        self._opens |= closes(text)
        # The thoughts of a reasoning model are left out of its answer, and a thought that does not end is no answer.
        plain = spoken_reply(text)
        if plain is None or (aside and not plain.strip()):
            return Reply(None, *tokens, error=_UNFINISHED)
        return Reply(plain, *tokens, error='' if plain else 'an empty answer', cut=cut and plain == text)

    def _create(self, request: Mapping[str, Any]) -> Any:
        """The server's answer."""
        while True:
            sent = self._adapted(request)
            try:
                return self._client.chat.completions.create(**sent)
            except openai.BadRequestError as error:
                # A server that refuses `max_tokens` and names `max_completion_tokens` is sent the latter from then on,
                # and a server with a single temperature is sent none; `usage.adapted` counts such settings.
                refused = _refused(error)
                if refused not in sent:
                    raise
                # A setting that the server refuses is sent in another form, now and in all later requests.
                with self._lock:
                    self._adaptations[refused] = _ADAPTATIONS[refused]
                    self.usage.adapted = len(self._adaptations)

    def _adapted(self, request: Mapping[str, Any]) -> dict[str, Any]:
        named = {self._adaptations.get(name, name): value for name, value in request.items()}
        return {name: value for name, value in named.items() if name}

    def _account(self, reply: Reply) -> None:
        usage, (prompt_price, completion_price) = self.usage, self._prices
        usage.requests += 1
        usage.failed += not reply.text
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        usage.cost += (reply.prompt_tokens * prompt_price + reply.completion_tokens * completion_price) / 1e6
        self.last_error = reply.error or self.last_error


class AnswerCache:
    """Answers on disk by the digest of their request; a kill loses no answer that was put."""

    def __init__(self, path: Path):
        stores.check_local(path, 'answers')
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes may share the file, and wait for each other.
        self._table = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._table.execute('create table if not exists answers (request text primary key, answer text not null)')

    def get(self, request: str) -> str | None:
        row = self._table.execute('select answer from answers where request = ?', (request,)).fetchone()
        return row[0] if row else None

    def put(self, request: str, answer: str) -> None:
        self._table.execute('insert or replace into answers values (?, ?)', (request, answer))


def _is_url(address: str) -> bool:
    """True where an address names a server: a scheme, a host, and a port of 1 to 65535 or none."""
    try:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _content(message: Any) -> tuple[str, bool]:
    """The text of a message, which may be in parts, and whether the server has kept a thought apart from it."""
    content, parts = message.content, message.content if isinstance(message.content, list) else []
    texts = [part['text'] for part in parts if part.get('type') == 'text']
    aside = getattr(message, 'reasoning_content', None) or getattr(message, 'reasoning', None)
    return ''.join(texts) if parts else content or '', bool(aside) or len(texts) < len(parts)


def _refused(error: openai.BadRequestError) -> str | None:
    """The setting that a server wants in another form."""
    reason = f'{error.message} {error.body}'
    if 'max_completion_tokens' in reason:
        return 'max_tokens'
    return 'temperature' if _ONE_TEMPERATURE.search(reason) else None


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
