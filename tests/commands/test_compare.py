"""Several runs in one picture and two tables."""

from __future__ import annotations

from scipy import stats

from pal_jax.commands.compare import are_seeds, draw, rise_table, stage_table


def rows(level, steps=20):
    part = [{'step': i, 'phase': 'rlpa', 'reward': level + i / 20, 'format': 1.0, 'profile': 0.1} for i in range(steps)]
    return [{'step': 0, 'phase': 'warm-up', 'loss': 1.0}, *part]


def test_the_rise_of_each_run_is_told_and_that_of_seeds_with_its_error(tmp_path):
    runs = {'a': rows(0.0), 'b': rows(1.0), 'short': rows(0.0, steps=5)}
    lines = rise_table(runs).splitlines()
    assert lines[2:] == [
        '| a | 0.075 | 0.875 | +0.800 |',
        '| b | 1.075 | 1.875 | +0.800 |',
        '| short | 0.000 | 0.200 | +0.200 |',
    ]
    *_, means = rise_table(runs, seeds=True).splitlines()
    ends = stats.t.interval(0.95, 2, 0.6, 0.2)  # of .8, .8 and .2
    assert f'| +0.600 ± 0.200 ({ends[0]:+.3f} to {ends[1]:+.3f}) |' in means and means.startswith('| 3 seeds |')
    draw(runs, tmp_path / 'runs.png')
    assert (tmp_path / 'runs.png').read_bytes().startswith(b'\x89PNG')


def test_runs_are_compared_by_the_figure_of_their_method(tmp_path):
    """A run without rewards or formats ended in a traceback, beside empty panels."""
    runs = {'a': [{'step': i, 'phase': 'dpo', 'accuracy': i / 10, 'margin': 0.1} for i in range(10)]}
    assert rise_table(runs).splitlines()[0] == '| run | accuracy, first fifth | last fifth | gain |'
    assert rise_table(runs).endswith('| a | 0.050 | 0.850 | +0.800 |')
    draw(runs, tmp_path / 'runs.png')
    lines = stage_table({'a': [{'step': 0, 'stage': 'base', 'accuracy': 0.5}]}).splitlines()
    assert lines[0] == '| run | stage | people | accuracy |' and lines[2] == '| a | base |  | 0.500 |'


def test_runs_that_differ_in_their_seeds_alone_are_seeds():
    configs = [{'recipe': 'rlpa', 'seed': seed} for seed in range(3)]
    assert are_seeds(configs)
    assert not are_seeds(configs[:1]) and not are_seeds([*configs, {'recipe': 'rlpa', 'seed': 3, 'total_steps': 2}])


def test_evaluations_stand_by_stage_and_kind_of_people():
    record = {'step': 0, 'stage': 'base', 'reward': 0.5, 'unseen_reward': 0.25, 'f1_by_turn': [0.0, 0.5]}
    lines = stage_table({'a': [record]}).splitlines()
    assert lines[2].startswith('| a | base |  | 0.500 |')
    assert '| 0.00 0.50 |' in lines[2]
    assert lines[3].startswith('| a | base | unseen | 0.250 |')
