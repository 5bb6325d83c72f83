"""A chat server that fails in every way a server can."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Server(ThreadingHTTPServer):
    """Answers each chat with `answer` of its last message. What a text says in brackets at its beginning goes wrong the
    first time it is asked for, or `[always ...]`. `reply` gives the status and the body of each request instead."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str], str], reply: Callable[[Any], tuple[int, Any]] | None = None):
        super().__init__(('127.0.0.1', 0), Handler)
        self.answer, self.reply = answer, reply
        self.seen: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_port}/v1'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers['content-length'])))
        self.server.keys.add(self.headers['authorization'])
        if self.server.reply:
            with self.server.lock:
                self.server.asked.append(body)
            self.tell(*self.server.reply(body))
            return
        text = self.server.answer(body['messages'][-1]['content'])
        with self.server.lock:
            self.server.asked.append(body)
            self.server.seen[text] += 1
            first = self.server.seen[text] == 1
        fault = text[1:].partition(']')[0] if text.startswith('[') else ''
        if fault.startswith('always ') or (fault and first):
            self.fail(fault.removeprefix('always '))
        else:
            message = {'role': 'assistant', 'content': text}
            usage = {'prompt_tokens': 10, 'completion_tokens': 2, 'total_tokens': 12}
            choices = [{'index': 0, 'message': message, 'finish_reason': 'stop'}]
            self.tell(
                200,
                {
                    'id': '1',
                    'object': 'chat.completion',
                    'created': 0,
                    'model': 'm',
                    'choices': choices,
                    'usage': usage,
                },
            )

    def fail(self, fault: str) -> None:
        match fault:
            case 'broken':
                self.tell(200, None)
            case 'empty':
                message = {'role': 'assistant', 'content': ''}
                self.tell(200, {'choices': [{'index': 0, 'message': message, 'finish_reason': 'stop'}]})
            case 'none':
                self.tell(200, {'choices': []})
            case 'slow':
                time.sleep(1.0)
                self.tell(200, None)
            case 'hang up':
                self.close_connection = True
            case _:
                self.tell(int(fault), {'error': {'message': 'no'}})

    def tell(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode() if body is not None else b'{"choices": ['
        self.send_response(status)
        self.send_header('content-type', 'application/json')
        self.send_header('retry-after-ms', '1')
        self.send_header('content-length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(
    answer: Callable[[str], str] = str, reply: Callable[[Any], tuple[int, Any]] | None = None
) -> Iterator[Server]:
    server = Server(answer, reply)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def chat_server() -> Callable[..., AbstractContextManager[Server]]:
    return serving
