"""Two real processes of four pretended devices each: they train as one, end together, and resume bit by bit.

python -m tests.test_processes 30      kills a run so many times, at random moments, and compares its end
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest

from pal_jax.run import processes, rollcall
from pal_jax.run.processes import Place, Shares, locate
from pal_jax.run.rollcall import RollCall
from tests.shell import FLAGS

ROOT = Path(__file__).parents[1]

# A random model never writes the format. Here all it writes is well-formed and judged by its bytes, so that rewards,
# best replies and queues differ between dialogues and steps.
TRAIN = """
import zlib
from pal_jax.run import cli
from pal_jax.train import main
from pal_jax.recipes.rlpa import criteria as judges
from pal_jax.recipes.rlpa.profiles import ParsedCompletion
from pal_jax.recipes.rlpa import world
from pal_jax.recipes.rlpa import rollouts, turns
from pal_jax.types import Verdict
def parse(text):
    return ParsedCompletion('- tea: green\\n', ('tea: green',), text or 'Hm.')
def judge(dialogues, inferred, replies, seed):
    scores = [zlib.crc32(reply.encode('utf-8', 'backslashreplace')) % 97 / 97 for reply in replies]
    return [Verdict(dict.fromkeys(judges.SCORES, score)) for score in scores]
turns.parse_completion = rollouts.parse_completion = parse
world.judge_by_rules = judge
cli.run(main, '')
"""
SMOKE = ('--config=configs/rlpa.py:smoke', '--config.checkpoint.every=1', '--config.eval.people=2')


def free_port():
    """A port that is free, and so is the next."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(('', 0))
            with contextlib.suppress(OSError, OverflowError):
                other.bind(('', one.getsockname()[1] + 1))
                return one.getsockname()[1]


def environment(cache, devices):
    env = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM_', 'JAX_', 'XLA_'))}
    return env | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{FLAGS} --xla_force_host_platform_device_count={devices}',
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'GLIBC_TUNABLES': '',
        'PJRT_NPROC': '8',  # threads: by default as many as devices, and the sums of matrix products depend on it
    }


def start(workdir, cache, *flags, count=2, devices=8, script=TRAIN):
    """`count` commands that together have so many devices."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, '-c', script, *SMOKE, f'--workdir={workdir}', f'--coordinator=localhost:{port}',
             f'--processes={count}', f'--process={number}', *flags],
            cwd=ROOT, env=environment(cache, devices // count), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def finish(commands, timeout=1500):
    """Exit status and stderr of each."""
    try:
        ends = [command.communicate(timeout=timeout) for command in commands]
    except subprocess.TimeoutExpired:
        for command in commands:
            command.kill()
            command.communicate()
        raise
    return [(command.returncode, err) for command, (_, err) in zip(commands, ends, strict=True)]


def run(workdir, cache, *flags, count=2):
    for code, err in finish(start(workdir, cache, *flags, count=count)):
        assert code == 0, err


def records(workdir, name):
    lines = (workdir / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith('seconds_')} for line in lines]


def began(workdir):
    """When a run last wrote its config, which it does once all its processes are there."""
    path = workdir / 'config.json'
    return path.stat().st_mtime_ns if path.exists() else 0


def done(workdir):
    """Steps that a run has written."""
    path = workdir / 'metrics.jsonl'
    return path.read_text().count('\n') if path.exists() else 0


def assert_same_run(one, other):
    """Records, the model, and the bits of the whole last state: the host item has the sum of every leaf's."""
    for name in ('metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl'):
        assert records(one, name) == records(other, name)
    last = max((one / 'checkpoints').iterdir(), key=lambda path: int(path.name)).relative_to(one) / 'host' / 'metadata'
    assert json.loads((one / last).read_text()) == json.loads((other / last).read_text())
    model = Path('export') / 'model.safetensors'
    assert (one / model).read_bytes() == (other / model).read_bytes()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp('unbroken')
    run(workdir, cache)
    return workdir


# --- two as one -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_train_as_one_with_all_their_devices(unbroken, cache, tmp_path):
    clock = ('--config.checkpoint.every=100', '--config.checkpoint.minutes=0.0')  # saves after every step, too
    run(tmp_path, cache, '--config.decode.shares=2', *clock, count=1)
    assert (tmp_path / 'checkpoints' / '9').is_dir()
    steps = records(unbroken, 'metrics.jsonl')
    assert len({step['reward'] for step in steps[4:]}) > 3
    assert {step['round'] for step in steps[4:]} == {1.0, 2.0}
    assert_same_run(unbroken, tmp_path)


