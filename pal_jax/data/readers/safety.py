"""Records with labels of unsafe answers (BeaverTails, arXiv 2307.04657; PKU-SafeRLHF, arXiv 2310.12773).

A record of BeaverTails has a prompt and a response, `category` with a mark for each of 14 kinds of harm, and `is_safe`,
which is true where no kind is marked. The label belongs to the pair, not to the prompt. A record of PKU-SafeRLHF has a
prompt with two responses, a label for the safety of either, and the numbers of the more helpful and the safer response.
Further fields are ignored. Sources are those of `records.rows`. In a CSV file `category` is a JSON object, and a mark
is true or false.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pal_jax.data import records
from pal_jax.data.holdouts import normal
from pal_jax.run import files

CATEGORIES = (  # the published keys, in the published order
    'animal_abuse',
    'child_abuse',
    'controversial_topics,politics',
    'discrimination,stereotype,injustice',
    'drug_abuse,weapons,banned_substance',
    'financial_crime,property_crime,theft',
    'hate_speech,offensive_language',
    'misinformation_regarding_ethics,laws_and_safety',
    'non_violent_unethical_behavior',
    'privacy_violation',
    'self_harm',
    'sexually_explicit,adult_content',
    'terrorism,organized_crime',
    'violence,aiding_and_abetting,incitement',
)


class LabelledResponse(NamedTuple):
    """A response to a prompt, and a bool for each of `CATEGORIES`, True where the pair is marked with it."""

    prompt: str
    response: str
    categories: tuple[bool, ...]

    @property
    def unsafe(self) -> bool:
        """True where any category is marked."""
        return any(self.categories)


class JudgedPair(NamedTuple):
    """Two responses to a prompt, their labels, and the numbers, 0 or 1, of the better and of the safer response.

    The better response helps more, and may be unsafe. Where one response alone is unsafe, the other one is safer.
    """

    prompt: str
    responses: tuple[str, str]
    unsafe: tuple[bool, bool]
    better: int
    safer: int


# --- reading ---------------------------------------------------------------------------------------------------------


def read_labelled(source: str) -> list[LabelledResponse]:
    """The rows of a source in the form of BeaverTails, in the source's order. Repeated rows are not joined.

    Raises:
      ValueError: there is no such source, it is empty, or a row is wrong. The message names the row.
    """
    return records.read_all(source, to_labelled, records.rows)


def read_judged(source: str) -> list[JudgedPair]:
    """The rows of a source in the form of PKU-SafeRLHF. Raises ValueError as `read_labelled` does."""
    return records.read_all(source, to_judged, records.rows)


def to_labelled(record: Mapping[str, Any]) -> LabelledResponse:
    """A record of BeaverTails as a row.

    Raises:
      ValueError: a field is missing or wrong, a category is missing or unknown, or `is_safe` contradicts the
        categories.
    """
    row = LabelledResponse(_text(record, 'prompt'), _text(record, 'response'), _categories(record))
    is_safe = _flag(record, 'is_safe')
    if is_safe == row.unsafe:
        marked = [name for name, mark in zip(CATEGORIES, row.categories, strict=True) if mark]
        raise ValueError(
            f'is_safe is {is_safe}, but {" and ".join(marked) or "no category"} is true; a pair is safe where '
            'no category is true, so correct one of the two'
        )
    return row


def to_judged(record: Mapping[str, Any]) -> JudgedPair:
    """A record of PKU-SafeRLHF as a row.

    Raises:
      ValueError: a field is missing or wrong, one response alone is unsafe and `safer_response_id` names it, or one
        text is safe and unsafe.
    """
    row = JudgedPair(
        _text(record, 'prompt'),
        (_text(record, 'response_0'), _text(record, 'response_1')),
        (not _flag(record, 'is_response_0_safe'), not _flag(record, 'is_response_1_safe')),
        better=_number(record, 'better_response_id'),
        safer=_number(record, 'safer_response_id'),
    )
    # One text cannot be both safe and unsafe.
    if row.unsafe[0] != row.unsafe[1] and normal(row.responses[0]) == normal(row.responses[1]):
        raise ValueError(
            'response_0 and response_1 are the same text, and one is safe and the other is not; correct '
            'is_response_0_safe or is_response_1_safe, or delete the row'
        )
    # The safer response may be unsafe only where the other one is, too.
    if row.unsafe[row.safer] and not row.unsafe[1 - row.safer]:
        raise ValueError(
            f'safer_response_id is {row.safer}, but is_response_{row.safer}_safe is False and '
            f'is_response_{1 - row.safer}_safe is True; correct the one that is wrong, or delete the row'
        )
    return row


def _categories(record: Mapping[str, Any]) -> tuple[bool, ...]:
    value = _given(record, 'category', 'an object with true or false for each of the 14 categories')
    # A cell of a CSV file has the object as a text.
    marks = _object(value) if isinstance(value, str) else value
    if not isinstance(marks, Mapping):
        raise ValueError(f'category is {files.short_repr(value)}; give an object with true or false for each key')
    if unknown := [key for key in marks if key not in CATEGORIES]:
        raise ValueError(
            f'category has the unknown key {files.short_repr(unknown[0])}; the keys are {"; ".join(CATEGORIES)}'
        )
    if missing := [key for key in CATEGORIES if marks.get(key) is None]:
        raise ValueError(f'category has no {" and no ".join(missing)}; give true or false for each of its keys')
    return tuple(_flag(marks, key) for key in CATEGORIES)


def _object(text: str) -> Any:
    """The value of a text of JSON, None where the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _given(record: Mapping[str, Any], name: str, wanted: str) -> Any:
    if record.get(name) is None:
        raise ValueError(f'no {name}; give {wanted}. The fields of the record are {", ".join(map(str, record))}')
    return record[name]


