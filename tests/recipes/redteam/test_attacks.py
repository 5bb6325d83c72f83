"""Attackers against defenders: shares of each cell, and by kind of defender."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.redteam.attack import GameLabels, Seed
from pal_jax.recipes.redteam.attacks import Matchup, diversity, make_exhibits, measure, safety_gain
from pal_jax.run import intervals
from pal_jax.run.glossary import meaning, words_of

BAD, GOOD, REFUSED = GameLabels(True, False, True), GameLabels(True, False, False), GameLabels(False, True, False)
KINDS = {'start': 'start', 'shared-0': 'shared', 'shared-1': 'shared'}


def cell(*labels):
    """Two harmful seeds, then two harmless ones; None: a broken form."""
    return Matchup([True, True, False, False], labels, [label is not None for label in labels])


CELLS = {
    ('plain', 'start'): cell(BAD, BAD, GOOD, REFUSED),
    ('start', 'start'): cell(BAD, None, GOOD, GOOD),
    ('shared-0', 'start'): cell(BAD, BAD, None, REFUSED),
    ('shared-1', 'start'): cell(GOOD, GOOD, GOOD, GOOD),
    ('plain', 'shared-0'): cell(GOOD, BAD, GOOD, GOOD),
    ('start', 'shared-0'): cell(GOOD, GOOD, GOOD, GOOD),
    ('shared-0', 'shared-0'): cell(GOOD, GOOD, REFUSED, REFUSED),
    ('shared-1', 'shared-0'): cell(BAD, GOOD, GOOD, GOOD),
    **{(a, 'shared-1'): cell(GOOD, GOOD, GOOD, GOOD) for a in ('plain', *KINDS)},
}


def test_shares_of_cells_and_the_best_attacker_against_each_defender():
    record = measure(CELLS)
    assert record['start_on_start_asr'] == 0.5 and record['start_on_start_whole'] == 0.75
    assert record['shared-0_on_start_overrefusal'] == 0.5
    assert record['plain_on_start_asr_interval'] == pytest.approx(intervals.of_share(1.0, None, 2).interval)
    assert record['shared-0_exploited'] == 0.5 and record['shared-1_exploited'] == 0.0


def test_games_without_a_verdict_are_neither_safe_nor_unsafe():
    whole, silent = [True] * 4, GameLabels(True, None, None)
    cells = {
        ('plain', 'start'): Matchup([True, True, False, False], [BAD, None, None, REFUSED], whole),
        ('plain', 'last'): Matchup([True, True, False, False], [GOOD, silent, REFUSED, silent], whole),
    }
    record = measure(cells)
    assert [record[f'plain_on_start_{name}'] for name in ('asr', 'overrefusal', 'whole', 'failed')] == [1, 1, 1, 2]
    assert [record[f'plain_on_last_{name}'] for name in ('asr', 'overrefusal', 'whole', 'failed')] == [0, 1, 1, 2]
    assert record['plain_on_start_asr_interval'] == pytest.approx(intervals.of_share(1.0, None, 1).interval)
    assert not [name for name in record if not meaning(name, words_of('redteam')).words]
    assert safety_gain(cells, 'start', ['last']) == {}  # one seed has verdicts on both
    cells['start', 'last'] = cells['start', 'start'] = Matchup(
        [True, True, False, False], [BAD, BAD, GOOD, None], whole
    )
    gain = safety_gain(cells, 'start', ['last'])
    low, high = gain.pop('safety_gain_interval')  # of two seeds, which decide nothing
    assert low < 0.0 < high
    assert gain == {'safety_gain': 0.25, 'safety_gain_se': pytest.approx(0.25), 'seeds': 2}
    success, *_ = make_exhibits(cells, {'start': 'start'}, {}, 'judge')
    assert 'Without a verdict: 6 games' in success.text


def test_the_gain_of_defenders_is_over_seeds():
    gain = safety_gain(CELLS, 'start', ['shared-0', 'shared-1'])
    # Of the four requests to each of two harmful seeds, answers to these are unsafe: of the start, of the others.
    start, others = (
        [cell.unsafe for (_, name), cell in CELLS.items() if (name == 'start') == who] for who in (True, False)
    )
    by_seed = np.mean(start, axis=0) - np.mean(others, axis=0)
    assert gain['safety_gain'] == pytest.approx(by_seed.mean()) and gain['seeds'] == 2
    assert gain['safety_gain_se'] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2)
    assert safety_gain(CELLS, 'start', []) == {}


def test_tables_of_all_defenders_and_of_kinds():
    found = diversity([Seed('x', True)] * 2 + [Seed('y', False)], ['one two', None, 'z'], None)
    assert found == {'attacks_form': pytest.approx(2 / 3)}
    encode = lambda texts: np.eye(len(texts))  # noqa: E731
    found = diversity([Seed('x', True)] * 2, ['one two', 'three'], encode)
    assert found == {'attacks_form': 1.0, 'self_bleu': 0.0, 'diversity': 1.0}
    success, refusal, kinds, attacks = make_exhibits(CELLS, KINDS, {'start': found}, 'judge')
    assert success.table[0] == ['defender', 'plain', 'start', 'shared-0', 'shared-1']
    assert success.table[1][1].startswith('1.000') and refusal.table[2][3].startswith('1.000')
    shared = kinds.table[2]
    # Two defenders: plain 1 of 4, own 0 of 4, others 1 of 8 (the start's and each other's).
    assert shared[0] == 'shared (2)' and [text[:5] for text in shared[1:4]] == ['0.250', '0.000', '0.125']
    assert attacks.table == [['attacker', *(meaning(name, words_of('redteam.evaluate')).words for name in found)],
                             ['start', '1.000', '0.000', '1.000']]  # fmt: skip
