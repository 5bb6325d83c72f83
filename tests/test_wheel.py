"""The wheel: what it carries, and that a run of an environment with nothing else in it needs no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INHERITED = 'PYTHONPATH', 'XLA_FLAGS', 'JAX_PLATFORMS', 'VIRTUAL_ENV'  # of the suite, which a user has not


def run(*command: object, cwd: Path) -> str:
    """The standard output of a command, whose error output must be empty of errors of pip and of Python."""
    environment = {key: value for key, value in os.environ.items() if key not in INHERITED}
    done = subprocess.run(map(str, command), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'ERROR' not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_trains_outside_the_repository(tmp_path):
    pip = ('-m', 'pip', '--quiet', '--disable-pip-version-check')
    # The wheel is built from the tracked files alone, so that nothing of a checkout stands in for what it lacks.
    (tree := tmp_path / 'tree').mkdir()
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split('\0')):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, *pip, 'wheel', '--no-deps', f'--wheel-dir={tmp_path}', tree, cwd=tmp_path)
    (wheel,) = tmp_path.glob('pal_jax-*.whl')
    carried = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ('configs', 'launch'):
        for path in (tree / folder).iterdir():
            assert Path('pal_jax', folder, path.name) in carried
    for path in (tree / 'pal_jax').rglob('*.json'):  # word lists, frames and questions
        assert path.relative_to(tree) in carried
    run(sys.executable, '-m', 'venv', tmp_path / 'env', cwd=tmp_path)
    bin_ = tmp_path / 'env' / 'bin'
    run(bin_ / 'python', *pip, 'install', '--no-compile', wheel, cwd=tmp_path)
    (home := tmp_path / 'home').mkdir()
    assert 'safe_rlhf' in run(bin_ / 'pal-jax', '--help', cwd=home)
    run(bin_ / 'pal-jax', 'train', '--config=rlpa:smoke', cwd=home)
    assert json.loads((home / 'runs/rlpa-smoke/summary.json').read_text())['config']['recipe'] == 'rlpa'
    assert (home / 'runs/rlpa-smoke/report.html').is_file()
