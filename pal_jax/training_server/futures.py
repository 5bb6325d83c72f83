"""Futures of operations, which a client retrieves, and the order in which the operations of a model are carried out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from pal_jax.run import processes

T = TypeVar('T')

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


# What ends an operation.
Outcome = Answer | Exception


def as_json(record: Mapping[str, Any]) -> Answer:
    """A result in JSON."""
    return Answer(json.dumps(record).encode())


def outcome(work: Callable[[], T]) -> T | Exception:
    """The result of work, or its error, which the server survives.

    A `UserFault` has the same cause in all processes. With several processes, any other error ends all of them, since
    the others may not have it and would wait for this one.
    """
    try:
        return work()
    except UserFault as fault:
        return fault
    except Exception as error:
        processes.leave(f'{type(error).__name__}: {error}', 1)
        return error


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation and its result.

    Attributes:
      owner: the session that the operation belongs to.
      work: carries the operation out on a worker, or gives the part of it that `together` finishes.
      model: the model whose operations keep their order; '' for none.
      together: gives the answers to the parts of operations of several models.
      finished: the time of `time.monotonic` at which the result came; None before.
    """

    owner: str
    work: Callable[[Any], Any]
    model: str = ''
    together: Callable[[Any, Sequence[Any]], Sequence[Answer]] | None = None
    request_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    done: Future[Answer] = dataclasses.field(default_factory=Future)
    finished: float | None = None

    def end(self, result: Outcome) -> None:
        """Finish with an answer or an error, unless the operation has finished."""
        if self.done.done():
            return
        # The work holds the data of a batch, which the result need not keep.
        self.finished, self.work = time.monotonic(), no_work
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


def no_work(_: Any) -> Any:
    """The work of an operation that is carried out, or is not carried out by a worker's call of its own."""
    raise AssertionError('this operation has no work')


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
            operation.end(UserFault(f'operation {number} came after operation {self._next - 1} was carried out'))
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
        operation.end(
            UserFault(f'operation {self._next} never arrived, so operation {number} was not carried out{why}')
        )
        # The operations after this one wait no longer for what never came.
        self._next = number + 1
        self._advance()
