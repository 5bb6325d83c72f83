"""Preferences that people may have about answers: dimensions, their conflicting poles, and the texts that ask for them.

There are the eight poles of Personalized Soups (arXiv 2310.11564), in our own words, and any set of your own from a
YAML or JSON file (JSON is YAML):

    dimensions:
      manners:
        polite: {text: Be polite., judge: {more: [please, thank you]}}
        blunt: {text: Be blunt., judge: {less: [please, thank you]}}
      length:
        brief: {text: One sentence at most., judge: -words}
        ample: {text: Leave nothing out., judge: +words}

`text` stands in the policy's prompt, and is a language model's criterion; `judge` is the rule (`recipes.psoups.rules`)
that judges where no language model does, and may be left out where one does. A preference is known by its id, never by
its text.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_jax.recipes.psoups.rules import Rule, parse_rule
from pal_jax.run import files

EMBEDDED = 'embedded'
ALL = 'all'  # the name of all preferences
# General is the preference of vanilla RLHF: everybody has it, so no prompt asks for it.
GENERAL = 'general'
# Joint stands for all preferences together: P-MORL's reward model, which reads the preferences in the prompt.
JOINT = 'joint'
# Best stands for the best answer to each prompt under each preference, for multitask learning.
BEST = 'best'
RESERVED = ALL, GENERAL, JOINT, BEST

_EMBEDDED = Path(__file__).with_suffix('.json')


@dataclasses.dataclass(frozen=True)
class Preference:
    """A pole of a dimension; `rule` is None where only a language model can judge it."""

    id: str
    dimension: str
    text: str
    rule: Rule | None

    @property
    def criterion(self) -> str:
        """The criterion that a language model judges by."""
        return self.text or 'The answer is helpful, true and well written.'


Combination = tuple[Preference, ...]  # one pole of each dimension


def embedded() -> tuple[Preference, ...]:
    """The embedded preferences P1A, P1B, P2A, P2B, P3A, P3B, P3C, P3D, in this order."""
    return load_preferences(_EMBEDDED)


def general() -> Preference:
    """The preference of vanilla RLHF, which asks for nothing and likes sound answers."""
    return Preference(GENERAL, '', '', parse_rule('+sound'))


def load_preferences(path: str | Path) -> tuple[Preference, ...]:
    """The preferences of a file in the format of this module.

    Raises:
      ValueError: there is no such file, or it is no file of preferences; file and key are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} is no file; name a YAML or JSON file of preferences, or {EMBEDDED}')
    content = files.read_yaml(path)
    dimensions = _mapping(path, 'dimensions', content.get('dimensions') if isinstance(content, dict) else None)
    poles_read = [
        _pole(path, dimension, name, pole)
        for dimension, poles in dimensions.items()
        for name, pole in _mapping(path, f'dimensions.{dimension}', poles, least=2).items()
    ]
    ids = [pole.id for pole in poles_read]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise ValueError(f'{path}: {twice[0]} is the name of two poles; a name says which preference is meant')
    return tuple(poles_read)


def choose(preferences: Sequence[Preference], names: str) -> tuple[Preference, ...]:
    """The preferences of a list such as `P1A,P2B`; for '' the first two of each dimension, for `all` all of them.

    Raises:
      ValueError: a name is unknown or comes twice, or one pole alone of a dimension is left.
    """
    if not names.strip():
        return tuple(pole for poles in by_dimension(preferences).values() for pole in poles[:2])
    if names == ALL:
        return tuple(preferences)
    known, named = {pole.id: pole for pole in preferences}, [name.strip() for name in names.split(',') if name.strip()]
    for name in named:
        if name not in known or named.count(name) > 1:
            why = 'is there twice' if name in known else f'is no preference; there are {", ".join(known)}'
            raise ValueError(f'poles={names!r}: {name} {why}')
    chosen = tuple(known[name] for name in known if name in named)
    for dimension, poles in by_dimension(chosen).items():
        if len(poles) < 2:
            raise ValueError(f'poles={names!r} has {poles[0].id} alone of {dimension}; name two poles of it')
    return chosen


def by_dimension(preferences: Sequence[Preference]) -> dict[str, list[Preference]]:
    """The preferences by dimension, in their order."""
    names = dict.fromkeys(preference.dimension for preference in preferences)
    return {name: [preference for preference in preferences if preference.dimension == name] for name in names}


def combinations(preferences: Sequence[Preference]) -> list[Combination]:
    """Every choice of one pole a dimension: 8 for the first six embedded ones, 16 for all eight."""
    return list(itertools.product(*by_dimension(preferences).values()))


def name_of(combination: Sequence[Preference]) -> str:
    """The ids of preferences in one name, which files have."""
    return '-'.join(preference.id for preference in combination)


def ask(question: str, preferences: Sequence[Preference] = ()) -> str:
    """The prompt of a policy: the question, then the texts of the preferences."""
    return ' '.join(text for text in (question, *(preference.text for preference in preferences)) if text)


def _mapping(path: Path, key: str, value: Any, least: int = 1) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) < least:
        raise ValueError(f'{path}: {key} must have {least} or more named entries, got {files.short_repr(value)}')
    for name in value:
        # YAML's no, on and null are no texts.
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f'{path}: {key} has {name!r} for a name; write it between quotation marks')
    return {str(name): entry for name, entry in value.items()}


def _pole(path: Path, dimension: str, name: str, pole: Any) -> Preference:
    key = f'dimensions.{dimension}.{name}'
    if not re.fullmatch(r'\w+', name) or name in RESERVED:
        raise ValueError(
            f'{path}: {key}: call it with letters, digits and _, and not one of {", ".join(RESERVED)}: '
            'files are named by it'
        )
    unknown = [word for word in pole if word not in ('text', 'judge')] if isinstance(pole, dict) else [repr(pole)]
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
