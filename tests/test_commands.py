"""The command `pal-jax` and the names of configs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pal_jax import __main__ as command
from pal_jax.run import cli, interrupts, shipped
from tests import shell

ROOT = Path(__file__).parents[1]


def test_every_command_is_listed_with_a_sentence(capsys):
    files = {path.stem.replace('_', '-') for path in (ROOT / 'pal_jax/commands').glob('[!_]*.py')}
    assert command.COMMANDS.keys() == files - {'talking', 'library'} | {'train'}
    command.show_help()
    text = capsys.readouterr().out
    for name in [*command.COMMANDS, *shipped.config_names()]:
        assert f' {name} ' in text
    for module in command.COMMANDS.values():
        path = ROOT / f'{module.replace(".", "/")}.py'
        assert command.first_sentence(path).endswith('.')


def test_the_console_script_is_this_command():
    scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    assert scripts == {'pal-jax': f'{command.__name__}:{command.main.__name__}'}


def test_a_command_runs_and_a_wrong_one_is_named():
    assert 'Writes a checkpoint' in shell.run('pal_jax', 'export', '--help').stdout
    wrong = shell.refusal('pal_jax', 'trian', '--config=rlpa')
    assert wrong.startswith("error: there is no command 'trian'; did you mean train?")
    assert 'pal-jax train --config=bench' in shell.refusal('pal_jax', 'bench')


def test_a_shell_completes_commands_and_configs():
    script = shell.run('pal_jax', '--completion').stdout
    # What bash completes of a word, by the options that the script gives.
    options = script.removeprefix('complete ').removesuffix(' pal-jax\n')
    for start, end in (('tra', 'train'), ('safe_', 'safe_rlhf')):
        line = ['bash', '-euc', f'{script}compgen {options} {start}']
        assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.split() == [end]


SCRIPT = "import sys; sys.argv = ['pal-jax', 'train']; from pal_jax.__main__ import main; main()"


@pytest.mark.parametrize('start', [['-m', 'pal_jax.train'], ['-m', 'pal_jax', 'train'], ['-c', SCRIPT]])
def test_ctrl_c_during_the_imports_is_one_line(start, tmp_path):
    # Some libraries take whatever goes wrong while they look for a package to mean that it is missing.
    (tmp_path / 'jax.py').write_text(
        'import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: pass\n'
    )
    env = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    env['PYTHONPATH'] = f'{tmp_path}:{ROOT}'
    # -P: the module that interrupts comes before the installed one, and the current folder not at all.
    # Tests that run in the background of a script ignore the signal, and so would the command.
    heard = 'import os, signal as s, sys; s.signal(s.SIGINT, s.SIG_DFL); os.execv(sys.executable, sys.argv[1:])'
    command = [sys.executable, '-c', heard, sys.executable, '-P', *start]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, '', f'{interrupts.SAID}\n')


def test_ctrl_c_that_a_command_does_not_take_is_one_line(capsys, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, 'argv', ['pal_jax.score'])
    with pytest.raises(SystemExit) as end:
        cli.run(interrupted, '', needs_config=False)
    assert end.value.code == 130 and capsys.readouterr().err == f'{interrupts.SAID}\n'


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config=rlpa:smoke'], ['--config={}/rlpa.py:smoke']),
        (['--config', 'psoups:stage=rlhf,smoke'], ['--config', '{}/psoups.py:stage=rlhf,smoke']),
        (['--config=./rlpa', '--config=my.py'], ['--config=./rlpa', '--config=my.py']),
        (['--config=nothing', '--config.data=rlpa'], ['--config=nothing', '--config.data=rlpa']),
        (['--config='], ['--config=']),
    ],
)
def test_a_name_stands_for_the_file_of_a_config(arguments, expected):
    assert shipped.with_config(arguments) == [text.format(shipped.CONFIGS) for text in expected]


def test_the_folders_are_those_of_the_checkout_or_of_the_wheel(tmp_path, monkeypatch):
    assert shipped.CONFIGS == ROOT / 'configs' and shipped.LAUNCH == ROOT / 'launch'
    (tmp_path / 'pal_jax' / 'configs').mkdir(parents=True)
    monkeypatch.setattr(shipped, 'PACKAGE', tmp_path / 'pal_jax')
    assert shipped.shipped('configs') == tmp_path / 'pal_jax' / 'configs'
    assert shipped.shipped('launch') == tmp_path / 'launch'
