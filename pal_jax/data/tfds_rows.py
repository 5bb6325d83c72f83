"""Rows of TensorFlow Datasets, which is imported for them alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def read(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a source `tfds:name/config:split`, each with its place.

    Raises:
      ValueError: there is no such data set, or a text is no UTF-8.
    """
    import tensorflow_datasets as tfds

    name, _, split = source.removeprefix('tfds:').partition(':')
    try:
        data: Any = tfds.data_source(name, split=split or 'train')
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f'{source}: {str(error).splitlines()[0]}') from None
    for number in range(len(data)):
        record = data[number]
        place = f'{source}, row {number + 1}'
        yield place, {key: _plain(place, key, value) for key, value in record.items()}


def _plain(place: str, key: str, value: Any) -> Any:
    """A value of TensorFlow Datasets as JSON has it. Raises ValueError where a text is no UTF-8."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f'{place}: {key} is no text in UTF-8, at its byte {error.start + 1}') from None
