"""Bodies of requests, which are read up to a limit before the application sees them."""

from __future__ import annotations

from starlette.types import Message, Receive


class TooLarge(ValueError):
    """The error of a body of too many bytes."""


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The body; None where the client has left. Raises TooLarge where it has more than `limit` bytes."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message['type'] != 'http.request':
            return None
        body += message.get('body', b'')
        more = message.get('more_body', False)
        # The bytes are counted as they come, since a request need not state its length.
        if len(body) > limit:
            raise TooLarge(f'a request has at most {limit} bytes')
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A function by which the application reads the body as if it had just come."""
    whole = iter([{'type': 'http.request', 'body': body, 'more_body': False}])

    async def replay() -> Message:
        return next(whole, None) or await receive()

    return replay
