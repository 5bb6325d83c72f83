"""Sockets of servers: a port is taken before a model is read, and other machines are let in with a token alone."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from pal_jax.decode.choose import TOKEN
from pal_jax.run.credentials import secret
from pal_jax.run.processes import host_port


class HttpServer(uvicorn.Server):
    """A server that tells the application when it is about to end: only answers under way have time to do so."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the server once the answers under way have ended."""
        self.config.app.state.closing.set()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A bound socket and the token that callers must send. The socket is taken before a weight is read.

    Raises:
      ValueError: other machines can reach the address, and there is no token or none that can be sent.
      OSError: the port is taken.
    """
    token = secret(TOKEN)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not token and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(f'--host={host} can be reached by others; set {TOKEN} to a secret that callers must send')
    listener = socket.socket(family)
    # The port of a server that has just ended can be taken again.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        raise OSError(f'cannot listen on {host_port(host, port)} ({error.strerror}); choose another --port') from error
    return listener, token
