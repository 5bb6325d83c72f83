"""One page of several runs, such as the stages of one or those that are compared: verdicts, links to reports, exhibits.

It is made from the runs' files alone, as the report of a run is.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.run import files, pages, stores
from pal_jax.run.advice import uses
from pal_jax.run.forecast import counted
from pal_jax.run.glossary import words_of
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.report import described, exhibits
from pal_jax.run.summary import headline, read_summary
from pal_jax.run.verdict import RunVerdict, judge
from pal_jax.run.workdir import REPORT, read_run, stage_folders
from pal_jax.types import Exhibit


class RunRow(NamedTuple):
    """A run in the table of the page.

    `link` leads to its report and `use` is a command that uses the run; each is '' where there is none.
    """

    name: str
    link: str
    facts: Sequence[str]
    verdict: RunVerdict | None
    use: str
    steps: int
    seconds: float


def run_row(name: str, folder: Path, page: Path, *, live: bool = False) -> RunRow:
    """The row of the run in a folder, on a page that lies at `page`."""
    rows, evals = (read_records(folder / file) for file in (METRICS, EVALS))
    config, facts, kept = read_run(folder), headline(rows, evals), read_summary(folder)
    # A stage is shown by its own recipe.
    summary = {**kept, **({'name': ''} if config.get('part_of') else {})}
    report = folder / REPORT
    # A page outside the store does not reach a report in it.
    reached = stores.in_store(page) or not stores.in_store(folder)
    there = reached and (live or report.exists())
    link = os.path.relpath(report.resolve(), page.resolve().parent) if there else ''
    words = words_of(config['recipe'])
    commands = (command for _, command, _ in uses(folder, config, words, kept))
    use = next((command for command in commands if command.startswith('pal-jax')), '')
    verdict = judge(rows, evals, words, kept.get('name', ''))
    return RunRow(name, link, described(config, summary), verdict, use, facts['steps'], facts['seconds_total'])


def write_front_page(workdir: Path) -> Path:
    """Write the front page of a run of stages into its folder; the result is its path. Raises as `front_page`."""
    return files.write_whole(workdir / REPORT, front_page(workdir), 'xmlcharrefreplace')


def front_page(workdir: Path, *, live: bool = False) -> str:
    """The front page of a run of stages as HTML, with what the last stage shows.

    Where it is `live`, stages without a report have a link to it, too.

    Raises:
      ValueError: there are no stages in the folder.
    """
    folders, page = stage_folders(workdir), workdir / REPORT
    if not folders:
        raise ValueError(f'{workdir} has no stages; name the folder of a run')
    rows = [run_row(folder.name, folder, page, live=live) for folder in folders]
    # The last stage compares the policies of those before it.
    shown = next((last for folder in reversed(folders) if (last := exhibits(folder)[1])), [])
    configs = [read_run(folder) for folder in folders]
    # The stages begin with one model, and the last one ends on the day of the run.
    policy = next((config['policy'] for config in configs if config.get('policy', {}).get('source')), {})
    method = configs[-1] | {'recipe': configs[-1].get('part_of') or configs[-1]['recipe'], 'policy': policy}
    title = [
        workdir.resolve().name,
        *described(method, read_summary(folders[-1])),
        counted(len(folders), 'stage'),
        pages.duration(sum(row.seconds for row in rows)),
    ]
    return overview(title, rows, shown)


def overview(title: Sequence[str], runs: Sequence[RunRow], shown: Sequence[Exhibit | Mapping[str, Any]]) -> str:
    """The page as HTML with the exhibits that are `shown`. Their pictures are bytes, or base64 already."""
    shown = [one if isinstance(one, Mapping) else _shown(one) for one in shown]
    page = pages.template('overview.html.jinja')
    return page.render(title=title[0], facts=title[1:], runs=runs, exhibits=shown)


def _shown(exhibit: Exhibit) -> dict[str, Any]:
    return {**vars(exhibit), 'picture': base64.b64encode(exhibit.picture).decode()}
