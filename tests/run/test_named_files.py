"""Names of files on a command line: those that are not there are told, before a library is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pal_jax.run.named_files import first_missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('prompts.jsonl', 'a,b.csv', 'my_rewards.py'):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ('argument', 'line'),
    [
        ('--config.prompts.train=promts.jsonl', 'did you mean prompts.jsonl?'),
        ('--config.data=survy.csv', 'it has a,b.csv'),
        ('--config.data=survy.json', 'check the name'),
        ('--config.prompts.train=prompts.jsonl,more.jsonl', 'no file more.jsonl'),
        ('--config.data.train=no/where.csv.gz', 'no folder no'),
        ('--config.data=personas:x.jsonl', 'no file x.jsonl'),
        ('--config.reward.function=my_rewards.py:a,rewards.py:b', 'did you mean my_rewards.py?'),
        ("--config.play.games=('tictactoe','my_games.py:Sticks')", 'no file my_games.py'),
        ('--texts=~/replies.jsonl', 'no file replies.jsonl'),
        ('--config=gpro', 'no configuration file gpro'),
        ('--config=grpo', '--config=rl'),
    ],
)
def test_a_file_that_is_not_there_is_told_with_the_name_most_like_it(argument, line):
    assert line in first_missing(['--config=rl', argument])


@pytest.mark.parametrize(
    'argument',
    [
        '--config.prompts.train=prompts.jsonl',
        '--config.data=a,b.csv',
        '--config.data=hf:owner/name/x.jsonl',
        '--config.data=choices:tfds:name:train.json',
        '--config.data.train=gs://bucket/x.jsonl',
        '--config.data.train=shard-*.jsonl',
        '--config.data=electricity',
        '--config.reward.function=~/my_rewards.py:a',
        '--config.reward.rubric=It names x.json',
        '--output=x.jsonl',
        '--config.policy.source=runs/a',
        '--config.data.train',
        'runs/a.json',
    ],
)
def test_all_else_is_left_to_its_reader(argument):
    assert first_missing(['--config=rl:smoke', argument]) == ''


def test_the_command_tells_of_it_without_a_library():
    line = [sys.executable, '-X', 'importtime', '-m', 'pal_jax', 'train', '--config=rl', '--config.prompts.train=a.csv']
    done = subprocess.run(line, env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'error: --config.prompts.train=a.csv: there is no file a.csv' in done.stderr
    assert not re.search(r'\|\s+(jax|numpy|absl)$', done.stderr, re.MULTILINE)
