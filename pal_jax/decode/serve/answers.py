"""Answers of the HTTP server, from the driver's thread to the event loop, whole or streamed, and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pal_jax.decode.driver import Closed, Driver, TakenRequest
from pal_jax.decode.requests import News, PromptLogprobs, RequestProgress
from pal_jax.decode.requests import Request as DecodeRequest
from pal_jax.decode.serve.openai_api import AnswerStream, Form
from pal_jax.decode.serve.refusals import Refusal, or_refuse
from pal_jax.types import Completion, FinishReason

# The status, as in nginx, of an answer whose client has left; nobody reads it.
GONE = 499
# The name, in the metrics, of the end of an answer whose client has left.
LEFT = 'client_left'


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


async def ask(driver: Driver, requests: Sequence[DecodeRequest], metrics: Metrics) -> AsyncGenerator[News, None]:
    """The news of all requests as they come, until each has ended.

    Closing it early takes the other requests back, which counts as a client that has left.
    """
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[tuple[int, RequestProgress | Exception]]()
    tickets: list[TakenRequest] = []
    last: list[float] = []
    under_way: set[int] = set()

    def notify(index: int):
        # The driver calls from its own thread, and a queue of asyncio belongs to its loop.
        return lambda progress: loop.call_soon_threadsafe(inbox.put_nowait, (index, progress))

    try:
        while under_way or len(tickets) < len(requests):
            while len(tickets) < len(requests):
                index = len(tickets)
                try:
                    tickets.append(or_refuse(driver.submit, requests[index], notify(index)))
                except Refusal as refusal:
                    if refusal.status != 429 or not under_way:
                        raise
                    # The line is full, so the other requests start as these end.
                    break
                under_way.add(index)
                last.append(tickets[index].submitted)
            index, news = await inbox.get()
            progress = _or_raise(news, metrics)
            last[index] = _time(metrics, tickets[index], progress, last[index])
            if progress.completion is not None:
                under_way.discard(index)
                metrics.requests.labels(progress.completion.finish_reason).inc()
            yield News(index, progress)
    except (asyncio.CancelledError, GeneratorExit):
        metrics.requests.labels(LEFT).inc(len(requests) - len(tickets) + len(under_way))
        raise
    finally:
        for index in under_way:
            # Taking back a request that has ended has no effect.
            driver.cancel(tickets[index])


async def score(driver: Driver, request: DecodeRequest, metrics: Metrics) -> PromptLogprobs:
    """The log-probs of a prompt's tokens. Raises Refusal where the driver fails or is closed."""
    try:
        return await asyncio.wrap_future(or_refuse(driver.score, request))
    except asyncio.CancelledError:
        metrics.requests.labels(LEFT).inc()
        raise
    except Closed as error:
        raise Refusal(503, str(error), 'server_error') from None
    except RuntimeError as error:
        raise Refusal(500, f'scoring failed: {error}', 'server_error') from error


async def say_nothing(choices: Sequence[AnswerStream]) -> AsyncGenerator[News, None]:
    """The news of choices that end without a token."""
    for index in range(len(choices)):
        yield News(index, RequestProgress(0, (), (), Completion('', (), (), 'length')))


def _or_raise(news: RequestProgress | Exception, metrics: Metrics) -> RequestProgress:
    """The progress. Raises Refusal where the request has failed."""
    if isinstance(news, Closed):
        raise Refusal(503, str(news), 'server_error')
    if isinstance(news, Exception):
        metrics.requests.labels('error').inc()
        raise Refusal(500, f'decoding failed: {news}', 'server_error') from news
    return news


def _time(metrics: Metrics, ticket: TakenRequest, progress: RequestProgress, last: float) -> float:
    now = time.perf_counter()
    # The first news of a request tells how long the request waited.
    if last == ticket.submitted:
        metrics.queue.observe(ticket.started - ticket.submitted)
        metrics.first.observe(now - ticket.submitted)
    elif progress.tokens:
        metrics.between.observe((now - last) / len(progress.tokens))
    return now


async def collect(choices: list[AnswerStream], first: News, news: AsyncGenerator[News, None]) -> list[FinishReason]:
    """The reasons for which the choices ended, once their tokens are in them."""
    ended: list[FinishReason] = ['aborted'] * len(choices)
    async for item in _chain(first, news):
        choices[item.number].take(item.progress)
        if item.progress.completion is not None:
            ended[item.number] = item.progress.completion.finish_reason
    return ended


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`. Where the client disconnects, the work is cancelled and a Refusal raised, for nobody."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            # Nothing tells of a client that leaves, so the connection is looked at now and then.
            await asyncio.wait([task], timeout=0.2)
            if not task.done() and await request.is_disconnected():
                task.cancel()
                await asyncio.wait([task])
                raise Refusal(GONE, 'the client has left')
        return task.result()
    finally:
        # The server may have cut the request.
        task.cancel()


async def stream(
    form: Form, choices: list[AnswerStream], first: News, news: AsyncGenerator[News, None], prompt: int, usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of an answer to `prompt` tokens, with a count of tokens at the end if `usage`."""
    begun: set[int] = set()
    ended: list[FinishReason] = ['aborted'] * len(choices)
    try:
        for event in form.opening():
            yield form.event(event)
        async for index, progress in _chain(first, news):
            choice, end = choices[index], progress.completion
            # The prompt that an answer repeats is its first piece.
            if choice.echo and index not in begun:
                yield form.event(form.piece(index, choice, choice.echo.rows, choice.echo.text, None, first=True))
                begun.add(index)
            at = len(choice.tokens)
            choice.take(progress)
            text = choice.news(end is not None)
            if end is not None:
                ended[index] = end.finish_reason
            # A step may give no certain text, and then there is nothing to send unless log-probs are asked for.
            if text or end or form.logprobs:
                reason = end.finish_reason if end else None
                yield form.event(form.piece(index, choice, choice.rows(at), text, reason, first=index not in begun))
                begun.add(index)
        for event in form.closing(choices, ended, prompt, usage):
            yield form.event(event)
        yield form.done
    except Refusal as refusal:
        yield form.event(form.failure(refusal.error))


async def _chain(first: News, news: AsyncGenerator[News, None]) -> AsyncIterator[News]:
    async with contextlib.aclosing(news):
        yield first
        async for item in news:
            yield item
