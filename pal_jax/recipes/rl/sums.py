"""Sums of two small numbers: prompts for runs without prompts of their own, and the rule that pays the answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pal_jax.judges.answers import last_number

LARGEST = 12  # of the numbers to add


def make_rows() -> list[dict[str, str]]:
    """All sums of two numbers from 1 to `LARGEST`, each as a `prompt` and its `answer`."""
    pairs = itertools.product(range(1, LARGEST + 1), repeat=2)
    return [{'prompt': f'What is {a} + {b}? Answer with the number.', 'answer': str(a + b)} for a, b in pairs]


def right(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """1 for an answer whose last number is the sum, else 0."""
    return [float(last_number(text) == known) for text, known in zip(completions, answer, strict=True)]
