"""Which of two arguments convinces a person more: UKPConvArg1 (Habernal and Gurevych 2016), with who judged.

A folder has `arguments.jsonl` (id, debate, stance, text) and `judgements.jsonl` (arg1, arg2, worker, choice: a1, a2 or
equal, which says nothing).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pal_jax.types import Choice

QUESTION = '{debate} Give an argument for: {stance}.'


def read(folder: str | Path) -> dict[str, list[Choice]]:
    """Everyone's choices, in the file's order.

    Raises:
      ValueError: a file is missing, or a line is wrong; with file and line.
    """
    arguments = {
        each['id']: (QUESTION.format(debate=each['debate'], stance=each['stance'].rstrip('.')), each['text'].strip())
        for _, each in _records(Path(folder, 'arguments.jsonl'), ('id', 'debate', 'stance', 'text'))
    }
    found: dict[str, list[Choice]] = {}
    for where, each in _records(Path(folder, 'judgements.jsonl'), ('arg1', 'arg2', 'worker', 'choice')):
        if each['choice'] not in ('a1', 'a2', 'equal'):
            raise ValueError(f'{where}: choice is {each["choice"]!r}; give a1, a2 or equal')
        if missing := {each['arg1'], each['arg2']} - arguments.keys():
            raise ValueError(f'{where}: argument {min(missing)!r} is not in arguments.jsonl')
        if each['choice'] != 'equal':
            (prompt, one), (_, two) = arguments[each['arg1']], arguments[each['arg2']]
            chosen, rejected = (one, two) if each['choice'] == 'a1' else (two, one)
            found.setdefault(each['worker'], []).append(Choice(prompt, chosen, rejected))
    return found


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; give the folder of arguments.jsonl and judgements.jsonl')
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        try:
            record = json.loads(line)
            yield f'{path}, line {number}', {field: str(record[field]) for field in fields}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number}: expected an object with {", ".join(fields)} ({error})') from None
