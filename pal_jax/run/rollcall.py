"""A roll call of the processes of a run: each has a connection to process 0, over which lines of JSON go.

Where a process is gone, JAX lets the others wait for it at a collective, and then ends them with a stack dump. Here the
kernel reports within milliseconds that a process has died, and TCP's own probes report that a machine is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

# Seconds after which a machine that does not answer counts as gone.
SILENCE = 30
# EX_TEMPFAIL: the exit status of a process that ends since another one has; the same command goes on.
GONE = 75
# For so many seconds process 0 still passes on why it leaves.
_FAREWELL = 1.0

Message = dict[str, Any]


class Peer:
    """One end of a connection between two processes."""

    def __init__(self, connection: socket.socket):
        probe_when_silent(connection)
        self._socket, self._lines = connection, connection.makefile('r', encoding='utf-8')
        self._sending = threading.Lock()
        self.finished = False

    def send(self, **message: Any) -> None:
        """Send a message."""
        # Nothing happens where the connection is closed, which its reader notices.
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall((json.dumps(message) + '\n').encode())

    def receive(self, timeout: float | None) -> Message:
        """The next message. Raises EOFError where the other end has closed, TimeoutError where it is silent."""
        self._socket.settimeout(timeout)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError(str(error)) from error
        # A line without its end was cut off when the connection closed.
        if not line.endswith('\n'):
            raise EOFError('closed')
        return json.loads(line)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()


class RollCall:
    """The connections of this process: process 0 has one to each other process, and the others have one to process 0.

    Args:
      address: host and port that process 0 listens at.
      process, processes: the number of this process, from 0, and the number of all.
      timeout: seconds in which all processes have to connect.

    Raises:
      RuntimeError: process 0 cannot be reached, or others have not come; the message names them.
      ValueError: two processes have the same number, or they disagree about how many there are.
    """

    def __init__(self, address: tuple[str, int], process: int, processes: int, *, timeout: float):
        self.process, self.processes = process, processes
        self._peers: dict[int, Peer] = {}
        self._leaving = threading.Lock()
        if process == 0:
            self._gather(address[1], time.monotonic() + timeout, timeout)
        else:
            self._peers[0] = self._join(address, time.monotonic() + timeout, timeout)
        for number, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(number, peer), daemon=True).start()

    def leave(self, message: str, code: int) -> None:
        """End this process at once, and send the others the reason, so that they end with the same status."""
        self._exit(f'process {self.process} stopped: {message}', code, say=False)

    def finish(self) -> None:
        """Tell the others that this process has finished, so that its end is no fault."""
        for peer in self._peers.values():
            peer.finished = True
            peer.send(kind='finish')

    # --- the start of a run ------------------------------------------------------------------------------------------

    def _gather(self, port: int, deadline: float, timeout: float) -> None:
        """Wait, in process 0, for a connection of every other process, and tell them to begin."""
        try:
            server = socket.create_server(('', port), backlog=self.processes)
        except OSError as error:
            raise RuntimeError(f'port {port} cannot be had ({error.strerror}); give another --coordinator') from error
        with contextlib.ExitStack() as undo:
            undo.callback(server.close)
            while len(self._peers) < self.processes - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    peer = Peer(server.accept()[0])
                except TimeoutError:
                    missing = [str(i) for i in range(1, self.processes) if i not in self._peers]
                    raise RuntimeError(
                        f'process {", ".join(missing)} of {self.processes} did not come within {timeout:.0f} s; start '
                        'one command for each, with the same --coordinator and --processes'
                    ) from None
                undo.callback(peer.close)
                self._admit(peer)
            # All processes are there, so their connections stay open.
            undo.pop_all()
        for peer in self._peers.values():
            peer.send(kind='begin')
        threading.Thread(target=self._refuse_more, args=(server,), daemon=True).start()

    def _admit(self, peer: Peer) -> None:
        """Take a process in by its first message. Raises ValueError where its numbers do not fit the run."""
        try:
            hello = peer.receive(5.0)
            number, count = hello['process'], hello['processes']
        # A stranger that connects is no process of the run.
        except (EOFError, TimeoutError, ValueError, KeyError, TypeError):
            return
        if count != self.processes:
            why = f'process {number} was started with --processes={count}, process 0 with {self.processes}'
        elif number in self._peers or not 0 < number < self.processes:
            why = f'two processes have the number {number}; give each of {self.processes} its own --process'
        else:
            self._peers[number] = peer
            return
        for other in (peer, *self._peers.values()):
            other.send(kind='refuse', message=why)
        raise ValueError(why)

    def _refuse_more(self, server: socket.socket) -> None:
        """Refuse, for as long as the run lasts, every further process that connects."""
        server.settimeout(None)
        while True:
            peer = Peer(server.accept()[0])
            with contextlib.suppress(EOFError, TimeoutError, ValueError):
                peer.receive(5.0)
            peer.send(kind='refuse', message=f'this run has its {self.processes} processes already')
            peer.close()

    def _join(self, address: tuple[str, int], deadline: float, timeout: float) -> Peer:
        """Connect to process 0, and return the connection when process 0 says to begin."""
        host, port = address
        while True:
            try:
                peer = Peer(socket.create_connection(address, timeout=5.0))
                break
            # Process 0 may start later than this process.
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f'process 0 cannot be reached at {host}:{port} within {timeout:.0f} s '
                        f'({error.strerror or error}); is it running, and is the port open?'
                    ) from error
                time.sleep(0.2)
        peer.send(kind='hello', process=self.process, processes=self.processes)
        try:
            answer = peer.receive(timeout)
        except (EOFError, TimeoutError) as error:
            peer.close()
            raise RuntimeError(f'process 0 at {host}:{port} has gone before all had come; see what it says') from error
        if answer['kind'] == 'refuse':
            peer.close()
            raise ValueError(answer['message'])
        return peer

    # --- during a run ------------------------------------------------------------------------------------------------

    def _listen(self, number: int, peer: Peer) -> None:
        """Read the messages of a process, and end this one where that process leaves, dies or falls silent."""
        while True:
            try:
                message = peer.receive(None)
            except EOFError:
                if not peer.finished:
                    self._exit(f'process {number} has died; the same command again goes on', GONE)
                return
            except TimeoutError:
                self._exit(f'the machine of process {number} is gone; the same command again goes on', GONE)
                return
            if message['kind'] == 'finish':
                peer.finished = True
            elif message['kind'] == 'leave':
                self._exit(message['message'], message['code'])

    def _exit(self, message: str, code: int, *, say: bool = True) -> None:
        # A second thread waits here until the process is gone.
        with self._leaving:
            if say:
                with _unbuffered(sys.stderr) as err:
                    err.write(f'error: {message}\n')
            for peer in self._peers.values():
                peer.send(kind='leave', message=message, code=code)
            if self.process == 0:
                time.sleep(_FAREWELL)
            sys.stdout.flush()
            os._exit(code)


def probe_when_silent(connection: socket.socket) -> None:
    """Let the kernel end a connection whose other machine is silent for `SILENCE` seconds."""
    # Messages sent now and then by a thread of Python would not do, since a call that holds the interpreter stops the
    # thread.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {
        'TCP_KEEPIDLE': SILENCE // 3,
        'TCP_KEEPINTVL': SILENCE // 6,
        'TCP_KEEPCNT': 4,
        'TCP_USER_TIMEOUT': 1000 * SILENCE,
    }.items():
        # Linux has all of these options.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def _unbuffered(stream: TextIO) -> Iterator[TextIO]:
    try:
        yield stream
    finally:
        stream.flush()
