"""Made-up pairs on which a reward model is tried first: a question about a told fact, with the right answer and a wrong
one.

A person tells some facts and asks for one of them. Only the value tells them apart, and the prompt alone tells which
one is right.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from pal_jax.recipes.rlpa.people import SCHEMA, make_people
from pal_jax.recipes.rlpa.profiles import split_fact
from pal_jax.run import files
from pal_jax.run.language import SupervisedRun
from pal_jax.types import Chat, Person

_ANSWERS: list[str] = files.beside(__name__)
# The values that may stand in the place of a value. A wrong answer is the right one of somebody else.
_OTHERS = {value: values for slot in SCHEMA for values in (slot.known, slot.unseen) for value in values}


def records(settings: SupervisedRun, key: str) -> Iterator[list[dict[str, Any]]]:
    """The pairs about each of the oracle's people in the format of files: the right answer as `key`, the wrong one as
    `rejected`."""
    people = make_people(settings.oracle.people, seed=settings.seed, facts=settings.oracle.facts)
    pairs = make_pairs(people, settings.seed)
    for person in people:
        records_of_person = []
        # The pairs of a person come one after the other, one for each fact.
        for question, *answers in itertools.islice(pairs, len(person.facts)):
            right, wrong = ([{'role': 'assistant', 'content': text}] for text in answers)
            records_of_person.append({'prompt': list(question), key: right, 'rejected': wrong})
        yield records_of_person


def make_pairs(people: Sequence[Person], seed: int) -> Iterator[tuple[Chat, str, str]]:
    """The question for each fact of each person, the right answer, and one with another value of the same kind."""
    rng = random.Random(f'recall {seed}')
    for person in people:
        facts = [split_fact(fact) for fact in person.facts]
        for slot, value in facts:
            story = ' '.join(f'My {name}: {fact}.' for name, fact in rng.sample(facts, len(facts)))
            other = rng.choice([candidate for candidate in _OTHERS[value] if candidate != value])
            # Both answers are equally likely to be short or long, and to be worded in any of the ways.
            right, wrong = (rng.choice(_ANSWERS).format(slot=slot, value=answer) for answer in (value, other))
            question = [
                {'role': 'system', 'content': 'You remember what you are told.'},
                {'role': 'user', 'content': f'{story} What is my {slot}?'},
            ]
            yield question, right, wrong
