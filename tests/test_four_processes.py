"""Four processes with two decode servers and a run in a bucket: one server and one process are lost on the way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import fsspec
import pytest

from tests import gcs
from tests.test_processes import ROOT, assert_same_run, environment, finish, free_port, start

AHEAD = '--config.rollout.ahead=1', '--config.total_steps=8'
URL = f'gs://{gcs.BUCKET}/runs/rlpa'


@contextlib.contextmanager
def decode_server(cache) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a decode server, and its process."""
    port = free_port()
    options = '--driver=jetstream', '--source=random:tiny', '--dtype=float32', '--exact', f'--port={port}'
    command = [sys.executable, '-m', 'pal_jax.serve', *options]
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, env=environment(cache, 1), **quiet) as process:
        try:
            yield f'127.0.0.1:{port}', process
        finally:
            process.kill()


@pytest.mark.long
def test_four_processes_that_lose_a_server_and_one_of_them_end_as_an_unbroken_run(tmp_path):
    cache = tmp_path / 'compiled'
    with gcs.emulator(), decode_server(cache) as (one, _), decode_server(cache) as (other, lost):
        flags = ['--config.decode.driver=jetstream', f'--config.decode.address={one},{other}', *AHEAD]
        bucket = fsspec.filesystem('gcs', use_listings_cache=False, skip_instance_cache=True)

        def run(workdir):
            for code, err in finish(start(workdir, cache, *flags, count=4)):
                assert code == 0, err

        def wait_for(checkpoint, commands):
            while not bucket.exists(f'{URL[5:]}/checkpoints/{checkpoint}/commit_success.txt'):
                assert all(command.poll() is None for command in commands), finish(commands)
                time.sleep(0.1)

        run(tmp_path / 'whole')
        commands = start(URL, cache, *flags, count=4)
        wait_for(5, commands)
        lost.kill()
        wait_for(6, commands)
        commands[3].kill()
        *others, _ = finish(commands)
        assert all('error: process 3 ' in err for _, err in others), others
        run(URL)
        bucket.get(URL[5:], str(tmp_path / 'broken'), recursive=True)
    assert_same_run(tmp_path / 'whole', tmp_path / 'broken')
