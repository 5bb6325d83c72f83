"""Rejection sampling in front of a server (BeaverTails, arXiv 2307.04657): an answer that a judge calls unsafe is drawn
again, and when it has been drawn so many times a fixed refusal is told in its place.

Nothing of an answer leaves before the whole of it is judged, so a streamed one comes at once, too. With a judge that
calls nothing unsafe, answers are those of a server without one, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pal_jax.decode.requests import News, Progress, Request
from pal_jax.types import Chat, Completion

REFUSAL = 'I cannot help with that.'

Draw = Callable[[Sequence[Request]], AsyncGenerator[News, None]]
Judge = Callable[[Sequence[Sequence[Progress]]], Awaitable[Sequence[bool]]]


class Guard(NamedTuple):
    """Who judges answers, and what follows.

    unsafe: whether each answer to a chat is unsafe. It is called on any thread, once at a time, and may take its time;
      where it raises ValueError, a request is refused with what it says.
    draws: of an answer, at most.
    """

    unsafe: Callable[[Sequence[Chat], Sequence[str]], Sequence[bool] | Bool[np.ndarray, ' N']]
    draws: int = 4
    refusal: str = REFUSAL


async def released(
    requests: Sequence[Request], draw: Draw, judge: Judge, *, draws: int, refusal: str, refused: Callable[[], None]
) -> AsyncGenerator[News, None]:
    """News of all the requests: of the first answer to each that is not unsafe, or of the refusal, which has no tokens
    and ends by 'content_filter'.

    Args:
      draw: news of requests as they come, until each has ended.
      judge: whether each of the answers that came is unsafe.
      draws: of an answer at most; a greedy one is drawn once, for it would be the same again.
      refused: is called for each refusal.
    """
    left = list(range(len(requests)))
    for number in range(draws):
        came: dict[int, list[Progress]] = {i: [] for i in left}
        async with contextlib.aclosing(draw([again(requests[i], number) for i in left])) as news:
            async for place, progress in news:
                came[left[place]].append(progress)
        unsafe = await judge([came[i] for i in left])
        for i in (i for i, bad in zip(left, unsafe, strict=True) if not bad):
            for progress in came[i]:
                yield News(i, progress)
        left = [i for i, bad in zip(left, unsafe, strict=True) if bad]
        if not left or all(requests[i].sampling.temperature == 0 for i in left):
            break
    for i in left:
        refused()
        yield News(i, Progress(0, (), (), Completion(refusal, (), (), 'content_filter')))


def again(request: Request, number: int) -> Request:
    """The request of draw `number`: the first is as it was asked, the others have seeds of their own, which follow from
    the seed that was asked for and are nobody's neighbours."""
    if not number:
        return request
    word = hashlib.sha256(f'{request.seed} {number}'.encode()).digest()
    return dataclasses.replace(request, seed=int.from_bytes(word[:8], 'big') >> 1)
