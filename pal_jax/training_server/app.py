"""The HTTP application: paths below /api/v1 as the `tinker` client 0.38 asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import zstandard
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pal_jax.decode.serve.bodies import START, TooLarge, read_body, replayed
from pal_jax.training_server import wire
from pal_jax.training_server.futures import Conflict, Operation, UserFault
from pal_jax.training_server.service import Gone, Missing, Service

API = '/api/v1'
# Seconds for which a request for a future waits; the client gives up after 45.
WAIT = 30.0
# Seconds between two looks at sessions without a heartbeat and at results that nobody will ask for.
SWEEP = 30.0
# The client's behaviour that this server counts on.
FLAGS = {
    'pjwt_auth_enabled': False,
    'proto_compress_fwdbwd': False,
    'custom_loss_server_side': False,
    'parallel_fwdbwd_chunks': True,
}


class LimitedBody:
    """ASGI middleware that refuses a body of more than `limit` bytes, and unpacks one that is compressed by zstd.

    Args:
      refused: is told of a request whose body is refused: the request, the body's first bytes as far as they can be
        read, and why.
    """

    def __init__(self, app: ASGIApp, limit: int, refused: Callable[[Request, bytes, str], None]):
        self.app, self.limit, self.refused = app, limit, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        coding = dict(scope['headers']).get(b'content-encoding', b'identity').decode('latin-1').lower()
        try:
            body = await read_body(receive, self.limit)
            if body is None:
                return None
            body = await asyncio.to_thread(self._unpacked, body, coding)
        except TooLarge as error:
            start = _unpacked_start(error.start) if coding == 'zstd' else error.start
            self.refused(Request(scope), start, str(error))
            return await self._refuse(413, str(error))(scope, receive, send)
        except ValueError as error:
            self.refused(Request(scope), b'', str(error))
            return await self._refuse(415, str(error))(scope, receive, send)
        return await self.app(scope, replayed(body, receive), send)

    def _unpacked(self, body: bytes, coding: str) -> bytes:
        if coding == 'identity':
            return body
        if coding != 'zstd':
            raise ValueError(f'content-encoding {coding!r} is not supported; use zstd or none')
        try:
            # A small body may unpack to any size, so one byte beyond the limit is read at most.
            whole = zstandard.ZstdDecompressor().stream_reader(body).read(self.limit + 1)
        except zstandard.ZstdError as error:
            raise ValueError(f'the body is not compressed by zstd: {error}') from None
        if len(whole) > self.limit:
            raise TooLarge(self.limit, body[:START])
        return whole

    @staticmethod
    def _refuse(status: int, why: str) -> JSONResponse:
        return JSONResponse({'detail': why}, status, {'connection': 'close'})


def _unpacked_start(start: bytes) -> bytes:
    """The first bytes of a body of which the first packed ones are there."""
    try:
        return zstandard.ZstdDecompressor().stream_reader(start).read(START)
    except zstandard.ZstdError:
        return b''


def make_app(
    service: Service, *, key: str = '', body_limit: int = 1 << 28, flags: Mapping[str, Any] | None = None
) -> FastAPI:
    """The server's application.

    Args:
      key: the API key that clients must send; '' lets every key in that begins with tml-, as the client has it.
      flags: further flags of the client's configuration (`ClientConfigResponse`).

    The service is closed when the server stops.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()
        await asyncio.to_thread(service.close)

    def known(request: Request) -> None:
        sent = request.headers.get('x-api-key', '')
        # A web page can send no such header unasked, so the prefix alone keeps other sites out.
        if not sent.startswith('tml-') or (key and not secrets.compare_digest(sent.encode(), key.encode())):
            fit = 'the key of this server' if key else 'one that begins with tml-'
            raise Unauthorized(f'X-API-Key is not {fit}; set TINKER_API_KEY to it')

    def refused(request: Request, start: bytes, why: str) -> None:
        # A body is refused before the key is checked, and a caller without the key fails nobody's operation.
        with contextlib.suppress(Unauthorized):
            known(request)
            service.refuse_unread(start, why)

    app = FastAPI(title='pal_jax training', lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.closing = asyncio.Event()
    app.add_middleware(LimitedBody, limit=body_limit, refused=refused)
    _answer_errors(app, service)
    routes = Routes(service, FLAGS | dict(flags or {}), app.state.closing)
    guarded = [Depends(known)]
    app.get(f'{API}/healthz')(lambda: {'status': 'ok'})
    for path, answer in routes.posts.items():
        app.post(f'{API}/{path}', dependencies=guarded)(answer)
    for path, answer in routes.gets.items():
        app.get(f'{API}/{path}', dependencies=guarded)(answer)
    methods = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']
    app.add_api_route(f'{API}/{{path:path}}', routes.nothing, methods=methods, dependencies=guarded)
    return app


class Unauthorized(Exception):
    """The error of a request without the key."""


STATUS = {Unauthorized: 401, Missing: 404, Conflict: 409, Gone: 410, UserFault: 400}


def _answer_errors(app: FastAPI, service: Service) -> None:
    """Make the application answer every error in one line of JSON."""
    for kind, status in STATUS.items():

        @app.exception_handler(kind)
        async def refused(_: Request, error: Exception, status: int = status) -> JSONResponse:
            return JSONResponse({'detail': str(error)}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        service.refuse(error.body)
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc'][1:]) or 'body'
        where = f'character {where}' if first['type'] == 'json_invalid' else where
        return JSONResponse({'detail': f'{where}: {first["msg"]}'}, 422)


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        service.sweep()


def digest_of(body: bytes) -> bytes:
    """A short name of a body, by which two are compared."""
    return hashlib.blake2b(body, digest_size=16).digest()


class Routes:
    """The functions of the paths. They run on the event loop, and hand all work on devices to the executor."""

    def __init__(self, service: Service, flags: Mapping[str, Any], closing: asyncio.Event):
        self.service, self.flags, self.closing = service, flags, closing
        self.posts = {
            'client/config': self.config,
            'client/dynamic_config': self.dynamic_config,
            'create_session': self.create_session,
            'session_heartbeat': self.heartbeat,
            'sessions/{session_id}/finish': self.finish,
            'telemetry': self.telemetry,
            'create_model': self.create_model,
            'get_info': self.get_info,
            'unload_model': self.unload_model,
            'forward_backward': self.forward_backward,
            'optim_step': self.optim_step,
            'save_weights': self.save_weights,
            'save_weights_for_sampler': self.save_for_sampler,
            'load_weights': self.load_weights,
            'create_sampling_session': self.create_sampler,
            'join_sampling_session': self.join_sampler,
            'asample': self.sample,
            'retrieve_future': self.retrieve,
            'cancel_future': self.cancel,
            'weights_info': self.weights_info,
        }
        self.gets = {
            'get_server_capabilities': self.capabilities,
            'samplers/{sampler_id:path}': self.get_sampler,
            'training_runs': self.training_runs,
            'training_runs/{model_id}/checkpoints': self.checkpoints,
            'training_runs/{model_id}': self.training_run,
        }

    # --- start-up and sessions ---------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The flags of the client's configuration."""
        return dict(self.flags)

    def dynamic_config(self) -> dict[str, Any]:
        """The flags that may change; a sample whose caller is gone can be cancelled."""
        return {'sample_cancel_enabled': True}

    def capabilities(self) -> dict[str, Any]:
        """The models that can be trained and sampled from."""
        return {'supported_models': [self.service.about_base()]}

    async def create_session(self, form: wire.CreateSession) -> dict[str, Any]:
        """A new session."""
        return {'session_id': self.service.open_session(), 'type': 'create_session'}

    async def heartbeat(self, form: wire.NamedSession) -> dict[str, Any]:
        """A sign of life of a session. Raises Gone where it has finished."""
        self.service.session(form.session_id).beat()
        return {'type': 'session_heartbeat'}

    async def finish(self, session_id: str) -> Response:
        """The end of a session, which frees its samplers and unsaved models."""
        self.service.finish(session_id)
        return Response(status_code=204)

    def telemetry(self) -> dict[str, Any]:
        """Events of the client, which nobody reads here."""
        return {'status': 'accepted'}

    async def nothing(self, path: str, request: Request) -> JSONResponse:
        """The answer to all other paths of the interface."""
        with contextlib.suppress(ValueError):
            self.service.refuse(await request.json())
        # The client would ask again for minutes after a status of 500 and more.
        return JSONResponse({'detail': f'{path} is not served by pal_jax; see docs/serve_training.md'}, 404)

    # --- models ------------------------------------------------------------------------------------------------------

    async def create_model(self, form: wire.CreateModel) -> dict[str, Any]:
        """The future of a new model."""
        return _future(self.service.create_model(form, _digest(form)), f'{form.session_id}:train:{form.model_seq_id}')

    async def get_info(self, form: wire.NamedModel) -> dict[str, Any]:
        """The model's base and adapters. Raises Missing where there is no such model."""
        return self.service.about_model(form.model_id)

    async def unload_model(self, form: wire.NamedModel) -> dict[str, Any]:
        """The future of the end of a model."""
        return _future(self.service.unload(form.model_id), form.model_id)

    async def forward_backward(self, request: Request) -> Any:
        """The future of a forward pass, with or without gradients."""
        body = await request.body()
        try:
            message = await asyncio.to_thread(wire.read_training, body)
        except ValueError as error:
            self.service.refuse_unread(body[:START], str(error))
            return JSONResponse({'detail': str(error)}, 422)
        # The bytes of one message may differ in the order of a map.
        digest = digest_of(message.SerializeToString(deterministic=True))
        return _future(self.service.forward_backward(message, body, digest), message.model_id)

    async def optim_step(self, form: wire.OptimStep) -> dict[str, Any]:
        """The future of a step."""
        return _future(self.service.optim_step(form, _digest(form)), form.model_id)

    # --- weights -----------------------------------------------------------------------------------------------------

    async def save_weights(self, form: wire.SaveWeights) -> dict[str, Any]:
        """The future of saved weights."""
        return _future(self.service.save_weights(form, _digest(form)), form.model_id)

    async def save_for_sampler(self, form: wire.SaveForSampler) -> dict[str, Any]:
        """The future of weights to sample from."""
        return _future(self.service.save_for_sampler(form, _digest(form)), form.model_id)

    async def load_weights(self, form: wire.LoadWeights) -> dict[str, Any]:
        """The future of a model with saved weights."""
        operation, model_id = self.service.load_weights(form, _digest(form))
        return _future(operation, model_id)

    async def weights_info(self, form: wire.NamedPath) -> dict[str, Any]:
        """The base and the adapters' shape of saved weights."""
        return self.service.weights_info(form.tinker_path)

    async def training_runs(self) -> dict[str, Any]:
        """All models, those in memory and those with saved weights."""
        runs = self.service.training_runs()
        return {'training_runs': runs, 'cursor': {'offset': 0, 'limit': len(runs), 'total_count': len(runs)}}

    async def training_run(self, model_id: str) -> dict[str, Any]:
        """One model. Raises Missing where it is neither in memory nor has saved weights."""
        return self.service.training_run(model_id)

    async def checkpoints(self, model_id: str) -> dict[str, Any]:
        """The saved weights of one model."""
        return {'checkpoints': self.service.checkpoints(model_id)}

    # --- samples -----------------------------------------------------------------------------------------------------

    async def create_sampler(self, form: wire.CreateSampler) -> dict[str, Any]:
        """A sampling session."""
        return {'sampling_session_id': self.service.create_sampler(form), 'type': 'create_sampling_session'}

    async def join_sampler(self, form: wire.NamedSampler) -> dict[str, Any]:
        """A number for one more client of a sampling session."""
        return {'client_counter': self.service.join(form.sampling_session_id), 'type': 'join_sampling_session'}

    async def get_sampler(self, sampler_id: str) -> dict[str, Any]:
        """A sampling session's weights."""
        return self.service.about_sampler(sampler_id)

    async def sample(self, form: wire.Sample) -> Any:
        """The future of samples, with a name for each sample; 429 where the line is full."""
        if self.service.full():
            return JSONResponse({'detail': 'too many samples wait; try again later'}, 429)
        operation = self.service.sample(form, _digest(form))
        ids = [f'{operation.request_id}:{i}' for i in range(form.num_samples)]
        return {'request_id': operation.request_id, 'sample_sequence_ids': ids}

    # --- futures -----------------------------------------------------------------------------------------------------

    async def retrieve(self, form: wire.NamedRequest) -> Any:
        """The result of a future, or word that it is still under way."""
        operation = self.service.futures.get(form.request_id)
        if operation is None:
            raise Missing(f'there is no request {form.request_id}; its result was kept for ten minutes')
        closing = asyncio.ensure_future(self.closing.wait())
        done = asyncio.wrap_future(operation.done)
        # The error is read from the operation itself.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            await asyncio.wait([done, closing], timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
        if not operation.done.done():
            state = self.service.queue_state(form.request_id)
            return {'type': 'try_again', 'request_id': form.request_id, 'queue_state': state}
        if (error := operation.done.exception()) is None:
            answer = operation.done.result()
            return Response(answer.body, media_type=answer.media)
        if isinstance(error, UserFault):
            return {'error': str(error), 'category': 'user'}
        return {'error': f'{type(error).__name__}: {error}', 'category': 'server'}

    async def cancel(self, form: wire.NamedRequest) -> Response:
        """The end of samples that nobody waits for."""
        self.service.cancel(form.request_id)
        return Response(status_code=204)


def _digest(form: wire.Form) -> bytes:
    return digest_of(form.model_dump_json().encode())


def _future(operation: Operation, model_id: str) -> dict[str, Any]:
    return {'request_id': operation.request_id, 'model_id': model_id}
