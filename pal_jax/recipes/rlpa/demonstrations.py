"""Made-up examples of the RLPA format for a short supervised warm-up, without which a small model earns nothing.

They show the layout, a profile with the facts that were told, an empty profile where none was told, and replies that
pick up the other's words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from pal_jax.recipes.rlpa.profiles import render_completion, render_facts
from pal_jax.run import files
from pal_jax.types import Dialogue, Person, Turn

_COPYING = 0.6  # share of the examples whose profile has facts to copy
_ASKING = 0.7  # share of the replies that end with a question


class Demonstration(NamedTuple):
    """A dialogue that ends with the user's message, and the completion a good policy could give."""

    dialogue: Dialogue
    completion: str


class _Line(NamedTuple):
    """A user's message, possible reactions to it, and the fact it tells, if any."""

    text: str
    reactions: Sequence[str]
    fact: str = ''


_WORDS = files.beside(__name__)
# Topics and values are disjoint from those of `people`, so a warmed-up policy has seen no fact of any person.
_VALUES: dict[str, list[str]] = _WORDS['values']
TOPICS = tuple(_VALUES)

_FILLERS = [_Line(**filler) for filler in _WORDS['fillers']]


def make_demonstrations(n: int, *, seed: int) -> list[Demonstration]:
    """`n` examples of rounds 1 to 3; 60 % of them have facts to copy, the others have an empty profile.

    Raises:
      ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f'cannot make {n} demonstrations; n must be at least 0')
    rng = random.Random(f'demonstrations {seed}')
    # The share is met exactly, and not on average.
    copying = {*rng.sample(range(n), round(_COPYING * n))}
    return [_demonstrate(rng, f'demonstration-{seed}-{i:04d}', copies=i in copying) for i in range(n)]


def _demonstrate(rng: random.Random, id: str, *, copies: bool) -> Demonstration:
    telling = [_telling(rng, topic) for topic in rng.sample(TOPICS, 4)]
    person = Person(id, tuple(line.fact for line in telling))
    lines = [_Line(person.opening, _WORDS['greetings']), *(_told_lines(rng, telling) if copies else _untold_lines(rng))]
    turns: list[Turn] = []
    profile, replies = '', _replies(rng, lines)
    for i, (line, reply) in enumerate(zip(lines, replies, strict=True)):
        turns += [Turn('user', line.text)]
        # The profile of a turn has all facts that were told up to it.
        profile = render_facts(line.fact for line in lines[: i + 1] if line.fact)
        turns += [Turn('assistant', reply, profile)]
    return Demonstration(Dialogue(person, tuple(turns[:-1])), render_completion(profile, replies[-1]))


def _told_lines(rng: random.Random, telling: Sequence[_Line]) -> list[_Line]:
    """One or two messages after the greeting, at least one of which tells a fact."""
    first, second, *_ = telling
    filler = rng.choice(_FILLERS)
    return rng.choice(([first], [first], [first, second], [first, filler], [filler, first]))


def _untold_lines(rng: random.Random) -> list[_Line]:
    return rng.sample(_FILLERS, rng.choice((0, 0, 0, 1, 2)))


def _telling(rng: random.Random, topic: str) -> _Line:
    value = rng.choice(_VALUES[topic])
    text = rng.choice(_WORDS['telling'][topic] + _WORDS['telling_any']).format(topic=topic, value=value)
    return _Line(text, [reaction.format(value=value) for reaction in _WORDS['reactions']], f'{topic}: {value}')


def _replies(rng: random.Random, lines: Sequence[_Line]) -> list[str]:
    """A reply to every line: a reaction in its words and mostly a question about a topic that nobody has told."""
    topics_told = {line.fact.split(':')[0] for line in lines}
    topics = rng.sample([topic for topic in TOPICS if topic not in topics_told], len(lines))
    questions = rng.sample(_WORDS['questions'], len(lines))
    replies = []
    for line, question, topic in zip(lines, questions, topics, strict=True):
        reaction = rng.choice(line.reactions)
        reply = f'{reaction} {question.format(topic=topic)}' if rng.random() < _ASKING else reaction
        replies.append(reply[0].upper() + reply[1:])
    return replies
