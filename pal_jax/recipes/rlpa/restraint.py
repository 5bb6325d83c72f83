"""Scripted dialogues with made-up people, which measure whether a policy uses what it knows with restraint.

A script has all messages of a person, whatever the policy replies, so the truth at each message is known. After two
facts the person asks a question to which no fact of anybody bears. A reply that names a fact all the same is personal
without a reason: the type "irrelevance" of over-personalization of OP-Bench (arXiv 2601.13722), counted by the words of
the facts and not by a judge.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import holdouts
from pal_jax.recipes.rlpa.people import content
from pal_jax.recipes.rlpa.personalization import Respond, Talk, describe_dialogue, hold_dialogues
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, mentions, split_fact
from pal_jax.recipes.rlpa.users import tell
from pal_jax.run import files, intervals
from pal_jax.run.intervals import Estimate
from pal_jax.types import Dialogue, Person

_TEXTS = files.beside(__name__)
QUESTIONS: list[str] = _TEXTS['questions']


class Script(NamedTuple):
    """All messages of a person, `lines`, and the facts among them in the order in which they are told."""

    person: Person
    lines: tuple[str, ...]
    told: tuple[str, ...]


Scripted = tuple[Script, Talk]  # a script and the policy's replies to its messages


def make_scripts(people: Sequence[Person]) -> list[Script]:
    """A script of restraint for each person of two facts or more; its last message is the question."""
    scripts = []
    for number, person in enumerate(people):
        rng = random.Random(f'scripts {person.id}')
        told = tuple(rng.sample(person.facts, 2))
        lines = (person.opening, *(tell(fact, rng) for fact in told), QUESTIONS[number % len(QUESTIONS)])
        scripts.append(Script(dataclasses.replace(person, id=f'restraint-{person.id}'), lines, told))
    return scripts


def evaluate(
    respond: Respond, scripts: Sequence[Script]
) -> tuple[dict[str, Any], dict[str, Any], list[Mapping[str, Any]]]:
    """Figures, their 95 % intervals over people, and the dialogues of the scripts."""
    talks = hold_scripts(respond, scripts)
    replies = [sample.parsed for talk in talks for sample in talk]
    figures = irrelevant_uses(list(zip(scripts, talks, strict=True)))
    record = {'scripts': len(scripts), 'scripts_format': float(np.mean([parsed is not None for parsed in replies]))}
    return (
        record | {name: _known(figure.value) for name, figure in figures.items()},
        {name: figure.interval for name, figure in figures.items()},
        list(map(describe_dialogue, talks)),
    )


def hold_scripts(respond: Respond, scripts: Sequence[Script]) -> list[Talk]:
    """The dialogues of scripts, all of them in step; a malformed reply ends its dialogue."""
    lines = {script.person.id: script.lines for script in scripts}

    def user(dialogues: Sequence[Dialogue], seed: int) -> list[str | None]:
        return [next(iter(lines[dialogue.person.id][dialogue.round :]), None) for dialogue in dialogues]

    people, rounds = [script.person for script in scripts], max(map(len, lines.values()))
    return hold_dialogues(respond, user, people, rounds=rounds)


def irrelevant_uses(scripted: Sequence[Scripted]) -> dict[str, Estimate]:
    """The share of replies to the question that name a told fact.

    As a control the same replies are searched for the facts that another person has told and this one has not.
    """
    replies = [reply_to(talk, len(script.lines) - 1) for script, talk in scripted]
    others = holdouts.strangers([content(script.person) for script, _ in scripted]) or []
    strange = [
        [fact for fact in scripted[other][0].told if fact not in scripted[i][0].person.facts]
        for i, other in enumerate(others)
    ]
    return {
        'irrelevant_use': share(
            reply and names(reply, script.told) for reply, (script, _) in zip(replies, scripted, strict=True)
        ),
        'irrelevant_chance': share(
            reply and names(reply, facts) for reply, facts in zip(replies, strange, strict=False)
        ),
    }


def reply_to(talk: Talk, message: int) -> ParsedCompletion | None:
    """The well-formed reply to a message, by its number from 0; None where the dialogue had none."""
    return talk[message].parsed if message < len(talk) else None


def names(parsed: ParsedCompletion, facts: Iterable[str]) -> bool:
    """True where a reply names the value of one of the facts."""
    return any(mentions(parsed.reply, split_fact(fact)[1]) for fact in facts)


def share(hits: Iterable[bool | None]) -> Estimate:
    """The share of hits, one a person; a person of None, who got no reply, does not count."""
    return intervals.share(np.array([hit for hit in hits if hit is not None], float))


def _known(value: float) -> float | None:
    # Where nobody got a reply, there is no share.
    return None if math.isnan(value) else value
