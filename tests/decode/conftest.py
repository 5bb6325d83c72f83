"""A server for as long as a test needs one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import uvicorn
from fastapi import FastAPI

Serve = Callable[[FastAPI], AbstractContextManager[str]]


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """A server in a thread; yields its address."""
    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level='error', timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope='session')
def serve() -> Serve:
    return serving
