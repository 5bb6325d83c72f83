"""Made-up examples of the RLPA format for a short supervised warm-up, without which a small model earns nothing.

They show the layout, a profile with the facts that were told, an empty profile where none was told, and replies that
pick up the other's words. Topics and values are disjoint from those of `people`, so a warmed-up policy has seen no fact
of any person.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from pal_jax.recipes.rlpa.profiles import render_completion, render_facts
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
    reactions: tuple[str, ...]
    fact: str = ''


_VALUES = {
    'fruit': ('mangoes', 'plums', 'cherries', 'figs', 'pears', 'melons'),
    'vegetable': ('carrots', 'leeks', 'spinach', 'radishes', 'pumpkin', 'celery'),
    'dessert': ('custard', 'brownies', 'sorbet', 'cheesecake', 'tiramisu', 'gingerbread'),
    'spice': ('cinnamon', 'saffron', 'paprika', 'nutmeg', 'cumin', 'vanilla'),
    'flower': ('tulips', 'daisies', 'lilies', 'orchids', 'poppies', 'irises'),
    'tree': ('oaks', 'birches', 'maples', 'willows', 'pines', 'cedars'),
    'bird': ('owls', 'robins', 'sparrows', 'herons', 'swans', 'puffins'),
    'game': ('checkers', 'dominoes', 'poker', 'bingo', 'darts', 'backgammon'),
    'subject': ('geometry', 'history', 'biology', 'geography', 'algebra', 'physics'),
    'planet': ('Mars', 'Venus', 'Saturn', 'Jupiter', 'Neptune', 'Mercury'),
    'fabric': ('linen', 'velvet', 'wool', 'denim', 'silk', 'corduroy'),
    'shoe': ('sandals', 'boots', 'loafers', 'sneakers', 'clogs', 'slippers'),
}
TOPICS = tuple(_VALUES)

_TELLING = {
    'fruit': ('I bought a whole basket of {value}.', 'I start every morning with {value}.'),
    'vegetable': ('My garden is full of {value}.', 'I could not do without {value}.'),
    'dessert': ('After dinner I always want {value}.', 'My grandmother makes the best {value}.'),
    'spice': ('My kitchen smells of {value}.', 'I put {value} in everything.'),
    'flower': ('There are fresh {value} on my table.', 'I planted some {value} by the door.'),
    'tree': ('I walk among the {value} whenever I can.', 'My street is lined with {value}.'),
    'bird': ('I could watch {value} for hours.', 'There are {value} near my window.'),
    'game': ('My cousins and I play {value} on Sundays.', 'I never lose at {value}.'),
    'subject': ('At school I was good at {value}.', 'I am reading a thick book about {value}.'),
    'planet': ('I have a poster of {value} above my bed.', 'Last night I saw {value} through a telescope.'),
    'fabric': ('I bought curtains made of {value}.', 'I only feel at ease in {value}.'),
    'shoe': ('I wear {value} all through the year.', 'I just got a new pair of {value}.'),
}
_TELLING_ANY = ('My favorite {topic}: {value}.', 'If you ask me for a {topic}, I say {value}.')

_GREETINGS = (
    'Hello! Nice to meet you.',
    'Hi there, good to hear from you.',
    'Hey! I was hoping somebody would write.',
    'Hello and welcome, take a seat.',
    'Hi! This is a pleasant surprise.',
    'Hey there, thanks for getting in touch.',
    'Hello! I have a quiet hour and a warm blanket.',
    'Hi, glad we finally got to chat.',
)
_REACTIONS = (
    'Ah, {value}, that tells me something about you.',
    'You mention {value} and I get curious.',
    'I rarely meet anyone who cares about {value}.',
    'There must be a story behind the {value}.',
    'I know little about {value}, so teach me.',
    'My aunt would talk to you about {value} all night.',
    'Good to know, I will remember the {value}.',
    'Funny, {value} came up in a book I read.',
    'So {value} it is, that sounds cozy.',
    'I once tried to explain {value} to my nephew and failed.',
    '{value}, really? I pictured you differently.',
    'I can imagine you with {value} right now.',
)
_FILLERS = (
    _Line(
        'It is quiet around here today.',
        ('A quiet place can be a gift.', 'Quiet suits me too, nobody rushes us.'),
    ),
    _Line(
        'I am a bit tired, to be honest.',
        ('Tired is allowed, we can go slowly.', 'If you are tired, lean back and let me chat.'),
    ),
    _Line(
        'I had a long meeting this morning.',
        ('Long meetings drain anybody.', 'After a meeting like that you deserve a break.'),
    ),
    _Line(
        'The bus was late again.',
        ('A late bus can spoil the mood.', 'I also waited for a bus in the rain once.'),
    ),
    _Line(
        'I am not sure what to say.',
        ('Not being sure is a fine way to begin.', 'You can say anything, I am patient.'),
    ),
    _Line(
        'My neighbors are noisy tonight.',
        ('Noisy neighbors are a test of patience.', 'Maybe the neighbors have a party without us.'),
    ),
    _Line(
        'I just cleaned the windows.',
        ('Clean windows change a whole room.', 'I should do my windows, you shame me.'),
    ),
)
_QUESTIONS = (
    'Which {topic} comes to your mind first?',
    'Is there a {topic} you like most?',
    'Do you have a favorite {topic}?',
    'What {topic} would you pick for a friend?',
    'And when it comes to a {topic}, what do you go for?',
    'May I ask about a {topic} that means something to you?',
    'Can you name a {topic} that makes you happy?',
    'I wonder, is there any {topic} you could not live without?',
    'What would a perfect Sunday look like for you?',
    'Who do you usually spend your evenings with?',
    'What made you smile this morning?',
    'How did that begin, if I may ask?',
    'What do you look forward to this week?',
    'Would you tell me a little more about it?',
)


def make_demonstrations(n: int, *, seed: int) -> list[Demonstration]:
    """`n` examples of rounds 1 to 3; 60 % of them have facts to copy, the others have an empty profile.

    Raises:
      ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f'cannot make {n} demonstrations; n must be at least 0')
    rng = random.Random(f'demonstrations {seed}')
    copying = {*rng.sample(range(n), round(_COPYING * n))}
    return [_demonstrate(rng, f'demonstration-{seed}-{i:04d}', copies=i in copying) for i in range(n)]


