"""A run's headline figures, against numpy and by hand."""

from __future__ import annotations

import json

import jax
import pytest

from pal_jax.run.metrics import MetricsWriter
from pal_jax.run.summary import by_stage, fifths, headline, seconds_by_phase, summarize


def rewards(values, phase='rlpa'):
    return [{'step': step, 'phase': phase, 'reward': value} for step, value in enumerate(values)]


def test_first_and_last_fifth_by_hand():
    part = fifths(rewards([0.0, 1.0, 5, 5, 5, 5, 5, 5, 2.0, 4.0]), 'reward')
    assert (part['steps_each'], part['first'], part['last'], part['gain']) == (2, 0.5, 3.0, 2.5)
    part = fifths(rewards([0.25, 0.5, 0.75]), 'reward')
    assert (part['steps_each'], part['first'], part['last'], part['gain']) == (1, 0.25, 0.75, 0.5)


def test_steps_without_a_reward_are_left_out():
    rows = rewards([0.0, 1.0, 2.0, 3.0, 4.0])
    gaps = [*rows[:2], {'step': 9, 'phase': 'rlpa', 'reward': None}, {'step': 9, 'phase': 'rlpa'}, *rows[2:]]
    assert fifths(gaps, 'reward') == fifths(rows, 'reward')


@pytest.mark.parametrize('rows', [[], [{'step': 0, 'phase': 'rlpa', 'loss': 1.0}], rewards([None])])
def test_no_reward_at_all_is_an_error(rows):
    with pytest.raises(ValueError, match=f'reward: none of {len(rows)} rows'):
        fifths(rows, 'reward')


def test_the_headline_is_of_the_main_phase():
    rows = rewards([9.0] * 10, phase='warm-up') + rewards([0.0] * 5 + [1.0] * 5)
    facts = headline(
        rows, [{'step': 0, 'stage': 'base', 'reward': 0.125, 'f1_by_turn': [0.0], 'seconds_evaluate': 2.0}]
    )
    assert (facts['phase'], facts['reward']['first'], facts['reward']['last']) == ('rlpa', 0.0, 1.0)
    assert facts['evaluations'] == {'base': {'reward': 0.125, 'f1_by_turn': [0.0]}}
    assert (facts['steps'], facts['seconds'], facts['seconds_total']) == (20, {'evaluate': 2.0}, 2.0)


def test_a_run_without_steps_or_rewards_has_a_headline():
    assert headline([])['reward'] is None
    assert headline([{'step': 0, 'phase': 'sft', 'loss': 1.0}])['reward'] is None


def test_seconds_add_up_over_steps_and_evaluations():
    records = [{'step': 0, 'seconds_update': 1.0}, {'step': 1, 'seconds_update': 2.0, 'seconds_rollout': 8.0}]
    assert list(seconds_by_phase(records).items()) == [('rollout', 8.0), ('update', 3.0)]


def test_the_last_evaluation_of_a_name_counts():
    records = [
        {'step': s, 'stage': stage, 'n': n} for n, (s, stage) in enumerate([(5, 'step'), (9, 'step'), (5, 'step')])
    ]
    assert {stage: record['n'] for stage, record in by_stage(records).items()} == {'step 5': 2, 'step 9': 1}


def test_the_summary_is_written_as_it_is_returned(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for row in rewards([0.0, 1.0, 2.0]):
            writer.write(row['step'], row['phase'], {'reward': row['reward'], 'seconds_update': 1.0})
    summary = summarize(tmp_path, {'config': {'seed': 7}})
    assert json.loads((tmp_path / 'summary.json').read_text()) == summary
    assert summary['config'] == {'seed': 7}
    assert summary['seconds'] == {'update': 3.0}
    assert summary['devices']['count'] == jax.device_count()
    assert summary['versions']['jax'] == jax.__version__
    assert summary['peak_memory_bytes']['host'] > 50e6  # an interpreter with jax takes more
