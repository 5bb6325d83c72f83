"""Several runs in one picture, in tables, on a page and as CSV."""

from __future__ import annotations

import csv
import json

import pytest
from scipy import stats

from pal_jax.commands.compare import OVER_SEEDS, are_seeds, draw, rise_table, settings_table, stage_table
from pal_jax.run.glossary import words_of
from pal_jax.run.inputs import FILE, Input
from pal_jax.run.metrics import MetricsWriter
from pal_jax.run.recipe import KEPT
from tests import browser, shell

WORDS = words_of('rlpa')


def rows(level, steps=20):
    part = [{'step': i, 'phase': 'rlpa', 'reward': level + i / 20, 'format': 1.0, 'profile': 0.1} for i in range(steps)]
    return [{'step': 0, 'phase': 'warm-up', 'loss': 1.0}, *part]


def test_the_rise_of_each_run_is_told_and_that_of_seeds_with_its_error():
    runs = {'a': rows(0.0), 'b': rows(1.0), 'short': rows(0.0, steps=5)}
    assert rise_table(runs)[1:] == [
        ['a', 'reward', '0.075', '0.875', '+0.800'],
        ['b', 'reward', '1.075', '1.875', '+0.800'],
        ['short', 'reward', '0.000', '0.200', '+0.200'],
    ]
    *_, means = rise_table(runs, seeds=True)
    ends = stats.t.interval(0.95, 2, 0.6, 0.2)  # of .8, .8 and .2
    assert means[0] == '3 seeds' and means[-1] == f'+0.600 ± 0.200 ({ends[0]:+.3f} to {ends[1]:+.3f})'
    assert draw(runs, {name: [] for name in runs}, dict.fromkeys(runs, WORDS)).startswith(b'\x89PNG')


def test_each_run_is_told_by_the_figure_of_its_method():
    """Runs without rewards or formats ended in a traceback, and runs of several methods had the figure of the first."""
    runs = {'a': [{'step': i, 'phase': 'dpo', 'accuracy': i / 10, 'margin': 0.1} for i in range(10)], 'b': rows(0.0)}
    assert rise_table(runs)[1] == ['a', 'accuracy', '0.050', '0.850', '+0.800'] and rise_table(runs)[2][1] == 'reward'
    silent = {'bench': [{'step': 0, 'phase': 'bench', 'rows': 3}]}
    assert len(rise_table(silent)) == 1 and draw(silent, {'bench': []}, {'bench': WORDS}) == b''
    gained = {'step': 4, 'stage': 'final', 'people': 30, 'seen_gain': 0.125, 'seen_gain_interval': [0.1, 0.15]}
    evals = {'a': [{'step': 0, 'stage': 'base', 'accuracy': 0.5}], 'b': [gained]}
    words = {'a': words_of('dpo'), 'b': words_of('personal.pal')}
    assert stage_table(evals, words) == [
        ['run', 'stage', 'accuracy', 'seen_gain'],
        ['a', 'base', '0.500', ''],
        ['b', 'final', '', '0.125 (0.100 to 0.150)'],
    ]
    assert draw(runs, evals, words).startswith(b'\x89PNG')


def test_a_run_that_a_later_version_resumed_is_told_by_its_new_figure():
    steps = [{'step': i, 'phase': 'pal', ('training_accuracy' if i > 4 else 'accuracy'): i / 10} for i in range(10)]
    assert rise_table({'a': steps})[1] == ['a', 'training_accuracy', '0.500', '0.900', '+0.400']


def test_runs_that_differ_in_their_seeds_alone_are_seeds():
    configs = [{'recipe': 'rlpa', 'seed': seed} for seed in range(3)]
    assert are_seeds(configs)
    assert not are_seeds(configs[:1]) and not are_seeds([*configs, {'recipe': 'rlpa', 'seed': 3, 'total_steps': 2}])


def test_the_settings_in_which_runs_differ_stand_in_a_table():
    configs = {
        'a': {'recipe': 'rl', 'seed': 0, 'ppo': {'clip': 0.2, 'kl_coef': 0.1}, 'rl': {'game': ''}},
        'b': {'recipe': 'rl', 'seed': 0, 'ppo': {'clip': 0.3, 'kl_coef': 0.1}},
    }
    rewarded = {name: {'reward.function.0': Input('f.py:f', '', 'f.py', {'f.py': name})} for name in configs}
    assert settings_table(configs, rewarded) == [
        ['setting', 'a', 'b'],
        ['ppo.clip', '0.2', '0.3'],
        ['rl.game', '', '–'],
        ['content of reward.function.0', 'A', 'B'],
    ]
    three = {**rewarded, 'c': rewarded['b'], 'd': {'reward.function.0': Input('f.py:f', '', 'f.py', {'f.py': 'd'})}}
    (*_, contents) = settings_table(dict.fromkeys(three, configs['a']), three)
    assert contents[1:] == ['A', 'B', 'B', 'C']
    later = {'a': configs['a'], 'b': {**configs['a'], 'samples': {'count': 3}}}
    assert settings_table(later, {name: {} for name in later})[1:] == [['samples.count', '–', '3']]
    same = dict.fromkeys(configs, rewarded['a'])
    assert settings_table(dict.fromkeys(configs, configs['a']), same) == [['setting', 'a', 'b']]


