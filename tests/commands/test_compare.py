"""Several runs in one picture and two tables."""

from __future__ import annotations

from pal_jax.commands.compare import draw, rise_table, stage_table
from pal_jax.run.summary import first_last_fifth, main_part


def rows(level, steps=20):
    part = [{'step': i, 'phase': 'rlpa', 'reward': level + i / 20, 'format': 1.0, 'profile': 0.1} for i in range(steps)]
    return [{'step': 0, 'phase': 'warm-up', 'loss': 1.0}, *part]


def test_the_rise_of_each_run_is_told_with_its_error(tmp_path):
    noisy = [row | {'reward': row['reward'] + (-1) ** row['step']} if 'reward' in row else row for row in rows(0.0)]
    runs = {'a': rows(0.0), 'b': rows(1.0), 'short': rows(0.0, steps=5), 'noisy': noisy}
    lines = rise_table(runs).splitlines()
    assert lines[2].startswith('| a | 0.075 ± 0.000 | 0.875 ± 0.000 | +0.800 |  | 1.00')  # a straight line has no noise
    assert lines[4].startswith('| short | 0.000 | 0.200 | +0.200 |  | 1.00')  # too few steps for an error
    rise = first_last_fifth(main_part(noisy))
    assert rise['gain_se'] > 0 and f'| {rise["gain_in_se"]:.1f} |' in lines[5]
    assert len(lines) == 6
    draw(runs, tmp_path / 'runs.png')
    assert (tmp_path / 'runs.png').read_bytes().startswith(b'\x89PNG')


def test_evaluations_stand_by_stage_and_kind_of_people():
    record = {'step': 0, 'stage': 'base', 'reward': 0.5, 'unseen_reward': 0.25, 'f1_by_turn': [0.0, 0.5]}
    lines = stage_table({'a': [record]}).splitlines()
    assert lines[2].startswith('| a | base | known values | 0.500 |')
    assert '| 0.00 0.50 |' in lines[2]
    assert lines[3].startswith('| a | base | unseen values | 0.250 |')
