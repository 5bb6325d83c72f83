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
from fastapi import Depends, FastAPI, Request, Response
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
MAX_TOKENS = 512  # of an answer that names no limit
BODY_LIMIT = 1 << 20  # bytes
LEAST = 1e-6  # a top_p of 0: the likeliest token alone


class Refusal(Exception):
    """An answer in OpenAI's error JSON."""

    def __init__(self, status: int, message: str, kind: str = 'invalid_request_error', param: str | None = None):
        super().__init__(message)
        self.status, self.error = status, {'message': message, 'type': kind, 'param': param, 'code': None}


class LimitBody:
    """ASGI middleware: a body of more than `BODY_LIMIT` bytes is refused, also one that does not tell its length."""

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
    """What Prometheus scrapes."""

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
    """What the routes do."""

    def __init__(self, driver: Driver, tokenizer: Tokenizer, model: str, preset: Preset, guard: Guard | None):
        self.driver, self.tokenizer, self.model, self.preset = driver, tokenizer, model, preset
        self.guard, self.judging = guard, asyncio.Lock()
        self.created, self.metrics = int(time.time()), Metrics(driver)

    def health(self) -> dict[str, Any]:
        return {'status': 'ok', 'model': self.model, 'weights_version': self.driver.decoder.version}

    def scrape(self) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type='text/plain; version=0.0.4')

    def models(self) -> dict[str, Any]:
        entry = {'id': self.model, 'object': 'model', 'created': self.created, 'owned_by': 'pal_jax'}
        return {'object': 'list', 'data': [entry]}

    def about_chat(self) -> dict[str, Any]:
        return {'model': self.model} | self.preset.record()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        messages = [message.plain() for message in body.messages]
        try:
            prompt = await asyncio.to_thread(self.tokenizer.chat, messages)
        except (jinja2.TemplateError, ValueError) as error:
            raise Refusal(400, f'the chat template refuses these messages: {error}', param='messages') from None
        told = body.logprobs or body.top_logprobs > 0
        form = ChatForm(f'chatcmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, told, body.top_logprobs)
        limit = body.max_completion_tokens or body.max_tokens
        wanted = self._wanted(body, [prompt], limit, body.top_logprobs)
        news = self._ask(wanted) if self.guard is None else self._released(self.guard, messages, body.stops(), wanted)
        choices = [Choice(self.tokenizer, body.stops()) for _ in wanted]
        return await self._answer(form, body, wanted, choices, request, news)

    async def text(self, body: TextRequest, request: Request) -> Response:
        if self.guard is not None:
            raise Refusal(400, 'this server has --moderation, which judges chats alone; ask /v1/chat/completions')
        given = body.prompts()
        prompts = await asyncio.to_thread(lambda: [self._ids(prompt) for prompt in given])
        told, others = body.logprobs is not None, body.logprobs or 0
        form = TextForm(f'cmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, told, others)
        wanted = self._wanted(body, prompts, body.max_tokens, others)
        choices = []
        for prompt, asked in zip(given, wanted[:: body.n], strict=True):
            scored = await _unless_gone(request, _score(self.driver, asked)) if body.echo and told else None
            ids = asked.prompt_ids
            echo = await asyncio.to_thread(echo_of, self.tokenizer, prompt, ids, scored) if body.echo else None
            choices += [Choice(self.tokenizer, body.stops(), before=ids, echo=echo) for _ in range(body.n)]
        news = _say_nothing(choices) if body.max_tokens == 0 else self._ask(wanted)
        return await self._answer(form, body, wanted, choices, request, news)

    def _ask(self, wanted: Sequence[DecodeRequest]) -> AsyncGenerator[News, None]:
        return _ask(self.driver, wanted, self.metrics)

    def _released(
        self, guard: Guard, messages: Sequence[Mapping[str, str]], stops: Sequence[str], wanted: Sequence[DecodeRequest]
    ) -> AsyncGenerator[News, None]:
        """News of answers that are not unsafe, as answers to what was said apart from system prompts."""
        if not (said := [message for message in messages if message['role'] != 'system']):
            raise Refusal(400, 'this server has --moderation, which needs a message of a user', param='messages')

        async def judge(answers: Sequence[Sequence[Progress]]) -> Sequence[bool]:
            texts = [self._text(answer, stops) for answer in answers]
            try:
                async with self.judging:
                    unsafe = await asyncio.to_thread(guard.unsafe, [said] * len(texts), texts)
            except (jinja2.TemplateError, ValueError) as error:
                raise Refusal(400, f'the answer cannot be moderated: {error}', param='messages') from None
            for bad in unsafe:
                self.metrics.judged.labels('unsafe' if bad else 'safe').inc()
            return [bool(bad) for bad in unsafe]

        refused = self.metrics.refusals.inc
        return released(wanted, self._ask, judge, draws=guard.draws, refusal=guard.refusal, refused=refused)

    def _text(self, answer: Sequence[Progress], stops: Sequence[str]) -> str:
        """The text of an answer as it is told."""
        choice = Choice(self.tokenizer, stops)
        for progress in answer:
            choice.take(progress)
        return choice.text

    def _ids(self, prompt: str | Sequence[int] | None) -> Sequence[int]:
        """A prompt's tokens; a document begins with what the tokenizer puts before a text, or behind another one."""
        if isinstance(prompt, str):
            return self.tokenizer.prompt(prompt)
        return prompt or self.tokenizer.opening or self.tokenizer.stop_ids[-1:]

    def _wanted(
        self, body: Options, prompts: Sequence[Sequence[int]], limit: int | None, alternatives: int
    ) -> list[DecodeRequest]:
        """`n` requests for each prompt, with seeds that follow each other. Refused here is what the model cannot meet;
        with a `limit` of 0 nothing follows a prompt."""
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**63
        mixture = None if body.mixture is None else tuple(body.mixture)
        wanted, decoder = [], self.driver.decoder
        for number, prompt in enumerate(prompts):
            most = max(min(MAX_TOKENS, decoder.cfg.max_len - len(prompt)), 1) if limit is None else max(limit, 1)
            sampling = Sampling(body.temperature, body.top_k, body.top_p or LEAST, most, body.stops())
            seeds = range(seed + number * body.n, seed + (number + 1) * body.n)
            asked = [DecodeRequest(tuple(prompt), sampling, each % 2**63, mixture, alternatives) for each in seeds]
            try:
                decoder.check(asked[0], prompt_only=limit == 0)
            except ValueError as error:
                which = f'prompt.{number}: ' if len(prompts) > 1 else ''
                raise Refusal(400, f'{which}{error}') from None
            wanted += asked
        return wanted

    async def _answer(
        self, form: Form, body: Options, wanted: Sequence[DecodeRequest], choices: list[Choice], request: Request,
        news: AsyncGenerator[News, None],
    ) -> Response:  # fmt: skip
        """The answer to all requests, a choice each, as `news` of them come."""
        first = await _unless_gone(request, anext(news))  # what is refused is refused before a stream begins
        prompt = sum(len(each.prompt_ids) for each in wanted[:: body.n])
        if not body.stream:
            ended = await _unless_gone(request, _collect(choices, first, news))
            return JSONResponse(form.whole(choices, ended, prompt))
        usage = prompt if body.stream_options.include_usage else None
        return StreamingResponse(_stream(form, choices, first, news, usage), media_type='text/event-stream')


def make_app(
    driver: Driver, tokenizer: Tokenizer, *, model: str, token: str = '', preset: Preset = PLAIN,
    origins: Sequence[str] = (), guard: Guard | None = None,
) -> FastAPI:  # fmt: skip
    """The server. `model` is the name it answers by; a `token` is asked of every caller of /v1, and of
    the chat page, which talks as `preset` says. Web pages of other `origins` may ask too: browsers keep others out.
    With a `guard` chats alone are answered, by what it lets through.

    The driver is closed when the server stops: requests under way have ended by then.
    """
    service = Service(driver, tokenizer, model, preset, guard)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(driver.close)

    def known(request: Request) -> None:
        given = request.headers.get('authorization', '').removeprefix('Bearer ')
        if token and not given:
            raise Refusal(401, 'a bearer token is needed, got none', 'authentication_error')
        if token and not secrets.compare_digest(given.encode(), token.encode()):
            raise Refusal(401, 'a bearer token is needed, and this is not the one', 'authentication_error')
        if not token and not _is_loopback(request.url.hostname or ''):  # a web page whose name leads here
            raise Refusal(403, f'this server answers to localhost alone, not to {request.url.hostname!r}')

    app = FastAPI(title='pal_jax', lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody)
    if origins:  # around the rest, so that a refusal can be read there too
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=['GET', 'POST'], allow_headers=['*'])
    _answer_errors(app)
    app.get('/', include_in_schema=False)(chat_page)
    app.get('/chat.json', dependencies=[Depends(known)])(service.about_chat)
    app.get('/health')(service.health)
    app.get('/metrics')(service.scrape)
    app.get('/v1/models', dependencies=[Depends(known)])(service.models)
    app.post('/v1/chat/completions', dependencies=[Depends(known)])(service.chat)
    app.post('/v1/completions', dependencies=[Depends(known)])(service.text)
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
    """News of all the requests as they come, until each has ended; left early, it takes the rest back."""
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
                    break  # the line is full: the others start as these end
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
            driver.cancel(tickets[index])  # of one that has ended nothing is left to take back


async def _score(driver: Driver, request: DecodeRequest) -> Scored:
    """How likely the tokens of a prompt are."""
    try:
        return await asyncio.wrap_future(_or_refuse(driver.score, request))
    except Closed as error:
        raise Refusal(503, str(error), 'server_error') from None
    except RuntimeError as error:
        raise Refusal(500, f'scoring failed: {error}', 'server_error') from error


async def _say_nothing(choices: Sequence[Choice]) -> AsyncGenerator[News, None]:
    """News of choices without a token."""
    for index in range(len(choices)):
        yield News(index, Progress(0, (), (), Completion('', (), (), 'length')))


def _or_refuse(ask: Callable[..., Asked], *args: Any) -> Asked:
    """The driver's result. Raises Refusal, in OpenAI's words, where the driver refuses."""
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
    async for each in _chain(first, news):
        choices[each.number].take(each.progress)
        if each.progress.completion is not None:
            ended[each.number] = each.progress.completion.finish_reason
    return ended


async def _unless_gone(request: Request, work) -> Any:
    """The result of `work`, which is given up when the client goes away."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=0.2)
        if not task.done() and await request.is_disconnected():
            task.cancel()
    return await task


async def _stream(
    form: Form, choices: list[Choice], first: News, news: AsyncGenerator[News, None], usage: int | None
) -> AsyncIterator[str]:
    """Server-sent events; `usage` is the prompts' length where the caller wants the count at the end."""
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
        async for each in news:
            yield each


def _event(data: dict[str, Any]) -> str:
    return f'data: {json.dumps(data)}\n\n'


# --- errors ----------------------------------------------------------------------------------------------------------


def _answer_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's error JSON."""

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
    """The first error; where it is of one of several types that a value may have, of these the error that goes deepest
    into the value, and rather one about the content than one about the type."""
    where = errors[0]['loc']
    typed = next((i for i, part in enumerate(where) if '[' in str(part)), len(where))
    alike = [each for each in errors if each['loc'][:typed] == where[:typed]]
    return max(alike, key=lambda each: (len(each['loc']), not each['type'].endswith('_type')))


def _refuse(refusal: Refusal, headers: Any = None) -> JSONResponse:
    return JSONResponse({'error': refusal.error}, refusal.status, headers)
