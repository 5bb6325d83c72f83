"""Batches of requests through a `JetStreamDriver`, for a server's calls and for a trainer in its own process."""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Iterator, Sequence

from pal_jax.decode.driver import Closed
from pal_jax.decode.requests import Request, RequestProgress, Told
from pal_jax.decode.serve.jetstream.driver import JetStreamDriver, ends
from pal_jax.decode.serve.jetstream.engine import JetStreamEngine
from pal_jax.models.params import Params
from pal_jax.types import Completion


class BatchProgress:
    """The progress of a batch of requests, by their numbers, until each has ended.

    It can be iterated once, and yields a list for each stride. Without `stream` it has the ends of requests alone. If
    the iteration ends early, the other requests are taken back.

    Raises:
      Exception: as `submit_all`, and during the iteration the error of a request that failed.
    """

    def __init__(self, driver: JetStreamDriver, requests: Sequence[Request], *, stream: bool = False):
        self._driver = driver
        self._inbox: queue.SimpleQueue[tuple[int, RequestProgress | Exception]] = queue.SimpleQueue()

        def notify(number: int, news: RequestProgress | Exception) -> None:
            if stream or ends(news):
                self._inbox.put((number, news))

        self._left = set(range(len(requests)))
        self._tickets = driver.submit_all(requests, notify)

    def abandon(self) -> None:
        """Take back the requests that have not ended, and end the iteration. Any thread may call this."""
        left, self._left = self._left, set()
        for number in left:
            self._driver.cancel(self._tickets[number])
        self._inbox.put((0, Closed('nobody waits for the answer any more')))

    def leave(self) -> None:
        """Abandon the requests, and count those that have not ended as requests whose caller has left."""
        self._driver.count_left(len(self._left))
        self.abandon()

    def __iter__(self) -> Iterator[list[tuple[int, RequestProgress]]]:
        try:
            while self._left:
                batch = [self._take(*self._inbox.get())]
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


class JetStreamDecoder:
    """A decoder with a `JetStreamDriver` in the trainer's own process. Its threads live from `load` to `release`."""

    def __init__(self, engine: JetStreamEngine):
        self.engine = engine
        self._driver: JetStreamDriver | None = None

    def load(self, params: Params, version: int = 0) -> None:
        """Decode with these (plain, merged) parameters from now on."""
        self.engine.release()  # frees the old ones first
        self.engine.load(params, version)
        if self._driver is None:
            self._driver = JetStreamDriver(self.engine)

    def release(self) -> None:
        """Stop the threads, and give back the memory of the weights until the next `load`."""
        if self._driver is not None:
            self._driver.stop()
        self._driver = None
        self.engine.release()

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests.

        `on_completion(place, completion)` is called when a completion has ended.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded.
        """
        if self._driver is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        done: dict[int, Completion] = {}
        for number, progress in itertools.chain.from_iterable(BatchProgress(self._driver, requests)):
            if progress.completion is not None:
                done[number] = progress.completion
                if on_completion:
                    on_completion(number, progress.completion)
        return [done[number] for number in range(len(requests))]
