"""The pages of docs/: links lead somewhere, commands exist and run, and the site is built and searched in a browser."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pal_jax import __main__ as command
from pal_jax.run import shipped
from pal_jax.run.checkpoint import flatten
from pal_jax.run.glossary import CORE, OPTIMISED
from pal_jax.run.settings import to_dict
from tests import pages, shell
from tests.pages import DOCS

ROOT = DOCS.parent
GENERATED = 'reference/commands.md', 'reference/keys/index.md', 'reference/metrics.md'
PAGES = sorted(path for path in DOCS.rglob('*.md') if path.relative_to(DOCS).parts[:2] != ('reference', 'keys'))
PAGES = [page for page in PAGES if page.relative_to(DOCS).as_posix() not in GENERATED]
MANUALS = [page for page in PAGES if page.parent.name in ('start', 'tutorials', 'howto')]
RUN = [page for page in PAGES if any(block.kind == 'bash' for block in pages.blocks(page))]
TUTORIALS = sorted((DOCS / 'tutorials').glob('*.md'))
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize('page', [*PAGES, ROOT / 'README.md', ROOT / 'CONTRIBUTING.md'], ids=name)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', pages.prose(page)):
        if link.startswith(('http://', 'https://')):
            continue
        file, _, anchor = link.partition('#')
        target = (page.parent / file).resolve() if file else page
        generated = target.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in GENERATED
        if (not generated and not target.exists()) or (anchor and anchor not in pages.anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page.parent.name in ('start', 'tutorials', 'howto')], ids=name
)
def test_commands_of_manuals_name_what_exists(page):
    for line in pages.commands(page):
        words = re.findall(r'"[^"]*"|\S+', line)
        words = [
            word.strip('"') for word in words[next(i for i, w in enumerate(words) if w in ('pal-jax', 'python')) :]
        ]
        called = words[1] if words[0] == 'pal-jax' else words[2].removeprefix('pal_jax.')
        assert called in command.COMMANDS or called == '--help', line
        config = next((word.partition('=')[2] for word in words if word.startswith('--config=')), '')
        if not config:
            continue
        path, _, variant = shipped.config_path(config).partition(':')
        keys = flatten(to_dict(runpy.run_path(path)['get_config'](variant)))
        for key in (word[len('--config.') :].partition('=')[0] for word in words if word.startswith('--config.')):
            assert key in keys, f'{line}: no key {key}'


def test_every_tutorial_has_commands_that_a_test_runs():
    # That of the training server has a loop, which tests/training_server/test_loops.py runs.
    assert set(TUTORIALS) - set(RUN) == {DOCS / 'tutorials' / 'everyone.md'} and len(TUTORIALS) > 5
    for page in RUN:
        for block in pages.blocks(page):
            if block.kind == 'bash' and 'train' in block.text:
                assert ':smoke' in block.text


# The page of several machines runs with every change: no other test trains on two processes by a supervised method.
SOONER = DOCS / 'tutorials' / 'machines.md'


@pytest.mark.parametrize(
    'page',
    [pytest.param(p, id=name(p), marks=pytest.mark.slow if p == SOONER else pytest.mark.long) for p in RUN],
)
def test_commands_of_a_page_run(page, tmp_path):
    """All blocks marked bash, one after the other in one empty folder with the files that the page shows."""
    pages.write_files(page, tmp_path)
    bin_ = tmp_path / 'bin'
    bin_.mkdir()
    (bin_ / 'pal-jax').write_text(f'#!/bin/sh\nexec {sys.executable} -m pal_jax "$@"\n')
    (bin_ / 'pal-jax').chmod(0o755)
    environment = os.environ | {
        'PATH': f'{bin_}:{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': shell.FLAGS,
    }  # fmt: skip
    for block in pages.blocks(page):
        if block.kind == 'bash':
            done = subprocess.run(
                ['bash', '-euc', block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f'{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'


@pytest.mark.long
def test_the_cells_of_the_notebook_run(tmp_path):
    jupytext = pytest.importorskip('jupytext', reason='needs pip install jupytext')
    pytest.importorskip('pandas', reason='needs pip install pandas')
    notebook = jupytext.read(DOCS / 'howto' / 'notebook.md')
    script = '\n'.join(cell.source for cell in notebook.cells if cell.cell_type == 'code')
    environment = (
        os.environ | shell.PLAIN | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]), 'MPLBACKEND': 'agg'}
    )
    line = [sys.executable, '-c', script]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(
        (tmp_path / name).exists() for name in ('reward.png', 'runs/short/report.html', 'runs/parity/report.html')
    )


# --- the site -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The site, built by what `make docs` runs, without a network and without a warning."""
    pytest.importorskip('sphinx', reason='needs make docs, which installs sphinx')
    folder = tmp_path_factory.mktemp('site')
    nowhere = {'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9'}
    flags = ('-q', '-W', '--keep-going', '-b', 'html', '-d', folder / 'trees')
    line = [sys.executable, '-m', 'sphinx', *flags, DOCS, folder / 'html']
    done = subprocess.run(
        list(map(str, line)), env={**os.environ, **nowhere}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return folder / 'html'


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    for page in PAGES:
        html = (site / page.relative_to(DOCS).with_suffix('.html')).read_text(encoding='utf-8')
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', html)
        assert [link for link in loaded if link.startswith(('http:', 'https:', '//'))] == []
    assert 'ppo.kl_coef' in (site / 'reference/keys/rlpa.html').read_text(encoding='utf-8')
    metrics = (site / 'reference/metrics.html').read_text(encoding='utf-8')
    assert CORE.figures[OPTIMISED]['perplexity'] in metrics and 'seen_gain' in metrics
    api = (site / 'reference/api.html').read_text(encoding='utf-8')
    train = api.partition('id="pal_jax.commands.library.train"')[2].partition('</dt>')[0]
    assert 'Mapping' in train and 'PathLike' in train  # types
    assert re.search(r'<pre>[^§]*?pal_jax', api.partition('id="scores"')[0])  # the example of the module is code
    assert 'copybutton' in (site / 'start/install.html').read_text(encoding='utf-8')
    assert '--coordinator' in (site / 'reference/commands.html').read_text(encoding='utf-8')


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder: search reads pages, which browsers refuse to read from files."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that writes no log."""

    def log_message(self, format, *args):
        pass


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium on the path')
def test_a_reader_finds_a_page_by_navigation_and_by_search(site):
    sync_api = pytest.importorskip('playwright.sync_api', reason='needs pip install playwright')
    with served(site) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        failed = []
        page.on('requestfailed', lambda request: failed.append(request.url))
        page.on('pageerror', lambda error: failed.append(str(error)))
        page.goto(f'{address}/index.html')
        page.click('.sidebar-tree >> text="Your own people"')
        assert page.inner_text('h1').startswith('Your own people')
        page.fill('input.sidebar-search', 'kl_horizon')
        page.press('input.sidebar-search', 'Enter')
        page.wait_for_selector('#search-results a')
        results = page.locator('#search-results ul.search a').all_inner_texts()
        assert any('rlpa' in result for result in results)
        page.click('#search-results ul.search a >> nth=0')
        assert 'kl_horizon' in page.content()
        assert failed == []
        browser.close()
