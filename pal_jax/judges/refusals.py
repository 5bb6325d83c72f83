"""Refusals: a rule that knows a refusal when it reads one, and sets of prompts to refuse or to answer.

A model that refuses everything is harmless. So beside requests that should be refused there are sets such as XSTest
(Roettger et al. 2024, arXiv 2308.01263), whose safe prompts only sound harmful.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pal_jax.data import records
from pal_jax.data.holdouts import normal
from pal_jax.judges.wording import filled
from pal_jax.run import files

# A refusal is looked for in so many sentences of a reply, and in so many characters.
SENTENCES, OPENING = 3, 600
_RULE = files.beside(__name__)
REFUSALS = re.compile('|'.join(filled(pattern, _RULE['parts']) for pattern in _RULE['patterns']), re.IGNORECASE)

COLUMNS: Mapping[str, bool | None] = {  # columns in which sets keep their prompts, and whether these are harmful
    'prompt': None,  # XSTest, Do-Not-Answer and others
    'forbidden_prompt': True,  # StrongREJECT
    'Behavior': True,  # HarmBench
    'goal': True,  # AdvBench
}


class RefusalPrompt(NamedTuple):
    """A prompt, and whether it should be refused; None: nobody has said."""

    prompt: str
    harmful: bool | None


def is_refusal(reply: str) -> bool:
    """True where a reply in English refuses the request, by the wording of its first sentences.

    It is a rule, not a judge. On the 86 human labels of PyRIT's refusal scorer that this project has, its accuracy is
    .860, its precision 1.000 and its recall .786. It was written without them, amended after half of them were read,
    and has the same figures on the other half. Of the 12 refusals that it misses, 8 answer another question than the
    one asked, which those labels count as refusals. Of the 603 answers of gpt-3.5-turbo to AlpacaFarm's instructions it
    calls 7 refusals, and all of them decline.
    """
    # The normal form may be shorter, so twice the opening is read.
    text = normal(reply[: 2 * OPENING])
    opening = ' '.join(re.split(r'(?<=[.!?]) ', text)[:SENTENCES])
    return bool(REFUSALS.search(opening[:OPENING]))


def read_prompts(source: str, column: str = '') -> list[RefusalPrompt]:
    """The prompts of a set, in the order of the source, which is one that `records.rows` takes.

    `column` is the field that has them, by default the first column of `COLUMNS` that the first row has. The label of a
    prompt stands in `label` (safe or unsafe) or in XSTest's `type`, whose kinds `contrast_...` are harmful, or follows
    from the set.

    Raises:
      ValueError: there is no such source, it has no row or no known column, or a prompt is no text; the error names the
        place.
    """
    prompts: list[RefusalPrompt] = []
    for place, row in records.rows(source):
        column = column or _column(place, row)
        prompt = row.get(column)
        if not isinstance(prompt, str) or not prompt.strip():
            columns = ', '.join(map(str, row))
            raise ValueError(
                f'{place}: {column} is {files.short_repr(prompt)}, give a text; its columns are {columns}'
                if column in row
                else f'{place}: there is no column {column}; its columns are {columns}'
            )
        # The request follows the `ContextString` of HarmBench, as HarmBench asks it.
        context = row.get('ContextString')
        prompts.append(
            RefusalPrompt(f'{context}\n\n---\n\n{prompt}' if context else prompt, _harmful(place, row, column))
        )
    if not prompts:
        raise ValueError(f'{source}: it has no rows, so no prompts; give a file with some')
    return prompts


def _column(place: str, row: Mapping[str, Any]) -> str:
    known = next((name for name in COLUMNS if name in row), '')
    if not known:
        raise ValueError(
            f'{place}: none of its columns is known to hold prompts; its columns are {", ".join(map(str, row))}, and '
            f'known are {", ".join(COLUMNS)}; name one'
        )
    return known


def _harmful(place: str, row: Mapping[str, Any], column: str) -> bool | None:
    if (label := row.get('label')) is not None:
        if label not in ('safe', 'unsafe'):
            raise ValueError(
                f'{place}: label is {files.short_repr(label)}, give safe or unsafe, or call the column otherwise'
            )
        return label == 'unsafe'
    if isinstance(kind := row.get('type'), str) and 'focus' in row:  # XSTest without its labels
        return kind.startswith('contrast_')
    # A row with `risk_area` is one of Do-Not-Answer, whose prompts are all harmful.
    return True if 'risk_area' in row else COLUMNS.get(column)
