"""The stages of a method: which are meant, which are finished, and what may change once they have begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_jax.run import config_files
from pal_jax.run.checkpoint import write_config
from pal_jax.run.faults import Fault
from pal_jax.run.settings import to_dict
from pal_jax.run.stages import may_change, settings_in, stages_of, unfinished
from tests import configs

ROOT = Path('runs/x')


def names(stage: str) -> list[str]:
    return [folder.name for folder, _ in stages_of(configs.load('redteam', 'table', stage=stage), ROOT)]


def test_a_stage_is_named_by_its_folder_or_by_its_kind():
    assert names('play-adapters-1') == ['play-adapters-1']
    assert names('play') == [name for name in names('all') if name.startswith('play-')] and len(names('play')) == 12
    for unknown in ('', 'pla', 'play-nobody-0'):
        with pytest.raises(ValueError, match=f'stage={unknown!r} is unknown; use all or one of examples, sft, play'):
            names(unknown)


def test_a_method_without_stages_is_one_run():
    sft = configs.load('sft')
    assert stages_of(sft, ROOT) == [(ROOT, sft)] and settings_in(sft, ROOT) is sft and not sft.part_of


def test_the_settings_of_a_stage_are_found_by_its_folder():
    redteam = configs.load('redteam')
    play = settings_in(redteam, ROOT / 'play-attacker-0')
    assert (play.recipe, play.part_of, play.play.roles) == ('redteam.play', 'redteam', 'attacker')
    with pytest.raises(ValueError, match='has a folder for each of its stages; name one, such as .*evaluate'):
        settings_in(redteam, ROOT)
    single = configs.load('plus')
    assert settings_in(single, ROOT) is single


def test_a_stage_may_change_what_names_its_neighbours_and_a_run_may_not():
    evaluate = settings_in(configs.load('redteam'), ROOT / 'evaluate')
    assert 'policy.source' in may_change(evaluate, ROOT / 'evaluate')
    alone = configs.load('sft', **{'policy.source': f'orbax:{ROOT}/other'})
    assert 'policy.source' not in may_change(alone, ROOT / 'run')
    assert {'total_steps', 'annotate.max_failed'} <= {
        *may_change(settings_in(configs.load('psoups'), ROOT / 'annotate'), ROOT / 'annotate')
    }


def test_finished_stages_are_left_out_and_a_longer_one_goes_on(tmp_path, capsys):
    redteam = configs.load('redteam')
    for folder, settings in stages_of(redteam, tmp_path)[:3]:
        write_config(folder, to_dict(settings))
        (folder / 'report.html').touch()
    assert [folder.name for folder, _ in unfinished(redteam, tmp_path)] == ['play-attacker-0', 'evaluate']
    assert f'{tmp_path / "sft"} is finished' in capsys.readouterr().out
    longer = configs.changed(redteam, total_steps=9)
    assert next(unfinished(longer, tmp_path)).folder.name == 'play-shared-0'


def test_a_method_is_named_by_its_config_file_alone(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text('def get_config():\n    return {"recipe": "sft"}\n')
    with pytest.raises(Fault, match=r'own\.py: get_config\(\) must return the Settings of a method'):
        config_files.settings_of(str(file), ())
    sft = str(configs.CONFIGS / 'sft.py')
    for key in ('recipe', 'part_of'):
        with pytest.raises(Fault, match=f'config.{key} is no choice'):
            config_files.settings_of(f'{sft}:smoke', (f'{key}=rlpa',))
    assert config_files.settings_of(f'{sft}:smoke', ('seed=4', 'seed=5')).seed == 5
