"""Rollouts in another process or on another machine, by `pal-jax serve --driver=jetstream`.

`load` sends the weights over gRPC, and the server samples and returns tokens and log-probs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.driver import SwapPolicy
from pal_jax.decode.requests import Request, Told, check
from pal_jax.decode.serve.jetstream import wire
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.types import Completion

# The seconds in which requests to a full server are repeated.
PATIENCE = 600.0
# The seconds in which a server starts: it listens once it has read its weights.
START = 300.0
# The seconds after which a trainer says that it waits.
SILENT = 2.0
RETRY = (('grpc.max_reconnect_backoff_ms', 2000),)
HINTS = {
    grpc.StatusCode.UNAVAILABLE: 'it cannot be reached; start pal-jax serve --driver=jetstream there',
    grpc.StatusCode.UNIMPLEMENTED: 'it is no server of this package; start pal-jax serve --driver=jetstream',
    grpc.StatusCode.UNAUTHENTICATED: 'it asks for another token; set PAL_JAX_TOKEN to its secret',
}


class Lost(RuntimeError):
    """The error of a server that cannot be reached, or no longer has the weights of this trainer."""


class RemoteDecoder:
    """A decoder on a server. Nothing is sent before the first `load`. A connection lives until the next `load` or
    `release`.

    Args:
      start: None: all tokens of a request are of one version. A number: `load` may come from another thread while
        requests are under way, which go on with the new weights. Versions are then counted from `start` on the server,
        and from 0 for the caller.
    """

    def __init__(
        self, cfg: ModelConfig, tokenizer: Tokenizer, address: str, token: str = '', *, start: int | None = None
    ):
        self.cfg, self.tokenizer, self.address, self.version = cfg, tokenizer, address, 0
        self._start = start
        self._metadata = (('authorization', f'Bearer {token}'),) if token else ()
        self._channel: grpc.Channel | None = None

    def load(self, params: Params, version: int | None = None, patience: float | None = None) -> None:
        """Decode with these (plain, merged) parameters from now on. Without `start`, no requests of this decoder may be
        under way.

        The call waits `patience` seconds, by default `START`, for a server that is still starting. Without a version
        the parameters get a random one, or with `start` that of the last ones.

        Raises:
          Lost: the server cannot be reached.
          RuntimeError: the server refuses.
          ValueError: the server has another model.
        """
        policy: SwapPolicy = 'drain' if self._start is None else 'continue'
        version = self.numbered(version)
        self.join(version, patience)
        with self._told():
            self._method('stream_unary', 'Update')(wire.update(params, version + (self._start or 0), policy))

    def numbered(self, version: int | None) -> int:
        """The version of weights that are sent with this one, see `load`."""
        if version is not None:
            return version
        # A random version lets a call notice weights from another trainer.
        return secrets.randbits(31) if self._start is None else self.version

    def join(self, version: int, patience: float | None = None) -> None:
        """Decode with the weights of this version, which another process sends.

        Raises:
          Lost, RuntimeError, ValueError: as `load`.
        """
        # Requests may be under way over the connection that is there.
        if self._start is None or self._channel is None:
            self.release()
            self._channel = grpc.insecure_channel(self.address, options=(*wire.OPTIONS, *RETRY))
            self._wait(self._channel, START if patience is None else patience)
            with self._told():
                self._check(wire.unpack(wire.Status, self._method('unary_unary', 'Status')(b'')))
        self.version = version

    def _wait(self, channel: grpc.Channel, patience: float) -> None:
        """Wait until the server answers. Raises Lost where it does not within `patience` seconds."""
        ready = grpc.channel_ready_future(channel)
        try:
            if patience > SILENT:
                with contextlib.suppress(grpc.FutureTimeoutError):
                    return ready.result(SILENT)
                wait = f'waiting for the decode server at {self.address}, {patience:.0f} seconds at most'
                print(wait, file=sys.stderr)
            ready.result(patience)
        except grpc.FutureTimeoutError:
            self.release()
            raise Lost(f'the decode server at {self.address}: {HINTS[grpc.StatusCode.UNAVAILABLE]}') from None
        finally:
            ready.cancel()

    def release(self) -> None:
        """Close the connection. The server keeps the weights and answers other clients with them."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests.

        `on_completion(place, completion)` is called when a completion has arrived.

        Raises:
          ValueError: a request does not fit the model's context.
          Lost: the server cannot be reached.
          RuntimeError: no weights are loaded, or the server refuses.
        """
        if self._channel is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        for request in requests:
            check(request, self.cfg)
        if not requests:
            return []
        batch = wire.pack(wire.Batch(requests=[wire.ask(request) for request in requests]))
        if len(batch) > wire.LIMIT:
            raise ValueError(
                f'{len(requests)} requests take {len(batch) >> 20} MiB, a message at most {wire.LIMIT >> 20}; lower '
                'dialogue.rollout_batch_size'
            )
        give_up = time.monotonic() + PATIENCE
        with self._told():
            while True:
                try:
                    done = self._receive(batch, on_completion)
                    break
                except grpc.RpcError as error:
                    if _status(error)[0] != grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > give_up:
                        raise
                    # Requests of other clients fill the server's line.
                    time.sleep(1.0)
        return [done[number] for number in range(len(requests))]

    def _receive(self, batch: bytes, on_completion: Told | None) -> dict[int, Completion]:
        done: dict[int, Completion] = {}
        answers = self._method('unary_stream', 'Generate')(batch)
        for answer in itertools.chain.from_iterable(wire.unpack(wire.Answers, data).answers for data in answers):
            completion, first = wire.completion_of(answer), self.version
            if self._start is not None:
                counted = tuple(version - self._start for version in completion.versions)
                completion, first = dataclasses.replace(completion, versions=counted), 0
            done[answer.index] = completion
            # A token of another version was sampled from the weights of another trainer, or of a server's own start.
            if versions := {version for version in completion.versions if not first <= version <= self.version}:
                raise Lost(
                    f'the server at {self.address} got weights from elsewhere: asked version {self.version}, got '
                    f'{sorted(versions)}; give every trainer a server of its own'
                )
            if on_completion:
                on_completion(answer.index, done[answer.index])
        return done

    def _method(self, kind: str, name: str) -> Any:
        method = getattr(self._channel, kind)(f'/{wire.SERVICE}/{name}')
        return lambda message: method(message, metadata=self._metadata)

    def _check(self, status: wire.Status) -> None:
        ours, theirs = wire.identity(self.cfg), status.model
        for key in ours:
            if ours[key] != theirs.get(key):
                raise ValueError(
                    f'the server at {self.address} has another model ({status.name}): its {key} is {theirs.get(key)}, '
                    f'ours {ours[key]}; start it with the --source and --dtype of this run'
                )
        if list(self.tokenizer.stop_ids) != status.stop_ids:
            raise ValueError(
                f'the server at {self.address} has another tokenizer: its answers end with {status.stop_ids}, ours '
                f'with {list(self.tokenizer.stop_ids)}; start it with the --source of this run'
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A context in which errors of gRPC become an Lost or another RuntimeError with one line."""
        try:
            yield
        except grpc.RpcError as error:
            code, details = _status(error)
            hint = HINTS.get(code, details)
            # A server that is stopped cancels the calls that are under way.
            kind = Lost if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) else RuntimeError
            raise kind(f'the decode server at {self.address}: {hint}') from error


def _status(error: Any) -> tuple[grpc.StatusCode, str]:
    """The code and the details of an error of gRPC, whose type does not declare them."""
    return error.code(), error.details()
