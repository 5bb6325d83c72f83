"""Secrets are read from the environment as they can be sent, and none is told."""

from __future__ import annotations

import pytest

from pal_jax.run.credentials import secret


@pytest.mark.parametrize('text', ['wonder land', 'wonder land\n', '\r\n wonder land\t\r\n', '\u00a0wonder land\u2028'])
def test_white_space_around_a_secret_is_no_part_of_it(text, monkeypatch):
    monkeypatch.setenv('SECRET', text)
    assert secret('SECRET') == 'wonder land'


def test_a_secret_that_is_not_set_is_none(monkeypatch):
    monkeypatch.delenv('SECRET', raising=False)
    assert secret('SECRET') == ''


@pytest.mark.parametrize('text', ['\n', ' ', 'wonder\nland', 'wonderl\u00e4nd', '\ufeffwonderland', 'wonder\x7fland'])
def test_what_cannot_be_sent_is_refused_and_not_told(text, monkeypatch):
    monkeypatch.setenv('SECRET', text)
    with pytest.raises(ValueError, match='^SECRET holds') as error:
        secret('SECRET')
    assert 'wonder' not in str(error.value)
