"""The gRPC server over a `Driver`: JetStream's own service, and a service for calls that JetStream lacks.

`jetstream_proto.Orchestrator`, as JetStream's clients know it: `Decode` of text or token ids, greedily, with a message
for each stride. The token that ends an answer is part of it, and the trailing metadata have the reason
(`finish-reason`).
`pal_jax.Rollout`, in the messages of `wire.py`: `Generate` (a batch of requests with their sampling; answers as they
end), `Update` (new weights in chunks; a stream that breaks before its commit changes nothing) and `Status`.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NoReturn

import grpc
import jax

from pal_jax.decode.driver import Busy, Closed, Driver
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.decode.serve.jetstream import wire
from pal_jax.decode.serve.jetstream.engine import protocol, protocol_grpc
from pal_jax.decode.serve.openai_api import AnswerStream
from pal_jax.run.processes import host_port
from pal_jax.types import Sampling

# The seconds in which the last messages of answers leave.
PARTING = 2.0
# The number of threads for calls that are no requests to the model.
SPARE = 16
METHODS = ('Generate', 'Update', 'Status')


class BatchProgress:
    """The progress of a batch of requests, by their numbers, until each has ended.

    It can be iterated once, and yields a list for each stride. Without `stream` it has the ends of requests alone. If
    the iteration ends early, the other requests are taken back.

    Raises:
      Exception: as `submit_all`, and during the iteration the error of a request that failed.
    """

    def __init__(self, driver: Driver, requests: Sequence[Request], *, stream: bool = False):
        self._driver = driver
        self._inbox: queue.SimpleQueue[tuple[int, RequestProgress | Exception]] = queue.SimpleQueue()

        def notify(number: int, news: RequestProgress | Exception) -> None:
            if stream or isinstance(news, Exception) or news.completion is not None:
                self._inbox.put((number, news))

        self._left = set(range(len(requests)))
        self._tickets = driver.submit_all(requests, notify)

    def abandon(self) -> int:
        """Take back the requests that have not ended, return their number, and end the iteration.

        Any thread may call this.
        """
        left, self._left = self._left, set()
        for number in left:
            self._driver.cancel(self._tickets[number])
        # The iteration may be waiting for news, and this wakes it.
        self._inbox.put((0, Closed('nobody waits for the answer any more')))
        return len(left)

    def __iter__(self) -> Iterator[list[tuple[int, RequestProgress]]]:
        try:
            while self._left:
                batch = [self._take(*self._inbox.get())]
                # All news that is there by now makes one message.
                with contextlib.suppress(queue.Empty):
                    while True:
                        batch.append(self._take(*self._inbox.get_nowait()))
                yield batch
        finally:
            self.abandon()

    def _take(self, number: int, news: RequestProgress | Exception) -> tuple[int, RequestProgress]:
        if isinstance(news, Exception):
            raise news
        if news.completion is not None:
            self._left.discard(number)
        return number, news


class LeftRequests:
    """The number of requests whose caller did not wait for their end."""

    def __init__(self):
        self.count, self._lock = 0, threading.Lock()

    def watch(self, answers: BatchProgress, context: grpc.ServicerContext) -> None:
        """Take the requests back, and count them, when their caller goes away, or now if the caller is gone."""

        def leave() -> None:
            left = answers.abandon()
            with self._lock:
                self.count += left

        # gRPC takes no callback for a call that has ended.
        if not context.add_callback(leave):
            leave()


class GrpcServer:
    """A gRPC server that listens at once and answers from `start` on, which is to follow soon.

    Every caller must send the `token`.

    Raises:
      OSError: the port is taken.
    """

    def __init__(self, host: str, port: int, *, requests: int, token: str = ''):
        self._server = grpc.server(
            futures.ThreadPoolExecutor(requests + SPARE, thread_name_prefix='grpc'),
            interceptors=[BearerToken(token)] if token else [],
            options=(*wire.OPTIONS, ('grpc.so_reuseport', 0)),
        )
        self._driver: Driver | None = None
        address = host_port(host, port)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f'cannot listen on {address}; choose another --port') from None

    def start(self, driver: Driver, name: str) -> None:
        """Answer calls from now on with this driver. `name` is the model's name in `Status`."""
        self._driver = driver
        left = LeftRequests()
        protocol_grpc.add_OrchestratorServicer_to_server(Orchestrator(driver, left), self._server)
        rollout = Rollout(driver, name, left)
        handlers = {
            'Generate': grpc.unary_stream_rpc_method_handler(rollout.generate),
            'Update': grpc.stream_unary_rpc_method_handler(rollout.update),
            'Status': grpc.unary_unary_rpc_method_handler(rollout.status),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more calls, give answers under way `grace` seconds, and cut the others.

        Calls that have not come whole by now get `PARTING` seconds alone.
        """
        stopped, end = self._server.stop(grace), time.monotonic() + grace
        while self._driver is not None and self._driver.accepted and time.monotonic() < end:
            if stopped.wait(0.05):
                return
        # A call that has not come whole by now is no answer under way.
        self._server.stop(min(grace, PARTING)).wait()


class BearerToken(grpc.ServerInterceptor):
    """An interceptor that refuses every call without the token."""

    def __init__(self, token: str):
        self._wanted = f'Bearer {token}'.encode()
        self._refuse = grpc.unary_unary_rpc_method_handler(_unauthenticated)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        sent_token = dict(handler_call_details.invocation_metadata).get('authorization', '')
        return (
            continuation(handler_call_details)
            if secrets.compare_digest(sent_token.encode(), self._wanted)
            else self._refuse
        )


def _unauthenticated(_: Any, context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, 'a bearer token is needed, and this is not the one')


class Orchestrator(protocol_grpc.OrchestratorServicer):
    """JetStream's service. Its `priority` is ignored, as in JetStream, and sessions are refused."""

    def __init__(self, driver: Driver, left: LeftRequests):
        self._driver, self._tokenizer, self._left = driver, driver.decoder.tokenizer, left

    def Decode(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Decode a prompt greedily, and yield a message for each stride."""
        try:
            answers = BatchProgress(self._driver, [self._request(request)], stream=True)
            self._left.watch(answers, context)
            choice = AnswerStream(self._tokenizer, ())
            for _, progress in itertools.chain.from_iterable(answers):
                choice.take(progress)
                completion = progress.completion
                if completion is not None and completion.finish_reason == 'aborted':
                    raise Aborted('the answer was cut short: new weights, or the server is shutting down')
                text = choice.news(completion is not None)
                sample = protocol.DecodeResponse.StreamContent.Sample(text=text, token_ids=progress.tokens)
                if completion is not None:
                    context.set_trailing_metadata((('finish-reason', completion.finish_reason),))
                yield protocol.DecodeResponse(stream_content=protocol.DecodeResponse.StreamContent(samples=[sample]))
        except Exception as error:
            refuse(context, error)

    def _request(self, request: Any) -> Request:
        if request.session_cache:
            raise ValueError('session_cache is not supported; send the whole prompt')
        kind = request.WhichOneof('content')
        if kind is None:
            raise ValueError('a request has text_content or token_content, got neither')
        ids = (
            self._tokenizer.prompt(request.text_content.text)
            if kind == 'text_content'
            else request.token_content.token_ids
        )
        return Request(tuple(ids), Sampling(0.0, max_tokens=request.max_tokens), 0)

    def HealthCheck(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Say if the driver is alive."""
        return protocol.HealthCheckResponse(is_live=self._driver.live)


class Rollout:
    """The service `pal_jax.Rollout`: batches of requests, new weights, and the server's status."""

    def __init__(self, driver: Driver, name: str, left: LeftRequests):
        self._driver, self._name, self._left = driver, name, left
        self._updating = threading.Lock()

    def generate(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Sample a batch of requests, and yield the answers as they end."""
        try:
            batch: wire.Batch = wire.unpack(wire.Batch, data)
            requests = [wire.request_of(ask, self._driver.decoder.tokenizer) for ask in batch.requests]
            answers = BatchProgress(self._driver, requests)
            self._left.watch(answers, context)
            for stride in answers:
                ended = [wire.answer(index, news.completion) for index, news in stride if news.completion is not None]
                yield wire.pack(wire.Answers(answers=ended))
        except Exception as error:
            refuse(context, error)

    def update(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Load new weights from their messages, and return the status with the new version."""
        # Two updates at once would hold the weights three times.
        if not self._updating.acquire(blocking=False):
            refuse(context, Busy('another update is under way'))
        try:
            header, params = wire.read_update(messages, self._driver.decoder.cfg)
            params = jax.device_put(params, self._driver.decoder.param_shardings)
            self._driver.swap(params, header.version, header.policy).result()
            return self.status(b'', context)
        except Exception as error:
            refuse(context, error)
        finally:
            self._updating.release()

    def status(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        """The status of the server."""
        decoder = self._driver.decoder
        return wire.pack(
            wire.Status(
                name=self._name,
                model=wire.identity(decoder.cfg),
                stop_ids=list(decoder.tokenizer.stop_ids),
                version=decoder.version,
                slots=decoder.slots,
                free=decoder.free,
                accepted=self._driver.accepted,
                room=self._driver.room,
                left=self._left.count,
            )
        )


class Aborted(RuntimeError):
    """The error of an answer that was cut short, for which the protocol has no word."""


CODES = {
    ValueError: grpc.StatusCode.INVALID_ARGUMENT,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Closed: grpc.StatusCode.UNAVAILABLE,
    Aborted: grpc.StatusCode.ABORTED,
}


def refuse(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with the code and the message of an error."""
    for kind, code in CODES.items():
        if isinstance(error, kind):
            context.abort(code, str(error))
    context.abort(grpc.StatusCode.INTERNAL, f'decoding failed: {error!r}')
