"""Made-up pairs on which a reward model is tried first: what did I tell you? The right answer against a wrong one.

Someone tells some facts and asks for one of them. Both answers are as likely to be short or long, and to be worded in
any of the ways; only the value tells them apart, and which is right stands in the prompt alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pal_jax.feedback.people import SCHEMA
from pal_jax.feedback.profiles import split_fact
from pal_jax.types import Chat, Person

_ANSWERS = (
    '{value}.',
    'It is {value}.',
    'Your {slot} is {value}.',
    'You told me: {value}.',
    'If I remember well, your {slot} is {value}.',
    'That was easy to keep in mind, since you said it yourself just now: {value}.',
)
# Of a value: those that may stand in its place. A wrong answer is the right one of somebody else.
_OTHERS = {value: values for slot in SCHEMA for values in (slot.known, slot.unseen) for value in values}


def make_pairs(people: Sequence[Person], seed: int) -> Iterator[tuple[Chat, str, str]]:
    """For each fact of each person: what is asked, the right answer and one with another value of the same kind."""
    rng = random.Random(f'recall {seed}')
    for person in people:
        facts = [split_fact(fact) for fact in person.facts]
        for slot, value in facts:
            told = ' '.join(f'My {name}: {told}.' for name, told in rng.sample(facts, len(facts)))
            other = rng.choice([each for each in _OTHERS[value] if each != value])
            right, wrong = (rng.choice(_ANSWERS).format(slot=slot, value=each) for each in (value, other))
            asked = [
                {'role': 'system', 'content': 'You remember what you are told.'},
                {'role': 'user', 'content': f'{told} What is my {slot}?'},
            ]
            yield asked, right, wrong
