"""The routes by which the chat page asks a person and keeps what was learnt (`make_app(routes=...)`).

    POST   /asking                {"clicks": [[7, "left"]]}: the next question, the mixture, what is known in words
    GET    /asking/people/NAME    a saved person's clicks, and the same
    PUT    /asking/people/NAME    {"clicks": ...}: save the person
    DELETE /asking/people/NAME    delete the person

What answers them is an `Asks`, which `recipes/personal/pal/interview.py` has. The page keeps the clicks until they are
saved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter
from pydantic import Field

from pal_jax.decode.serve.openai_api import StrictRecord
from pal_jax.decode.serve.refusals import Refusal

Click = tuple[Annotated[int, Field(ge=0, lt=1 << 31)], Literal['left', 'right']]


class Asks(Protocol):
    """The functions behind the routes. Each raises ValueError where it refuses."""

    def told(self, clicks: list[tuple[int, str]]) -> dict[str, Any]: ...

    def save(self, name: str, clicks: list[tuple[int, str]]) -> dict[str, Any]: ...

    def load(self, name: str) -> dict[str, Any]: ...

    def forget(self, name: str) -> dict[str, Any]: ...


class Clicks(StrictRecord):
    """A person's answers in their order."""

    clicks: Annotated[list[Click], Field(max_length=4096)]


def make_routes(interview: Asks) -> APIRouter:
    """The routes of an interview."""
    router = APIRouter(prefix='/asking')
    # The interview's programs run for one person at a time.
    one = asyncio.Lock()

    async def answer(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        async with one:
            try:
                return await asyncio.to_thread(function, *args)
            except ValueError as error:
                raise Refusal(400, str(error)) from None

    @router.post('')
    async def told(body: Clicks) -> dict[str, Any]:
        return await answer(interview.told, list(body.clicks))

    @router.get('/people/{name}')
    async def load(name: str) -> dict[str, Any]:
        return await answer(interview.load, name)

    @router.put('/people/{name}')
    async def save(name: str, body: Clicks) -> dict[str, Any]:
        return await answer(interview.save, name, list(body.clicks))

    @router.delete('/people/{name}')
    async def forget(name: str) -> dict[str, Any]:
        return await answer(interview.forget, name)

    return router
