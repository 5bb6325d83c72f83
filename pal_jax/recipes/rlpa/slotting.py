"""People described in free text, brought into the ten slots of RLPA's profiles by a language model (its appendix)."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable, Sequence

from pal_jax.judges import prompts
from pal_jax.judges.language import ask
from pal_jax.recipes.rlpa.profiles import parse_facts, slot_facts
from pal_jax.types import ChatModel, Person

Slotter = Callable[[Sequence[str]], list[list[str] | None]]  # facts of each text; None: no answer could be read

_LONGEST, _MOST = 200, 8  # characters of a value; values of a list
_TAG = re.compile(r'</?(?:profile|response)>', re.IGNORECASE)
_UNKNOWN = re.compile(r'(?:unknown|none|n/?a|null|not (?:mentioned|specified|stated|given|known)|unspecified)\W*', re.I)


def make_slotter(model: ChatModel) -> Slotter:
    """A function that brings descriptions of people into slots; equal descriptions are asked for once."""

    def slot(texts: Sequence[str]) -> list[list[str] | None]:
        return ask(model, list(map(prompts.slot, texts)), read_slots, seed=0)

    return slot


def read_slots(text: str) -> list[str] | None:
    """The facts in an answer: `slot: value`, a fact for each element of a list; None where it cannot be read."""
    body = re.sub(r'^```(?:json)?\s*|\s*```$', '', text.strip())
    try:
        slots = json.loads(body)
    except (ValueError, RecursionError):
        return None
    # The answer is one JSON object, fenced or not, with all ten slots by their names and no others.
    if not isinstance(slots, dict) or set(slots) != set(prompts.SLOTS):
        return None
    # Each slot has a value, or a list where it holds several; a value that says that it is unknown makes the answer
    # unreadable.
    if not all(map(_is_value, slots, slots.values())):
        return None
    return list(parse_facts('\n'.join(slot_facts({slot.lower(): slots[slot] for slot in prompts.SLOTS}))))


def _is_value(slot: str, held: object) -> bool:
    if slot not in prompts.LISTS:
        return _is_text(str(held) if type(held) is int else held)
    return isinstance(held, list) and 0 < len(held) <= _MOST and all(map(_is_text, held))


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not value.isprintable():
        return False
    # A tag of the format in a value would break the profile that the fact stands in.
    return bool(re.search(r'\w', value)) and not _UNKNOWN.fullmatch(value.strip()) and not _TAG.search(value)


def with_personalities(people: Sequence[Person], personalities: Sequence[Person], *, seed: int) -> list[Person]:
    """Each person with the traits of one personality, drawn at random as ALOE does (arXiv 2410.03642, section 3.1)."""
    rng = random.Random(f'personalities {seed}')
    return [dataclasses.replace(person, facts=person.facts + rng.choice(personalities).facts) for person in people]


def slot_people(people: Sequence[Person], slotter: Slotter) -> list[Person]:
    """The people with the facts of their slots; those whose answer could not be read are left out."""
    slotted = slotter([' '.join(person.facts) for person in people])
    return [dataclasses.replace(p, facts=tuple(facts)) for p, facts in zip(people, slotted, strict=True) if facts]
