"""What surrounds a command: a reader who closes the pipe, devices that are not there, and 64 bits. One line each."""

from __future__ import annotations

import subprocess
import sys

import jax
import pytest

from pal_jax.run import cli, interrupts

BODY = 'from pal_jax.run import interrupts\nwith interrupts.until_closed():\n    {}'


@pytest.mark.parametrize(
    'body', ["print('a' * 10)", "[print('a' * 99) for _ in range(9999)]", "print('a'); raise SystemExit(0)"]
)
def test_a_closed_pipe_ends_a_command_with_one_line(body):
    command = [sys.executable, '-c', BODY.format(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == f'{interrupts.CLOSED}\n'
    assert process.returncode == interrupts.UNREAD


@pytest.mark.parametrize('error', ['AssertionError()', "RuntimeError('no backend foo')"])
def test_devices_that_are_not_there_are_told_in_one_line(error, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'foo')
    names: dict = {}
    exec(compile(f'def backends():\n    raise {error}', 'jax/_src/xla_bridge.py', 'exec'), names)
    with pytest.raises(cli.Fault, match='JAX_PLATFORMS=foo: there is no such device') as told:
        cli._together(names['backends'])
    assert told.value.code == 1 and '\n' not in str(told.value)


def test_another_assertion_stays_an_error_of_the_program():
    def main():
        raise AssertionError

    with pytest.raises(AssertionError):
        cli._together(main)


def test_64_bits_are_refused(monkeypatch):
    cli._check_bits()
    with jax.enable_x64(True), pytest.raises(cli.Fault, match='JAX_ENABLE_X64'):
        cli._check_bits()