def _demonstrate(rng: random.Random, id: str, *, copies: bool) -> Demonstration:
    telling = [_telling(rng, topic) for topic in rng.sample(TOPICS, 4)]
    person = Person(id, tuple(line.fact for line in telling))
    lines = [_Line(person.opening, _GREETINGS), *(_told_lines(rng, telling) if copies else _untold_lines(rng))]
    turns: list[Turn] = []
    profile, replies = '', _replies(rng, lines)
    for i, (line, reply) in enumerate(zip(lines, replies, strict=True)):
        turns += [Turn('user', line.text)]
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
    text = rng.choice(_TELLING[topic] + _TELLING_ANY).format(topic=topic, value=value)
    return _Line(text, tuple(reaction.format(value=value) for reaction in _REACTIONS), f'{topic}: {value}')


def _replies(rng: random.Random, lines: Sequence[_Line]) -> list[str]:
    """A reply to every line: a reaction in its words and mostly a question about a topic that nobody has told."""
    topics_told = {line.fact.split(':')[0] for line in lines}
    topics = rng.sample([topic for topic in TOPICS if topic not in topics_told], len(lines))
    questions = rng.sample(_QUESTIONS, len(lines))
    replies = []
    for line, question, topic in zip(lines, questions, topics, strict=True):
        reaction = rng.choice(line.reactions)
        reply = f'{reaction} {question.format(topic=topic)}' if rng.random() < _ASKING else reaction
        replies.append(reply[0].upper() + reply[1:])
    return replies
