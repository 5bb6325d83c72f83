"""Futures of the training server, and the order of a model's operations."""

from __future__ import annotations

import asyncio
import functools

import pytest

from pal_jax.training_server.futures import Answer, Conflict, Futures, Operation, Order, UserFault, outcome


def carry_out(operation: Operation) -> None:
    operation.end(outcome(functools.partial(operation.work, None)))


def operation(log: list[int], number: int) -> Operation:
    def work(_: object) -> Answer:
        log.append(number)
        return Answer(b'{}')

    return Operation('session', work)


async def send(numbers: list[int], patience: float = 300.0) -> tuple[list[int], list[Operation]]:
    log: list[int] = []
    order = Order(carry_out, patience)
    operations = [operation(log, number) for number in numbers]
    for number, sent in zip(numbers, operations, strict=True):
        order.add(number, sent)
    await asyncio.sleep(5 * patience if patience < 1 else 0)
    return log, operations


@pytest.mark.parametrize('numbers', [[1, 2, 3, 4], [4, 3, 2, 1], [2, 3, 4, 1]])
def test_operations_are_carried_out_in_the_order_of_their_numbers(numbers):
    assert asyncio.run(send(numbers))[0] == [1, 2, 3, 4]


def test_an_operation_whose_predecessor_never_came_fails_and_the_next_go_on():
    log, (_, third, fourth) = asyncio.run(send([1, 3, 4], patience=0.02))
    assert log == [1, 4]
    with pytest.raises(UserFault, match=r'\b2\b.*\b3\b'):
        third.done.result(0)
    assert fourth.done.result(0) == Answer(b'{}')


@pytest.mark.parametrize('refused_first', [True, False])
def test_no_operation_waits_for_one_that_was_refused(refused_first):
    log: list[int] = []
    order = Order(carry_out)

    async def act() -> None:
        order.add(1, operation(log, 1))
        if refused_first:
            order.refuse(2)
        order.add(4, operation(log, 4))
        order.refuse(3)
        order.refuse(2)
        order.refuse(1)
        order.add(5, operation(log, 5))

    asyncio.run(act())
    assert log == [1, 4, 5]


def test_an_operation_that_comes_after_its_turn_fails():
    log, (*_, late) = asyncio.run(send([1, 2, 3, 2]))
    assert log == [1, 2, 3]
    with pytest.raises(UserFault, match=r'\b2\b'):
        late.done.result(0)


def test_the_same_request_is_one_operation_and_another_body_a_conflict():
    futures, made = Futures(), []

    def make() -> Operation:
        made.append(operation([], 1))
        return made[-1]

    first, new = futures.take(('model', 1), b'a', make)
    again, anew = futures.take(('model', 1), b'a', make)
    assert (first is again, new, anew, len(made)) == (True, True, False, 1)
    with pytest.raises(Conflict, match='model'):
        futures.take(('model', 1), b'b', make)


def test_a_failure_is_kept_as_a_result_is():
    futures = Futures()

    def work(_: object) -> Answer:
        raise UserFault('wrong')

    failing, _ = futures.take(('model', 1), b'', lambda: Operation('session', work))
    carry_out(failing)
    for _ in range(2):
        kept = futures.get(failing.request_id)
        assert kept is not None
        with pytest.raises(UserFault, match='wrong'):
            kept.done.result(0)
    futures.drop(lambda done: done.owner == 'session')
    assert futures.get(failing.request_id) is None