def _text(record: Mapping[str, Any], name: str) -> str:
    value = _given(record, name, 'a text')
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{name} is {files.short_repr(value)}; give a text, or delete the row')
    return value


def _flag(record: Mapping[str, Any], name: str) -> bool:
    value = _given(record, name, 'true or false')
    text = str(value).strip().lower()
    if not isinstance(value, bool | str) or text not in ('true', 'false'):
        raise ValueError(f'{name} is {files.short_repr(value)}; give true or false')
    return text == 'true'


def _number(record: Mapping[str, Any], name: str) -> int:
    _given(record, name, '0 or 1, the number of a response')
    text = records.identity('', record, name)
    if text not in ('0', '1'):
        raise ValueError(f'{name} is {files.short_repr(record[name])}; give 0 or 1, the number of a response')
    return int(text)


# --- whole sets ------------------------------------------------------------------------------------------------------


def joined(rows: Iterable[LabelledResponse]) -> list[LabelledResponse]:
    """The rows with one row for each pair of prompt and response, in the order in which pairs come first.

    A category is marked where at least half of the pair's rows mark it. Rows are joined before they are split.
    """
    # BeaverTails has several people's labels of a pair, which may differ (its section 3).
    labels: dict[tuple[str, str], list[tuple[bool, ...]]] = {}
    for row in rows:
        labels.setdefault((row.prompt, row.response), []).append(row.categories)
    return [
        LabelledResponse(*pair, tuple(2 * sum(marks) >= len(marks) for marks in zip(*votes, strict=True)))
        for pair, votes in labels.items()
    ]


# --- writing ---------------------------------------------------------------------------------------------------------


def judged_record(row: JudgedPair) -> dict[str, Any]:
    """The row as a record of PKU-SafeRLHF, which `to_judged` reads."""
    return {
        'prompt': row.prompt,
        **{f'response_{k}': response for k, response in enumerate(row.responses)},
        **{f'is_response_{k}_safe': not unsafe for k, unsafe in enumerate(row.unsafe)},
        'better_response_id': row.better,
        'safer_response_id': row.safer,
    }
