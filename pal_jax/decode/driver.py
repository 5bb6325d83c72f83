"""A decoder on a thread of its own, for servers: submit from any thread, stream, score, cancel, swap weights, drain.

No other thread touches the decoder. The thread takes commands between steps, gives the decoder no more requests than it
has free slots, and passes the progress of each request to the request's callback. A step that raises fails the requests
under way and no others. Prompts are scored one after the other, a piece between two steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Literal

from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import PromptLogprobs, Request, RequestProgress
from pal_jax.models.params import Params

# A `Notify` is called on the driver's thread, and its last call has the completion.
Notify = Callable[[RequestProgress | Exception], None]
SwapPolicy = Literal['drain', 'continue', 'abort']


CLOSING = 'the server is shutting down'


class Busy(RuntimeError):
    """The error of a full line of requests; the caller may try again later."""


class Closed(RuntimeError):
    """The error of a driver that takes no more requests."""


@dataclasses.dataclass(eq=False)
class TakenRequest:
    """A request that the driver has taken. Times are seconds of `time.perf_counter`."""

    request: Request
    notify: Notify
    submitted: float
    started: float = 0.0
    number: int = 0  # the decoder's, once it has started


@dataclasses.dataclass
class Swap:
    """New weights on their way into the decoder."""

    params: Params
    version: int
    policy: SwapPolicy
    done: Future[int]


@dataclasses.dataclass(eq=False)
class ScoreJob:
    """A prompt to score. `pieces` is set once scoring has begun."""

    request: Request
    done: Future[PromptLogprobs]
    pieces: Iterator[PromptLogprobs] | None = None
    found: list[PromptLogprobs] = dataclasses.field(default_factory=list)


class Driver:
    """A driver of a decoder on a thread of its own, see the head of this module.

    Args:
      decoder: a decoder with weights loaded. No other code may use it from now on.
      line: the number of requests that may wait beside those being decoded.
    """

    def __init__(self, decoder: LocalDecoder, *, line: int = 256):
        # At most `room` requests are under way or in line.
        self.decoder, self.room = decoder, decoder.slots + line
        self._accepted, self._closing, self._lock = 0, False, threading.Lock()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._line: deque[TakenRequest] = deque()
        self._live: dict[int, TakenRequest] = {}
        self._scorings: deque[ScoreJob] = deque()
        self._swaps: deque[Swap] = deque()
        self._drained: list[Future[None]] = []
        self._open = True
        self._thread = threading.Thread(target=self._run, name='decoder', daemon=True)
        self._thread.start()

    # --- from any thread ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, notify: Notify) -> TakenRequest:
        """Put one request in line, as `submit_all` does."""
        return self.submit_all([request], lambda _, news: notify(news))[0]

    def submit_all(
        self, requests: Sequence[Request], notify: Callable[[int, RequestProgress | Exception], None]
    ) -> list[TakenRequest]:
        """Put requests in line, all or none. `notify(place, progress)` is called on the driver's thread.

        Raises:
          ValueError: the model cannot meet one of the requests.
          Busy: the line is full.
          Closed: the driver is draining or closed.
        """
        for request in requests:
            self.decoder.check(request)
        self._accept(len(requests))
        now = time.perf_counter()
        tickets = [TakenRequest(request, functools.partial(notify, k), now) for k, request in enumerate(requests)]
        self._commands.put(lambda: self._line.extend(tickets))
        return tickets

    def score(self, request: Request) -> Future[PromptLogprobs]:
        """A future of the log-probs of the tokens in the request's prompt, with as many alternatives as it asks for.

        The request's sampling settings have no effect. Where new weights come that do not wait for it, the prompt is
        scored anew. The future can be cancelled.

        Raises:
          ValueError, Busy, Closed: as `submit`.
        """
        self.decoder.check(request, prompt_only=True)
        self._accept()
        scoring = ScoreJob(request, Future())
        scoring.done.add_done_callback(self._leave)
        self._commands.put(lambda: self._scorings.append(scoring))
        return scoring.done

    def _accept(self, count: int = 1) -> None:
        with self._lock:
            if self._closing:
                raise Closed(CLOSING)
            # An idle driver takes any number of requests at once, and the line bounds the requests that are added then.
            if self._accepted and self._accepted + count > self.room:
                raise Busy(f'{self._accepted} requests are under way or in line; try again later')
            self._accepted += count

    def _leave(self, _: object = None) -> None:
        with self._lock:
            self._accepted -= 1

    def cancel(self, ticket: TakenRequest) -> None:
        """Take a request back. Unless it has ended by then, it ends as `aborted` with the tokens that it has."""
        self._commands.put(lambda: self._cancel(ticket))

    def swap(self, params: Params, version: int, policy: SwapPolicy = 'drain') -> Future[int]:
        """Load new weights for all requests that start from now on. The future has their version once they are loaded.

        Requests under way end first on the old weights (`drain`), end at once as `aborted` (`abort`), or go on with
        the new weights over a cache made by the old ones (`continue`). In the last case their tokens come from two
        policies.

        Raises:
          Closed: the driver is draining or closed.
        """
        swap = Swap(params, version, policy, Future())
        # Within the lock the command comes before that of a `close`, so a future is never left open.
        with self._lock:
            if self._closing:
                raise Closed(CLOSING)
            self._commands.put(lambda: self._swaps.append(swap))
        return swap.done

    def drain(self) -> None:
        """Take no more requests, and return when the last one has ended."""
        with self._lock:
            self._closing = True
        drained: Future[None] = Future()
        self._commands.put(lambda: self._drained.append(drained))
        drained.result()

    def close(self) -> None:
        """Take no more requests, end those under way or in line as `aborted`, and stop the thread."""
        with self._lock:
            self._closing = True
        if self._thread.is_alive():
            self._commands.put(self._stop)
            self._thread.join()

    @property
    def accepted(self) -> int:
        """The number of requests under way or in line."""
        return self._accepted

    @property
    def live(self) -> bool:
        """True while the driver's thread runs."""
        return self._thread.is_alive()

    # --- on the driver's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._open:
            self._obey()
            self._swap_when_due()
            self._feed()
            self._score()
            try:
                progress = self.decoder.step()
            # The server must survive the failure of a request.
            except Exception as error:
                self._fail(error)
                continue
            for news in progress:
                self._tell(self._live[news.number], news)
            while self._drained and not (self._live or self._line or self._scorings):
                self._drained.pop().set_result(None)

    def _obey(self) -> None:
        """Carry out the commands since the last step. Wait for a command where there is nothing else to do."""
        wait = not (self._live or self._line or self._swaps or self._scorings or self._drained)
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get(block=wait)()
                wait = False

    def _swap_when_due(self) -> None:
        while self._swaps:
            swap = self._swaps[0]
            if swap.policy == 'abort':
                for ticket in list(self._live.values()):
                    self._cancel(ticket)
            begun = [waiting for waiting in self._scorings if waiting.pieces]
            # Nothing new starts while a swap waits, so the old requests end in time.
            if swap.policy == 'drain' and (self._live or begun):
                return
            # A prompt that is half scored on the old weights is scored anew.
            for scoring in begun:
                scoring.pieces = None
            self._swaps.popleft()
            try:
                self.decoder.load(swap.params, swap.version)
            except Exception as error:
                swap.done.set_exception(error)
            else:
                swap.done.set_result(swap.version)

    def _feed(self) -> None:
        """Start requests in line, unless new weights wait for the old requests to end."""
        while self._line and self.decoder.free > 0 and not self._swaps:
            ticket = self._line.popleft()
            ticket.number, ticket.started = self.decoder.add(ticket.request), time.perf_counter()
            self._live[ticket.number] = ticket

    def _score(self) -> None:
        """Score the next piece of the first prompt in line. No prompt is begun while new weights wait."""
        while self._scorings and self._scorings[0].done.cancelled():
            self._scorings.popleft()
        if not self._scorings or (self._swaps and not self._scorings[0].pieces):
            return
        scoring = self._scorings[0]
        try:
            if scoring.pieces is None:
                scoring.pieces, scoring.found = self.decoder.score(scoring.request), []
            piece = next(scoring.pieces, None)
        except Exception as error:
            self._end(scoring, error)
            return
        if piece is not None:
            scoring.found.append(piece)
            return
        logprobs, alternatives, _ = zip(*scoring.found, strict=True)
        chain = itertools.chain.from_iterable
        self._end(scoring, PromptLogprobs(tuple(chain(logprobs)), tuple(chain(alternatives)), scoring.found[0].version))

    def _end(self, scoring: ScoreJob, result: PromptLogprobs | Exception) -> None:
        self._scorings.remove(scoring)
        # The caller may have cancelled the future.
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, Exception):
                scoring.done.set_exception(result)
            else:
                scoring.done.set_result(result)

    def _tell(self, ticket: TakenRequest, news: RequestProgress | Exception) -> None:
        ended = isinstance(news, Exception) or news.completion is not None
        if ended:
            self._live.pop(ticket.number, None)
            self._leave()
        try:
            ticket.notify(news)
        # The caller is gone, so nobody needs the other tokens.
        except Exception:
            if not ended:
                ticket.notify = _nobody
                self._cancel(ticket)

    def _cancel(self, ticket: TakenRequest) -> None:
        if ticket in self._line:
            self._line.remove(ticket)
            self._tell(ticket, Closed('cancelled before it started'))
        elif ticket.number in self._live:
            completion = self.decoder.cancel(ticket.number)
            self._tell(ticket, RequestProgress(ticket.number, (), (), completion))

    def _fail(self, error: Exception) -> None:
        # A step that raised leaves the caches in an unknown state.
        self.decoder.reset()
        for ticket in list(self._live.values()):
            self._tell(ticket, error)

    def _stop(self) -> None:
        for ticket in [*self._line, *self._live.values()]:
            self._cancel(ticket)
        for scoring in list(self._scorings):
            self._end(scoring, Closed(CLOSING))
        # Every future that was handed out gets an end, so no caller waits for ever.
        for swap in self._swaps:
            swap.done.set_exception(Closed(CLOSING))
        for drained in self._drained:
            drained.set_result(None)
        self._open = False


def _nobody(_: RequestProgress | Exception) -> None:
    """Ignore the progress of a request whose caller is gone."""
