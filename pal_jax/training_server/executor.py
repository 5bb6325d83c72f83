"""The thread that owns the devices: it carries out operations, those of many models at once, and decodes between."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque

from pal_jax.run import memory
from pal_jax.training_server.futures import Operation, carry_out
from pal_jax.training_server.sampler import SampleJob, Sampler

# Seconds without work after which the process gives freed memory back to the system.
IDLE = 1.0


class Executor:
    """A thread that carries out operations in the order of their arrival.

    With an operation that can be carried out together with others, it takes those of other models whose turn it is.

    Args:
      share: the share of time that training gets while samples wait too, above 0 and below 1.
    """

    def __init__(self, sampler: Sampler, *, share: float):
        self._sampler, self._rest = sampler, (1 - share) / share
        self._inbox: queue.SimpleQueue[Operation | SampleJob | None] = queue.SimpleQueue()
        self._turns: deque[Operation] = deque()
        self._open = True
        self._thread = threading.Thread(target=self._run, name='executor', daemon=True)
        self._thread.start()

    def put(self, work: Operation | SampleJob) -> None:
        """Hand over work, from any thread."""
        self._inbox.put(work)

    def close(self) -> None:
        """End the thread after the operation under way. What waits is not carried out."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        trained = False
        while self._open:
            self._take(wait=not (self._turns or self._sampler.busy))
            until = 0.0
            if self._turns:
                trained = True
                began = time.monotonic()
                carry_out(self._next())
                # Decoding gets its share of time before the next operation.
                until = time.monotonic() + self._rest * (time.monotonic() - began)
            if trained and self._sampler.busy and not self._turns:
                # The programs of the decoder want other sizes of memory.
                memory.give_back(memory.LARGE_HEAP)
                trained = False
            while self._open and self._sampler.busy and (not self._turns or time.monotonic() < until):
                self._sampler.advance()
                self._take(wait=False)

    def _next(self) -> list[Operation]:
        """The operation at the head of the line, and those of other models that are carried out together with it."""
        first, *line = self._turns
        taken, rest, seen = [first], [], {first.model}
        for operation in line:
            # The first one in line is the one whose turn it is.
            joins = first.together is not None and operation.together == first.together and operation.model not in seen
            (taken if joins else rest).append(operation)
            seen.add(operation.model)
        self._turns = deque(rest)
        return taken

    def _take(self, wait: bool) -> None:
        """Take what has come into the inbox. With `wait`, wait until something does."""
        # Nobody else takes from the inbox, so what is not empty stays so.
        while self._open and (wait or not self._inbox.empty()):
            work, wait = self._awaited() if wait else self._inbox.get(), False
            if work is None:
                self._open = False
            elif isinstance(work, SampleJob):
                self._sampler.put(work)
            else:
                self._turns.append(work)

    def _awaited(self) -> Operation | SampleJob | None:
        """The next work in the inbox."""
        try:
            return self._inbox.get(timeout=IDLE)
        except queue.Empty:
            memory.give_back()
            return self._inbox.get()
