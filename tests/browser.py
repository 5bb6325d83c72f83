"""Pages as a reader has them in a browser. Tests that open one are skipped where no browser is on the path."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A page of a file. Errors of its scripts, messages of errors on the console and alerts fail the test."""
    if CHROMIUM is None:
        pytest.skip('needs chromium on the path')
    sync_api = pytest.importorskip('playwright.sync_api', reason='needs pip install playwright')
    complaints = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        with contextlib.closing(browser):
            page = browser.new_page()
            page.on('pageerror', lambda error: complaints.append(str(error)))
            page.on('dialog', lambda dialog: complaints.append(dialog.message))
            page.on('console', lambda said: complaints.append(said.text) if said.type == 'error' else None)
            page.goto(path.as_uri())
            yield page
    assert complaints == []


def use_all(page: Any) -> None:
    """Use every control of a page: open each fold, choose each option, push each button and both ends of each slider.

    Samples of a training are to be seen after each.
    """
    for fold in page.locator('summary').all():
        fold.click()
    for choice in page.locator('select').all():
        for option in choice.locator('option').all():
            choice.select_option(option.get_attribute('value') or option.text_content())
    for slider in page.locator('input[type=range]').all():
        for key in ('End', 'Home'):
            slider.press(key)
            assert page.locator('#where').text_content() and page.locator('#dialogue .turn').count()
    for button in page.locator('button').all():
        if button.is_enabled():
            button.click()
