r"""Problems of mathematics with a known final answer: rows of a file, the answer that a text comes to, and accuracy.

`gsm8k` (Cobbe et al. 2021): `question`, and `answer` whose last line is `#### <number>`. `math500` (Hendrycks et al.
2021, as Lightman et al. 2023 chose from it): `problem`, and `answer` in LaTeX. A text's answer is the content of its
last `\boxed{...}`; in GSM8K, where it has none, its last number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.envs.actions import boxed
from pal_jax.runtime import intervals
from pal_jax.types import Chat

ASKED = '{question}\nThink step by step. Then write the final answer as \\boxed{{answer}}.'
NUMBER = re.compile(r'-?(?:\d[\d,]*)?\.?\d+')
MARK = '####'


class Problem(NamedTuple):
    """A question and its final answer."""

    question: str
    answer: str


class Task(NamedTuple):
    """The names of a row's question and answer, the final answer of the latter, and that of a model's text."""

    question: str
    answer: str
    final: Callable[[str], str | None]
    read: Callable[[str], str | None]


def after_mark(text: str) -> str | None:
    """The text behind the last `####`; None where there is none."""
    _, mark, said = text.rpartition(MARK)
    return said.strip() if mark else None


def last_number(text: str) -> str | None:
    """The content of the last box that has a number, else the last number of the text."""
    inside = boxed(text)
    numbers = NUMBER.findall(inside or '') or NUMBER.findall(text)
    return numbers[-1] if numbers else None


TASKS: Mapping[str, Task] = {
    'gsm8k': Task('question', 'answer', after_mark, last_number),
    'math500': Task('problem', 'answer', lambda text: text, boxed),
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


def asked(problem: Problem) -> Chat:
    """The chat that asks for a problem's answer."""
    return [{'role': 'user', 'content': ASKED.format(question=problem.question)}]


def is_right(said: str | None, answer: str) -> bool:
    """True for an answer that equals the known one: as a number, or as LaTeX but for its dress."""
    if said is None:
        return False
    ours, theirs = plain(said), plain(answer)
    return ours == theirs or (number(ours) is not None and number(ours) == number(theirs))


def plain(text: str) -> str:
    """LaTeX without what says nothing: spaces, `$`, units in `\\text`, sizes of brackets, forms of fractions."""
    text = re.sub(r'\\(?:left|right|,|!|;|:|quad)(?![a-z])', '', text.strip().rstrip('.'))
    text = (
        text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac').replace('^\\circ', '').replace('^{\\circ}', '')
    )
    text = re.sub(r'\\text\{\s*([^{}]*)\}', lambda unit: unit[1] if unit.start() == 0 else '', text)
    text = re.sub(r'\\frac(\d)(\d)', r'\\frac{\1}{\2}', text)
    text = text.replace('\\$', '').replace('$', '').replace('\\%', '').replace('%', '').replace(' ', '')
    return re.sub(r'^[a-z]=', '', text)


def number(text: str) -> Fraction | None:
    """The value of a plain number, or of a LaTeX fraction of whole numbers; None of anything else."""
    if fraction := re.fullmatch(r'(-?)\\frac\{(-?\d+)\}\{(\d+)\}', text):
        below = int(fraction[3])
        return (-1 if fraction[1] else 1) * Fraction(int(fraction[2]), below) if below else None
    try:
        return Fraction(text.replace(',', ''))
    except (ValueError, ZeroDivisionError):
        return None


def measure(texts: Sequence[str], problems: Sequence[Problem], task: str) -> dict[str, Any]:
    """Accuracy with its exact 95 % interval, and the share of texts that come to no answer."""
    said = [TASKS[task].read(text) for text in texts]
    share = intervals.share(np.array([is_right(one, p.answer) for one, p in zip(said, problems, strict=True)]))
    return {
        'accuracy': share.value,
        'interval': share.interval,
        'unanswered': sum(one is None for one in said) / len(problems),
        'problems': len(problems),
    }
