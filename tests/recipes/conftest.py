"""Files of pairs that several tests of PAL's runs read."""

from __future__ import annotations

import pytest

from tests.recipes.personal.texts import write_replies, write_statements


@pytest.fixture(scope='session')
def replies_file(tmp_path_factory):
    return write_replies(tmp_path_factory.mktemp('replies') / 'pairs.jsonl')


@pytest.fixture(scope='session')
def statements_file(tmp_path_factory):
    return write_statements(tmp_path_factory.mktemp('statements') / 'pairs.jsonl')
