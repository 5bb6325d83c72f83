"""Rows of labelled answers as records of BeaverTails, which tests write and read back."""

from __future__ import annotations

from typing import Any

from pal_jax.data.readers.safety import CATEGORIES, LabelledResponse


def labelled_record(row: LabelledResponse) -> dict[str, Any]:
    """The row as a record of BeaverTails, which `to_labelled` reads."""
    marks = dict(zip(CATEGORIES, row.categories, strict=True))
    return {'prompt': row.prompt, 'response': row.response, 'category': marks, 'is_safe': not row.unsafe}
