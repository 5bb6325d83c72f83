"""The page of several runs: verdicts, links and what the last stage shows, from files alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pal_jax.run.metrics import MetricsWriter
from pal_jax.run.overview import write_front_page
from pal_jax.types import Exhibit
from tests import browser, shell


@pytest.fixture
def staged(tmp_path):
    """Two stages, of which the first in time is the last by name, and a third that has a config alone."""
    folder = tmp_path / 'runs & co'
    for number, (name, recipe) in enumerate((('sft', 'sft'), ('evaluate', 'safe_rlhf.evaluate'), ('later', 'sft'))):
        stage = folder / name
        stage.mkdir(parents=True)
        (stage / 'config.json').write_text(json.dumps({'recipe': recipe, 'part_of': 'safe_rlhf', 'seed': 3}))
        os.utime(stage / 'config.json', (number, number))
    with MetricsWriter(folder / 'sft') as writer:
        writer.evaluation({'step': 0, 'stage': 'base', 'loss': 2.0, 'loss_se': 0.01, 'rows': 64})
        writer.write(0, 'sft', {'loss': 2.0, 'seconds_update': 61.0})
        writer.evaluation({'step': 1, 'stage': 'final', 'loss': 1.0, 'loss_se': 0.01, 'rows': 64})
    with MetricsWriter(folder / 'evaluate') as writer:
        writer.write(0, 'evaluate', {'answers': 3.0, 'seconds_update': 4.0})
        writer.exhibits(1, 'final', [Exhibit('Side by side', table=[['policy', 'cost'], ['<b>sft', '-1.5']])])
    (folder / 'sft' / 'report.html').write_text('a')
    summary = {'name': 'safe_rlhf:smoke', 'day': '2026-11-29'}
    (folder / 'later' / 'summary.json').write_text(json.dumps(summary))
    return folder


def test_stages_stand_in_their_order_with_verdict_link_and_the_policies(staged):
    page = write_front_page(staged).read_text()
    assert '<p class="soft">safe_rlhf:smoke · seed 3 · 2026-11-29 · 3 stages' in page
    assert page.index('>sft</a>') < page.index('evaluate') < page.index('later')
    assert 'href="sft/report.html"' in page and 'href="later' not in page
    assert '<b>Yes:</b>' in page and '0:01:05' in page and 'seed 3' in page
    assert '&lt;b&gt;sft' in page and '-1.5' in page and '<b>sft' not in page


def test_only_finished_stages_have_their_reports_made_again(staged):
    done = shell.run('pal_jax', 'report', str(staged))
    assert [Path(line).parent.name for line in done.stdout.split('\n')[:-1]] == ['sft', staged.name]
    assert not (staged / 'evaluate' / 'report.html').exists()  # it would count as finished


def test_a_folder_without_stages_has_no_front_page(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        write_front_page(tmp_path)


@pytest.mark.long
def test_the_front_page_in_a_browser(staged):
    with browser.opened(write_front_page(staged)) as page:
        assert page.locator('table').count() == 2 and page.locator('a').count() == 1
