"""Whole batches through a `JetStreamDriver`: for a server's calls, and for a trainer in its own process."""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Iterator, Sequence

from pal_jax.decode.driver import Closed
from pal_jax.decode.jetstream.driver import JetStreamDriver, ends
from pal_jax.decode.jetstream.engine import JetStreamEngine
from pal_jax.decode.requests import Progress, Request, Told
from pal_jax.models.params import Params
from pal_jax.types import Completion


class Answers:
    """What comes for a batch of requests, by their numbers, until each has ended; left early, the rest is taken back.

    Iterate once: what a stride brought comes together. Only ends are told unless `stream`.

    Raises:
      what `submit_all` raises; while iterating, what a request failed with.
    """

    def __init__(self, driver: JetStreamDriver, requests: Sequence[Request], *, stream: bool = False):
        self._driver = driver
        self._inbox: queue.SimpleQueue[tuple[int, Progress | Exception]] = queue.SimpleQueue()

        def notify(number: int, news: Progress | Exception) -> None:
            if stream or ends(news):
                self._inbox.put((number, news))

        self._left = set(range(len(requests)))
        self._tickets = driver.submit_all(requests, notify)

    def abandon(self) -> None:
        """Takes back what has not ended, and ends the iteration; from any thread."""
        for number in list(self._left):
            self._driver.cancel(self._tickets[number])
        self._inbox.put((0, Closed('nobody waits for the answer any more')))

    def __iter__(self) -> Iterator[list[tuple[int, Progress]]]:
        try:
            while self._left:
                told = [self._take(*self._inbox.get())]
                with contextlib.suppress(queue.Empty):
                    while True:
                        told.append(self._take(*self._inbox.get_nowait()))
                yield told
        finally:
            self.abandon()

    def _take(self, number: int, news: Progress | Exception) -> tuple[int, Progress]:
        if isinstance(news, Exception):
            raise news
        if news.completion is not None:
            self._left.discard(number)
        return number, news


class JetStreamDecoder:
    """`JetStreamDriver` in the trainer's own process. Its threads live from `load` to `release`."""

    def __init__(self, engine: JetStreamEngine):
        self.engine = engine
        self._driver: JetStreamDriver | None = None

    def load(self, params: Params, version: int = 0) -> None:
        """Decodes with these (plain, merged) parameters from now on."""
        self.engine.release()  # frees the old ones first
        self.engine.load(params, version)
        if self._driver is None:
            self._driver = JetStreamDriver(self.engine)

    def release(self) -> None:
        """Stops the threads and gives the weights' memory back until the next `load`."""
        if self._driver is not None:
            self._driver.stop()
        self._driver = None
        self.engine.release()

    def __call__(self, requests: Sequence[Request], told: Told | None = None) -> list[Completion]:
        """Completions in the order of the requests; `told` hears of each when it has ended.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded.
        """
        if self._driver is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        done: dict[int, Completion] = {}
        for number, each in itertools.chain.from_iterable(Answers(self._driver, requests)):
            if each.completion is not None:
                done[number] = each.completion
                if told:
                    told(number, each.completion)
        return [done[number] for number in range(len(requests))]
