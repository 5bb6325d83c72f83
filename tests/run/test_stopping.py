"""Signals become a wish that a run looks at; a second one is obeyed at once, even inside a long call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pal_jax.run.stopping import StopListener, exit_status


def wait_for(stopping, wish):
    deadline = time.monotonic() + 5
    while stopping.wish != wish and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stopping.wish == wish


@pytest.mark.parametrize(('sent', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_is_a_wish_and_the_handlers_come_back(sent, status):
    before, said = signal.getsignal(sent), []
    with StopListener(said.append) as stopping:
        assert stopping.wish == 0
        os.kill(os.getpid(), sent)
        wait_for(stopping, sent)
    assert signal.getsignal(sent) is before
    assert said[0].startswith(sent.name)
    assert exit_status(stopping.wish) == status


def test_to_be_started_again_may_be_followed_by_one_that_stops():
    with StopListener(lambda _: None) as stopping:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(stopping, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(stopping, signal.SIGTERM)


BUSY = """
import ctypes
from pal_jax.run.stopping import StopListener
with StopListener(lambda text: print(text, flush=True)):
    print('busy', flush=True)
    libc = ctypes.CDLL(None)  # as a program that compiles: no step of Python for long
    while True:
        libc.sleep(100)
"""


def test_a_second_one_ends_a_process_that_python_does_not_reach():
    with subprocess.Popen([sys.executable, '-c', BUSY], stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdout.readline() == 'busy\n'
        busy.send_signal(signal.SIGTERM)
        assert busy.stdout.readline().startswith('SIGTERM: stopping after this step')
        busy.send_signal(signal.SIGINT)
        assert busy.wait(timeout=10) == 130
