"""Rejection sampling in front of a server (BeaverTails, arXiv 2307.04657). An answer that a judge calls unsafe is drawn
again, and after a number of draws a fixed refusal takes its place.

A streamed answer comes in one piece, too. With a judge that calls nothing unsafe, answers are those of a server without
a judge, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pal_jax.decode.requests import News, Request, RequestProgress
from pal_jax.types import Chat, Completion

REFUSAL = 'I cannot help with that.'

Draw = Callable[[Sequence[Request]], AsyncGenerator[News, None]]
Judge = Callable[[Sequence[Sequence[RequestProgress]]], Awaitable[Sequence[bool]]]


class Guard(NamedTuple):
    """A judge of answers, and what happens to unsafe ones.

    unsafe: takes chats and their answers, and returns a bool for each, True where it is unsafe. It is called on any
      thread, one call at a time, and may be slow. Where it raises ValueError, the request is refused with its message.
    draws: the largest number of draws of an answer.
    refusal: the text in place of an answer whose draws were all unsafe.
    """

    unsafe: Callable[[Sequence[Chat], Sequence[str]], Sequence[bool] | Bool[np.ndarray, ' N']]
    draws: int = 4
    refusal: str = REFUSAL


async def released(
    requests: Sequence[Request], draw: Draw, judge: Judge, *, draws: int, refusal: str, refused: Callable[[], None]
) -> AsyncGenerator[News, None]:
    """The news of all requests: the first answer to each that is not unsafe, or the refusal.

    A refusal has no tokens and ends by 'content_filter'.

    Args:
      draw: samples requests, and yields their news until each has ended.
      judge: returns a bool for each answer, True where it is unsafe.
      draws: the largest number of draws of an answer. A greedy answer is drawn once.
      refused: is called for each refusal.
    """
    waiting = list(range(len(requests)))
    for number in range(draws):
        came: dict[int, list[RequestProgress]] = {i: [] for i in waiting}
        async with contextlib.aclosing(draw([again(requests[i], number) for i in waiting])) as news:
            async for place, progress in news:
                came[waiting[place]].append(progress)
        # An answer leaves when all of it is judged.
        unsafe = await judge([came[i] for i in waiting])
        for i in (i for i, is_unsafe in zip(waiting, unsafe, strict=True) if not is_unsafe):
            for progress in came[i]:
                yield News(i, progress)
        waiting = [i for i, is_unsafe in zip(waiting, unsafe, strict=True) if is_unsafe]
        # A greedy answer would be the same again.
        if not waiting or all(requests[i].sampling.temperature == 0 for i in waiting):
            break
    for i in waiting:
        refused()
        yield News(i, RequestProgress(0, (), (), Completion(refusal, (), (), 'content_filter')))


def again(request: Request, number: int) -> Request:
    """The request of draw `number`. The first draw, 0, is the request itself, and the others have other seeds."""
    if not number:
        return request
    # The seeds come from a hash, so they are not the seeds of neighbouring requests.
    word = hashlib.sha256(f'{request.seed} {number}'.encode()).digest()
    return dataclasses.replace(request, seed=int.from_bytes(word[:8], 'big') >> 1)
