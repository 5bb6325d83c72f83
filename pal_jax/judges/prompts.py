"""The prompts of language models that play users and judges (roles and contents: RLPA, appendix; the words are
ours)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pal_jax.data import thoughts
from pal_jax.types import Chat, Dialogue

CRITERIA = {
    'naturalness': 'short, fluent and colloquial, as a person writes; no lists, no stage directions, no talk of AI',
    'relevance': 'about what you care for, or about what you just said',
    'logic': 'answers what you said and contradicts nothing said before',
    'engagement': 'makes you want to write back',
    'informativeness': 'brings something new: no echo of your words, no flattery',
}
LISTS = ('Interests', 'Personality Traits', 'Others')  # slots that hold several values
SLOTS = (
    'Age', 'Gender', 'Interests', 'Educational Background', 'Personality Traits', 'Occupation', 'Marital Status',
    'Family Background', 'Location', 'Others',
)  # fmt: skip
_LONGEST = 2000  # characters of a quoted text

_SIMULATOR = """You are a real person. On a social network you have just added someone you do not know, and you chat.
This is who you are; the other does not know it:
{facts}

How you talk:
- The first message gives nothing personal away. Later you tell about yourself bit by bit, only where the talk touches
  it: at most one of the points above in a message, and not in every message.
- You begin cool and brief and warm up if the other is pleasant. You say bluntly what you dislike, you notice when
  something is repeated, you do not go on about what bores you, and flattery puts you off.
- At most three sentences, in your own words. No new topics of your own, no descriptions of gestures, no talk of AI.
Early: "Hi. Not much, just got home." When your job comes up: "I bake, actually. Up at four every day." Late, about your
dog: "She is eleven and sleeps all day, but she still waits at the door for me."

The chat so far:
{history}

Write your next message and nothing else."""

_MATCHER = """Two lists of points about one person. Count how many points of list B are stated by list A. What counts is
the meaning, not the wording. Each point of A covers at most one point of B, and a point of B is counted once.

A:
{inferred}

B:
{golden}

Go through B point by point, then end with the number in a box: \\boxed{{number}}"""

_JUDGE = """You are the person described here, in a chat with someone you do not know well.
Who you are{known}:
{facts}

The chat so far:
{history}

The other now writes: {reply}

Judge this reply as that person, strictly, 1 for yes and 0 for no, in this order:
{criteria}
Reason in a sentence each. Then end with the five numbers in a box: \\boxed{{1 0 1 1 0}}

Example: you said that you are tired after a shift in the bakery. "Up since four? What do you bake first?" gets
\\boxed{{1 1 1 1 1}}; "As an assistant I understand that you are tired. You are amazing!" gets \\boxed{{0 1 1 0 0}}."""


_SLOTTER = """A description of a person:
{text}

Bring it into this JSON object, with exactly these ten slots; {lists} hold lists of short texts, the others
one short text:
{example}

Put each thing that is said into one slot. Fill every slot: where the description is silent, make up what fits the rest
of it, and never write that something is unknown. Write the JSON object and nothing else."""

_PERSON = {
    'Age': '34', 'Gender': 'female', 'Interests': ['plays the cello', 'sea swimming'],
    'Educational Background': 'a degree in biology', 'Personality Traits': ['dry sense of humour'],
    'Occupation': 'marine biologist', 'Marital Status': 'single', 'Family Background': 'the youngest of three sisters',
    'Location': 'Porto', 'Others': ['has an old van'],
}  # fmt: skip


def slot(text: str) -> Chat:
    """The prompt of the model that brings a description of a person into slots."""
    example, lists = json.dumps(_PERSON, indent=1), ', '.join(LISTS)
    return _ask(_SLOTTER.format(text=quoted(text), example=example, lists=lists))


def simulate(dialogue: Dialogue) -> Chat:
    """The prompt of the model that plays the person of a dialogue and writes the next message."""
    return _ask(_SIMULATOR.format(facts=points(dialogue.person.facts), history=history(dialogue)))


def match(inferred: Sequence[str], golden: Sequence[str]) -> Chat:
    """The prompt of the model that counts the golden facts that an inferred profile states."""
    return _ask(_MATCHER.format(inferred=points(inferred), golden=points(golden)))


def judge(dialogue: Dialogue, facts: Sequence[str], reply: str, *, golden: bool) -> Chat:
    """The prompt of the model that judges a reply as its reader: by the inferred profile in training, by the `golden`
    one in evaluations."""
    known = '' if golden else ', as far as the other has understood it'
    criteria = '\n'.join(f'{i}. {name}: {text}' for i, (name, text) in enumerate(CRITERIA.items(), 1))
    return _ask(
        _JUDGE.format(
            known=known, facts=points(facts), history=history(dialogue), reply=quoted(reply), criteria=criteria
        )
    )


def history(dialogue: Dialogue) -> str:
    """The turns as their reader, the person, has seen them."""
    names = {'user': 'you', 'assistant': 'the other', 'system': 'what the other was told'}
    return '\n'.join(f'{names[turn.role]}: {quoted(turn.content)}' for turn in dialogue.turns) or '(nothing yet)'


def points(facts: Sequence[str]) -> str:
    """The facts as a list of quoted lines."""
    return '\n'.join(f'- {quoted(fact)}' for fact in facts) or '(none)'


def quoted(text: str, longest: int = _LONGEST) -> str:
    """A foreign text, or its first `longest` characters, on one line between quotation marks, without tags, boxes,
    marks of thoughts and quotation marks of its own."""
    # Texts of people and policies are data for their reader: they stand between quotation marks, on one line, without
    # anything by which an answer is recognised.
    text = thoughts.unmarked(text)
    text = re.sub(r'\\+\s*boxed', 'boxed', text).translate(str.maketrans('<>"', "‹›'"))
    text = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
    return f'"{text[:longest]}"'


def _ask(text: str) -> Chat:
    return [{'role': 'user', 'content': text}]
