"""The bench from its config: PAL's row is PAL's own, parts are files, planted leaks are marked."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal import bench
from pal_jax.recipes.personal import judged as protocol
from pal_jax.recipes.personal.bench import recipe as bench_recipe
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.run import piecework
from tests import configs
from tests.choices import two_kinds
from tests.recipes.personal.pal.test_recipe import records, whole_and_broken
from tests.recipes.personal.texts import ONE

get_settings = functools.partial(configs.load, 'bench')
TRAINING = 'pal_jax.recipes.personal.bench', 'recipe', 'train'


@pytest.fixture(scope='session')
def table(tmp_path_factory):
    """Thirty people of two kinds who want opposite things of two attributes, fifteen choices each."""
    return str(two_kinds(tmp_path_factory.mktemp('table') / 'choices.jsonl', 30))


def small(table, **changes):
    few = {
        'tables': (table,), 'pal.split.seeds': 1, 'pal.baselines.embedding': 0, 'pal.updates': 20,
        'pal.new.ask': 2, 'pal.new.counts': (0, 2),
    }  # fmt: skip
    return get_settings(**{**few, **changes})


@pytest.fixture(scope='module')
def made(table, tmp_path_factory):
    """The settings, the folder of the run, and its evaluation after all parts."""
    settings, folder = small(table), tmp_path_factory.mktemp('bench')
    recipe = bench.make(settings, ONE._replace(workdir=folder))
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, _, _ = recipe.step(state, host, i)
    return settings, folder, recipe.evaluate(state, 'final')


def test_the_row_of_pal_is_that_of_its_own_run(made, table):
    folder = made[1]
    own_run = pal.make(configs.load('pal', 'smoke', **{
        'data': table, 'total_steps': 2, 'updates': 20, 'split.seeds': 1, 'prototypes': (1, 2), 'new.counts': (0, 2),
        'new.ask': 2, 'new.steps': 50, 'baselines.embedding': 0, 'baselines.own': False,
    }), ONE)  # fmt: skip
    state, host = own_run.init()
    for i in range(2):
        state, host, _, _ = own_run.step(state, host, i)
    record = own_run.evaluate(state, 'final').record
    lines = piecework.read(folder / 'parts' / '00001.jsonl')
    for key, method, part, known in (
        ('seen_pal', 'pal', 'seen', -1), ('seen_shared', 'shared', 'seen', -1), ('new_pal', 'pal', 'new', 9),
        ('new_shared', 'shared', 'new', 9), ('new_asked', 'pal', 'asked', 9),
    ):  # fmt: skip
        keys = {'method': method, 'part': part, 'known': known, 'shuffled': False}
        (row,) = (line for line in lines if keys.items() <= line.items())
        judged = protocol.from_json(row)
        assert protocol.by_person(judged).mean() == pytest.approx(record[key], abs=1e-6), key


def test_the_report_has_the_audit_at_its_head_and_says_what_was_not_given(made):
    _, folder, evaluation = made
    titles = [exhibit.title for exhibit in evaluation.exhibits]
    assert titles[0] == 'Data and their audit'
    assert titles[1].startswith('Audit: ')
    assert 'Not given: texts' in evaluation.exhibits[0].text
    page = (folder / 'report.md').read_text()
    assert page.count('![') == len(list(folder.glob('report_*.png'))) == 2
    assert evaluation.record['failed_data_sets'] in (0, 1)
    tests = [row[0].split()[0] for row in evaluation.exhibits[1].table[1:]]
    assert tests == [f'T{number}' for number in range(1, 13)]


def test_a_finished_part_is_not_made_again(made, table, monkeypatch):
    _, folder, evaluation = made
    recipe = bench.make(small(table), ONE._replace(workdir=folder))
    monkeypatch.setattr(bench_recipe, 'train', None)  # it would be called, and fail
    state = recipe.step({'parts': 2}, {}, 2)[0]  # a split of a method alone
    again = recipe.evaluate(state, 'final')
    assert again.record == evaluation.record


def test_the_programs_of_a_method_are_dropped_before_the_next_one(made, table):
    """A run of 216 steps had as many memory maps as a process may have, and aborted."""
    _, folder, _ = made
    recipe = bench.make(small(table), ONE._replace(workdir=folder))
    kept = jax.jit(lambda x: x + 1)
    for step, programs in ((3, 1), (2, 0)):  # a second split, and a first one
        kept(1.0)
        recipe.step({'parts': step}, {}, step)
        assert kept._cache_size() == programs


def test_replies_are_read_without_prompts_where_prompts_differ(table, monkeypatch):
    """An error of that reading is an error of the run, and is not taken for prompts that are all the same."""
    text = str(Path(table).with_name('texts.jsonl'))
    settings = get_settings(tables=(), texts=(text,))

    def fail(*_):
        raise ValueError('a row is wrong')

    monkeypatch.setattr(bench_recipe.pal_text, 'open_reader', fail)
    work = bench_recipe.Bench(settings, ONE, (), frozenset([text]))
    sides = Lookup(np.eye(3), np.array([0, 1]))
    items = Comparisons(np.zeros(2, int), np.arange(2), sides, sides, None, ('p',), ('x0', 'x1', 'x2'))
    assert work.alone(text, items) is None
    assert work.alone(text, items._replace(prompt=Lookup(np.eye(3), np.array([2, 2])))) is None
    with pytest.raises(ValueError, match='a row is wrong'):
        work.alone(text, items._replace(prompt=Lookup(np.eye(3), np.array([2, 0]))))


def untimed(workdir):
    """The lines of all parts, without the times that they measured."""
    lines = [line for path in sorted((workdir / 'parts').iterdir()) for line in piecework.read(path)]
    for about in (line['about'] for line in lines if 'about' in line):
        about.pop('seconds_a_person', None)  # the first split of a method has it
    return lines


@pytest.mark.slow
def test_a_bench_killed_in_a_part_has_the_report_of_an_unbroken_one(table, tmp_path):
    flags = ['--config=configs/bench.py:smoke', f"--config.tables=('{table}',)", '--config.pal.split.seeds=1']
    flags += ['--config.pal.baselines.embedding=0', '--config.pal.prototypes=(1, 2)']
    parts = []

    def look(broken):
        parts.extend((path, path.stat().st_mtime_ns) for path in (broken / 'parts').iterdir())

    whole, broken = whole_and_broken(tmp_path, flags, (TRAINING, 1), look=look)
    ((path, before),) = parts
    assert path.name == '00000.jsonl' and path.stat().st_mtime_ns == before  # it was not made again
    assert untimed(broken) == untimed(whole)
    assert records(broken, 'evals.jsonl') == records(whole, 'evals.jsonl')
    # The last column of a table of seen people is a time.
    pages = [re.sub(r'\| [\d.e-]+ \|$', '|', (run / 'report.md').read_text(), flags=re.M) for run in (broken, whole)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'total_steps': 3}, 'total_steps=3 must be 0'),
        ({'methods': ('lore2',)}, "methods has 'lore2'"),
        ({'tables': ()}, 'must name data'),
        ({'tables': ('nowhere.csv',)}, r"tables has 'nowhere\.csv'"),
        ({'tables': ('jester:somewhere',)}, 'which are texts'),
        ({'texts': ('jester:nowhere',)}, 'there is nothing at this path'),
        ({'pal.split.train': 0.9}, 'leave nothing for the test'),
        ({'pal_text.batch': 0}, 'batch=0'),
    ],
)
def test_wrong_values_are_refused(table, changes, message):
    with pytest.raises(ValueError, match=message):
        bench.make(small(table, **changes), ONE)


@pytest.mark.long
def test_a_planted_leak_marks_every_table(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / 'leaky.jsonl'
    with path.open('w') as file:
        for person in range(24):
            for _ in range(12):
                chosen, rejected = (''.join(rng.choice(list('abcdefgh '), 20)).strip() + 'x' for _ in range(2))
                prompt = f'question {rng.integers(40)}'
                row = {'user': f'person {person}', 'prompt': prompt, 'chosen': chosen, 'rejected': str([rejected])}
                file.write(json.dumps(row) + '\n')
    settings = get_settings(**{
        'tables': (), 'texts': (str(path),), 'methods': ('vpl',), 'pal_text.text.folder': str(tmp_path / 'states'),
        'pal_text.split.seeds': 1, 'pal_text.baselines.groups': False,
    })  # fmt: skip
    recipe = bench.make(settings, ONE._replace(workdir=tmp_path / 'run'))
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, _, _ = recipe.step(state, host, i)
    evaluation = recipe.evaluate(state, 'final')
    titles = [exhibit.title for exhibit in evaluation.exhibits if 'leaky' in exhibit.title]
    assert all('FAILS' in title and 'T6' in title for title in titles if not title.startswith('Audit'))
    assert evaluation.record['failed_data_sets'] == 1
