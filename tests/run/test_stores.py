"""Folders in an object store: whole objects, what of a run is mirrored, and one run at a time."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from pal_jax.run import claims, stores
from pal_jax.run.workdir import LEASE, held
from tests.gcs import BUCKET, emulator

HOLDER = """
import pathlib, sys, time
from pal_jax.run import stores
from pal_jax.run.workdir import held
with held(pathlib.Path(stores.local(sys.argv[1]))):
    print('held', flush=True)
    time.sleep(600)
"""
OTHER = 'filelock/2\npid=7\nhost=pod-1\nmode=lease\ntoken={0}\nduration=30.0\nclaim={0}\n'


@pytest.fixture(scope='module')
def server():
    with emulator() as variables:
        yield variables


@pytest.fixture
def machine(server, tmp_path, monkeypatch):
    """A function that makes this process one that has not read anything of the store yet."""

    def start(name='a'):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(stores, 'ROOT', tmp_path / name)
        monkeypatch.setattr(stores, '_known', {})
        monkeypatch.setattr(stores, '_pulled', [])
        monkeypatch.setattr(stores, '_holds', {})
        monkeypatch.setattr(stores, '_filesystem', lambda: files)
        return Path(stores.local(url))

    files = fsspec.filesystem('gcs', use_listings_cache=False)
    url = f'gs://{BUCKET}/runs/{tmp_path.name}'
    return start


def objects(folder):
    """The objects of a folder by their names, of all that write to the store."""
    files = stores._filesystem()
    return {name.partition(f'{folder.name}/')[2]: files.cat_file(name) for name in files.find(stores._key(folder))}


def put(folder, **texts):
    for name, text in texts.items():
        stores.write(folder / name, text)


@pytest.mark.parametrize(
    ('text', 'place'),
    [
        ('gs://bucket/run', '{}/bucket/run'),
        ('--workdir=gs://bucket/run/', '--workdir={}/bucket/run'),
        ('orbax:gs://bucket/a,hf:gs://bucket/b', 'orbax:{0}/bucket/a,hf:{0}/bucket/b'),
        ('{"source": "orbax:gs://bucket/a"}', '{{"source": "orbax:{}/bucket/a"}}'),
        ('http://localhost:8000/v1', 'http://localhost:8000/v1'),
        ('a text of gs://bucket/run', 'a text of gs://bucket/run'),
    ],
)
def test_a_url_stands_for_a_folder_of_this_machine(text, place, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, 'ROOT', tmp_path)
    monkeypatch.setattr(stores, 'pull', lambda folder: None)
    monkeypatch.setattr(stores, '_pulled', [])
    assert stores.local(text) == place.format(tmp_path)
    assert stores.shown(stores.local(text)) == text.rstrip('/')


@pytest.mark.parametrize('url', ['s3://bucket/run', 'az://bucket/run', 'gs://bucket', 'gs://'])
def test_what_is_no_folder_for_checkpoints_is_refused_by_its_name(url):
    with pytest.raises(ValueError, match=url):
        stores.local(url)


def test_a_bucket_that_is_not_there_is_named(machine):
    machine()
    with pytest.raises(ValueError, match='gs://no-such-bucket/run'):
        stores.local('gs://no-such-bucket/run')


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(fsspec, 'filesystem', mock.Mock(side_effect=ImportError('gcsfs')))
    with pytest.raises(ValueError, match=r'pal_jax\[gcs\]'):
        stores._filesystem.__wrapped__()


def test_files_become_whole_objects_and_are_read_elsewhere(machine):
    folder = machine('a')
    (folder / 'kept').mkdir(parents=True)
    for name in ('metrics.jsonl', 'config.json', 'kept/a.txt', '.metrics.jsonl.partial-0', 'model.safetensors'):
        (folder / name).write_text(name)
    stores.push(folder)
    assert set(objects(folder)) == {'metrics.jsonl', 'config.json', 'kept/a.txt', 'model.safetensors'}
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('\nmore')
    stores.push(folder)
    assert objects(folder)['metrics.jsonl'] == b'metrics.jsonl\nmore'
    there = machine('b')
    assert (there / 'metrics.jsonl').read_text() == 'metrics.jsonl\nmore'
    assert (there / 'kept/a.txt').read_text() == 'kept/a.txt'


def test_what_others_change_is_read_and_what_was_changed_here_stays(machine):
    folder = machine()
    put(folder, ours='old', theirs='old', gone='old')
    stores.pull(folder)
    (folder / 'ours').write_text('new here')
    put(folder, ours='new there', theirs='new there', more='new there')
    stores.remove(folder / 'gone')
    stores.pull(folder)
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert texts == {'ours': 'new here', 'theirs': 'new there', 'more': 'new there'}
    written = objects(folder)
    stores.push(folder)
    assert objects(folder) == written | {'ours': b'new here'}


def test_what_is_written_and_never_read_stays_here(machine):
    folder = machine()
    (folder / 'tensorboard').mkdir(parents=True)
    (folder / 'tensorboard/events').write_text('open')
    stores.push(folder)
    stores.pull(folder)
    assert (folder / 'tensorboard/events').exists()


def test_folders_above_a_run_may_have_the_names_of_parts_of_a_run(machine):
    folder = machine().parent / 'checkpoints' / 'run'
    folder.mkdir(parents=True)
    for name in ('config.json', 'kept/people.json', 'checkpoints/2/array'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{}')
    stores.push(folder)
    assert set(objects(folder)) == {'config.json', 'kept/people.json'}
    # A single file can be pushed, too.
    (folder / 'kept' / 'people.json').write_text('[]')
    stores.push(folder / 'kept' / 'people.json')
    assert objects(folder)['kept/people.json'] == b'[]'


def test_a_file_that_somebody_else_deletes_here_stays_in_the_store(machine):
    folder = machine()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('config.json', 'report.html'):
        (folder / name).write_text('{}')
    stores.push(folder)
    for name in ('config.json', 'report.html'):
        (folder / name).unlink()
    stores.push(folder)
    assert set(objects(folder)) == {'config.json'}


def test_of_checkpoints_only_whole_ones_are_known(machine):
    folder = machine()
    whole = 'checkpoints/2/commit_success.txt', 'checkpoints/2/host/metadata', 'checkpoints/2/state/d'
    for name in (*whole, 'checkpoints/4/host/metadata', 'compiled/x', 'export/config.json', 'export/model.safetensors'):
        stores.write(folder / name, name)
    stores.pull(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
    assert names == {'checkpoints/2/host/metadata', 'export/config.json'}


def test_of_two_writers_one_creates_an_object(machine):
    folder = machine()
    assert [stores.create(folder / 'x', text) for text in 'ab'] == [True, False]
    assert stores.read(folder / 'x') == 'a'
    assert stores.read(folder / 'y') is None


# --- one run at a time ------------------------------------------------------------------------------------------------


def taken(folder, **changes):
    with held(folder, **changes):
        return sorted(name for name in objects(folder) if LEASE in name)


@pytest.mark.slow
def test_a_folder_is_held_by_one_process_and_freed_by_its_death(machine, server):
    folder = machine()
    command = [sys.executable, '-c', HOLDER, stores.shown(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **server}) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b'held\n'
        with pytest.raises(ValueError, match=f'gs://.* is in use by process {holder.pid} on .*{LEASE}.000001'):
            taken(folder)
        holder.kill()
        holder.wait()
    assert taken(folder) == [f'{LEASE}.000002']
    # Now it is released.
    assert taken(folder) == [f'{LEASE}.000003']


def test_a_claim_of_another_machine_counts_for_as_long_as_it_is_renewed(machine):
    folder, lines = machine(), []
    stores.create(folder / f'{LEASE}.000007', OTHER.format('a'))
    assert taken(folder, silence=0.2, log=lines.append) == [f'{LEASE}.000008']
    assert 'pod-1' in lines[0]
    stores.create(renewed := folder / f'{LEASE}.000009', OTHER.format('b'))
    with pytest.raises(ValueError, match=r'process 7 on pod-1'), renewing(renewed):
        taken(folder, silence=0.4, log=lines.append)


@contextlib.contextmanager
def renewing(path):
    """Another machine that writes its claim again and again."""
    ended = threading.Event()

    def renew():
        for count in itertools.count():
            stores.write(path, f'{OTHER.format("b")}renewed={count}\n')
            if ended.wait(0.03):
                break

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_run_that_was_taken_over_writes_nothing_more(machine):
    folder = machine()
    with held(folder):
        (folder / 'metrics.jsonl').write_text('one')
        stores.push(folder)
        stores.create(folder / f'{LEASE}.000002', OTHER.format('c'))
        (folder / 'metrics.jsonl').write_text('two')
        with pytest.raises(RuntimeError, match='taken over'):
            stores.push(folder)
    assert objects(folder)['metrics.jsonl'] == b'one'


def test_a_claim_is_renewed(machine):
    folder = machine()
    with claims.claimed(folder / LEASE, 0.2, print):
        before = stores.read(folder / f'{LEASE}.000001')
        for _ in range(100):
            if (after := stores.read(folder / f'{LEASE}.000001')) != before:
                break
            time.sleep(0.05)
        assert after != before
