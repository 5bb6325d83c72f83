"""The thread that owns the devices: it carries out operations, those of many models at once, and decodes between.

With several processes, the thread of process 0 decides what is done, and tells the threads of the others.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import queue
import threading
import time
from collections import deque
from typing import Any

import jax

from pal_jax.run import memory, processes
from pal_jax.training_server.futures import Operation, outcome
from pal_jax.training_server.sampler import SampleJob
from pal_jax.training_server.worker import Work, Worker

# Seconds without work after which the process gives freed memory back to the system.
IDLE = 1.0
# Seconds after which an idle process calls the others, which wait for a week at most.
CALL = 24 * 3600.0


class Executor:
    """A thread that carries out operations in the order of their arrival.

    With an operation that can be carried out together with others, it takes those of other models whose turn it is.

    Args:
      share: the share of time that training gets while samples wait too, above 0 and below 1.
    """

    def __init__(self, worker: Worker, *, share: float):
        self._worker, self._rest = worker, (1 - share) / share
        # Operations, samples with their operations, request ids that are cancelled, and None for the end.
        self._inbox: queue.SimpleQueue[Operation | tuple[Operation, SampleJob] | str | None] = queue.SimpleQueue()
        self._turns: deque[Operation] = deque()
        self._jobs: list[SampleJob] = []
        self._cancelled: set[str] = set()
        self._sampling: dict[str, Operation] = {}
        self._open = True
        self._thread = threading.Thread(target=self._run, name='executor', daemon=True)
        self._thread.start()

    def put(self, operation: Operation) -> None:
        """Hand over an operation, from any thread."""
        self._inbox.put(operation)

    def sample(self, operation: Operation, job: SampleJob) -> None:
        """Hand over samples, whose result ends an operation, from any thread."""
        self._inbox.put((operation, job))

    def cancel(self, request_id: str) -> None:
        """Take samples back, from any thread."""
        self._inbox.put(request_id)

    def close(self) -> None:
        """End the thread after the operation under way. What waits is not carried out."""
        self._inbox.put(None)
        self.join()

    def join(self) -> None:
        """Wait for the end of the thread, which in other processes than the first comes with that of process 0."""
        self._thread.join()

    def _run(self) -> None:
        processes.exchange_as('executor')
        try:
            self._follow() if jax.process_index() else self._lead()
        except Exception as error:
            # The other processes would wait for this one.
            processes.leave(f'{type(error).__name__}: {error}', 1)
            raise

    # --- process 0 ---------------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        trained = False
        while self._open:
            self._take(wait=not (self._turns or self._decoding))
            until = 0.0
            if self._turns:
                trained = True
                began = time.monotonic()
                self._carry_out(self._next())
                # Decoding gets its share of time before the next operation.
                until = time.monotonic() + self._rest * (time.monotonic() - began)
            if trained and self._decoding and not self._turns:
                # The programs of the decoder want other sizes of memory.
                self._everywhere(functools.partial(_give_back, beyond=memory.LARGE_HEAP))
                trained = False
            while self._open and self._decoding and (not self._turns or time.monotonic() < until):
                self._decode()
                self._take(wait=False)
        self._tell(None)

    @property
    def _decoding(self) -> bool:
        """True while there is anything to decode."""
        return bool(self._jobs) or self._worker.sampler.busy

    def _everywhere(self, work: Work) -> Any:
        """The result of work that all processes do."""
        self._tell(work)
        return work(self._worker)

    def _tell(self, work: Work | None) -> None:
        if jax.process_count() > 1:
            processes.tell(pickle.dumps(work))

    def _carry_out(self, operations: list[Operation]) -> None:
        works, together = [operation.work for operation in operations], operations[0].together
        outcomes = self._everywhere(functools.partial(Worker.carry_out, works=works, together=together))
        for operation, result in zip(operations, outcomes, strict=True):
            operation.end(result)

    def _decode(self) -> None:
        jobs, cancelled, self._jobs, self._cancelled = self._jobs, self._cancelled, [], set()
        work = functools.partial(Worker.sample, jobs=jobs, cancelled=cancelled, now=time.monotonic())
        for request_id, result in self._everywhere(work):
            self._sampling.pop(request_id).end(result)

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
            item, wait = self._awaited() if wait else self._inbox.get(), False
            match item:
                case None:
                    self._open = False
                case Operation():
                    self._turns.append(item)
                case str():
                    # What has ended is not cancelled any more.
                    if item in self._sampling:
                        self._cancelled.add(item)
                case operation, job:
                    self._jobs.append(job)
                    self._sampling[job.request_id] = operation

    def _awaited(self) -> Any:
        """The next item of the inbox."""
        seconds = IDLE
        while True:
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=seconds)
            self._everywhere(_give_back)
            seconds = CALL

    # --- the other processes -----------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while (work := pickle.loads(processes.heard())) is not None:
            outcome(functools.partial(work, self._worker))


def _give_back(_: Worker, beyond: int = 0) -> None:
    memory.give_back(beyond)
