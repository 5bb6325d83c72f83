"""What people may want of an answer: dimensions, their conflicting poles, and the texts that ask for them.

The eight poles of Personalized Soups (arXiv 2310.11564), in our own words, and any set of your own from a YAML or JSON
file (JSON is YAML):

    dimensions:
      manners:
        polite: {text: Be polite., judge: {more: [please, thank you]}}
        blunt: {text: Be blunt., judge: {less: [please, thank you]}}
      length:
        brief: {text: One sentence at most., judge: -words}
        ample: {text: Leave nothing out., judge: +words}

`text` is what the policy is asked for and what a language model judges by; `judge` is the rule (`feedback.rules`) that
judges where no language model does, and may be left out where one does. A preference is known by its id, never by its
text.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_jax.feedback.rules import Rule, parse_rule
from pal_jax.runtime import files

EMBEDDED = 'embedded'
ALL = 'all'  # what means all preferences
GENERAL = 'general'  # the preference of vanilla RLHF: of everyone, so nothing is asked for
JOINT = 'joint'  # all of them: what P-MORL's reward model has learnt, which reads in the prompt what is preferred
BEST = 'best'  # the best answer to each prompt under each of them: what multitask learning imitates
RESERVED = ALL, GENERAL, JOINT, BEST

_EMBEDDED: Any = {
    'expertise': {
        'P1A': ('Explain it to a child in elementary school.', '-lix'),
        'P1B': ('Answer so that only a doctoral student of the field can follow.', '+lix'),
    },
    'informativeness': {
        'P2A': ('Be brief: one sentence, straight to the point.', '-words'),
        'P2B': ('In one sentence, tell as much as you can.', '+content'),
    },
    'style': {
        'P3A': ('Answer like a close friend: friendly, witty and funny.', '+friendly'),
        'P3B': ('Answer in an unfriendly tone.', '+unfriendly'),
        'P3C': ('Answer in a sassy tone.', '+sassy'),
        'P3D': ('Answer in a sarcastic tone.', '+sarcastic'),
    },
}


@dataclasses.dataclass(frozen=True)
class Preference:
    """A pole. `rule` is None where only a language model can judge it."""

    id: str
    dimension: str
    text: str
    rule: Rule | None

    @property
    def criterion(self) -> str:
        """What a language model judges by."""
        return self.text or 'The answer is helpful, true and well written.'


Combination = tuple[Preference, ...]  # one pole of each dimension


def embedded() -> tuple[Preference, ...]:
    """P1A, P1B, P2A, P2B, P3A, P3B, P3C, P3D, in this order."""
    return tuple(
        Preference(name, dimension, text, parse_rule(judge))
        for dimension, poles in _EMBEDDED.items()
        for name, (text, judge) in poles.items()
    )


def general() -> Preference:
    return Preference(GENERAL, '', '', parse_rule('+sound'))


def load_preferences(path: str | Path) -> tuple[Preference, ...]:
    """The preferences of a file, see above.

    Raises:
      ValueError: there is no such file, or it is none of preferences; file and key are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} is no file; name a YAML or JSON file of preferences, or {EMBEDDED}')
    given = files.read_yaml(path)
    dimensions = _mapping(path, 'dimensions', given.get('dimensions') if isinstance(given, dict) else None)
    found = [
        _pole(path, dimension, name, pole)
        for dimension, poles in dimensions.items()
        for name, pole in _mapping(path, f'dimensions.{dimension}', poles, least=2).items()
    ]
    ids = [each.id for each in found]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise ValueError(f'{path}: {twice[0]} is the name of two poles; a name says which preference is meant')
    return tuple(found)


def choose(preferences: Sequence[Preference], names: str) -> tuple[Preference, ...]:
    """Those of the list `P1A,P2B`; of an empty one the first two of each dimension, of `all` all.

    Raises:
      ValueError: a name that is none, a name twice, or a dimension of which one pole is left.
    """
    if not names.strip():
        return tuple(each for poles in by_dimension(preferences).values() for each in poles[:2])
    if names == ALL:
        return tuple(preferences)
    known, wanted = {each.id: each for each in preferences}, [name.strip() for name in names.split(',') if name.strip()]
    for name in wanted:
        if name not in known or wanted.count(name) > 1:
            why = 'is there twice' if name in known else f'is no preference; there are {", ".join(known)}'
            raise ValueError(f'poles={names!r}: {name} {why}')
    chosen = tuple(known[name] for name in known if name in wanted)
    for dimension, poles in by_dimension(chosen).items():
        if len(poles) < 2:
            raise ValueError(f'poles={names!r} has {poles[0].id} alone of {dimension}; name two poles of it')
    return chosen


def by_dimension(preferences: Sequence[Preference]) -> dict[str, list[Preference]]:
    names = dict.fromkeys(each.dimension for each in preferences)
    return {name: [each for each in preferences if each.dimension == name] for name in names}


def combinations(preferences: Sequence[Preference]) -> list[Combination]:
    """Every choice of one pole a dimension: 8 of the first six embedded ones, 16 of all eight."""
    return list(itertools.product(*by_dimension(preferences).values()))


def name_of(combination: Sequence[Preference]) -> str:
    return '-'.join(each.id for each in combination)


def ask(question: str, preferences: Sequence[Preference] = ()) -> str:
    """What a policy is asked: the question, then the texts of what is preferred."""
    return ' '.join(text for text in (question, *(each.text for each in preferences)) if text)


def _mapping(path: Path, key: str, value: Any, least: int = 1) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) < least:
        raise ValueError(f'{path}: {key} must have {least} or more named entries, got {files.shown(value)}')
    for name in value:
        if not isinstance(name, str | int) or isinstance(name, bool):  # YAML's no, on and null are no texts
            raise ValueError(f'{path}: {key} has {name!r} for a name; write it between quotation marks')
    return {str(name): each for name, each in value.items()}


def _pole(path: Path, dimension: str, name: str, pole: Any) -> Preference:
    key = f'dimensions.{dimension}.{name}'
    if not re.fullmatch(r'\w+', name) or name in RESERVED:
        raise ValueError(
            f'{path}: {key}: call it with letters, digits and _, and not one of {", ".join(RESERVED)}: '
            'files are named by it'
        )
    unknown = [each for each in pole if each not in ('text', 'judge')] if isinstance(pole, dict) else [repr(pole)]
    if unknown:
        raise ValueError(f'{path}: {key} has {unknown[0]}; it has a text and, if you like, a judge')
    text = pole.get('text')
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{path}: {key}.text={text!r}; give the text that asks for it')
    try:
        rule = parse_rule(pole['judge']) if 'judge' in pole else None
    except ValueError as error:
        raise ValueError(f'{path}: {key}.judge={error}') from None
    return Preference(name, dimension, ' '.join(text.split()), rule)
