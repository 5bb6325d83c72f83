"""The table of claims in docs/evidence.md is what the kept summaries of runs say, and a claim holds by its interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import evidence
from pal_jax.run import intervals
from pal_jax.run.checkpoint import flatten
from pal_jax.run.config_files import settings_of
from pal_jax.run.glossary import words_of
from pal_jax.run.metrics import EVALS, METRICS
from pal_jax.run.settings import to_dict
from pal_jax.run.shipped import config_path
from pal_jax.run.summary import SUMMARY
from pal_jax.run.verdict import Claim
from pal_jax.run.workdir import CONFIG


def claims(values, controls, better=1.0):
    same = {
        'key': 'reward',
        'said': 'mean reward',
        'better': better,
        'against': 'before training',
        'others': {},
        'holds': 'yes',
    }
    return [{**same, 'value': value, 'control': control} for value, control in zip(values, controls, strict=True)]


def run(seed, seeds=1, **changes):
    return {
        'config': 'rl', 'changes': changes, 'seed': seed, 'seeds': seeds, 'seconds': 100.0, 'day': '2026-11-29',
        'machine': {'float32_gflops': 250.0}, 'claims': claims([0.5 + seed], [0.25]),
    }  # fmt: skip


def test_the_page_is_what_the_summaries_of_runs_say():
    text = evidence.PAGE.read_text(encoding='utf-8')
    assert evidence.kept() and evidence.page(text, evidence.kept().values()) == text


@pytest.mark.parametrize('name', evidence.kept())
def test_commands_of_the_page_name_keys_that_exist(name):
    kept = evidence.kept()[name]
    texts = tuple(f'{key}={evidence.flag(value).strip(chr(34))}' for key, value in kept['changes'].items())
    known = flatten(to_dict(settings_of(config_path(kept['config']), texts)))
    assert {key: json.loads(json.dumps(known[key])) for key in kept['changes']} == kept['changes']


def test_figures_are_means_with_students_interval_over_seeds():
    values, controls = np.array([0.9, 1.0, 1.2]), np.array([0.5, 0.7, 0.6])
    _, mean, control, gap, words, alone = evidence.claim_cells(claims(values, controls))
    for cell, column, form in ((mean, values, '.3f'), (control, controls, '.3f'), (gap, values - controls, '+.3f')):
        low, high = stats.t.interval(0.95, 2, column.mean(), stats.sem(column))
        assert f'{column.mean():{form}} ± {stats.sem(column):.3f} ({low:{form}} to {high:{form}})' in cell
    assert words == 'yes' and alone == '3 yes'


@pytest.mark.parametrize('better', [1.0, -1.0])
@pytest.mark.parametrize('gaps', [(0.1, 0.12, 0.14), (0.1, -0.1, 0.2), (-0.1, -0.12, -0.14), (0.1,), (0.1, 0.1, 0.1)])
def test_a_claim_holds_where_the_interval_of_the_difference_says_so(gaps, better):
    words = evidence.claim_cells(claims(np.array(gaps), np.zeros(len(gaps)), better))[4]
    # Equal differences of a few seeds do not show how far others may be.
    if len(set(gaps)) == 1:
        assert words == 'too few to tell'
        return
    low, high = sorted(better * end for end in stats.t.interval(0.95, len(gaps) - 1, np.mean(gaps), stats.sem(gaps)))
    assert words == ('yes' if low > 0 else 'no, the reverse' if high < 0 else 'not shown')


def test_runs_of_one_command_are_a_row():
    rows = evidence.table([run(1), run(0), run(0, **{'reward.shuffled': True})]).splitlines()[2:]
    assert len(rows) == 2
    assert (
        '| 1.000 ± 0.500 (' in rows[0] and '| 0, 1 | `pal-jax train --config=rl` | 25 TFLOP | 2026-11-29 |' in rows[0]
    )
    assert '`pal-jax train --config=rl --config.reward.shuffled=True`' in rows[1]


def test_runs_with_different_claims_are_no_group():
    with pytest.raises(ValueError, match='different claims'):
        evidence.table([run(0), run(1) | {'claims': []}])


def test_a_seed_counts_once():
    assert '0, 3, each with the next 2' in evidence.table([run(0, seeds=3), run(3, seeds=3)])
    for runs in ([run(0), run(0)], [run(0, seeds=3), run(1, seeds=3)]):
        with pytest.raises(ValueError, match='--config=rl: seeds'):
            evidence.table(runs)


@pytest.fixture
def finished(tmp_path):
    """The folder of a run of sums of two numbers, as it is when the run has ended."""
    folder = tmp_path / 'rl-1'
    folder.mkdir()
    config = to_dict(settings_of(config_path('rl'), ('seed=1', 'reward.shuffled=True')))
    evals = [
        {'step': step, 'stage': stage, 'prompts': 28, 'reward': reward, 'reward_se': 0.05}
        for step, stage, reward in ((0, 'base', 0.2), (30, 'final', 0.9))
    ]
    summary = {'name': 'rl', 'day': '2026-11-29', 'seconds_total': 60.0, 'versions': {'pal_jax': '1'}}
    (folder / METRICS).write_text('{"step": 0, "phase": "rl", "reward": 0.2}\n')
    (folder / EVALS).write_text(''.join(json.dumps(record) + '\n' for record in evals))
    (folder / 'machine.json').write_text('{"float32_gflops": 250.0}')
    for name, value in ((CONFIG, config), (SUMMARY, summary)):
        (folder / name).write_text(json.dumps(value))
    return folder


def test_a_run_is_kept_with_its_command_and_claims(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, 'SUMMARIES', tmp_path / 'kept')
    monkeypatch.setattr(evidence, 'PAGE', page := tmp_path / 'page.md')
    page.write_text(f'Before.\n\n{evidence.BEGIN}\nstale\n{evidence.END}\n\nAfter.\n')
    evidence.main([str(finished)])
    kept = json.loads((tmp_path / 'kept' / 'rl-1.json').read_text())
    assert kept['changes'] == {'reward.shuffled': True} and kept['seed'] == 1
    (claim,) = kept['claims']
    assert (claim['value'], claim['control'], claim['holds']) == (0.9, 0.2, 'yes')
    text = page.read_text()
    assert text.startswith('Before.') and text.endswith('After.\n') and 'stale' not in text
    assert '| too few to tell | 1 yes | 1 |' in text
    (finished / CONFIG).write_text(json.dumps(to_dict(settings_of(config_path('rl'), ('seed=1',)))))
    with pytest.raises(SystemExit, match='rl-1.json is of another'):
        evidence.main([str(finished)])


def test_the_number_of_seeds_is_no_setting_of_prompts(finished):
    config = {**to_dict(settings_of(config_path('redteam'), ())), 'recipe': 'rl'}
    assert isinstance(config['seeds'], dict)
    (finished / CONFIG).write_text(json.dumps(config))
    assert evidence.summary_of(finished)['seeds'] == 1


def test_controls_of_the_same_evaluation_are_beside_the_claim():
    key, words = 'profile', words_of('rlpa')
    claim = Claim(key, 'mean F1', 1.0, intervals.constant(0.3), intervals.constant(0.1), 'before training')
    after = {
        key: 0.3,
        'guesser_profile': 0.04,
        'shuffled_profile': None,
        'unseen_guesser_profile': 0.0,
        'f1_profile': 1.0,
    }
    assert evidence.claim_record(claim, after, words)['others'] == {'F1 of one fixed guess, mean over turns': 0.04}


def test_a_run_that_has_not_ended_is_refused(finished):
    (finished / SUMMARY).unlink()
    with pytest.raises(SystemExit, match='rl-1'):
        evidence.main([str(finished)])