def test_lists_by_turn_stand_in_the_table():
    record = {'step': 0, 'stage': 'base', 'reward': 0.5, 'f1_by_turn': [0.0, 0.5]}
    assert stage_table({'a': [record]}, {'a': WORDS})[1] == ['a', 'base', '0.500', '0.00 0.50']


def test_the_last_evaluations_of_seeds_have_their_mean_and_error():
    evals = {
        name: [{'step': 0, 'stage': 'base', 'reward': 9.0}, {'step': 1, 'stage': 'final', 'reward': reward}]
        for name, reward in (('a', 0.8), ('b', 0.8), ('c', 0.2))
    }
    *_, pooled = stage_table(evals, dict.fromkeys(evals, WORDS), seeds=True)
    assert pooled == ['3 seeds', 'final', '0.600 ± 0.200']
    evals['c'] = evals['c'][:1]  # a run that has not ended yet
    assert len(stage_table(evals, dict.fromkeys(evals, WORDS), seeds=True)) == 6


@pytest.fixture
def two_runs(tmp_path):
    for name, seed in (('a', 0), ('b <i>', 1)):
        folder = tmp_path / 'runs' / name
        with MetricsWriter(folder) as writer:
            writer.evaluation({'step': 0, 'stage': 'base', 'reward': 0.25, 'reward_se': 0.02, 'people': 8})
            for row in rows(0.0, 6):
                writer.write(row['step'], row['phase'], {'reward': row.get('reward', 0.0)})
            writer.evaluation({'step': 6, 'stage': 'final', 'reward': 0.75, 'reward_se': 0.02, 'people': 8})
        (folder / 'config.json').write_text(json.dumps({'recipe': 'rlpa', 'seed': seed}))
    (tmp_path / 'runs' / 'a' / 'report.html').write_text('a')
    return tmp_path


def compare(folder, *arguments):
    return shell.run('pal_jax', 'compare', *(f'{folder}/runs/{name}' for name in ('a', 'b <i>')), *arguments)


def test_a_page_a_picture_and_a_table_of_numbers(two_runs):
    done = compare(two_runs, *(f'--output={two_runs}/c.{ending}' for ending in ('html', 'png', 'csv')))
    assert done.stdout.index('Evaluations') < done.stdout.index('Figures of training steps')
    assert done.stdout.startswith('a: Did it learn? Yes:') and '\nb <i>: Did it learn? Yes:' in done.stdout
    assert done.stdout.count('| 2 seeds |') == 2 and (two_runs / 'c.png').read_bytes().startswith(b'\x89PNG')
    page = (two_runs / 'c.html').read_text()
    assert 'href="runs/a/report.html"' in page and 'b &lt;i&gt;' in page and page.count('<b>Yes:</b>') == 2
    numbers = list(csv.DictReader((two_runs / 'c.csv').read_text().splitlines()))
    (last,) = (row for row in numbers if (row['run'], row['stage'], row['figure']) == ('b <i>', 'final', 'reward'))
    assert (float(last['value']), float(last['error'])) == (0.75, 0.02)
    assert OVER_SEEDS in done.stdout and compare(two_runs, f'--output={two_runs}/c.csv').returncode == 2  # it is there
    assert 'c.txt' in compare(two_runs, f'--output={two_runs}/c.txt').stderr
    # Another version of an own reward under the same name: the runs are no seeds of one run.
    for name in ('a', 'b <i>'):
        (kept := two_runs / 'runs' / name / KEPT).mkdir()
        entry = Input('f.py:f', '', 'f.py', {'f.py': name})._asdict()
        (kept / FILE).write_text(json.dumps({'reward.function.0': entry}))
    printed = compare(two_runs).stdout
    assert OVER_SEEDS not in printed and '| content of reward.function.0 | A | B |' in printed
    for name in ('a', 'b <i>'):
        (two_runs / 'runs' / name / KEPT / FILE).unlink()
    (two_runs / 'runs' / 'a' / 'evals.jsonl').unlink()
    assert OVER_SEEDS not in compare(two_runs).stdout


@pytest.mark.long
def test_the_page_of_a_comparison_in_a_browser(two_runs):
    compare(two_runs, f'--output={two_runs}/compared.html')
    with browser.opened(two_runs / 'compared.html') as page:
        assert page.locator('img').count() == 1 and page.locator('table').count() == 3
