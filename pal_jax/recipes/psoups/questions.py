"""Questions that anyone may ask, of five kinds, for runs without questions of their own; some are kept for
evaluations."""

from __future__ import annotations

from pal_jax.run import files

TESTED = 10  # the last questions of each kind are kept for evaluations

_KINDS: dict[str, list[str]] = files.beside(__name__)  # topics by the form of a question


def make_questions(split: str) -> list[str]:
    """The 210 questions to learn from ('train') or the 50 to test on ('test'), in an order that mixes the kinds."""
    kinds = []
    for form, topics in _KINDS.items():
        kinds.append([form.format(topic) for topic in (topics[-TESTED:] if split == 'test' else topics[:-TESTED])])
    return [question for row in zip(*kinds, strict=True) for question in row]
