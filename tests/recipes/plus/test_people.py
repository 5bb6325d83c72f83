"""The people of PLUS and the runs of its table: who is drawn, what is compared, and what is refused before a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys

import jax
import pytest

from pal_jax.recipes.plus import people as plus_people
from pal_jax.recipes.plus import recipe as plus
from pal_jax.run import checkpoint, devices
from pal_jax.run.recipe import Context
from pal_jax.run.settings import to_dict
from pal_jax.run.stages import unfinished
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
get_settings = functools.partial(configs.load, 'plus')


def test_every_person_is_drawn_once_a_pass():
    settings = get_settings()
    train, _ = plus_people.read_people(settings)
    draw = plus_people.make_draw(settings, train)
    assert sorted(p.user for i in (0, 1) for p in draw(i)[0]) == sorted(p.user for p in train)  # 2 x 8 while it waits
    assert sorted(p.user for i in range(2, 6) for p in draw(i)[0]) == sorted(p.user for p in train)  # then 4 x 4
    assert draw(3)[0] == draw(3)[1]


def test_the_control_takes_the_choices_of_others():
    settings = get_settings(shuffled=True)
    train, _ = plus_people.read_people(settings)
    draw = plus_people.make_draw(settings, train)
    people, choosers, *_ = draw(0)
    assert all(chooser in train and chooser.user != p.user for p, chooser in zip(people, choosers, strict=True))
    assert draw(0)[:2] == (people, choosers) != draw(1)[:2]


def test_nobody_stands_for_a_person_of_the_same_content():
    train, _ = plus_people.read_people(get_settings())
    one, twin = train[0], dataclasses.replace(train[0], user='twin')
    assert plus_people.of_whom([one, twin], [one, twin, train[1]], (0, 0), shuffled=True) == [train[1]] * 2
    with pytest.raises(ValueError, match='shuffled: nobody else'):
        plus_people.of_whom([one], [one, twin], (0, 0), shuffled=True)


def test_people_of_a_file_are_cut_in_two(tmp_path):
    record = {'context': 'c', 'reward_prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'train_prompt': 'p',
              'train_chosen': 'd', 'train_rejected': 'e', 'eval_prompt': 'p', 'eval_chosen': 'f',
              'eval_rejected': 'g'}  # fmt: skip
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(json.dumps(record | {'user': str(i), 'context': f'c{i}'}) for i in range(10)))
    train, tests = plus_people.read_people(get_settings(data=str(path)))
    assert [person.user for person in train] == list('01234567')
    assert [person.user for person in tests['test']] == ['8', '9']
    path.write_text('\n'.join(json.dumps(record) for _ in range(4)))
    with pytest.raises(ValueError, match='has 4 people; give five or more'):
        plus_people.read_people(get_settings(data=str(path)))


def test_kinds_that_nobody_knows_are_not_read(tmp_path):
    data = write_choices(tmp_path / 'choices.jsonl')
    assert len(plus_people.read_people(get_settings(data=data))[0]) == 5
    with pytest.raises(ValueError, match='reads=kind: people of choices:.* have no kind'):
        plus_people.read_people(get_settings(data=data, reads='kind'))


def test_a_latent_vector_needs_choices_told_apart(tmp_path):
    path = tmp_path / 'people.jsonl'
    told = {f'{part}prompt': 'Say.' for part in ('reward_', 'train_', 'eval_')}
    sides = {f'{part}{side}': f'{part} {side}' for part in ('', 'train_', 'eval_') for side in ('chosen', 'rejected')}
    path.write_text(
        ''.join(json.dumps({**told, **sides, 'user': f'u{i}', 'context': f'Likes {i}.'}) + '\n' for i in range(6))
    )
    with pytest.raises(ValueError, match='reads=latent: u[0-9] has fewer choices told apart than others, or none'):
        plus.make(get_settings(reads='latent', data=str(path)), ONE)


def test_a_table_is_made_of_runs_beside_each_other(tmp_path):
    settings = get_settings(methods='plus,context,static-reward-model', seeds=2)
    runs = plus.stages(settings, tmp_path)
    names = ['plus', 'context', 'static-reward-model']
    assert [folder.name for folder, _ in runs] == [f'{name}-{seed}' for seed in (0, 1) for name in names] + ['table']
    one, context, static, *_, table = (run for _, run in runs)
    assert (one.reads, context.reads) == ('summary', 'context')
    assert (static.reward_model.train, static.hold.steps, one.reward_model.train) == (False, 0, True)
    assert (runs[3][1].seed, runs[3][1].methods, runs[3][1].seeds) == (1, '', 1)
    assert [run.eval.base for run in (one, context, static)] == [True, False, False]
    assert table.total_steps == 6
    assert [folder.name for folder, _ in plus.stages(get_settings(), tmp_path)] == [tmp_path.name]
    assert plus.stages(get_settings('table'), tmp_path)[-1][1].total_steps == 27  # nine methods
    data = write_choices(tmp_path / 'choices.jsonl')
    people = plus.stages(get_settings('people', data=data), tmp_path)
    assert people[-1][1].total_steps == 24  # without the oracle
    assert {run.data for _, run in people} == {data}


def test_a_table_is_refused_before_its_first_run(tmp_path):
    data = write_choices(tmp_path / 'choices.jsonl')
    with pytest.raises(ValueError, match='have no kind; read something else, or leave kind out of --config.methods'):
        plus.stages(get_settings(data=data, methods='plus,kind'), tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds a single run; give the table another --workdir'):
        plus.stages(get_settings(methods='plus'), tmp_path)
    with pytest.raises(ValueError, match='seeds=2 is for a table of --config.methods'):
        plus.stages(get_settings(seeds=2), tmp_path)


def write_choices(path):
    lines = [{'user': str(u), 'prompt': 'Talk.', 'chosen': f'good {u} {i}', 'rejected': f'bad {u} {i}'}
             for u in range(6) for i in range(100, 110)]  # fmt: skip
    path.write_text('\n'.join(map(json.dumps, lines)))
    return f'choices:{path}'


def test_more_seeds_leave_the_runs_that_are_made(tmp_path):
    fewer, more = (plus.stages(get_settings(methods='plus,context', seeds=seeds), tmp_path) for seeds in (1, 2))
    for (folder, before), (same_folder, after) in zip(fewer[:-1], more, strict=False):
        assert folder == same_folder
        assert to_dict(before) == to_dict(after)


def test_a_table_of_another_config_is_refused_before_its_runs(tmp_path):
    config = configs.load('plus', methods='plus')
    folder, table = plus.stages(config, tmp_path)[-1]
    checkpoint.write_config(folder, to_dict(table) | {'steps': 99})
    (folder / 'metrics.jsonl').write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match=r'table was made by another config \(steps: 99 -> 4\)'):
        next(unfinished(config, tmp_path))


def test_a_table_needs_its_runs(tmp_path):
    folder, part = plus.stages(get_settings(methods='plus'), tmp_path)[-1]
    recipe = configs.make(part, ONE._replace(workdir=folder))
    with pytest.raises(ValueError, match='plus-0 has no last evaluation; run it first'):
        recipe.step(*recipe.init(), 0)


@pytest.mark.long
def test_a_table_of_two_methods_and_one_that_goes_on(tmp_path):
    def run(seeds):
        command = ['-m', 'pal_jax.train', f'--config={configs.CONFIGS / "plus.py"}:smoke', f'--workdir={tmp_path}',
                   '--config.methods=nothing,kind', f'--config.seeds={seeds}']  # fmt: skip
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout

    first = run(1)
    assert '| nothing | 1 |' in first
    second = run(2)
    assert f'{tmp_path / "kind-0"} is finished' in second
    assert '| kind | 2 |' in second
    assert (tmp_path / 'table' / 'table.md').read_text() in second
    assert 'Accuracy by what the reward model reads' in (tmp_path / 'table' / 'report.html').read_text()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'methods': 'plus,minds'}, "methods has 'minds'; use each once of plus, untrained"),
        ({'methods': 'plus,plus'}, "methods has 'plus'; use each once"),
        ({'methods': 'plus', 'seeds': 0}, 'seeds=0 must be at least 1'),
        ({'methods': 'plus', 'reads': 'context'}, 'methods say themselves what they read'),
        ({'methods': 'plus', 'shuffled': True}, 'methods say themselves what they read'),
        ({'methods': 'plus', 'summary.train': False}, 'methods say themselves what they read'),
    ],
)
def test_a_wrong_table_is_told_before_a_run_starts(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plus.stages(get_settings(**changes), tmp_path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'reads': 'minds'}, "reads='minds' is unknown; use one of summary, untrained"),
        ({'summary.people': 0}, 'summary.people=0 must be at least 1'),
        ({'reward_model.std': 0.0}, 'reward_model.std=0.0 must be above 0'),
        ({'data': ''}, 'data is empty; name people, such as --config.data=votes:'),
        ({'condition': 'writer'}, "condition='writer' is unknown; use"),
        ({'hold.steps': -1}, 'hold.steps=-1 must be at least 0'),
        ({'reward_model.row_tokens': -1}, 'reward_model.row_tokens=-1 must be at least 0'),
        ({'ppo.ptx_coef': 0.1}, 'ppo.ptx_coef=0.1 must be 0'),
    ],
)
def test_what_is_wrong_is_told_before_a_file_is_read(changes, message):
    with pytest.raises(ValueError, match=message):
        plus.make(get_settings(**changes), ONE)
