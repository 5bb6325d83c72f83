"""Whose folder a run's is, and that one run at a time has it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pal_jax.run.workdir import LEASE, NAMES, check_workdir, held, read_run

HOLDER = """
import pathlib, sys, time
from pal_jax.run.workdir import held
with held(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""


def elsewhere(path, silence, token='0'):
    """The lease of a process on another machine, as filelock writes it."""
    path.write_text(f'filelock/2\npid=7\nhost=pod-1\nmode=lease\ntoken={token * 32}\nduration={silence}\n')


def hold(workdir, **changes):
    with held(workdir, **changes):
        return (workdir / LEASE).read_text()


@pytest.mark.parametrize('name', NAMES)
def test_a_folder_with_files_of_a_runs_names_and_no_config_is_no_runs(name, tmp_path):
    for other in ('log.txt', 'compiled', '.git'):  # may be anybody's
        (tmp_path / other).mkdir()
    (tmp_path / 'checkpoints').mkdir()  # a run that was killed early
    check_workdir(tmp_path)
    path = tmp_path / name if '.' in name or name == 'wandb_id' else tmp_path / name / 'mine'
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
    with pytest.raises(ValueError, match=name):
        check_workdir(tmp_path)
    (tmp_path / 'config.json').write_text('{"recipe": "sft"}')
    check_workdir(tmp_path)


def test_the_folder_of_all_stages_names_them(tmp_path):
    for stage in ('rl', 'cost'):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / 'config.json').write_text('{"recipe": "safe_rlhf"}')
    with pytest.raises(ValueError, match='cost, rl'):
        read_run(tmp_path)


@pytest.mark.parametrize('config', ['{"model_type": "llama"}', '[]', 'not JSON', ''])
def test_a_config_of_something_else_is_no_runs(config, tmp_path):
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(ValueError, match=r'config\.json is not the config of a run'):
        check_workdir(tmp_path)
    with pytest.raises(ValueError, match=r'config\.json is a file'):
        check_workdir(tmp_path / 'config.json' / 'run')


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    workdir = tmp_path / 'runs' / 'x'
    with subprocess.Popen([sys.executable, '-c', HOLDER, str(workdir)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b'held\n'
        with pytest.raises(ValueError, match=f'x is in use by process {holder.pid} on '):
            hold(workdir)
        assert f'pid={holder.pid}' in (workdir / LEASE).read_text()
        holder.send_signal(signal.SIGKILL)
    assert str(holder.pid) not in hold(workdir)
    assert not (workdir / LEASE).exists()
    assert hold(workdir)


def test_one_process_holds_a_folder_once_and_several_folders_at_a_time(tmp_path):
    with held(tmp_path / 'a'), held(tmp_path / 'b'), pytest.raises(ValueError, match='in use by process'):
        hold(tmp_path / 'a')
    assert hold(tmp_path / 'a')


def test_the_lease_of_another_machine_counts_as_long_as_it_is_renewed(tmp_path):
    elsewhere(path := tmp_path / LEASE, 0.3)
    told = []
    assert 'pod-1' not in hold(tmp_path, silence=0.3, log=told.append)
    assert len(told) == 1
    assert 'pod-1' in told[0]
    elsewhere(path, 1.0)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            os.utime(path)

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(ValueError, match='process 7 on pod-1'):
        hold(tmp_path, silence=1.0, log=told.append)
    ended.set()
    renewing.join()
    assert 'pid=7' in path.read_text()


def test_a_run_that_is_refused_leaves_no_empty_folders_and_a_user_s_stay(tmp_path):
    (tmp_path / 'mine').mkdir()
    for folder in ('mine', 'new/deep'):
        with pytest.raises(ValueError, match='wrong'), held(tmp_path / folder):
            raise ValueError('wrong')
    assert [path.name for path in tmp_path.iterdir()] == ['mine']
    with held(tmp_path / 'new' / 'deep'):
        (tmp_path / 'new' / 'deep' / 'config.json').write_text('{}')
    assert (tmp_path / 'new' / 'deep' / 'config.json').exists()
