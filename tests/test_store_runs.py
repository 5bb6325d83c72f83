"""A run in a bucket: killed, gone on with, evaluated, exported and shown as one in a folder is, with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from tests import gcs, shell

CONFIG = '--config=sft:smoke'
URL = f'gs://{gcs.BUCKET}/runs/sft'


def command(*args):
    return [sys.executable, '-m', 'pal_jax', *map(str, args)]


def timeless(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith('seconds_')} for row in rows]


@pytest.mark.long
def test_a_run_in_a_bucket_that_is_killed_ends_as_one_in_a_folder(tmp_path):
    with gcs.emulator() as variables:
        environment = os.environ | shell.PLAIN | variables
        bucket = fsspec.filesystem('gcs', use_listings_cache=False, skip_instance_cache=True)

        def run(*args, status=0):
            done = subprocess.run(
                command(*args), cwd=shell.ROOT, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == status, done.stderr
            return done

        def read(name):
            return bucket.cat_file(f'{URL[5:]}/{name}').decode()

        run('train', CONFIG, f'--workdir={tmp_path / "whole"}')
        with subprocess.Popen(command('train', CONFIG, f'--workdir={URL}'), env=environment) as first:
            try:
                while not bucket.exists(f'{URL[5:]}/checkpoints/2/commit_success.txt'):
                    assert first.poll() is None
                    time.sleep(0.1)
                # A process that stands still holds the run, too.
                first.send_signal(signal.SIGSTOP)
                refused = run('train', CONFIG, f'--workdir={URL}', status=2)
            finally:
                first.kill()
            assert f'error: {URL} is in use by process {first.pid}' in refused.stderr
        assert f'resuming {URL} at step ' in run('train', CONFIG, f'--workdir={URL}').stdout
        for name in ('metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl'):
            assert timeless(read(name)) == timeless((tmp_path / 'whole' / name).read_text())
        sums = 'checkpoints/6/host/metadata'
        assert json.loads(read(sums)) == json.loads((tmp_path / 'whole' / sums).read_text())
        weights = 'export/model.safetensors'
        assert bucket.cat_file(f'{URL[5:]}/{weights}') == (tmp_path / 'whole' / weights).read_bytes()
        # No path of a machine is left in the files of the run.
        pages = [name for name in bucket.find(URL[5:]) if name.endswith(('.json', '.jsonl', '.html'))]
        assert not [name for name in pages if b'/pal_jax-' in bucket.cat_file(name)]

        run('evaluate', CONFIG, f'--workdir={URL}')
        *_, last = json.loads(read('evaluation.json')).values()
        assert last['loss'] == timeless(read('evals.jsonl'))[-1]['loss']
        run('export', f'--workdir={URL}', f'--output={tmp_path / "model"}')
        assert (tmp_path / 'model/model.safetensors').read_bytes() == (tmp_path / 'whole' / weights).read_bytes()
        bucket.rm_file(f'{URL[5:]}/report.html')
        assert f'{URL}/report.html' in run('report', URL).stdout
        assert URL in read('report.html')
        compared = run('compare', URL, tmp_path / 'whole', f'--output={tmp_path / "compared.html"}').stdout
        assert '| sft | final |' in compared
        assert '| whole | final |' in compared
