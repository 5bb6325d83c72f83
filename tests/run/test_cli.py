"""The border where commands take paths: home folders, empty names, other alphabets, and places that are somebody's."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from pal_jax.commands import merge
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models.config import tiny
from pal_jax.models.files import hf, sources
from pal_jax.models.files.folders import Settings
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.run import cli
from pal_jax.run.files import at_home
from pal_jax.run.progress import print_anything
from pal_jax.run.runs import is_finished
from pal_jax.run.settings import changed, to_dict
from pal_jax.run.trained import folders_read
from tests import configs, shell

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ana')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('--workdir=~/x', '--workdir=/home/ana/x'),
        ('--output=~', '--output=/home/ana'),
        ('~/x', '/home/ana/x'),
        ('--config=~/my.py:smoke', '--config=/home/ana/my.py:smoke'),
        ('--sources=hf:~/a,orbax:~/b,base', '--sources=hf:/home/ana/a,orbax:/home/ana/b,base'),
        ('--config.rl.reward=pal:~/run', '--config.rl.reward=pal:/home/ana/run'),
        ('local:hf:~/a', 'local:hf:/home/ana/a'),
        ('--workdir=./~/x', '--workdir=./~/x'),
        ('--workdir=a~/x', '--workdir=a~/x'),
        ('--workdir=~nobody-of-that-name/x', '--workdir=~nobody-of-that-name/x'),
        ('about ~5 words', 'about ~5 words'),
    ],
)
def test_a_tilde_is_the_home_folder_wherever_a_path_begins(home, text, expected):
    assert at_home(text) == expected


def test_a_terminal_without_the_letters_shows_escapes(monkeypatch):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(bytes_, 'ascii', write_through=True))
    print_anything()
    print('läufe ± \ud800')
    assert bytes_.getvalue() == b'l\\xe4ufe \\xb1 \\ud800\n'


def model(folder, seed=0):
    cfg = tiny(vocab=byte_tokenizer().vocab_size)
    hf.save(sources.random_tiny(seed).load(), cfg, byte_tokenizer(), folder)
    return folder


def test_a_merge_takes_the_place_of_no_earlier_one_and_of_no_source(tmp_path, monkeypatch):
    one, two, out = model(tmp_path / 'one'), model(tmp_path / 'two', 1), tmp_path / 'out'
    settings, names = Settings('linear', [0.5, 0.5]), [f'hf:{one}', f'hf:{two}']
    merge.merge(names, settings, None, out)
    with pytest.raises(ValueError, match='exists and holds'):
        merge.merge(names, settings, None, out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to(two)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.*') if path.is_file()}
    for place in (one, Path('one'), tmp_path / 'out' / '..' / 'two', tmp_path / 'link'):
        with pytest.raises(ValueError, match='which is read'):
            merge.merge(names, settings, None, place)
    with pytest.raises(ValueError, match='which is read'):
        merge.merge(names, settings._replace(method='delta'), f'hf:{out}', out)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.*') if path.is_file()} == before


def test_a_run_is_finished_that_has_its_report_and_as_many_steps(tmp_path):
    settings = configs.load('sft', 'smoke')
    assert not is_finished(settings, tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(settings)))
    assert not is_finished(settings, tmp_path)
    (tmp_path / 'report.html').touch()
    assert is_finished(settings, tmp_path)
    assert not is_finished(changed(settings, total_steps=settings.total_steps + 1), tmp_path)


def test_the_folders_that_a_config_reads_and_those_that_these_read(tmp_path):
    base, run = model(tmp_path / 'base'), tmp_path / 'run'
    run.mkdir()
    (run / 'config.json').write_text(f'{{"recipe": "sft", "policy": {{"source": "hf:{base}"}}}}')
    config = {'recipe': 'sft', 'policy': {'source': f'orbax:{run}'}, 'judges': [f'local:hf:{base}', 'rule']}
    assert {*folders_read(config)} == {run, base}
    assert {*folders_read(f'orbax:{run}')} == {run, base}
    assert folders_read('hf:owner/name') == folders_read('random:tiny') == folders_read('') == []


@pytest.mark.parametrize(
    ('stage', 'name'),
    [
        ('rollout', 'rollouts.jsonl'),
        ('annotate', 'pairs/P2A.jsonl'),
        ('merge', 'merged/x/y'),
        ('evaluate', 'generations/x'),
    ],
)
def test_a_stage_writes_over_no_file_that_it_has_not_made(stage, name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    for asked in ('all', stage):
        with pytest.raises(ValueError, match=f'{path.relative_to(tmp_path).parts[0]} is there, and stage={stage}'):
            psoups.stages(configs.load('psoups', stage=asked), tmp_path)
    (tmp_path / stage).mkdir()
    (tmp_path / stage / 'config.json').write_text('{}')
    psoups.stages(configs.load('psoups'), tmp_path)


@pytest.mark.parametrize(
    ('value', 'fault'),
    [(None, ''), ('', '--output=NAME'), ('new/', 'is a folder'), ('taken', 'taken exists'), ('new', '')],
)
def test_a_new_file_is_named_or_none(tmp_path, monkeypatch, value, fault):
    monkeypatch.chdir(tmp_path)
    Path('taken').write_text('mine')
    expectation = pytest.raises(cli.Fault, match=fault) if fault else contextlib.nullcontext()
    with flagsaver.flagsaver((cli.OUTPUT, value)), expectation:
        flags.FLAGS.mark_as_parsed()
        assert cli.output_file() == (value and Path(value))
    flags.FLAGS.unparse_flags()


def test_records_are_json_whatever_the_terminal(monkeypatch):
    for encoding in ('ascii', 'utf-8'):
        bytes_ = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(bytes_, encoding, write_through=True))
        print_anything()
        cli.print_json({'user': 'Zoë'})
        assert json.loads(bytes_.getvalue()) == {'user': 'Zoë'}


@pytest.mark.slow
def test_commands_refuse_the_places_of_others_in_one_line(tmp_path):
    (file := tmp_path / 'file').write_text('mine')
    (foreign := tmp_path / 'läufe').mkdir()
    for name in ('config.json', 'report.html', 'comparison.json', 'evaluation.png'):
        (foreign / name).write_text('{"model_type": "llama"}')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    command = lambda name, *flags: shell.refusal(f'pal_jax.{name}', *flags)  # noqa: E731
    rlpa, sft = '--config=configs/rlpa.py:smoke', '--config=configs/sft.py:smoke'
    assert 'config.json is not the config of a run' in command('train', sft, f'--workdir={foreign}')
    assert 'is a file' in command('train', sft, f'--workdir={file}/run')
    assert 'names no folder' in command('train', sft, '--workdir=')
    for name in ('train', 'evaluate', 'export'):
        assert 'is a file' in command(name, sft, f'--workdir={file}')
    assert 'comparison.json exists' in command('evaluate', rlpa, '--sources=base', f'--workdir={foreign}')
    assert 'file exists' in command('collect', rlpa, f'--output={file}')
    assert 'nothing to write to' in command('collect', rlpa, '--output=')
    assert 'is a folder' in command('collect', rlpa, f'--output={tmp_path}/new/')
    assert 'is a folder' in command('score', '--texts=a.jsonl', f'--output={tmp_path}/new/')
    assert 'nothing to write to' in command('personalize', '--source=orbax:a', '--choices=a.csv', '--output=')
    assert 'exists and holds' in command('merge', '--sources=random:tiny,random:tiny', f'--output={foreign}')
    assert 'is a file' in command('merge', '--sources=random:tiny,random:tiny', f'--output={file}')
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow  # a process of its own, whose streams Python opens
def test_a_refusal_is_one_line_on_any_terminal(tmp_path):
    (foreign := tmp_path / 'läufe').mkdir()
    (foreign / 'config.json').write_text('{"model_type": "llama"}')
    line = [sys.executable, '-m', 'pal_jax.train', '--config=configs/sft.py:smoke', f'--workdir={foreign}']
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONIOENCODING': 'ascii'}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert done.stderr.startswith('error: ') and 'l\\xe4ufe' in done.stderr
