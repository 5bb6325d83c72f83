"""Refusals of the HTTP server, in OpenAI's error JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi.responses import JSONResponse

from pal_jax.decode.driver import Busy, Closed

Answer = TypeVar('Answer')


class Refusal(Exception):
    """An error that the server answers in OpenAI's error JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = 'invalid_request_error',
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status, self.error = status, {'message': message, 'type': kind, 'param': param, 'code': code}

    def response(self, headers: Any = None) -> JSONResponse:
        """The answer to the request that is refused."""
        return JSONResponse({'error': self.error}, self.status, headers)


def or_refuse(ask: Callable[..., Answer], *args: Any) -> Answer:
    """The result of a call of the driver. Raises Refusal, with OpenAI's error types, where the driver refuses."""
    try:
        return ask(*args)
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    except Busy as error:
        raise Refusal(429, str(error), 'rate_limit_error', code='rate_limit_exceeded') from None
    except Closed as error:
        raise Refusal(503, str(error), 'server_error') from None
