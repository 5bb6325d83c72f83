"""The parts of pages: templates of HTML, numbers in words, tables of Markdown."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from pal_jax.run.forecast import counted


def template(file: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """The template of a page in this folder; `filters` are further ones of the page."""
    # Every text in a page comes from models, users or files, so every text is escaped.
    env = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FunctionLoader(text_of)
    )
    # Scores stand in their own order, the reward first.
    env.policies['json.dumps_kwargs'] = {'sort_keys': False}
    env.filters |= {'number': number, 'duration': duration, 'gigabytes': gigabytes, 'flat': flatten, 'digest': digest}
    env.filters |= {'counted': counted}
    env.filters |= filters
    return env.get_template(file)


def text_of(file: str) -> str:
    """The text of a file in this folder."""
    return resources.files('pal_jax.run').joinpath(file).read_text(encoding='utf-8')


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, whose first row is its head."""
    head, *body = ('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows)
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def digest(script: str) -> str:
    """The name of a script in a content security policy, which is a hash of its text."""
    return f'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'


def number(value: Any) -> str:
    """A number with three significant digits, a whole number in full, or a dash for None."""
    if value is None:
        return '–'
    return f'{value:,}' if isinstance(value, int) else f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def duration(seconds: float) -> str:
    """A duration as `1:02:03`, or as `7.3 s` below a minute."""
    return f'{seconds:.1f} s' if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))


def gigabytes(count: int | None) -> str:
    """A number of bytes as the text of gigabytes, or a dash for None."""
    return '–' if count is None else f'{count / 1e9:.1f} GB'


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterable[tuple[str, Any]]:
    """The values of nested settings with their keys, such as `ppo.clip`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value
