"""Bodies of requests, which are read up to a limit before the application sees them."""

from __future__ import annotations

from starlette.types import Message, Receive

# The bytes that are kept of a body of too many. A block of zstd is smaller.
START = 1 << 18


class TooLarge(ValueError):
    """The error of a body of too many bytes, which begins with `start`."""

    def __init__(self, limit: int, start: bytes):
        super().__init__(f'a request has at most {limit} bytes')
        self.start = start


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
            raise TooLarge(limit, bytes(body[:START]))
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A function by which the application reads the body as if it had just come."""
    whole = iter([{'type': 'http.request', 'body': body, 'more_body': False}])

    async def replay() -> Message:
        return next(whole, None) or await receive()

    return replay
