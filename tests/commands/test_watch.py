"""The page of a run that is under way, for this machine alone."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from pal_jax.commands.watch import make_app
from pal_jax.run.metrics import MetricsWriter


@pytest.fixture
def run(tmp_path):
    stage = tmp_path / 'all' / 'sft'
    stage.mkdir(parents=True)
    (stage / 'config.json').write_text(json.dumps({'recipe': 'sft', 'part_of': 'safe_rlhf'}))
    return stage


def test_a_page_follows_the_run_and_writes_nothing(run):
    client = TestClient(make_app(run, 7), base_url='http://127.0.0.1')
    first = client.get('/')
    assert (first.status_code, first.headers['refresh']) == (200, '7') and 'no steps' in first.text
    with MetricsWriter(run) as writer:
        for step in range(3):
            writer.write(step, 'sft', {'loss': 3.25 - step})
    there = {path.name for path in run.iterdir()}
    assert '3 steps' in client.get('/').text
    assert {path.name for path in run.iterdir()} == there  # a report would say that the run is finished


def test_stages_have_a_front_page_and_a_page_each(run):
    client = TestClient(make_app(run.parent, 7), base_url='http://localhost')
    assert 'href="sft/report.html"' in client.get('/').text
    assert 'no steps' in client.get('/sft/report.html').text
    assert client.get('/..%2Fsft/report.html').status_code == client.get('/other/report.html').status_code == 404


def test_a_name_that_another_site_gave_this_address_is_not_answered(run):
    assert TestClient(make_app(run, 7), base_url='http://example.org').get('/').status_code == 400
