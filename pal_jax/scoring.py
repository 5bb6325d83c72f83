"""Scores of texts, or of items in numbers, by a trained model of preferences.

    scorer = open_scorer('runs/reward')
    scorer([{'prompt': 'Hello', 'completion': 'Good day.'}])               # [records] float
    scorer = open_scorer('runs/people', person='ana.json')           # where a run knows people

`scorer.read` turns a record into the model's input, and raises an error for a wrong record. `scorer.score` scores many.
Which methods score, what records they read and whom they know stands in docs/library.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pal_jax.data import records
from pal_jax.run import files
from pal_jax.run.record_scorer import RecordScorer
from pal_jax.run.runs import recipe_module
from pal_jax.run.workdir import read_run, run_folder

KINDS = 'a method that scores (docs/library.md lists them)'


def open_scorer(source: str | os.PathLike[str], person: str | int | os.PathLike[str] | None = '') -> RecordScorer:
    """Open the model of a finished run, on one device.

    Args:
      source: `orbax:<workdir>` of a run of a method that scores (its `open_scorer` opens it), or its folder.
      person: the person who prefers, for methods that know people: a file, or the id of a person of the training.
        Nothing is nobody in particular.

    Raises:
      ValueError: the source is no such run, or the person does not fit it.
      RuntimeError: a model or checkpoint cannot be read.
    """
    return opener_of(source)(run_folder(source), to_name(person))


def opener_of(source: str | os.PathLike[str]) -> Callable[[str, str], RecordScorer]:
    """The `open_scorer` of a run's method, which reads weights. Raises ValueError where the run scores nothing."""
    try:
        recipe = read_run(Path(run_folder(source)))['recipe']
    except ValueError as error:
        # The message also says what kind of run is wanted.
        raise ValueError(f'{error}, of {KINDS}') from None
    opener = getattr(recipe_module(recipe), 'open_scorer', None)
    if opener is None:
        raise ValueError(f'{source} is a run of {recipe}, which scores nothing; give one of {KINDS}')
    return opener


def read_file(path: str) -> list[records.Row]:
    """The records of a file with their places. Raises ValueError where there is none, or a row cannot be read."""
    rows = list(records.rows(path))
    if not rows:
        raise ValueError(f'{path} has no records; write one JSON object a line, or a CSV file with a head')
    return rows


def to_name(person: str | int | os.PathLike[str] | None) -> str:
    """A person as the name of a file or an id, '' for nobody. Raises ValueError where `person` is neither."""
    if person is None or person == '':
        return ''
    name = os.fspath(person) if isinstance(person, os.PathLike) else person
    # A file of that name comes before an id, so an id is looked for only where there is no such file.
    is_file = isinstance(name, str) and files.is_file(name)
    return str(name) if is_file else records.identity('', {'person': name}, 'person')
