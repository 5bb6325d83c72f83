"""Rule judges: the measures of a text where no language model judges it. They are deterministic and need no model.

A rule is a measure with a sign. `+words` likes the longer answer, `-words` the shorter one:

words       the number of words
content     the number of different words, without the commonest and the question's: the content of an answer
lix         the difficulty of reading: words a sentence, and long words in a hundred words (Björnsson 1968), by textstat
friendly    words of friends and jokes, less those of the unfriendly
unfriendly  the other way round
sassy, sarcastic  their own words
sound       a whole, unrepetitive answer that takes up the question: the general preference of vanilla RLHF

A rule may also be a list of words of your own, `{more: [please, thank you]}` or `{less: [...]}`.

A text that is no answer (`judges/wording.py`: a list of words, a repetition, the question again) loses against any
other, whatever it measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pal_jax.data.holdouts import normal
from pal_jax.judges.wording import words_of
from pal_jax.run import files

LEXICA: dict[str, list[str]] = files.beside(__name__)
OPPOSITE = {'friendly': 'unfriendly', 'unfriendly': 'friendly'}
_COMMON = frozenset(
    'what which when where why how who does do is are was were the and for with from that this can should would could '
    'you your me my one two of to in on at an a it its be as by or if so than then there their them they give name '
    'tell explain describe suggest between difference good ways way make makes'.split()
)

Measure = Callable[[str, str], float]  # takes a question and an answer to it


class Rule(NamedTuple):
    """A measure by its name, or the words it counts, and the sign of better: more (1) or less (-1)."""

    measure: str
    sign: int
    lexicon: tuple[str, ...] = ()

    def score(self, question: str, answer: str) -> float:
        """The score of an answer, the higher the better; scores of different rules do not compare."""
        measured = markers(answer, self.lexicon) if self.lexicon else MEASURES[self.measure](question, answer)
        return self.sign * measured


def parse_rule(spec: Any) -> Rule:
    """The rule that `+words`, `{more: [...]}` and the like stand for.

    Raises:
      ValueError: it is no rule.
    """
    if isinstance(spec, str) and spec[:1] in ('+', '-') and spec[1:] in MEASURES:
        return Rule(spec[1:], 1 if spec[0] == '+' else -1)
    if isinstance(spec, dict) and len(spec) == 1:
        (way, words), *_ = spec.items()
        listed = isinstance(words, list) and bool(words) and all(isinstance(w, str) and w.strip() for w in words)
        if way in ('more', 'less') and listed:
            return Rule('lexicon', 1 if way == 'more' else -1, tuple(words))
    raise ValueError(
        f'{spec!r} is no rule; use + or - with one of {", ".join(MEASURES)}, or {{more: [words]}} or {{less: [words]}}'
    )


def lix(text: str) -> float:
    """The readability index LIX: words a sentence, plus long words (of more than six letters) in a hundred.

    Raises:
      RuntimeError: textstat is not installed.
    """
    try:
        from textstat import textstat  # pyright: ignore[reportMissingImports]  # an extra, and two seconds to import
    except ModuleNotFoundError:
        raise RuntimeError("the rule 'lix' needs textstat; pip install 'pal_jax[soups]'") from None
    return float(textstat.lix(text))


def markers(text: str, lexicon: Sequence[str]) -> float:
    """The number of different entries of a lexicon that stand in the text, over the square root of its words."""
    text = normal(text)
    count = sum(bool(re.search(_bounded(entry), text)) for entry in lexicon)
    # A policy finds any text that satisfies a lexicon. So each entry counts once, and the count is divided by the
    # square root of the length: neither one word repeated nor a long answer alone is paid.
    # A shorter text counts as eight words, so that a single marker does not make the best answer.
    return count / math.sqrt(max(len(words_of(text)), 8))


def register(name: str) -> Measure:
    """The measure of how much a text sounds like a register, and not like its opposite."""
    lexicon, other = LEXICA[name], LEXICA.get(OPPOSITE.get(name, ''), [])
    return lambda _, answer: markers(answer, lexicon) - markers(answer, other)


def sound(question: str, answer: str) -> float:
    """A measure from 0 to 4: an answer ends a sentence, says no three words twice, has the question's words, and is of
    letters."""
    words = words_of(answer)
    if not words:
        return 0.0
    threes = list(zip(words, words[1:], words[2:], strict=False))
    new = len(set(threes)) / len(threes) if threes else 1.0
    question_words = set(words_of(question)) - _COMMON
    met = len(question_words & set(words)) / len(question_words) if question_words else 1.0
    letters = sum(character.isalpha() or character.isspace() for character in answer) / len(answer)
    return float(answer.rstrip()[-1:] in '.!?') + new + met + letters


def _bounded(entry: str) -> str:
    """A pattern that finds an entry as whole words; a mark such as ! stands anywhere."""
    pattern = re.escape(normal(entry))
    return rf'(?<!\w){pattern}(?!\w)' if entry[0].isalnum() and entry[-1].isalnum() else pattern


MEASURES: dict[str, Measure] = {
    'words': lambda _, answer: float(len(words_of(answer))),
    'content': lambda question, answer: float(len(set(words_of(answer)) - set(words_of(question)) - _COMMON)),
    'lix': lambda _, answer: lix(answer),
    **{name: register(name) for name in LEXICA},
    'sound': sound,
}
