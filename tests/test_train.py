"""The command itself: errors with status 2, and a run that is killed three times ends as an unbroken one does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pal_jax.judges.functions import check_failed
from pal_jax.run import cli, loop
from pal_jax.run.glossary import CORE, figure_line
from pal_jax.run.metrics import MetricsWriter
from pal_jax.run.progress import Progress
from pal_jax.run.recipe import Evaluation, Plan
from tests import configs, shell

ROOT = Path(__file__).parents[1]

# Kills its own process in the middle of something: {target} at its {count}-th call, before or after it was made.
KILLER = """
import os, signal, sys
from pal_jax.decode.local import LocalDecoder
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.run.checkpoint import Checkpoints
owner, name, count = {owner}, {name!r}, {count}
original, calls = getattr(owner, name), []
def deadly(*args, **kwargs):
    calls.append(1)
    out = original(*args, **kwargs)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return out
setattr(owner, name, deadly)
from pal_jax.run import cli
from pal_jax.train import main
cli.run(main, '')
"""


def python(*args, cache=None):
    env = os.environ | shell.PLAIN
    if cache:
        env |= {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def records(workdir, name):
    lines = (workdir / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith('seconds_')} for line in lines]


@pytest.mark.long
def test_a_run_killed_in_rollout_update_and_save_ends_as_an_unbroken_one(tmp_path):
    flags = ['--config=configs/rlpa.py:smoke', '--config.checkpoint.every=1']
    whole, broken, cache = tmp_path / 'whole', tmp_path / 'broken', tmp_path / 'cache'
    result = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}', cache=cache)
    assert result.returncode == 0, result.stderr
    for owner, name, count in (
        ('LocalDecoder', '__call__', 9),  # evaluations take some calls, then step 4 samples
        ('PolicyLearner', 'minibatch', 2),
        ('Checkpoints', 'save', 2),  # the background write has just begun
    ):
        script = KILLER.format(owner=owner, name=name, count=count)
        killed = python('-c', script, *flags, f'--workdir={broken}', cache=cache)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = python('-m', 'pal_jax.train', *flags, f'--workdir={broken}', cache=cache)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resuming' in resumed.stdout
    for name in ('metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl', 'rollouts.jsonl'):
        assert records(broken, name) == records(whole, name)
    last = Path('checkpoints') / '10' / 'host' / 'metadata'
    assert json.loads((broken / last).read_text()) == json.loads((whole / last).read_text())
    exported = Path('export') / 'model.safetensors'
    assert (broken / exported).read_bytes() == (whole / exported).read_bytes()
    (card := whole / 'export' / 'README.md').write_text('mine')  # nothing is exported again
    again = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}', cache=cache)
    assert 'is finished' in again.stdout, again.stderr
    assert card.read_text() == 'mine'
    card.unlink()
    further = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}', '--config.total_steps=7', cache=cache)
    assert further.returncode == 0, further.stderr
    assert [row['step'] for row in records(whole, 'metrics.jsonl')] == list(range(11))
    other = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}', '--config.ppo.clip=0.1', cache=cache)
    assert_refused(other, 'ppo.clip: 0.2 -> 0.1')
    for name in ('report.html', 'learning_curve.png', 'summary.json'):
        assert (whole / name).stat().st_size > 0


def assert_refused(result, message):
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1, result.stderr


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ([], 'no configuration; give one, such as --config=rlpa'),
        (['--config=configs/nothing.py'], 'there is no configuration file configs/nothing.py'),
        (['--config=configs/rlpa.py:smok'], "variant 'smok' is unknown"),
        (
            ['--config=configs/rlpa.py:smoke', '--config.ppo.clp=0.1'],
            'error: unknown key ppo.clp; did you mean ppo.clip?',
        ),
        (['--config=configs/rlpa.py:smoke', '--config.ppo.minibatches=3'], 'does not divide'),
    ],
)
def test_wrong_commands_end_with_one_line_and_status_2(flags, message, tmp_path):
    assert message in shell.refusal('pal_jax.train', *flags, f'--workdir={tmp_path}')
    assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"recipe": "rlpa"}', 'own.py must define get_config() in Python'),
        ('def get_config(:', 'own.py, line 1: SyntaxError'),
        ('def get_config():\n    return 1 / 0', 'own.py, line 2: ZeroDivisionError'),
        ('def get_config():\n    return 5', 'own.py: get_config() must return'),
    ],
)
def test_a_config_file_that_is_none_is_named(text, message, tmp_path):
    (tmp_path / 'own.py').write_text(text)
    flags = f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run'
    assert message in shell.refusal('pal_jax.train', *flags)


def test_processes_agree_on_when_to_stop_and_the_first_ones_clock_says_when_to_save(monkeypatch):
    told = [[0, False], [signal.SIGTERM, True], [signal.SIGINT, True]]
    monkeypatch.setattr(loop.processes, 'exchange', lambda what, value: told)
    assert loop.agree(0, False) == (signal.SIGTERM, False)
    told[:] = [[0, True], [0, False]]
    assert loop.agree(0, False) == (0, True)


@pytest.mark.parametrize(
    ('total', 'moment', 'line', 'reported'),
    [(2, 'step', 'stopped at step 1 of 2', False), (1, 'step', '1 step made, which is all', False),
     (1, 'final', '', True)],
)  # fmt: skip
def test_a_stopped_run_says_what_is_left_and_a_signal_at_its_end_is_not_lost(total, moment, line, reported, tmp_path):
    stopping, shown = SimpleNamespace(wish=0), io.StringIO()

    def came(now, result):
        stopping.wish = signal.SIGINT if now == moment else stopping.wish
        return result

    recipe: Any = SimpleNamespace(
        plan=Plan(total, None, {total: 'final'}.get),
        init=lambda: (None, {}),
        step=lambda state, host, i: came('step', (state, host, 'sft', {'loss': 0.5})),
        evaluate=lambda state, stage: came(stage, Evaluation({'loss': 0.5})),
    )
    settings = configs.load('sft', export=False, **{'checkpoint.every': 1})
    checkpoints = SimpleNamespace(save=lambda *_: None, wait=lambda: None)
    progress = Progress(console=Console(file=shown))
    stopped = loop.run(settings, tmp_path, recipe, progress, checkpoints, None, stopping, [])
    assert stopped == signal.SIGINT
    assert (tmp_path / 'report.html').exists() == reported and line in shown.getvalue()


def test_an_evaluation_is_announced_before_it_is_made(tmp_path):
    shown = io.StringIO()

    def evaluated(state, stage):
        assert f'evaluating ({stage})' in shown.getvalue()
        return Evaluation({'loss': 0.5})

    recipe: Any = SimpleNamespace(plan=Plan(1, None, lambda i: None), evaluate=evaluated)
    with MetricsWriter(tmp_path, 0) as writer:
        loop.evaluate(recipe, None, 'final', 1, writer, Progress(console=Console(file=shown)), CORE, {})
    assert shown.getvalue().splitlines()[1:] == ['evaluation (final):', f'  {figure_line("loss", 0.5, CORE)}']


def test_help_tells_how_to_start():
    result = shell.run('pal_jax.train', '--help')
    assert result.returncode == 0
    assert 'pal-jax train --config=rlpa ' in result.stdout


def test_a_fault_of_the_system_says_what_and_where(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(cli.Fault, match=r"Not a directory: '.*/file/runs' \(PAL_JAX_TRACEBACK=1"):
        cli.faults((tmp_path / 'file' / 'runs').mkdir)
    # An error of this package says itself what to do.
    with pytest.raises(cli.Fault, match='reward.max_failed') as failed:
        cli.faults(check_failed, 1, 1, 'samples got no reward', 'reward', 0.0)
    assert 'PAL_JAX_TRACEBACK' not in str(failed.value)
