r"""Problems of mathematics with a known final answer: rows of a file, the answer that a text comes to, and accuracy.

`gsm8k` (Cobbe et al. 2021): `question`, and `answer` whose last line is `#### <number>`. `math500` (Hendrycks et al.
2021, as Lightman et al. 2023 chose from it): `problem`, and `answer` in LaTeX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.judges.answers import boxed, is_same, last_number
from pal_jax.run import intervals
from pal_jax.types import Chat

ASKED = '{question}\nThink step by step. Then write the final answer as \\boxed{{answer}}.'
MARK = '####'


class Problem(NamedTuple):
    """A question and its final answer."""

    question: str
    answer: str


class ProblemFormat(NamedTuple):
    """The names of a row's question and answer, the final answer of the latter, and that of a model's text."""

    question: str
    answer: str
    final: Callable[[str], str | None]
    read: Callable[[str], str | None]


def after_mark(text: str) -> str | None:
    """The text behind the last `####`; None where there is none."""
    _, mark, said = text.rpartition(MARK)
    return said.strip() if mark else None


TASKS: Mapping[str, ProblemFormat] = {
    # A text's answer is the content of its last `\boxed{...}`; in GSM8K, where it has none, its last number.
    'gsm8k': ProblemFormat('question', 'answer', after_mark, last_number),
    'math500': ProblemFormat('problem', 'answer', lambda text: text, boxed),
}


def read_problems(path: str | Path, task: str) -> list[Problem]:
    """The problems of a source (`records.rows`).

    Raises:
      ValueError: there is no such source, a row lacks the question or the answer of the task, or there is no row.
    """
    kind, problems = TASKS[task], []
    for place, row in records.rows(str(path)):
        for key in (kind.question, kind.answer):
            if not isinstance(row.get(key), str) or not row[key]:
                raise ValueError(f'{place}: {key}={row.get(key)!r} must be a text in a row of {task}')
        if (answer := kind.final(row[kind.answer])) is None:
            raise ValueError(f'{place}: answer has no {MARK} before its number, as a row of {task} has')
        problems.append(Problem(row[kind.question], answer))
    if not problems:
        raise ValueError(f'{path} has no problems')
    return problems


def question_chat(problem: Problem) -> Chat:
    """The chat that asks for a problem's answer."""
    return [{'role': 'user', 'content': ASKED.format(question=problem.question)}]


def measure(texts: Sequence[str], problems: Sequence[Problem], task: str) -> dict[str, Any]:
    """Accuracy with its exact 95 % interval, and the share of texts that come to no answer."""
    said = [TASKS[task].read(text) for text in texts]
    # A text that comes to no answer is wrong.
    share = intervals.share(np.array([is_same(one, p.answer) for one, p in zip(said, problems, strict=True)]))
    return {
        'accuracy': share.value,
        'interval': share.interval,
        'unanswered': sum(one is None for one in said) / len(problems),
        'problems': len(problems),
    }
