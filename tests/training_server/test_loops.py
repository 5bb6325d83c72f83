"""Loops of others against a server of a tiny model: recipes of `tinker-cookbook`, unmodified, and that of a tutorial.

The cookbook is a package of clients. `COOKBOOK_PYTHON` names a Python whose environment has it, by default this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pages, shell
from tests.training_server.test_restart import serving

PYTHON = os.environ.get('COOKBOOK_PYTHON', sys.executable)
# The recipe and its own flags. `{folder}` has the files of `write_data`, `{model}` is the name of the base.
RL = 'loss_fn=importance_sampling lora_rank=4 eval_every=0'
ARITHMETIC = f'math_rl.train env=arithmetic {RL} group_size=2 groups_per_batch=2 max_tokens=4 max_steps=2'
RECIPES = {
    'arithmetic': ARITHMETIC,
    'arithmetic_async': f'{ARITHMETIC} max_steps_off_policy=1 compute_post_kl=True',
    'guess_number': 'multiplayer_rl.guess_number.train batch_size=2 group_size=2 max_tokens=4 max_steps=1 eval_every=0',
    'text_arena': (
        'multiplayer_rl.text_arena.train batch_size=2 num_train_datapoints=2 num_test_datapoints=2 max_tokens=4 '
        'max_steps=1 eval_every=0'
    ),
    'rubric': (
        f'rubric.train {RL} train_jsonl_path={{folder}}/rubric.jsonl test_jsonl_path={{folder}}/rubric.jsonl '
        'grader_llm_name={model} grader_renderer_name=role_colon train_group_size=2 groups_per_batch=2 max_tokens=4 '
        'max_steps=1'
    ),
    'chat_sl': 'chat_sl.train dataset={folder}/chats.jsonl batch_size=2 lora_rank=4 max_length=64 max_steps=2',
    'prompt_distillation': (
        'prompt_distillation.train file_path={folder}/chats.jsonl batch_size=2 lora_rank=4 num_epochs=1 max_steps=2'
    ),
    'shorter': 'preference.shorter.train batch_size=2 group_size=2 max_tokens=4 max_steps=1 eval_every=0',
}


def write_data(folder: Path) -> None:
    """Write chats, and sums with a rubric for each."""
    sums = [(x, x + 1) for x in range(8)]
    talks = [[('user', f'What is {x} + {y}?'), ('assistant', f'{x + y}')] for x, y in sums]
    chats = [[{'role': role, 'content': text} for role, text in talk] for talk in talks]
    asked = {'extraction_regex': r'<score>(.*)</score>', 'grader_output_format_instruction': 'Write <score>1</score>.'}
    items = [[{'rubric_str': f'Does the chatbot say {x + y}?'} | asked] for x, y in sums]
    rubrics = [{'convo': chat[:1], 'rubric_items': some} for chat, some in zip(chats, items, strict=True)]
    for name, rows in ('chats', [{'messages': chat} for chat in chats]), ('rubric', rubrics):
        (folder / f'{name}.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows), encoding='utf-8')


@pytest.fixture(scope='module')
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for the prompts of games, which have a token for each byte."""
    folder = tmp_path_factory.mktemp('models') / 'roomy'
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / 'config.json').read_text('utf-8'))
    (folder / 'config.json').write_text(json.dumps(config | {'max_position_embeddings': 4096}), encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the model."""
    with serving(model, tmp_path_factory.mktemp('server'), '--max_len=4096') as (where, _):
        yield where


def is_installed(package: str) -> bool:
    """True where the Python of the recipes has the package."""
    return not subprocess.run([PYTHON, '-c', f'import {package}'], capture_output=True, check=False).returncode


def client_of(address: str) -> dict[str, str]:
    """The environment of a client's process."""
    client = {'TINKER_BASE_URL': address, 'TINKER_API_KEY': 'tml-test', 'TINKER_TELEMETRY': '0'}
    return os.environ | client | {'HF_HUB_OFFLINE': '1'}


@pytest.mark.long
@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_runs_to_its_end(name, address, model, tmp_path):
    for package in ('tinker_cookbook', *(['textarena'] if name == 'text_arena' else [])):
        if not is_installed(package):
            pytest.skip(f'needs {package} in COOKBOOK_PYTHON={PYTHON}')
    write_data(tmp_path)
    recipe, *flags = RECIPES[name].format(folder=tmp_path, model=model).split()
    common = f'model_name={model}', 'renderer_name=role_colon', f'log_path={tmp_path}/log'
    done = subprocess.run(
        [PYTHON, '-m', f'tinker_cookbook.recipes.{recipe}', *common, *flags], env=client_of(address), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Training completed successfully' in done.stdout + done.stderr
    assert (tmp_path / 'log' / 'metrics.jsonl').read_text('utf-8').strip()


@pytest.mark.long
def test_the_loop_of_the_tutorial_runs_to_its_end(address, tmp_path):
    pages.write_files(pages.DOCS / 'tutorials' / 'everyone.md', tmp_path)
    flags = '--people=2', '--choices=2', '--held_out=1', '--rounds=1'
    done = subprocess.run(
        [sys.executable, tmp_path / 'everyone.py', *flags], env=client_of(address) | {'PYTHONPATH': str(shell.ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = dict(re.findall(r'^([\w -]+): ([-.\d]+),', done.stdout, re.MULTILINE))
    assert set(figures) == {'own', 'another', 'all', 'own - all', 'own - another'}
    assert all(-1.0 <= float(value) <= 1.0 for value in figures.values())