@pytest.mark.slow
def test_one_device_exports_what_two_processes_have_trained(unbroken, cache, tmp_path):
    command = [sys.executable, '-m', 'pal_jax.export', f'--workdir={unbroken}', f'--output={tmp_path / "model"}']
    done = subprocess.run(command, cwd=ROOT, env=environment(cache, 1), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    exported = Path('export') / 'model.safetensors'
    assert (tmp_path / 'model' / 'model.safetensors').read_bytes() == (unbroken / exported).read_bytes()


def kill_at_random(workdir, cache, kills, rng, *flags):
    """Kills one of two processes so many times, unless the run ends before; the other has to end by itself, in time.

    Returns the seconds from each kill to that end.
    """
    waits = []
    while len(waits) < kills:
        before, commands = began(workdir), start(workdir, cache, *flags)
        victim, steps, seconds = rng.randrange(2), done(workdir) + rng.randrange(4), rng.uniform(0, 5)
        while (began(workdir) == before or done(workdir) < steps) and commands[victim].poll() is None:
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            commands[victim].wait(seconds)
        if commands[victim].poll() is not None:
            ends = finish(commands)
            if [code for code, _ in ends] == [0, 0]:
                break
            # A machine that stood still for long: JAX has given them up. That is a kill too.
            assert all(code in (rollcall.GONE, -signal.SIGABRT) for code, _ in ends), ends
            continue
        commands[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code, err = finish(commands)[1 - victim]
        waits.append(time.monotonic() - killed)
        found = sorted(int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit())
        print(f'kill {len(waits)}: process {victim}, the other ended after {waits[-1]:.1f} s with {code}; {found}')
        assert code in (rollcall.GONE, -signal.SIGABRT), (code, err)
        assert code != rollcall.GONE or f'error: process {victim} ' in err, err
    return waits


@pytest.mark.slow
def test_a_run_one_of_whose_processes_is_killed_ends_as_an_unbroken_one(unbroken, cache, tmp_path):
    waits = kill_at_random(tmp_path, cache, 1, random.Random(0))
    assert waits
    assert max(waits) < rollcall.SILENCE
    run(tmp_path, cache)
    assert_same_run(unbroken, tmp_path)


@pytest.mark.long
def test_rollouts_ahead_of_updates_are_the_same_in_two_processes_one_of_which_is_killed(cache, tmp_path):
    ahead = '--config.rollout.ahead=2', '--config.total_steps=8'
    run(tmp_path / 'one', cache, '--config.decode.shares=2', *ahead, count=1)
    assert kill_at_random(tmp_path / 'two', cache, 2, random.Random(1), *ahead)
    run(tmp_path / 'two', cache, *ahead)
    assert_same_run(tmp_path / 'one', tmp_path / 'two')


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_after_a_checkpoint(unbroken, cache, tmp_path):
    commands = start(tmp_path, cache, '--config.checkpoint.every=100')
    while done(tmp_path) < 6:
        time.sleep(0.1)
        assert all(command.poll() is None for command in commands), finish(commands)
    commands[1].send_signal(signal.SIGTERM)
    for code, err in finish(commands):
        assert code == 143, err
    (saved,) = (int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
    assert 6 <= saved < 10
    assert len(records(tmp_path, 'metrics.jsonl')) == saved
    run(tmp_path, cache, '--config.checkpoint.every=100')
    assert_same_run(unbroken, tmp_path)


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all_with_its_line_and_status(cache, tmp_path):
    fault = (
        "import jax\nif '--process=1' in __import__('sys').argv:\n    from pal_jax.recipes.rlpa.world import World\n"
    )
    fault += "    def check(*_): raise RuntimeError('no judge answers')\n    World.check_answers = check\n"
    (first, said), (second, err) = finish(start(tmp_path, cache, '--config.warmup.steps=0', script=fault + TRAIN))
    assert (first, second) == (1, 1)
    assert 'error: process 1 stopped: no judge answers' in said
    assert 'error: no judge answers' in err


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_ends_all_with_its_name(unbroken, cache, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(unbroken, workdir)
    damaged = list((workdir / 'checkpoints' / '10').glob('state/ocdbt.process_1/d/*'))
    assert damaged
    for path in damaged:
        path.write_bytes(bytes(path.stat().st_size))
    for code, err in finish(start(workdir, cache), timeout=300):
        assert code == 1, err
        assert 'cannot read checkpoint 10' in err
        assert f'move {workdir / "checkpoints" / "10"} away' in err


@pytest.mark.slow
def test_another_config_than_the_runs_is_refused_by_all(unbroken, cache):
    for code, err in finish(start(unbroken, cache, '--config.ppo.clip=0.1')):
        assert code == 2
        assert 'ppo.clip: 0.2 -> 0.1' in err


# --- Slurm ------------------------------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
# Two tasks on one node, as Slurm starts them; the worst exit status is its own.
export SLURM_JOB_ID={job} SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
trap 'kill -USR1 $first $second' USR1
worst=0
for each in $first $second; do
  code=0; wait $each || code=$?
  if ((code > 128)) && kill -0 $each 2>/dev/null; then code=0; wait $each || code=$?; fi
  ((code > worst)) && worst=$code
done
exit $worst
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$REQUEUED"\n'


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.long
def test_slurms_script_trains_on_all_tasks_and_asks_for_its_place_again_when_stopped(cache, tmp_path):
    bin, workdir = tmp_path / 'bin', tmp_path / 'run'
    bin.mkdir()
    executable(bin / 'srun', SRUN.format(job=random.randrange(1, 4096)))
    executable(bin / 'scontrol', SCONTROL)
    env = environment(cache, 4) | {
        'PATH': f'{bin}:{os.environ["PATH"]}',
        'SLURM_SUBMIT_DIR': str(ROOT),
        'SLURM_JOB_ID': '7',
        'REQUEUED': str(tmp_path / 'requeued'),
    }
    command = ['launch/slurm_cuda.sh', *SMOKE, f'--workdir={workdir}']
    job = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while done(workdir) < 5:
        time.sleep(0.1)
        assert job.poll() is None, job.communicate()
    children = subprocess.run(['pgrep', '-P', str(job.pid), '-f', 'srun'], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGUSR1)  # Slurm sends it to the steps, not to the script
    out, err = job.communicate(timeout=300)
    assert (tmp_path / 'requeued').read_text() == 'requeue 7\n', err
    assert 'the same command again goes on' in out
    assert json.loads((workdir / 'config.json').read_text())['recipe'] == 'rlpa'
    assert any(path.name.isdigit() for path in (workdir / 'checkpoints').iterdir())
    assert done(workdir) < 10


# --- coming together --------------------------------------------------------------------------------------------------


def gather(*hellos, processes=2, timeout=5.0):
    """What process 0 and those that come, by (process, processes), make of it: an error's text or None."""
    port, told = free_port(), {}

    def join(key, process, count):
        try:
            RollCall(('localhost', port), process, count, timeout=timeout).finish()
            told[key] = None
        except (RuntimeError, ValueError) as error:
            told[key] = str(error)

    threads = [threading.Thread(target=join, args=(i, *hello)) for i, hello in enumerate([(0, processes), *hellos])]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # they come in this order
    for thread in threads:
        thread.join()
    return [told[i] for i in range(len(threads))]


def test_processes_that_do_not_fit_together_are_told_in_one_line():
    assert gather((1, 2)) == [None, None]
    assert gather((1, 3)) == ['process 1 was started with --processes=3, process 0 with 2'] * 2
    twice = 'two processes have the number 1; give each of 3 its own --process'
    assert gather((1, 3), (1, 3), processes=3) == [twice] * 3
    assert gather((1, 2), (1, 2)) == [None, None, 'this run has its 2 processes already']
    missing, gone = gather((2, 3), processes=3, timeout=1.0)
    assert missing.startswith('process 1 of 3 did not come within 1 s')
    assert 'has gone before all had come; see what it says' in gone
    with pytest.raises(RuntimeError, match=r'process 0 cannot be reached at localhost:\d+ within 0 s .*is it running'):
        RollCall(('localhost', free_port()), 1, 2, timeout=0.1)


@pytest.mark.parametrize(
    ('told', 'message'),
    [
        (('a:1', 2, None), 'give all three, as in'),
        (('a', 2, 0), '--coordinator=a is no host:port'),
        (('a:65536', 2, 0), '--coordinator=a:65536 is no host:port'),
        (('a:1', 2, 2), '--process=2 is not one of --processes=2: they count from 0'),
    ],
)
def test_a_place_that_is_incomplete_is_told(told, message):
    with pytest.raises(ValueError, match=message):
        locate(*told)


def test_all_meet_at_the_port_beside_the_coordinators():
    assert [processes.port_beside(port) for port in (8476, 65534, 65535)] == [8477, 65535, 65534]


def test_hosts_of_a_slice_and_slices_of_one_host_are_several_processes():
    assert not processes.in_cluster({'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '1'})
    assert processes.in_cluster({'TPU_WORKER_HOSTNAMES': 'a,b'})
    assert processes.in_cluster({'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '2'})


def test_a_process_knows_its_place_from_flags_and_from_slurm(monkeypatch):
    assert locate('', None, None) is None
    assert locate('a:1', 2, 1) == Place('a:1', 2, 1)
    assert locate('auto', None, None) == processes.DETECTED
    slurm = {'JOB_ID': '5', 'NTASKS': '4', 'STEP_NODELIST': 'gpu[03-04],x', 'PROCID': '3', 'LOCALID': '1'}
    for name, value in slurm.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    assert locate('', None, None) == processes.DETECTED
    monkeypatch.setenv('SLURM_NTASKS', '1')
    assert locate('', None, None) is None


def test_where_jax_detects_no_cluster_the_error_says_what_to_give(monkeypatch):
    def initialize(**flags):
        assert 'JAX_COORDINATOR_ADDRESS' not in os.environ
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'auto')
    monkeypatch.setattr('jax.distributed.initialize', initialize)
    with pytest.raises(ValueError, match='found no cluster .*--coordinator=host:port'):
        processes._detect()


@pytest.mark.parametrize(
    ('env', 'devices'),
    [
        ({}, None),
        ({'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, []),
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '4(x2)', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, [3]),
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '4', 'CUDA_VISIBLE_DEVICES': '0'}, []),
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '4'}, [3]),
        ({'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '4', 'OMPI_COMM_WORLD_LOCAL_RANK': '3'}, None),
    ],
)
def test_a_task_takes_its_gpus(env, devices):
    assert processes.local_devices(env) == devices


def test_what_process_0_tells_is_heard_whole_and_dropped_by_number_and_by_size(monkeypatch):
    values, entries, dropped, met = [b'', b'abcd', b'abcdefghi', b'x' * 20, b'y'], {}, [], []
    store = mock.Mock(
        key_value_set_bytes=entries.__setitem__, key_value_delete=dropped.append,
        blocking_key_value_get_bytes=lambda key, _: entries[key],
    )  # fmt: skip
    for name, value in {'_PART': 4, '_KEPT': 3, '_KEPT_BYTES': 20, '_store': lambda: store}.items():
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(processes, 'exchange', lambda _, turn: met.append(turn))
    for side in (lambda: [processes.tell(value) for value in values], lambda: [processes.heard() for _ in values]):
        monkeypatch.setattr(processes, '_counts', defaultdict(itertools.count))
        monkeypatch.setattr(processes, '_told', [])
        heard = side()
    assert heard == values
    # Both sides meet after the same messages: three of them, or twenty bytes.
    assert met == [2, 3, 2, 3]
    assert dropped[:4] == [f'pal_jax/told/{turn}/' for turn in range(4)]
    assert max(map(len, entries.values())) == 5


def test_shares_are_neighbours_and_cover_everything():
    shares = Shares(3)
    parts = [shares.part(range(10), number) for number in range(3)]
    assert [list(part) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert shares.own == [0, 1, 2]
    assert shares.gather('squares', range(10), lambda _, part: [i * i for i in part]) == [i * i for i in range(10)]
    assert [list(shares.part('a', number)) for number in range(3)] == [[], [], ['a']]


if __name__ == '__main__':
    import tempfile

    folder, kills, clock = Path(tempfile.mkdtemp()), int(sys.argv[1]), time.monotonic()
    flags = [f'--config.total_steps={2 * kills}']
    run(folder / 'unbroken', folder / 'compiled', *flags)
    waits = kill_at_random(folder / 'killed', folder / 'compiled', kills, random.Random(kills), *flags)
    run(folder / 'killed', folder / 'compiled', *flags)
    assert_same_run(folder / 'unbroken', folder / 'killed')
    print(f'{len(waits)} kills in {time.monotonic() - clock:.0f} s: the others ended {max(waits):.1f} s after at most')
