"""The pages of docs/: their links, the files that they show, and their commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / 'docs'
FENCE = re.compile(r'(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<kind>[\w{}-]*)\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of a page: its kind (bash: commands that a test runs), its text, and the file that the page calls it."""

    kind: str
    text: str
    file: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    for match in FENCE.finditer(page.read_text(encoding='utf-8')):
        yield Block(match['kind'], match['text'], match['file'] or '')


def commands(page: Path) -> list[str]:
    """The commands of a page, continued lines joined, without comments."""
    texts = [block.text.replace('\\\n', ' ') for block in blocks(page) if block.kind in ('bash', '')]
    lines = [line.partition('  #')[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if re.match(r'(\w+=\S+ )*(echo \S+ \| )?(pal-jax|python -m pal_jax\.)', line)]


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows into a folder."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding='utf-8')


def prose(page: Path) -> str:
    """The text of a page without its blocks and without code in lines."""
    return re.sub(r'`[^`\n]*`', '', FENCE.sub('', page.read_text(encoding='utf-8')))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub('', page.read_text(encoding='utf-8'))
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}
