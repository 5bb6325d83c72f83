"""JetStream's driver, made safe for rollouts and servers.

Its threads stay (prefill, generate, detokenize), and their work is replaced. Prompts in line are prefilled together,
equal prompts once. Free slots are filled before the next stride. A request ends where `LocalDecoder` ends it, with the
same tokens, log-probs and reason. A failure ends the requests that were computed, and no others. Requests can be taken
back, the line is bounded, and weights change between requests.
"""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax

from pal_jax.decode import engine
from pal_jax.decode.driver import Busy, Closed, Notify, Swap, SwapPolicy
from pal_jax.decode.requests import LiveRequest, Request, RequestProgress, advance, check, finish
from pal_jax.decode.serve.jetstream.engine import JetStreamEngine, Slots, Stride, orchestrator
from pal_jax.models.params import Params
from pal_jax.types import Sampling

Body = TypeVar('Body', bound=Callable[..., None])


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that the driver has taken. Times are seconds of `time.perf_counter`."""

    live: LiveRequest
    notify: Notify
    submitted: float
    started: float = 0.0
    cancelled: bool = False
    ended: bool = False

    @property
    def request(self) -> Request:
        """The request of the ticket."""
        return self.live.request


class Group(NamedTuple):
    """Requests whose prompts were prefilled together and that wait for slots, with their rows in the prefix."""

    prefix: engine.PrefixCaches
    waiting: deque[tuple[int, Ticket]]


class Placing(NamedTuple):
    """Prompts that go into free slots now: entries (row of the prefix, slot, ticket)."""

    prefix: engine.PrefixCaches
    entries: list[tuple[int, int, Ticket]]


def _guarded(body: Body) -> Body:
    """A thread's body that ends every request, and the driver, where an unexpected error is raised in it."""

    @functools.wraps(body)
    def run(self: JetStreamDriver, idx: int) -> None:
        try:
            body(self, idx)
        except Exception as error:
            self._collapse(error)

    return cast(Body, run)


