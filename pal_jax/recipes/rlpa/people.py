"""People with hidden profiles: made up from a small schema, or read from a file."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pal_jax.data import holdouts, records
from pal_jax.recipes.rlpa.profiles import parse_facts
from pal_jax.run import files
from pal_jax.types import Person

Split = Literal['train', 'heldout', 'unseen']

_DRAWS_PER_PERSON = 50


class Slot(NamedTuple):
    """A topic of a profile, the words that raise it in talk, and its values for training and for testing only."""

    name: str
    keywords: list[str]
    known: list[str]
    unseen: list[str]


# A value stands in one slot only, so that hearing it settles which fact was told.
SCHEMA = tuple(Slot(**slot) for slot in files.beside(__name__))
SLOTS = tuple(slot.name for slot in SCHEMA)


def make_people(n: int, *, seed: int, split: Split = 'train', facts: int = 4) -> list[Person]:
    """`n` different people of `facts` facts each; the first people do not depend on `n`.

    `train` and `heldout` draw on the same values, but a combination of facts belongs to one of the two for every seed;
    `unseen` has values that neither has.

    Raises:
      ValueError: the schema cannot give so many people, or a value is wrong.
    """
    if split not in ('train', 'heldout', 'unseen'):
        raise ValueError(f"split={split!r} is unknown; use 'train', 'heldout' or 'unseen'")
    if n < 0 or not 1 <= facts <= len(SCHEMA):
        raise ValueError(f'n={n}, facts={facts}: n must be at least 0 and facts from 1 to {len(SCHEMA)}')
    rng = random.Random(f'people {seed} {split} {facts}')
    profiles: dict[tuple[str, ...], None] = {}
    # A draw may repeat a profile or belong to the other split; the limit ends the loop where the schema is too small.
    for _ in range(_DRAWS_PER_PERSON * (n + 1)):
        if len(profiles) == n:
            break
        profile = _draw_profile(rng, facts, unseen=split == 'unseen')
        if split == 'unseen' or _is_heldout(profile) == (split == 'heldout'):
            profiles[profile] = None
    if len(profiles) < n:
        raise ValueError(
            f'only {len(profiles)} different {split} people of facts={facts} found, not {n}; ask for fewer'
        )
    return [Person(id=f'{split}-{seed}-{i:04d}', facts=profile) for i, profile in enumerate(profiles)]


def _draw_profile(rng: random.Random, facts: int, *, unseen: bool) -> tuple[str, ...]:
    slots = (SCHEMA[i] for i in sorted(rng.sample(range(len(SCHEMA)), facts)))
    return tuple(f'{slot.name}: {rng.choice(slot.unseen if unseen else slot.known)}' for slot in slots)


def _is_heldout(profile: tuple[str, ...]) -> bool:
    """True for a quarter of all combinations, for every seed."""
    # A hash of the facts decides, so no seed or number of people moves a combination to the other side.
    return hashlib.sha256('\n'.join(profile).encode()).digest()[0] < 64


def content(person: Person) -> str:
    """The text by which people are compared: their facts, in any order, case and white space."""
    return holdouts.joint_content(person.facts)


def load_people(path: str | Path, *, input_key: str = 'input', label_key: str = 'profile') -> list[Person]:
    """The people of a JSON-lines file. Each line has one of these forms:

    - `{"profile": "- a\\n- b"}`: one fact a line; a single line of prose is cut into sentences (also `input`, `id`);
    - `{"facts": {"slot": "value", "other slot": ["value", "value"]}}`: one fact a value (also `input`, `id`);
    - `"She keeps bees. She lives alone."`: a string of prose, a fact a sentence.

    An `id` is a text or a whole number, as `records.identity` has it; without the key it is file and line. `input` is
    the person's first message; the two keys may have other names.

    Raises:
      ValueError: a line is wrong, with file, line and fault.
    """
    people: dict[str, Person] = {}
    for place, record in records.values(str(path)):
        try:
            named = _renamed(record, {input_key: 'input', label_key: 'profile'})
            person = _person(named, _default_id(place))
            if holdouts.normal(person.id) in people:
                raise ValueError(f'the id {person.id!r} is taken by an earlier line; make ids unique or leave them out')
        except ValueError as error:
            raise ValueError(f'{place}: {error}') from None
        people[holdouts.normal(person.id)] = person
    if not people:
        raise ValueError(f'{path}: no people in this file; write one JSON record a line')
    return list(people.values())


def place_of(path: str | Path, person: Person, *, input_key: str = 'input', label_key: str = 'profile') -> str:
    """The file and line of a person whom `load_people` has read; the file alone for any other person."""
    for place, record in records.values(str(path)):
        named = _renamed(record, {input_key: 'input', label_key: 'profile'})
        if _person(named, _default_id(place)).id == person.id:
            return place
    return str(path)


def _default_id(place: str) -> str:
    """The id of a person without one: the file and the number of a place such as 'folder/people.jsonl, line 3'."""
    path, _, line = place.rpartition(', ')
    return f'{Path(path).stem}-{line.split()[-1]}'


def _renamed(record: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(record, dict):
        return record
    return {names.get(key, key): value for key, value in record.items()}


def _person(record: Any, default_id: str) -> Person:
    record = {'profile': record} if isinstance(record, str) else record
    if not isinstance(record, dict) or ('profile' in record) == ('facts' in record):
        raise ValueError(f"expected a string or an object with 'profile' or 'facts', got {files.short_repr(record)}")
    facts = _profile_facts(record['profile']) if 'profile' in record else _slot_facts(record['facts'])
    if not facts:
        raise ValueError(f'no facts in {files.short_repr(record)}; give at least one')
    opening = record.get('input', 'Hello')
    if not isinstance(opening, str) or not opening.strip():
        raise ValueError(f"'input' must be what the person says first, got {files.short_repr(opening)}")
    id = records.identity('', record, 'id') if 'id' in record else default_id
    return Person(id=id, facts=facts, opening=opening)


def _profile_facts(profile: Any) -> tuple[str, ...]:
    if not isinstance(profile, str):
        raise ValueError(f"'profile' must be a string with one fact a line, got {files.short_repr(profile)}")
    prose = '\n' not in profile.strip()
    return parse_facts('\n'.join(_sentences(profile)) if prose else profile)


def _sentences(prose: str) -> list[str]:
    # The dot of Mr., Ms., Mrs., Dr. or St. ends no sentence.
    return re.split(r'(?<=[.!?])(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=\S)', prose.strip())


def _slot_facts(facts: Any) -> tuple[str, ...]:
    if not isinstance(facts, dict):
        raise ValueError(f"'facts' must be an object of slots and values, got {files.short_repr(facts)}")
    lines = []
    for slot, values in facts.items():
        for value in values if isinstance(values, list) else [values]:
            known = isinstance(value, str | int | float) and not isinstance(value, bool)
            # A value that differs from itself is NaN, which JSON may hold.
            if not known or value != value or not str(value).strip():
                raise ValueError(
                    f'the slot {slot!r} must hold a value or a list of values, got {files.short_repr(value)}'
                )
            lines.append(' '.join(f'{slot}: {value}'.split()))
    return parse_facts('\n'.join(lines))
