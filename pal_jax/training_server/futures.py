"""Futures of operations, which a client retrieves, and the order in which the operations of a model are carried out."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

# Seconds for which a finished result can be retrieved again.
KEPT = 600.0
# Seconds for which an operation waits for one with a lower number.
PATIENCE = 300.0


class UserFault(Exception):
    """A fault of a request's contents. The client raises it from the future as a fault of category `user`."""


class Conflict(Exception):
    """The error of two different operations with one number."""


class Answer(NamedTuple):
    """The body of a result, and its media type."""

    body: bytes
    media: str = 'application/json'


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation and its result.

    Attributes:
      owner: the session that the operation belongs to.
      work: carries the operation out, or gives the part of it that `together` finishes; it runs on the executor's
        thread.
      model: the model whose operations keep their order; '' for none.
      together: gives the answers to the parts of operations of several models.
      finished: the time of `time.monotonic` at which the result came; None before.
    """

    owner: str
    work: Callable[[], Any]
    model: str = ''
    together: Callable[[Sequence[Any]], Sequence[Answer]] | None = None
    request_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    done: Future[Answer] = dataclasses.field(default_factory=Future)
    finished: float | None = None

    def end(self, answer: Answer) -> None:
        """Finish with a result."""
        self.finished = time.monotonic()
        self.done.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Finish with an error."""
        self.finished = time.monotonic()
        self.done.set_exception(error)


def carry_out(operations: Sequence[Operation]) -> None:
    """Do the work of operations that have the same `together`. A result or an error becomes that of the future."""
    parts: list[tuple[Operation, Any]] = []
    for operation in operations:
        # The work holds the data of a batch, which the result need not keep.
        work, operation.work = operation.work, _done
        try:
            parts.append((operation, work()))
        # The server must survive the failure of an operation.
        except Exception as error:
            operation.fail(error)
    together = operations[0].together
    try:
        answers = together([part for _, part in parts]) if together and parts else [part for _, part in parts]
    except Exception as error:
        for operation, _ in parts:
            operation.fail(error)
        return
    for (operation, _), answer in zip(parts, answers, strict=True):
        operation.end(answer)


def _done() -> Answer:
    raise AssertionError('an operation is carried out once')


class Futures:
    """The operations whose results can be retrieved. The event loop's thread alone uses it."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}
        # The request and the digest of its body, by the model or sampler that numbers it and the number.
        self._numbered: dict[tuple[str, int], tuple[Operation, bytes]] = {}

    def take(self, key: tuple[str, int] | None, digest: bytes, make: Callable[[], Operation]) -> tuple[Operation, bool]:
        """The operation of a request, and True where it is new.

        The same request sent twice is one operation. A request without a number (`key` None) is always new.

        Raises:
          Conflict: another body came with the same number.
        """
        if key in self._numbered:
            operation, before = self._numbered[key]
            if before != digest:
                raise Conflict(f'{key[0]} has another operation {key[1]}; number operations from 1 without a gap')
            return operation, False
        operation = make()
        self._operations[operation.request_id] = operation
        if key is not None:
            self._numbered[key] = operation, digest
        return operation, True

    def get(self, request_id: str) -> Operation | None:
        """The operation of that id, or None where it is unknown or was dropped."""
        return self._operations.get(request_id)

    def drop(self, gone: Callable[[Operation], bool]) -> None:
        """Forget the operations for which `gone` is True."""
        self._operations = {name: kept for name, kept in self._operations.items() if not gone(kept)}
        self._numbered = {key: kept for key, kept in self._numbered.items() if not gone(kept[0])}

    def sweep(self) -> None:
        """Forget the results that came more than `KEPT` seconds ago."""
        before = time.monotonic() - KEPT
        self.drop(lambda operation: operation.finished is not None and operation.finished < before)


class Order:
    """The operations of one model, released in the order of their numbers 1, 2, ...

    A client may send them at once, and the first chunk of a batch last. An operation that came before one with a lower
    number waits for it for `patience` seconds, and then fails. The event loop's thread alone uses an order.

    Args:
      release: hands an operation to the executor.
      unread: why requests were refused before their number was known, the latest last.
    """

    def __init__(self, release: Callable[[Operation], None], patience: float = PATIENCE, unread: Sequence[str] = ()):
        self._release, self._patience, self._unread = release, patience, unread
        self._next = 1
        # None stands for an operation that was refused.
        self._held: dict[int, Operation | None] = {}

    def add(self, number: int, operation: Operation) -> None:
        """Release the operation, now or when those before it have come."""
        if number < self._next:
            operation.fail(UserFault(f'operation {number} came after operation {self._next - 1} was carried out'))
            return
        self._held[number] = operation
        self._advance()
        if number in self._held:
            asyncio.get_running_loop().call_later(self._patience, self._expire, number)

    def refuse(self, number: int) -> None:
        """Count a refused operation as carried out, so that those after it do not wait for it."""
        if number >= self._next:
            self._held.setdefault(number, None)
            self._advance()

    def _advance(self) -> None:
        while self._next in self._held:
            operation = self._held.pop(self._next)
            self._next += 1
            if operation is not None:
                self._release(operation)

    def _expire(self, number: int) -> None:
        if (operation := self._held.pop(number, None)) is None:
            return
        why = f'. A request whose number is not known was refused: {self._unread[-1]}' if self._unread else ''
        operation.fail(
            UserFault(f'operation {self._next} never arrived, so operation {number} was not carried out{why}')
        )
        # The operations after this one wait no longer for what never came.
        self._next = number + 1
        self._advance()