class JetStreamDriver(orchestrator.Driver):
    """JetStream's driver with the work of its threads replaced, see the head of this module.

    Args:
      engine: an engine with weights loaded, or one that gets them before the first request.
      line: the number of requests that may wait beside those being decoded.
      ahead: strides that the device may begin before the tokens of the last one are passed on. Their tokens are lost
        for a request that has ended.
    """

    def __init__(self, engine: JetStreamEngine, *, line: int = 256, ahead: int | None = None):
        self.engine, self.room = engine, engine.slots + line
        # A CPU computes on the same cores that pass on the last stride's tokens, so it gains nothing by going ahead.
        self._ahead = (0 if jax.default_backend() == 'cpu' else 1) if ahead is None else ahead
        self._lock = threading.Lock()
        self._for_prefill, self._for_generate, self._for_drain = (threading.Condition(self._lock) for _ in range(3))
        self._line: deque[Ticket] = deque()
        self._ready: Group | None = None
        self._started: set[Ticket] = set()  # requests that have left the line and not ended
        self._coming = 0  # the number of started requests without a slot
        self._undecoded = 0  # strides that were begun and not passed on
        self._lost: Exception | None = None  # the error after which the decode state cannot be used
        self._swaps: deque[Swap] = deque()
        # From generate's thread to detokenize's; `_ahead` bounds it, where JetStream's own queue may block for ever.
        self._outbox: queue.SimpleQueue[dict[int, Ticket] | Stride | Exception | None] = queue.SimpleQueue()
        self._accepted, self._closing = 0, False
        self.left = 0  # requests so far whose caller did not wait for their end
        super().__init__([engine], [engine], [engine.weights], [engine.weights], interleaved_mode=True)

    # --- from any thread ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, notify: Notify) -> Ticket:
        """Put one request in line, as `submit_all` does."""
        return self.submit_all([request], lambda _, news: notify(news))[0]

    def submit_all(
        self, requests: Sequence[Request], notify: Callable[[int, RequestProgress | Exception], None]
    ) -> list[Ticket]:
        """Put requests in line, all or none. `notify(number, progress)` is called on a thread of the driver.

        An idle driver takes any number of requests at once. The line bounds the requests that are added then.

        Raises:
          ValueError: the model cannot meet one of them.
          Busy: the line is full.
          Closed: the driver is draining or closed.
        """
        for request in requests:
            check(request, self.engine.cfg)
        now = time.perf_counter()
        with self._lock:
            if self._closing:
                raise Closed('the server is shutting down')
            if self._accepted and self._accepted + len(requests) > self.room:
                raise Busy(f'{self._accepted} requests are under way or in line; try again later')
            tickets = [
                Ticket(LiveRequest(self.engine.counters.requests + i + 1, request), _numbered(notify, i), now)
                for i, request in enumerate(requests)
            ]
            self.engine.counters.requests += len(tickets)
            self._accepted += len(tickets)
            self._line.extend(tickets)
            self._for_prefill.notify()
            self._for_generate.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back. Unless it has ended by then, it ends as `aborted` with the tokens that it has."""
        with self._lock:
            ticket.cancelled = True
            waited = ticket in self._line
            if waited:
                self._line.remove(ticket)
        if waited:
            self._end(ticket, Closed('cancelled before it started'))

    def count_left(self, requests: int) -> None:
        """Count requests whose caller does not wait for their end."""
        with self._lock:
            self.left += requests

    def swap(self, params: Params, version: int, policy: SwapPolicy = 'drain') -> Future[int]:
        """Load new weights for all requests that start from now on. The future has their version once they are loaded.

        Requests under way end first on the old weights (`drain`), end at once as `aborted` (`abort`), or go on with
        the new weights over a cache made by the old ones (`continue`). In the last case their tokens come from two
        policies.

        Raises:
          Closed: the driver is draining or closed.
        """
        swap = Swap(params, version, policy, Future())
        with self._lock:
            if self._closing:
                raise Closed('the server is shutting down')
            self._swaps.append(swap)
            if policy == 'abort':
                for ticket in self._started:
                    ticket.cancelled = True
            self._for_prefill.notify()
            self._for_generate.notify()
        return swap.done

    def drain(self) -> None:
        """Take no more requests, and return when the last one has ended."""
        with self._lock:
            self._closing = True
            self._for_drain.wait_for(lambda: not self._accepted)

    def stop(self) -> None:
        """Take no more requests, end those under way or in line as `aborted`, and stop the threads."""
        with self._lock:
            self._closing, self.live = True, False
            self._for_prefill.notify()
            self._for_generate.notify()
        for thread in self._all_threads:
            thread.join()
        ready = [ticket for _, ticket in self._ready.waiting] if self._ready else []
        tickets, self._ready = [*self._line, *ready], None
        self._line.clear()
        for ticket in tickets:
            self._end(ticket, Closed('the server is shutting down'))
        while self._swaps:
            self._swaps.popleft().done.set_exception(Closed('the server is shutting down'))

    @property
    def accepted(self) -> int:
        """The number of requests under way or in line."""
        return self._accepted

    @property
    def free(self) -> int:
        """The number of slots in which nothing decodes."""
        return self._generate_slots[0].qsize()

    def place_request_on_prefill_queue(self, request: Any) -> None:
        """Take a request from JetStream's own orchestrator in this process.

        It is decoded greedily, and a stride gives one message. The token that ends it is part of the answer.
        """
        content, channel = request.prefill_content, request.return_channel
        if request.history_path:
            raise ValueError('session_cache is not supported; send the whole prompt')
        ids = self.engine.tokenizer.prompt(content) if isinstance(content, str) else content
        text = LiveRequest(0, Request(tuple(ids), Sampling(0.0, max_tokens=request.max_tokens), 0))

        def notify(news: RequestProgress | Exception) -> None:
            if channel.cancelled():
                raise CancelledError
            if isinstance(news, Exception):
                channel.set_exception(news)
                return
            before = self.engine.tokenizer.text_of(text.tokens)
            text.tokens += news.tokens
            piece = self.engine.tokenizer.text_of(text.tokens)[len(before) :]
            channel.add_result([orchestrator.ReturnSample(text=[piece], token_ids=list(news.tokens))])
            if news.completion is not None:
                channel.close()

        self.submit(text.request, notify)

    def _collapse(self, error: Exception) -> None:
        failure = RuntimeError(f'the driver has failed and takes no more requests: {error!r}')
        with self._lock:
            self._closing, self.live = True, False
            tickets, swaps = [*self._line, *self._started], list(self._swaps)
            self._swaps.clear()
            self._for_prefill.notify()
            self._for_generate.notify()
        self._outbox.put(None)
        for ticket in tickets:
            self._tell(ticket, failure)
        for swap in swaps:
            swap.done.set_exception(failure)

    # --- prefill's thread: prompts, and new weights between them ------------------------------------------------------

    @_guarded
    def _prefill_thread(self, idx: int) -> None:
        while (tickets := self._take()) is not None:
            prompts: dict[tuple[int, ...], int] = {}
            rows = [prompts.setdefault(ticket.request.prompt_ids, len(prompts)) for ticket in tickets]
            try:
                prefix = self.engine.prefill_prompts(self._prefill_params[idx], list(prompts))
            except Exception as error:
                with self._lock:
                    self._coming -= len(tickets)
                for ticket in tickets:
                    self._end(ticket, error)
                continue
            with self._lock:
                self._ready = Group(prefix, deque(zip(rows, tickets, strict=True)))
                self._for_generate.notify()
            del prefix

    def _take(self) -> list[Ticket] | None:
        """The next requests to prefill together, once the last ones are in their slots; None at the end."""
        while True:
            with self._lock:
                self._for_prefill.wait_for(
                    lambda: (
                        not self.live or self._swap_is_due() or (self._line and not self._swaps and self._ready is None)
                    )
                )
                if not self.live:
                    return None
                if not self._swap_is_due():
                    return self._take_group()
                swap = self._swaps.popleft()
            self._carry_out(swap)

    def _swap_is_due(self) -> bool:
        return bool(self._swaps) and (self._swaps[0].policy == 'continue' or not self._started)

    def _take_group(self) -> list[Ticket]:
        prompts, tickets = set(), []
        while self._line and len(tickets) < self.engine.slots:
            prompts.add(self._line[0].request.prompt_ids)
            if len(prompts) > self.engine.rows[1]:
                break
            tickets.append(self._line.popleft())
        self._started.update(tickets)
        self._coming += len(tickets)
        return tickets

    def _carry_out(self, swap: Swap) -> None:
        try:
            if swap.policy != 'continue':
                self.engine.release()  # frees the old ones first
            self.engine.load(swap.params, swap.version)
        except Exception as error:
            swap.done.set_exception(error)
        else:
            swap.done.set_result(swap.version)

    def _transfer_thread(self, idx: int) -> None:
        """Do nothing, since prefill and decode share their devices."""

    # --- generate's thread: it alone has the decode state -------------------------------------------------------------

    @_guarded
    def _generate_thread(self, idx: int) -> None:
        state: Any = None
        out = self._outbox
        while (work := self._next(state is not None)) != 'stop':
            try:
                if isinstance(work, Placing):
                    out.put({slot: ticket for _, slot, ticket in work.entries})
                    state = self._place(state, work)
                elif work == 'decode':
                    state, stride = self.engine.generate(self._generate_params[idx], state)
                    stride.copy_to_host_async()
                    with self._lock:
                        self._undecoded += 1
                    out.put(stride)
                else:
                    state = None
                    if self._lost is not None:
                        self._lost, error = None, self._lost
                        out.put(error)
            except Exception as error:
                state = None
                out.put(error)
            del work  # a prefix goes with its last reference
        out.put(None)

    def _next(self, has_state: bool) -> Placing | Literal['decode', 'forget', 'stop']:
        """Wait for work: free slots to fill, else a stride to decode, else caches to release."""
        with self._lock:
            while (work := self._work(has_state)) is None:
                self._for_generate.wait()
            return work

    def _work(self, has_state: bool) -> Placing | Literal['decode', 'forget', 'stop'] | None:
        if not self.live:
            return 'stop'
        if self._lost is not None:
            return None if self._undecoded else 'forget'
        if self._ready is not None and self.free:
            return self._fill(self._ready)
        decoding = len(self._started) - self._coming
        coming = self._coming or (self._line and not self._swaps)
        if decoding and self._undecoded <= self._ahead and not (self.free and coming):
            return 'decode'
        return 'forget' if has_state and not decoding and not coming else None

    def _fill(self, group: Group) -> Placing:
        slots, entries = self._generate_slots[0], []
        while group.waiting and slots.qsize():
            row, ticket = group.waiting.popleft()
            entries.append((row, slots.get(), ticket))
        self._coming -= len(entries)
        if not group.waiting:
            self._ready = None
            self._for_prefill.notify()
        return Placing(group.prefix, entries)

    def _place(self, state: Slots | None, work: Placing) -> Slots:
        with self._lock:
            here = [ticket.request for ticket in self._started]
            room = self.engine.room_for([*here, *(ticket.request for ticket in self._line)])
            alone = len(self._started) - self._coming == len(work.entries)
        # Empty caches are made anew, since they may be longer than the coming requests need.
        state = self.engine.empty(room) if alone or state is None else self.engine.grown(state, room)
        return self.engine.place(
            state, work.prefix, [(row, slot, ticket.request) for row, slot, ticket in work.entries]
        )

    # --- detokenize's thread: the tokens of a stride to their requests ------------------------------------------------

    @_guarded
    def _detokenize_thread(self, idx: int) -> None:
        slots: dict[int, Ticket] = {}
        while (item := self._outbox.get()) is not None:
            if isinstance(item, dict):
                slots |= item
                for ticket in item.values():
                    ticket.started = time.perf_counter()
                continue
            if isinstance(item, Stride):
                self._hand_out(slots, self._read(slots, item), strides=1)
            else:
                self._hand_out(slots, dict.fromkeys(slots, item))
        self._hand_out(slots, {slot: self._aborted(ticket) for slot, ticket in slots.items()})

    def _read(self, slots: dict[int, Ticket], stride: Stride) -> dict[int, RequestProgress | Exception]:
        try:
            columns = [column.tolist() for column in stride.columns()]
        except Exception as error:  # the device failed after the call, so generate's thread releases its state
            self._lost = error
            return {}
        news = {}
        for slot, ticket in slots.items():
            try:
                news[slot] = self._advance(ticket, stride.version, [column[slot] for column in columns])
            except Exception as error:
                news[slot] = error
        return news

    def _advance(self, ticket: Ticket, version: int, columns: list[list[Any]]) -> RequestProgress:
        if ticket.cancelled:
            return self._aborted(ticket)
        live, tokenizer = ticket.live, self.engine.tokenizer
        before = len(live.tokens)
        reason = advance(live, tokenizer, version, *columns)
        completion = finish(live, tokenizer, reason) if reason else None
        self.engine.counters.tokens += len(live.tokens) - before
        return RequestProgress(
            live.number, tuple(live.tokens[before:]), tuple(live.logprobs[before:]), completion, version
        )

    def _aborted(self, ticket: Ticket) -> RequestProgress:
        return RequestProgress(ticket.live.number, (), (), finish(ticket.live, self.engine.tokenizer, 'aborted'))

    def _hand_out(
        self, slots: dict[int, Ticket], news: Mapping[int, RequestProgress | Exception], strides: int = 0
    ) -> None:
        """Free the slots of requests that have ended, so that the device can go on, and then notify the callers."""
        notices = [(slots[slot], progress) for slot, progress in news.items()]
        ended = [slot for slot, progress in news.items() if ends(progress)]
        with self._lock:
            self._undecoded -= strides
            for slot in ended:
                self._started.discard(slots.pop(slot))
                self._generate_slots[0].put(slot)
            self._for_generate.notify()
            self._for_prefill.notify()
        for ticket, progress in notices:
            self._tell(ticket, progress)

    def _end(self, ticket: Ticket, error: Exception) -> None:
        """End a request that has no slot."""
        with self._lock:
            self._started.discard(ticket)
            self._for_generate.notify()
            self._for_prefill.notify()
        self._tell(ticket, error)

    def _tell(self, ticket: Ticket, news: RequestProgress | Exception) -> None:
        with self._lock:
            if ticket.ended:
                return
            ticket.ended = ends(news)
        try:
            ticket.notify(news)
        except Exception:  # the caller is gone
            ticket.notify, ticket.cancelled = _nobody, True
        if ticket.ended:
            with self._lock:
                self._accepted -= 1
                self._for_drain.notify_all()


def ends(news: RequestProgress | Exception) -> bool:
    """True where a request has no further progress after this one."""
    return isinstance(news, Exception) or news.completion is not None


def _numbered(notify: Callable[[int, RequestProgress | Exception], None], number: int) -> Notify:
    return lambda news: notify(number, news)


def _nobody(_: RequestProgress | Exception) -> None:
    """Ignore the progress of a request whose caller is gone."""
