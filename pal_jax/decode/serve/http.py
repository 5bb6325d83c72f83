"""An OpenAI-compatible server over a `Driver`: completions, streamed or whole, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.driver import Driver
from pal_jax.decode.requests import News, RequestProgress, TooLong
from pal_jax.decode.requests import Request as DecodeRequest
from pal_jax.decode.serve import answers
from pal_jax.decode.serve.answers import Metrics
from pal_jax.decode.serve.bodies import TooLarge, read_body, replayed
from pal_jax.decode.serve.guard import Guard, released
from pal_jax.decode.serve.openai_api import (
    AnswerStream,
    ChatForm,
    ChatRequest,
    Form,
    SamplingOptions,
    TextForm,
    TextRequest,
    echo_of,
)
from pal_jax.decode.serve.page import PLAIN, Preset, chat_page
from pal_jax.decode.serve.refusals import Refusal
from pal_jax.decode.serve.responses import ResponseForm, ResponseRequest
from pal_jax.types import Sampling

# The limit of tokens of an answer whose request names none.
MAX_TOKENS = 512
BODY_LIMIT = 1 << 20  # bytes
# The seconds within which a body has to come.
BODY_SECONDS = 30.0
# This number stands for a top_p of 0, with which the likeliest token is drawn.
LEAST = 1e-6
# A Host header that names a machine itself.
HOST = re.compile(r'(localhost|[0-9.]+|\[[0-9a-f:]+\])(?::([0-9]{1,5}))?', re.IGNORECASE)


class LimitBody:
    """ASGI middleware that reads the body of a request before the request is handled.

    It refuses what nothing here can read (another type than JSON, a compressed body), a body of more than `BODY_LIMIT`
    bytes, even where the request states no length, and one that has not come within `BODY_SECONDS` or before `closing`.
    """

    def __init__(self, app: ASGIApp, closing: asyncio.Event):
        self.app, self.closing = app, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        try:
            body = await self._in_time(receive)
            if body:
                _check_type(Headers(scope=scope))
        except Refusal as refusal:
            return await refusal.response({'connection': 'close'})(scope, receive, send)
        if body is None:
            return None
        return await self.app(scope, replayed(body, receive), send)

    async def _in_time(self, receive: Receive) -> bytes | None:
        """The body; None where the client has left. Raises Refusal where it does not come."""
        reading = asyncio.ensure_future(read_body(receive, BODY_LIMIT))
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait([reading, closing], timeout=BODY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if closing.done():
                raise Refusal(503, 'the server is shutting down', 'server_error')
            raise Refusal(408, f'the body of the request has not come within {BODY_SECONDS:.0f} seconds')
        except TooLarge as error:
            raise Refusal(413, str(error)) from None
        finally:
            reading.cancel()
            closing.cancel()


def _check_type(headers: Headers) -> None:
    """Raise Refusal where the headers say of a body that it is something else than plain JSON."""
    coding, kind = headers.get('content-encoding', 'identity'), headers.get('content-type', '')
    if coding.strip().lower() != 'identity':
        raise Refusal(415, f'content-encoding {coding!r} is not supported; send the body as it is')
    name = kind.partition(';')[0].strip().lower()
    # A web page of another origin can send types other than JSON without being asked for leave.
    if name != 'application/json' and not name.endswith('+json'):
        raise Refusal(415, f'the body has content-type {kind or "none"}; send JSON with content-type: application/json')


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
        return {'object': 'list', 'data': [self.about_model(self.model)]}

    def about_model(self, name: str) -> dict[str, Any]:
        """The entry of a model. Raises Refusal for another name than the served model's."""
        if name != self.model:
            message = f'there is no model {name!r} here; this server has {self.model!r}'
            raise Refusal(404, message, param='model', code='model_not_found')
        return {'id': name, 'object': 'model', 'created': self.created, 'owned_by': 'pal_jax'}

    def about_chat(self) -> dict[str, Any]:
        """The settings of the chat page."""
        return {'model': self.model} | self.preset.record()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """The completions of a chat. Raises Refusal where the server cannot meet the request."""
        messages = [message.plain() for message in body.messages]
        with_logprobs = body.logprobs or body.top_logprobs > 0
        form = ChatForm(f'chatcmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, with_logprobs, body.top_logprobs)
        limit, usage = body.max_completion_tokens or body.max_tokens, body.stream_options.include_usage
        return await self._answer_chat(form, body, messages, limit, request, n=body.n, usage=usage)

    async def response(self, body: ResponseRequest, request: Request) -> Response:
        """The response to a text or to messages. Raises Refusal where the server cannot meet the request."""
        form = ResponseForm(self.model, self.tokenizer, body)
        return await self._answer_chat(form, body, body.messages(), body.max_output_tokens, request)

    async def _answer_chat(
        self, form: Form, body: SamplingOptions, messages: Sequence[Mapping[str, str]], limit: int | None,
        request: Request, *,
        n: int = 1, usage: bool = False,
    ) -> Response:  # fmt: skip
        try:
            # Long prompts take a while, and the loop answers others meanwhile.
            prompt = await asyncio.to_thread(self.tokenizer.chat, messages)
        except (jinja2.TemplateError, ValueError) as error:
            raise Refusal(400, f'the chat template refuses these messages: {error}', param=form.asks) from None
        requests = self._wanted(form, body, [prompt], limit, n)
        news = (
            self._ask(requests) if self.guard is None else self._released(self.guard, messages, body.stops(), requests)
        )
        choices = [AnswerStream(self.tokenizer, body.stops()) for _ in requests]
        return await self._answer(form, body, len(prompt), choices, request, news, usage=usage)

    async def text(self, body: TextRequest, request: Request) -> Response:
        """The completions of texts. Raises Refusal where the server cannot meet the request."""
        if self.guard is not None:
            raise Refusal(400, 'this server has --moderation, which judges chats alone; ask /v1/chat/completions')
        raw_prompts, n = body.prompts(), body.n
        try:
            prompts = await asyncio.to_thread(lambda: [self._ids(prompt) for prompt in raw_prompts])
        except ValueError as error:
            raise Refusal(400, str(error), param='prompt') from None
        with_logprobs, others = body.logprobs is not None, body.logprobs or 0
        form = TextForm(f'cmpl-{uuid.uuid4().hex}', self.model, self.tokenizer, with_logprobs, others)
        requests = self._wanted(form, body, prompts, body.max_tokens, n)
        choices = []
        for prompt, first_of_prompt in zip(raw_prompts, requests[::n], strict=True):
            scored = (
                await answers.unless_gone(request, answers.score(self.driver, first_of_prompt, self.metrics))
                if body.echo and with_logprobs
                else None
            )
            ids = first_of_prompt.prompt_ids
            echo = await asyncio.to_thread(echo_of, self.tokenizer, prompt, ids, scored) if body.echo else None
            choices += [AnswerStream(self.tokenizer, body.stops(), before=ids, echo=echo) for _ in range(n)]
        # A limit of 0 asks for the prompt alone, as for its log-probs.
        news = answers.say_nothing(choices) if body.max_tokens == 0 else self._ask(requests)
        prompt_tokens, usage = sum(map(len, prompts)), body.stream_options.include_usage
        return await self._answer(form, body, prompt_tokens, choices, request, news, usage=usage)

    def _ask(self, requests: Sequence[DecodeRequest]) -> AsyncGenerator[News, None]:
        return answers.ask(self.driver, requests, self.metrics)

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

        async def judge(answers: Sequence[Sequence[RequestProgress]]) -> Sequence[bool]:
            texts = [self._text(answer, stops) for answer in answers]
            try:
                # The judge answers one call at a time.
                async with self.judging:
                    unsafe = await asyncio.to_thread(guard.unsafe, [talk] * len(texts), texts)
            except (jinja2.TemplateError, ValueError) as error:
                raise Refusal(400, f'the answer cannot be moderated: {error}', param='messages') from None
            for is_unsafe in unsafe:
                self.metrics.judged.labels('unsafe' if is_unsafe else 'safe').inc()
            return [bool(is_unsafe) for is_unsafe in unsafe]

        refused = self.metrics.refusals.inc
        return released(requests, self._ask, judge, draws=guard.draws, refusal=guard.refusal, refused=refused)

    def _text(self, answer: Sequence[RequestProgress], stops: Sequence[str]) -> str:
        """The text of an answer as the caller gets it."""
        choice = AnswerStream(self.tokenizer, stops)
        for progress in answer:
            choice.take(progress)
        return choice.text

    def _ids(self, prompt: str | list[int] | None) -> list[int]:
        """The tokens of a prompt. An empty document is the tokenizer's opening, or else a token that ends a text."""
        if isinstance(prompt, str):
            return self.tokenizer.prompt(prompt)
        return prompt or self.tokenizer.opening or list(self.tokenizer.stop_ids[-1:])

    def _wanted(
        self, form: Form, body: SamplingOptions, prompts: Sequence[Sequence[int]], limit: int | None, n: int
    ) -> list[DecodeRequest]:
        """`n` requests for each prompt. A `limit` of 0 asks for no tokens after a prompt.

        The seeds of a prompt are the request's and the `n - 1` that follow it. Without a seed in the request, every
        prompt has seeds of its own.

        Raises:
          Refusal: the model cannot meet a request.
        """
        mixture = None if body.mixture is None else tuple(body.mixture)
        requests, decoder = [], self.driver.decoder
        for number, prompt in enumerate(prompts):
            most = max(min(MAX_TOKENS, decoder.cfg.max_len - len(prompt)), 1) if limit is None else max(limit, 1)
            sampling = Sampling(body.temperature, max(body.top_k, 0), body.top_p or LEAST, most, body.stops())
            seed = secrets.randbits(63) if body.seed is None else body.seed
            # Every prompt has the same seeds, so its answers are those that the prompt gets alone.
            of_prompt = [
                DecodeRequest(tuple(prompt), sampling, (seed + i) % 2**63, mixture, form.alternatives, form.continues)
                for i in range(n)
            ]
            which = f'{form.asks}.{number}' if len(prompts) > 1 else form.asks
            place = f'{which}: ' if len(prompts) > 1 else ''
            try:
                decoder.check(of_prompt[0], prompt_only=limit == 0)
            except TooLong as error:
                raise Refusal(400, f'{place}{error}', param=which, code='context_length_exceeded') from None
            except ValueError as error:
                raise Refusal(400, f'{place}{error}', param=None if prompt else which) from None
            requests += of_prompt
        return requests

    async def _answer(
        self, form: Form, body: SamplingOptions, prompt: int, choices: list[AnswerStream], request: Request,
        news: AsyncGenerator[News, None], *, usage: bool,
    ) -> Response:  # fmt: skip
        """The answer to prompts of `prompt` tokens, with all choices, whole or as a stream of their `news`."""
        # Refusals come before a stream begins.
        first = await answers.unless_gone(request, anext(news))
        if not body.stream:
            ended = await answers.unless_gone(request, answers.collect(choices, first, news))
            return JSONResponse(form.whole(choices, ended, prompt))
        stream = answers.stream(form, choices, first, news, prompt, usage)
        return StreamingResponse(stream, media_type='text/event-stream')


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
        refused: dict[str, Any] = {'kind': 'authentication_error', 'code': 'invalid_api_key'}
        if token and not sent_token:
            raise Refusal(401, 'a bearer token is needed, got none', **refused)
        if token and not secrets.compare_digest(sent_token.encode(), token.encode()):
            raise Refusal(401, 'a bearer token is needed, and this is not the one', **refused)
        host = request.headers.get('host', '')
        # A web page whose name leads here could otherwise ask in the name of its reader.
        if not token and not _is_loopback(host):
            raise Refusal(403, f'this server answers to localhost alone, not to {host!a}')

    app = FastAPI(title='pal_jax', lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.closing = asyncio.Event()
    app.add_middleware(LimitBody, closing=app.state.closing)
    # This middleware is the outermost, so that other pages can read refusals, too.
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=['GET', 'POST'], allow_headers=['*'])
    _answer_errors(app)
    guarded = [Depends(known)]
    for path, answer, dependencies in (
        ('/', chat_page, []),
        ('/health', service.health, []),
        ('/metrics', service.scrape, []),
        ('/chat.json', service.about_chat, guarded),
        ('/v1/models', service.models, guarded),
        ('/v1/models/{name:path}', service.about_model, guarded),
    ):
        app.get(path, dependencies=dependencies, include_in_schema=path != '/')(answer)
        app.head(path, dependencies=dependencies, include_in_schema=False)(answer)
    app.post('/v1/chat/completions', dependencies=guarded)(service.chat)
    app.post('/v1/completions', dependencies=guarded)(service.text)
    app.post('/v1/responses', dependencies=guarded)(service.response)
    if routes:
        app.include_router(routes, dependencies=guarded)
    return app


def _is_loopback(host: str) -> bool:
    """True where a Host header is localhost or a loopback address, with or without a port. A malformed one is none."""
    if not (parts := HOST.fullmatch(host)) or int(parts[2] or 0) >= 2**16:
        return False
    name = parts[1].lower().strip('[]')
    try:
        return name == 'localhost' or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# --- errors ----------------------------------------------------------------------------------------------------------


# Plain words for what pydantic says of its own insides.
PLAINLY = {
    'extra_forbidden': 'is not supported',
    'model_attributes_type': 'should be a JSON object',
    'missing': 'is required, got nothing',
    'literal_error': 'only {expected} is supported',
}
# The reasons for which the JSON of a body could not be read.
UNREADABLE = {
    UnicodeDecodeError: 'the body is not UTF-8; send JSON in UTF-8',
    RecursionError: 'the body is nested too deeply',
    ValueError: 'a number in the body has too many digits',
}


def _answer_errors(app: FastAPI) -> None:
    """Make the application answer every error in OpenAI's error JSON."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = _telling(error.errors())
        if first['type'] == 'json_invalid':
            where = f'{first["ctx"]["error"].removesuffix(" at")} at character {first["loc"][-1]}'
            return Refusal(400, f'the body is not valid JSON: {where}').response()
        steps = [str(part) for part in first['loc'][1:]]
        # Pydantic also names the types that it tried.
        where = '.'.join(step for step in steps if '[' not in step) or None
        kind = 'extra_forbidden' if first.get('ctx', {}).get('max_length') == 0 else first['type']
        plain = PLAINLY.get(kind, '').format_map(first.get('ctx', {}))
        why = plain or str(first['msg']).removeprefix('Value error, ')
        return Refusal(400, f'{where or "body"}: {why}', param=where).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        why = UNREADABLE.get(type(error.__cause__), str(error.detail))
        return Refusal(error.status_code, why).response(error.headers)


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The error that tells most about a request.

    It is the first one, or the best one about the same value.
    """
    where = errors[0]['loc']
    # Where a value may have one of several types, pydantic has an error for each. The deepest one tells most, and one
    # about the content tells more than one about the type.
    typed = next((i for i, part in enumerate(where) if '[' in str(part)), len(where))
    alike = [error for error in errors if error['loc'][:typed] == where[:typed]]
    return max(alike, key=lambda error: (len(error['loc']), not error['type'].endswith('_type')))
