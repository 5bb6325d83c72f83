"""Rollouts by several decode servers, each of which has a part of the requests."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from pal_jax.decode.requests import Request, Told
from pal_jax.decode.serve.jetstream.remote import START, Lost, RemoteDecoder
from pal_jax.decode.shares import by_shares
from pal_jax.models.params import Params
from pal_jax.run import processes, sharding
from pal_jax.run.processes import Shares
from pal_jax.types import Completion

# The seconds in which a `load` tries a server, and one that was lost before.
SOON, AGAIN = 10.0, 0.5


class Servers:
    """A decoder on several servers. A server that cannot be reached is left out until the next `load`, which may reach
    it again."""

    def __init__(self, decoders: Sequence[RemoteDecoder]):
        self._decoders, self._reached = list(decoders), list[RemoteDecoder]()
        # Without lockstep, weights are sent while all servers sample.
        self._pool = ThreadPoolExecutor(2 * len(decoders), 'decode servers')

    def load(self, params: Params, version: int | None = None) -> None:
        """Decode with these parameters from now on. Each server is sent them once.

        Where no server is there, the call waits for those that are still starting.

        Raises:
          RuntimeError: no server can be reached, or one refuses.
          ValueError: a server has another model.
        """
        # All servers have one version, so that a token of other weights is noticed.
        version = self.numbered(version)

        def reach(patience: Mapping[RemoteDecoder, float]) -> dict[RemoteDecoder, Lost]:
            return self._try({d: (params, version, seconds) for d, seconds in patience.items()}, RemoteDecoder.load)

        errors = reach({decoder: SOON if decoder in self._reached else AGAIN for decoder in self._decoders})
        if len(errors) == len(self._decoders):
            errors = reach(dict.fromkeys(self._decoders, START))
        self._leave_out(errors, self._decoders)

    def numbered(self, version: int | None) -> int:
        """The version of weights that are sent with this one, as `RemoteDecoder.numbered` has it."""
        return self._decoders[0].numbered(version)

    def await_version(self, version: int) -> None:
        """Take answers by the weights of this version, too, which another process is about to send."""
        for decoder in self._decoders:
            decoder.version = version

    @property
    def reached(self) -> list[str]:
        """The addresses of the servers that decode."""
        return [decoder.address for decoder in self._reached]

    def join(self, version: int, reached: Collection[str]) -> None:
        """Decode with the weights of this version, which another process has sent to the servers that it reached.

        Raises:
          RuntimeError: none of them can be reached from here.
        """
        tried = [decoder for decoder in self._decoders if decoder.address in reached]
        self._leave_out(self._try(dict.fromkeys(tried, (version, SOON)), RemoteDecoder.join), tried)

    def release(self) -> None:
        """Close the connections."""
        for decoder in self._decoders:
            decoder.release()

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests. A server that is lost gives its requests to the others.

        `on_completion(place, completion)` is called when a completion has arrived, on any thread.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded, no server can be reached, or one refuses.
        """
        if not self._reached:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        done: dict[int, Completion] = {}

        def ask(decoder: RemoteDecoder, places: Sequence[int]) -> None:
            def arrived(k: int, completion: Completion) -> None:
                done[places[k]] = completion
                if on_completion:
                    on_completion(places[k], completion)

            decoder([requests[place] for place in places], arrived)

        while left := [place for place in range(len(requests)) if place not in done]:
            shares = Shares(len(self._reached))
            parts = {decoder: (shares.part(left, number),) for number, decoder in enumerate(self._reached)}
            self._leave_out(self._try(parts, ask), self._reached)
        return [done[place] for place in range(len(requests))]

    def _try(self, arguments: dict[RemoteDecoder, tuple[Any, ...]], call: Any) -> dict[RemoteDecoder, Lost]:
        """Call all servers side by side, each with its arguments; the errors of those that cannot be reached."""
        calls = {decoder: self._pool.submit(call, decoder, *args) for decoder, args in arguments.items()}
        errors = {decoder: future.exception() for decoder, future in calls.items()}
        for error in errors.values():
            if error and not isinstance(error, Lost):
                raise error
        return {decoder: error for decoder, error in errors.items() if isinstance(error, Lost)}

    def _leave_out(self, errors: dict[RemoteDecoder, Lost], tried: Sequence[RemoteDecoder]) -> None:
        """Go on with the servers among `tried` that have no error. Raises the first error where all have one."""
        before, self._reached = self._reached, [decoder for decoder in tried if decoder not in errors]
        if not self._reached:
            raise next(iter(errors.values()))
        for decoder, error in errors.items():
            if decoder in before or not before:
                print(f'{error}; the other decode servers go on', file=sys.stderr)
        for decoder in self._reached:
            if before and decoder not in before:
                print(f'the decode server at {decoder.address} is back', file=sys.stderr)


class SharedServers:
    """The servers of a trainer of several processes. Process 0 sends the weights, and every process asks for its share
    of the completions."""

    def __init__(self, servers: Servers):
        self._servers, self._shares = servers, Shares(jax.process_count())

    def load(self, params: Params, version: int | None = None) -> None:
        """Decode with these parameters, spread over all processes, from now on; raises as `Servers.load`."""
        gathered, first = sharding.to_host(params), jax.process_index() == 0
        chosen = self._servers.numbered(version)
        # A server may answer by the new weights before process 0 has sent them to all servers.
        self._servers.await_version(chosen)
        sent = processes.exchange('version', chosen)[0]
        if first:
            self._servers.load(gathered, sent)
        reached = processes.exchange('decode servers', self._servers.reached)[0]
        if not first:
            self._servers.join(sent, reached)

    def release(self) -> None:
        """Close the connections."""
        self._servers.release()

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests, which are the same in every process; raises as `Servers`.

        `on_completion(place, completion)` is called for the completions that this process has asked for.
        """
        return by_shares(self._shares, {jax.process_index(): self._servers}, requests, on_completion)
