"""An OpenAI-compatible server over a `Driver`: completions, streamed or whole, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.driver import Busy, Closed, Driver, Ticket
from pal_jax.decode.guard import Guard, released
from pal_jax.decode.openai_api import ChatForm, ChatRequest, Choice, Form, Options, TextForm, TextRequest, echo_of
from pal_jax.decode.page import PLAIN, Preset, chat_page
from pal_jax.decode.requests import News, Progress, Scored
from pal_jax.decode.requests import Request as DecodeRequest
from pal_jax.types import Completion, FinishReason, Sampling

Asked = TypeVar('Asked')
MAX_TOKENS = 512  # tokens of an answer whose request names no limit
BODY_LIMIT = 1 << 20  # bytes
LEAST = 1e-6  # stands for a top_p of 0, with which the likeliest token is drawn


class Refusal(Exception):
    """An error that the server answers in OpenAI's error JSON."""

    def __init__(self, status: int, message: str, kind: str = 'invalid_request_error', param: str | None = None):
        super().__init__(message)
        self.status, self.error = status, {'message': message, 'type': kind, 'param': param, 'code': None}


class LimitBody:
    """ASGI middleware that refuses a body of more than `BODY_LIMIT` bytes, even where the request states no length."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        parts, size, more = [], 0, True
        while more and size <= BODY_LIMIT:
            message = await receive()
            if message['type'] != 'http.request':
                return None
            parts.append(message.get('body', b''))
            size, more = size + len(parts[-1]), message.get('more_body', False)
        if size > BODY_LIMIT:
            return await _refuse(Refusal(413, f'a request has at most {BODY_LIMIT} bytes'))(scope, receive, send)
        body = iter([{'type': 'http.request', 'body': b''.join(parts), 'more_body': False}])

        async def replay() -> Message:
            return next(body, None) or await receive()

        return await self.app(scope, replay, send)


class Metrics:
    """The metrics that Prometheus scrapes."""

    def __init__(self, driver: Driver):
        self.registry = CollectorRegistry()
        ours: dict[str, Any] = {'namespace': 'pal_jax', 'registry': self.registry}
        seconds: dict[str, Any] = ours | {'buckets': (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)}
        self.requests = Counter('requests', 'Answers by how they ended', ['ended'], **ours)
        self.judged = Counter('moderated', 'Answers that were judged, by verdict', ['verdict'], **ours)
        self.refusals = Counter('moderation_refusals', 'Refusals told in place of answers', **ours)
        self.queue = Histogram('queue_seconds', 'From arrival to a slot', **seconds)
        self.first = Histogram('first_token_seconds', 'From arrival to the first token', **seconds)
        self.between = Histogram(
            'between_tokens_seconds', 'Between the tokens of one answer, mean of a step', **seconds
        )
        counters, decoder = driver.decoder.counters, driver.decoder
        for name, about, value in (
            ('accepted_requests', 'Requests decoding or in line', lambda: driver.accepted),
            ('tokens_generated', 'Tokens sampled since the start', lambda: counters.tokens),
            ('prompt_tokens', 'Tokens prefilled since the start', lambda: counters.prompt_tokens),
            ('reused_tokens', 'Tokens of prompts found in a cache since the start', lambda: counters.reused_tokens),
            (
                'slot_occupancy',
                'Share of slot steps that made a token',
                lambda: counters.tokens / max(counters.slot_steps, 1),
            ),
            ('slots', 'Requests that decode at once', lambda: decoder.slots),
            ('weights_version', 'Version of the weights', lambda: decoder.version),
        ):
            Gauge(name, about, **ours).set_function(value)


class Service:
    """The functions of the routes."""

    def __init__(self, driver: Driver, tokenizer: Tokenizer, model: str, preset: Preset, guard: Guard | None):
        self.driver, self.tokenizer, self.model, self.preset = driver, tokenizer, model, preset
        self.guard, self.judging = guard, asyncio.Lock()
        self.created, self.metrics = int(time.time()), Metrics(driver)

    def health(self) -> dict[str, Any]:
        """The state of the server, the name of its model, and the version of the weights."""
        return {'status': 'ok', 'model': self.model, 'weights_version': self.driver.decoder.version}

    def scrape(self) -> Response:
        """The metrics in the text format of Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type='text/plain; version=0.0.4')

    def models(self) -> dict[str, Any]:
        """The list of models, which has one entry."""
        entry = {'id': self.model, 'object': 'model', 'created': self.created, 'owned_by': 'pal_jax'}
        return {'object': 'list', 'data': [entry]}

    def about_chat(self) -> dict[str, Any]:
        """The settings of the chat page."""
        return {'model': self.model} | self.preset.record()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """The completions of a chat. Raises Refusal where the server cannot meet the request."""
        messages = [message.plain() for message in body.messages]
        try:
            prompt = await asyncio.to_thread(self.tokenizer.chat, messages)
        except (jinja2.TemplateError, ValueError) as error:
            raise Refusal(400, f'the chat template refuses these messages: {error}', param='messages') from None
        with_logprobs = body.logprobs or body.top_logprobs > 0
        form = ChatForm(f'chatcmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, with_logprobs, body.top_logprobs)
        limit = body.max_completion_tokens or body.max_tokens
        requests = self._wanted(body, [prompt], limit, body.top_logprobs)
        news = (
            self._ask(requests) if self.guard is None else self._released(self.guard, messages, body.stops(), requests)
        )
        choices = [Choice(self.tokenizer, body.stops()) for _ in requests]
        return await self._answer(form, body, requests, choices, request, news)

    async def text(self, body: TextRequest, request: Request) -> Response:
        """The completions of texts. Raises Refusal where the server cannot meet the request."""
        if self.guard is not None:
            raise Refusal(400, 'this server has --moderation, which judges chats alone; ask /v1/chat/completions')
        raw_prompts = body.prompts()
        try:
            prompts = await asyncio.to_thread(lambda: [self._ids(prompt) for prompt in raw_prompts])
        except ValueError as error:
            raise Refusal(400, str(error), param='prompt') from None
        with_logprobs, others = body.logprobs is not None, body.logprobs or 0
        form = TextForm(f'cmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, with_logprobs, others)
        requests = self._wanted(body, prompts, body.max_tokens, others)
        choices = []
        for prompt, first_of_prompt in zip(raw_prompts, requests[:: body.n], strict=True):
            scored = (
                await _unless_gone(request, _score(self.driver, first_of_prompt))
                if body.echo and with_logprobs
                else None
            )
            ids = first_of_prompt.prompt_ids
            echo = await asyncio.to_thread(echo_of, self.tokenizer, prompt, ids, scored) if body.echo else None
            choices += [Choice(self.tokenizer, body.stops(), before=ids, echo=echo) for _ in range(body.n)]
        news = _say_nothing(choices) if body.max_tokens == 0 else self._ask(requests)
        return await self._answer(form, body, requests, choices, request, news)

    def _ask(self, requests: Sequence[DecodeRequest]) -> AsyncGenerator[News, None]:
        return _ask(self.driver, requests, self.metrics)

    def _released(
        self,
        guard: Guard,
        messages: Sequence[Mapping[str, str]],
        stops: Sequence[str],
        requests: Sequence[DecodeRequest],
    ) -> AsyncGenerator[News, None]:
        """The news of answers that the guard lets through, judged as answers to the chat without system prompts."""
        if not (talk := [message for message in messages if message['role'] != 'system']):
            raise Refusal(400, 'this server has --moderation, which needs a message of a user', param='messages')

        async def judge(answers: Sequence[Sequence[Progress]]) -> Sequence[bool]:
            texts = [self._text(answer, stops) for answer in answers]
            try:
                async with self.judging:
                    unsafe = await asyncio.to_thread(guard.unsafe, [talk] * len(texts), texts)
            except (jinja2.TemplateError, ValueError) as error:
                raise Refusal(400, f'the answer cannot be moderated: {error}', param='messages') from None
            for is_unsafe in unsafe:
                self.metrics.judged.labels('unsafe' if is_unsafe else 'safe').inc()
            return [bool(is_unsafe) for is_unsafe in unsafe]

        refused = self.metrics.refusals.inc
        return released(requests, self._ask, judge, draws=guard.draws, refusal=guard.refusal, refused=refused)

    def _text(self, answer: Sequence[Progress], stops: Sequence[str]) -> str:
        """The text of an answer as the caller gets it."""
        choice = Choice(self.tokenizer, stops)
        for progress in answer:
            choice.take(progress)
        return choice.text

    def _ids(self, prompt: str | Sequence[int] | None) -> Sequence[int]:
        """The tokens of a prompt. An empty document is the tokenizer's opening, or else a token that ends a text."""
        if isinstance(prompt, str):
            return self.tokenizer.prompt(prompt)
        return prompt or self.tokenizer.opening or self.tokenizer.stop_ids[-1:]

    def _wanted(
        self, body: Options, prompts: Sequence[Sequence[int]], limit: int | None, alternatives: int
    ) -> list[DecodeRequest]:
        """`n` requests for each prompt, with consecutive seeds. A `limit` of 0 asks for no tokens after a prompt.

        Raises:
          Refusal: the model cannot meet a request.
        """
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**63
        mixture = None if body.mixture is None else tuple(body.mixture)
        requests, decoder = [], self.driver.decoder
        for number, prompt in enumerate(prompts):
            most = max(min(MAX_TOKENS, decoder.cfg.max_len - len(prompt)), 1) if limit is None else max(limit, 1)
            sampling = Sampling(body.temperature, body.top_k, body.top_p or LEAST, most, body.stops())
            seeds = range(seed + number * body.n, seed + (number + 1) * body.n)
            of_prompt = [
                DecodeRequest(tuple(prompt), sampling, request_seed % 2**63, mixture, alternatives)
                for request_seed in seeds
            ]
            try:
                decoder.check(of_prompt[0], prompt_only=limit == 0)
            except ValueError as error:
                which = f'prompt.{number}: ' if len(prompts) > 1 else ''
                raise Refusal(400, f'{which}{error}') from None
            requests += of_prompt
        return requests

    async def _answer(
        self, form: Form, body: Options, requests: Sequence[DecodeRequest], choices: list[Choice], request: Request,
        news: AsyncGenerator[News, None],
    ) -> Response:  # fmt: skip
        """The answer to all requests, which has a choice for each, whole or as a stream of their `news`."""
        first = await _unless_gone(request, anext(news))  # refusals come before a stream begins
        prompt = sum(len(prompted.prompt_ids) for prompted in requests[:: body.n])
        if not body.stream:
            ended = await _unless_gone(request, _collect(choices, first, news))
            return JSONResponse(form.whole(choices, ended, prompt))
        usage = prompt if body.stream_options.include_usage else None
        return StreamingResponse(_stream(form, choices, first, news, usage), media_type='text/event-stream')


def make_app(
    driver: Driver, tokenizer: Tokenizer, *, model: str, token: str = '', preset: Preset = PLAIN,
    origins: Sequence[str] = (), guard: Guard | None = None, routes: APIRouter | None = None,
) -> FastAPI:  # fmt: skip
    """The server's application.

    Args:
      model: the name of the model in answers.
      token: the secret that callers of /v1 and of the chat page must send; '' for none.
      preset: the settings of the chat page.
      origins: other web pages that may call from a browser.
      guard: judges answers. With a guard, chats alone are answered.
      routes: further routes for callers who know the token, such as those of `interviews.py`.

    The driver is closed when the server stops, after the requests under way have ended.
    """
    service = Service(driver, tokenizer, model, preset, guard)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(driver.close)

    def known(request: Request) -> None:
        sent_token = request.headers.get('authorization', '').removeprefix('Bearer ')
        if token and not sent_token:
            raise Refusal(401, 'a bearer token is needed, got none', 'authentication_error')
        if token and not secrets.compare_digest(sent_token.encode(), token.encode()):
            raise Refusal(401, 'a bearer token is needed, and this is not the one', 'authentication_error')
        if not token and not _is_loopback(request.url.hostname or ''):  # a web page whose name leads here
            raise Refusal(403, f'this server answers to localhost alone, not to {request.url.hostname!r}')

    app = FastAPI(title='pal_jax', lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody)
    if origins:  # this middleware is the outermost, so that other pages can read refusals, too
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=['GET', 'POST'], allow_headers=['*'])
    _answer_errors(app)
    app.get('/', include_in_schema=False)(chat_page)
    app.get('/chat.json', dependencies=[Depends(known)])(service.about_chat)
    app.get('/health')(service.health)
    app.get('/metrics')(service.scrape)
    app.get('/v1/models', dependencies=[Depends(known)])(service.models)
    app.post('/v1/chat/completions', dependencies=[Depends(known)])(service.chat)
    app.post('/v1/completions', dependencies=[Depends(known)])(service.text)
    if routes:
        app.include_router(routes, dependencies=[Depends(known)])
    return app


def _is_loopback(host: str) -> bool:
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- from the driver's thread to the event loop ----------------------------------------------------------------------


async def _ask(driver: Driver, requests: Sequence[DecodeRequest], metrics: Metrics) -> AsyncGenerator[News, None]:
    """The news of all requests as they come, until each has ended. Closing it early takes the other requests back."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Progress | Exception]]()
    tickets: list[Ticket] = []
    last: list[float] = []
    under_way: set[int] = set()

    def notify(index: int):
        return lambda progress: loop.call_soon_threadsafe(inbox.put_nowait, (index, progress))

    try:
        while under_way or len(tickets) < len(requests):
            while len(tickets) < len(requests):
                index = len(tickets)
                try:
                    tickets.append(_or_refuse(driver.submit, requests[index], notify(index)))
                except Refusal as refusal:
                    if refusal.status != 429 or not under_way:
                        raise
                    break  # the line is full, so the other requests start as these end
                under_way.add(index)
                last.append(tickets[index].submitted)
            index, progress = await inbox.get()
            if isinstance(progress, Closed):
                raise Refusal(503, str(progress), 'server_error')
            if isinstance(progress, Exception):
                metrics.requests.labels('error').inc()
                raise Refusal(500, f'decoding failed: {progress}', 'server_error') from progress
            last[index] = _time(metrics, tickets[index], progress, last[index])
            if progress.completion is not None:
                under_way.discard(index)
                metrics.requests.labels(progress.completion.finish_reason).inc()
            yield News(index, progress)
    finally:
        for index in under_way:
            driver.cancel(tickets[index])  # has no effect on a request that has ended


async def _score(driver: Driver, request: DecodeRequest) -> Scored:
    """The log-probs of a prompt's tokens. Raises Refusal where the driver fails or is closed."""
    try:
        return await asyncio.wrap_future(_or_refuse(driver.score, request))
    except Closed as error:
        raise Refusal(503, str(error), 'server_error') from None
    except RuntimeError as error:
        raise Refusal(500, f'scoring failed: {error}', 'server_error') from error


async def _say_nothing(choices: Sequence[Choice]) -> AsyncGenerator[News, None]:
    """The news of choices that end without a token."""
    for index in range(len(choices)):
        yield News(index, Progress(0, (), (), Completion('', (), (), 'length')))


def _or_refuse(ask: Callable[..., Asked], *args: Any) -> Asked:
    """The result of a call of the driver. Raises Refusal, with OpenAI's error types, where the driver refuses."""
    try:
        return ask(*args)
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    except Busy as error:
        raise Refusal(429, str(error), 'rate_limit_error') from None
    except Closed as error:
        raise Refusal(503, str(error), 'server_error') from None


def _time(metrics: Metrics, ticket: Ticket, progress: Progress, last: float) -> float:
    now = time.perf_counter()
    if last == ticket.submitted:
        metrics.queue.observe(ticket.started - ticket.submitted)
        metrics.first.observe(now - ticket.submitted)
    elif progress.tokens:
        metrics.between.observe((now - last) / len(progress.tokens))
    return now


async def _collect(choices: list[Choice], first: News, news: AsyncGenerator[News, None]) -> list[FinishReason]:
    ended: list[FinishReason] = ['aborted'] * len(choices)
    async for item in _chain(first, news):
        choices[item.number].take(item.progress)
        if item.progress.completion is not None:
            ended[item.number] = item.progress.completion.finish_reason
    return ended


async def _unless_gone(request: Request, work) -> Any:
    """The result of `work`, which is cancelled when the client disconnects."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=0.2)
        if not task.done() and await request.is_disconnected():
            task.cancel()
    return await task


async def _stream(
    form: Form, choices: list[Choice], first: News, news: AsyncGenerator[News, None], usage: int | None
) -> AsyncIterator[str]:
    """The server-sent events of an answer. `usage` is the prompts' length, or None without a count at the end."""
    echoed: set[int] = set()
    try:
        async for index, progress in _chain(first, news):
            choice = choices[index]
            if choice.echo and index not in echoed:
                echoed.add(index)
                yield _event(form.piece(index, choice, choice.echo.rows, choice.echo.text, None))
            at = len(choice.tokens)
            choice.take(progress)
            ended = progress.completion
            text = choice.news(ended is not None)
            if text or ended or form.logprobs:
                yield _event(form.piece(index, choice, choice.rows(at), text, ended.finish_reason if ended else None))
        if usage is not None:
            yield _event(form.last(choices, usage))
        yield 'data: [DONE]\n\n'
    except Refusal as refusal:
        yield _event({'error': refusal.error})


async def _chain(first: News, news: AsyncGenerator[News, None]) -> AsyncIterator[News]:
    async with contextlib.aclosing(news):
        yield first
        async for item in news:
            yield item


def _event(data: dict[str, Any]) -> str:
    return f'data: {json.dumps(data)}\n\n'


# --- errors ----------------------------------------------------------------------------------------------------------


def _answer_errors(app: FastAPI) -> None:
    """Make the application answer every error in OpenAI's error JSON."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _refuse(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = _telling(error.errors())
        if first['type'] == 'json_invalid':
            return _refuse(Refusal(400, 'the body is not valid JSON'))
        steps = [str(part) for part in first['loc'][1:]]
        where = '.'.join(step for step in steps if '[' not in step) or None  # pydantic also names the types it tried
        why = 'is not supported' if first['type'] == 'extra_forbidden' else first['msg']
        return _refuse(Refusal(400, f'{where or "body"}: {why}', param=where))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _refuse(Refusal(error.status_code, str(error.detail)), error.headers)


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The error that tells most about a request.

    It is the first one. Where a value may have one of several types, it is the error among these types that lies
    deepest in the value, and one about the content before one about the type.
    """
    where = errors[0]['loc']
    typed = next((i for i, part in enumerate(where) if '[' in str(part)), len(where))
    alike = [error for error in errors if error['loc'][:typed] == where[:typed]]
    return max(alike, key=lambda error: (len(error['loc']), not error['type'].endswith('_type')))


def _refuse(refusal: Refusal, headers: Any = None) -> JSONResponse:
    return JSONResponse({'error': refusal.error}, refusal.status, headers)
