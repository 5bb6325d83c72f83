"""Several runs in one picture and two tables."""

from __future__ import annotations

from pal_jax.runtime.compare import draw, rise_table, stage_table


def rows(level):
    part = [{'step': i, 'phase': 'rlpa', 'reward': level + i / 20, 'format': 1.0, 'profile': 0.1} for i in range(20)]
    return [{'step': 0, 'phase': 'warm-up', 'loss': 1.0}, *part]


def test_the_rise_of_each_run_is_told_with_its_error(tmp_path):
    runs = {'a': rows(0.0), 'b': rows(1.0)}
    lines = rise_table(runs).splitlines()
    assert lines[2].startswith('| a | 0.075 ± 0.032 | 0.875 ± 0.032 | +0.800 | 17.5 | 1.00')
    assert len(lines) == 4
    draw(runs, tmp_path / 'runs.png')
    assert (tmp_path / 'runs.png').read_bytes().startswith(b'\x89PNG')


def test_evaluations_stand_by_stage_and_kind_of_people():
    record = {'step': 0, 'stage': 'base', 'reward': 0.5, 'unseen_reward': 0.25, 'f1_by_turn': [0.0, 0.5]}
    lines = stage_table({'a': [record]}).splitlines()
    assert lines[2].startswith('| a | base | known values | 0.500 |')
    assert '| 0.00 0.50 |' in lines[2]
    assert lines[3].startswith('| a | base | unseen values | 0.250 |')
