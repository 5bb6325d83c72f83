"""The answers of a policy that follows every rule: data for RLPA's baselines, supervised learning and DPO.

Beside it stands a worse answer: a profile of somebody else's facts, and the reply that the judge likes least. People
are those of the training, so nothing of a held-out person is in it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple

from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.people import SLOTS
from pal_jax.recipes.rlpa.profiles import plain_history, render_completion, render_facts, split_fact
from pal_jax.recipes.rlpa.users import revealed
from pal_jax.run import files
from pal_jax.types import Dialogue, Person, Turn, UserSimulator

_CANDIDATES = 4
_TEXTS: dict[str, list[str]] = files.beside(__name__)


class OracleAnswers(NamedTuple):
    """A dialogue that ends with the user's message, a good completion and a worse one."""

    dialogue: Dialogue
    good: str
    worse: str


def make_answers(people: Sequence[Person], user: UserSimulator, *, rounds: int, seed: int) -> list[OracleAnswers]:
    """The oracle's dialogues with each person, a record a turn; the dialogues go on with its good answers.

    Raises:
      ValueError: there are fewer than two people, or no rounds.
    """
    if len(people) < 2 or rounds < 1:
        raise ValueError(f'{len(people)} people and rounds={rounds}: the oracle needs two people and a round at least')
    rng, answers = random.Random(f'oracle {seed}'), []
    dialogues = [Dialogue(person, (Turn('user', person.opening),)) for person in people]
    for turn in range(rounds):
        # The worse answer of each person has facts of the next person.
        others = [*people[1:], people[0]]
        pairs = [_answer(rng, *pair) for pair in zip(dialogues, others, strict=True)]
        answers += [answer for answer, _ in pairs]
        replied = [_with(answer.dialogue, turn) for answer, turn in pairs]
        lines = user([plain_history(dialogue) for dialogue in replied], seed + turn) if turn + 1 < rounds else []
        dialogues = [_with(d, Turn('user', line)) for d, line in zip(replied, lines, strict=False) if line is not None]
    return answers


def _answer(rng: random.Random, dialogue: Dialogue, other: Person) -> tuple[OracleAnswers, Turn]:
    facts_told = revealed(dialogue)
    # The oracle notes exactly the facts that its user has told so far.
    profile = render_facts(fact for fact in dialogue.person.facts if fact in facts_told)
    # A few replies are put together from the oracle's own sentences; the rule judge picks the best of them.
    replies = [*_TEXTS['worse'], *(_reply(rng, dialogue, sorted(facts_told)) for _ in range(_CANDIDATES))]
    # As in training, the judge sees neither the person's facts nor the profiles.
    shown = dataclasses.replace(plain_history(dialogue), person=dataclasses.replace(dialogue.person, facts=()))
    facts = [sorted(facts_told)] * len(replies)
    totals = [v.scores['graded'] for v in judge_by_rules([shown] * len(replies), facts, replies, seed=0)]
    best, worst = (replies[totals.index(end)] for end in (max(totals), min(totals)))
    wrong = render_facts(rng.sample(other.facts, min(2, len(other.facts))))
    answers = OracleAnswers(dialogue, render_completion(profile, best), render_completion(wrong, worst))
    return answers, Turn('assistant', best, profile)


def _reply(rng: random.Random, dialogue: Dialogue, known: Sequence[str]) -> str:
    """A reaction to the facts in the last message, and a question about a topic that is still open."""
    last = dataclasses.replace(dialogue, turns=dialogue.turns[-1:])
    news = [split_fact(fact)[1] for fact in sorted(revealed(last))]
    open_topics = [topic for topic in SLOTS if topic not in {split_fact(fact)[0] for fact in known}]
    question = rng.choice(_TEXTS['questions']).format(topic=rng.choice(open_topics or SLOTS))
    reaction = rng.choice(_TEXTS['reactions' if news else 'greetings'])
    reaction = reaction.format(value=rng.choice(news)) if news else reaction
    return f'{reaction[0].upper()}{reaction[1:]} {question}'


def _with(dialogue: Dialogue, turn: Turn) -> Dialogue:
    return dataclasses.replace(dialogue, turns=(*dialogue.turns, turn))
