"""Scripted dialogues with made-up people, which measure how a policy handles what it knows about a person.

A script has all messages of a person, whatever the policy replies, so the truth at each message is known. Facts are
found in a reply by their words, and not by a judge. There are three kinds of scripts:

- restraint: after two facts the person asks a question to which no fact of anybody bears. A reply that names a fact all
  the same is personal without a reason, the type "irrelevance" of over-personalization in OP-Bench (arXiv 2601.13722);
- change: a fact changes, and the person says so without naming the old value. A reply that names the old value later
  is stale. That the policy has to follow a profile which changes is a demand of PersonaMem (arXiv 2504.14225);
- asking: the person asks something whose answer depends on a fact that was not told. The policy should ask for the
  fact, and not where the person has told it, as it selects questions to clarify in CLAM (arXiv 2212.07769).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import holdouts
from pal_jax.recipes.rlpa.criteria import questions
from pal_jax.recipes.rlpa.people import SCHEMA, content
from pal_jax.recipes.rlpa.personalization import (
    Respond,
    Talk,
    describe_dialogue,
    hold_dialogues,
    told_facts_bound,
)
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, mentions, split_fact
from pal_jax.recipes.rlpa.users import raises_topic, tell
from pal_jax.run import files, intervals
from pal_jax.run.intervals import Estimate
from pal_jax.types import Dialogue, Person, Sample, Turn

_TEXTS = files.beside(__name__)
QUESTIONS: list[str] = _TEXTS['questions']
# A message for each topic that tells of a new value, and one whose answer depends on the value.
CHANGES: dict[str, str] = _TEXTS['changes']
ASKING: dict[str, str] = _TEXTS['asking']
# The numbers, from 0, of the message that tells of a change, and of the one whose answer depends on a fact.
CHANGED, ASKED = 2, 2
# The figures of an evaluation that have an interval.
FIGURES = (
    'irrelevant_use', 'irrelevant_chance', 'asks_unknown', 'asks_known', 'changed_profile', 'changed_bound',
    'changed_response', 'stale_use', 'stale_profile',
)  # fmt: skip


class Script(NamedTuple):
    """All messages of a person, `lines`, and the facts among them that are `told`, the first of which may change.

    The person has become `changed` at the message `CHANGED`; None: nothing changes.
    """

    person: Person
    lines: tuple[str, ...]
    told: tuple[str, ...]
    changed: Person | None = None

    def person_at(self, message: int) -> Person:
        """The person as of a message."""
        return self.changed if self.changed and message >= CHANGED else self.person


class Scripts(NamedTuple):
    """A script of each kind for each person."""

    restraint: list[Script]
    change: list[Script]
    asking: list[Script]


Scripted = tuple[Script, Talk]  # a script and the policy's replies to its messages


def make_scripts(people: Sequence[Person]) -> Scripts:
    """The scripts of people who have two facts or more, all of them with a topic of the schema."""
    scripts = Scripts([], [], [])
    for number, person in enumerate(people):
        rng = random.Random(f'scripts {person.id}')
        facts = tuple(rng.sample(person.facts, 2))
        first, second = (tell(fact, rng) for fact in facts)
        slot, _ = split_fact(facts[0])
        value = _new_value(facts[0], rng)
        question = QUESTIONS[number % len(QUESTIONS)]
        # The same question stands at the same place in two scripts, after the fact it is about and after another one.
        lines = (person.opening, first, ASKING[slot], second, question)
        scripts.restraint.append(Script(_of(person, 'restraint'), lines, facts))
        lines = (person.opening, second, ASKING[slot])
        scripts.asking.append(Script(_of(person, 'asking'), lines, facts[1:]))
        lines = (person.opening, first, CHANGES[slot].format(value=value), ASKING[slot], second)
        before = _of(person, 'change')
        after = tuple(f'{slot}: {value}' if fact == facts[0] else fact for fact in person.facts)
        scripts.change.append(Script(before, lines, facts, dataclasses.replace(before, facts=after)))
    return scripts


def _of(person: Person, kind: str) -> Person:
    """The person of a script; people of different scripts have different ids."""
    return dataclasses.replace(person, id=f'{kind}-{person.id}')


def _new_value(fact: str, rng: random.Random) -> str:
    name, value = split_fact(fact)
    values = next(slot.known for slot in SCHEMA if slot.name == name)
    return rng.choice([other for other in values if other != value])


def evaluate(respond: Respond, scripts: Scripts) -> tuple[dict[str, Any], dict[str, Any], list[Mapping[str, Any]]]:
    """Figures, their 95 % intervals over people, and the dialogues of the scripts."""
    everyone = list(itertools.chain(*scripts))
    talks = hold_scripts(respond, everyone)
    held = iter(zip(everyone, talks, strict=True))
    restraint, change, asking = (list(itertools.islice(held, len(kind))) for kind in scripts)
    figures, by_turn = irrelevant_uses(restraint) | asks_for_facts(restraint, asking), after_change(change)
    replies = [sample.parsed for talk in talks for sample in talk]
    record = {'scripts': len(talks), 'scripts_format': float(np.mean([parsed is not None for parsed in replies]))}
    ends: dict[str, Any] = {}
    for name, (whole, *turns) in by_turn.items():
        figures[name] = whole
        # A figure has no curve where nobody got a reply in one of the turns.
        known = not any(math.isnan(turn.value) for turn in turns)
        record[f'{name}_by_turn'] = [turn.value for turn in turns] if known else None
        ends[f'{name}_by_turn'] = [[turn.low for turn in turns], [turn.high for turn in turns]] if known else None
    record |= {name: None if math.isnan(figure.value) else figure.value for name, figure in figures.items()}
    return (
        record,
        ends | {name: figure.interval for name, figure in figures.items()},
        list(map(describe_dialogue, talks)),
    )


def hold_scripts(respond: Respond, scripts: Sequence[Script]) -> list[Talk]:
    """The dialogues of scripts, all of them in step; a malformed reply ends its dialogue."""
    by_id = {script.person.id: script for script in scripts}

    def user(dialogues: Sequence[Dialogue], seed: int) -> list[str | None]:
        return [next(iter(by_id[dialogue.person.id].lines[dialogue.round :]), None) for dialogue in dialogues]

    def answer(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
        # The policy that is told the profile, the matcher and the judge know the person of this message.
        now = [by_id[dialogue.person.id].person_at(dialogue.round) for dialogue in dialogues]
        pairs = zip(dialogues, now, strict=True)
        return respond([dataclasses.replace(dialogue, person=person) for dialogue, person in pairs], seed)

    people, rounds = [script.person for script in scripts], max(len(script.lines) for script in scripts)
    return hold_dialogues(answer, user, people, rounds=rounds)


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


def asks_for_facts(known: Sequence[Scripted], unknown: Sequence[Scripted]) -> dict[str, Estimate]:
    """The shares of replies that ask for a fact where the person has told it, and where not.

    The reply is that to the message `ASKED` of both scripts of a person.
    """
    facts = [script.told[0] for script, _ in known]
    replies = {
        name: zip([reply_to(talk, ASKED) for _, talk in scripted], facts, strict=True)
        for name, scripted in (('asks_known', known), ('asks_unknown', unknown))
    }
    return {name: share(reply and asks_for(reply.reply, fact) for reply, fact in row) for name, row in replies.items()}


def asks_for(reply: str, fact: str) -> bool:
    """True where a question of a reply raises the topic of a fact without naming its value."""
    value = split_fact(fact)[1]
    sentences = questions(reply)
    return any(raises_topic(sentence, fact) and not mentions(sentence, value) for sentence in sentences)


def after_change(scripted: Sequence[Scripted]) -> dict[str, list[Estimate]]:
    """Figures over all turns since a fact has changed, then those of each turn, the first of which tells of it.

    The F1 and the score of the reply are 0 where a malformed reply has ended the dialogue; the other figures are shares
    of the replies that were given. `stale_use` counts replies that name the old value and not the new one, and
    `stale_profile` profiles that have the old value.
    """
    turns = range(CHANGED, len(scripted[0][0].lines))

    def score(name: str) -> np.ndarray:
        cells = [[talk[t].info[name] if t < len(talk) else 0.0 for t in turns] for _, talk in scripted]
        judged = [[t >= len(talk) or talk[t].ok for t in turns] for _, talk in scripted]
        return np.where(judged, cells, np.nan)

    def given(hit: Callable[[ParsedCompletion, Script], bool]) -> np.ndarray:
        replies = [[(reply_to(talk, t), script) for t in turns] for script, talk in scripted]
        return np.array([[np.nan if reply is None else hit(reply, script) for reply, script in row] for row in replies])

    bounds = [[told_facts_bound(_heard(script, t)) for t in turns] for script, _ in scripted]
    return {
        'changed_profile': _since(intervals.share, score('profile')),
        'changed_bound': _since(intervals.share, np.array(bounds)),
        'changed_response': _since(intervals.share, score('response')),
        'stale_use': _since(intervals.share, given(_is_stale)),
        'stale_profile': _since(
            intervals.share, given(lambda parsed, script: any(mentions(fact, _old(script)) for fact in parsed.facts))
        ),
    }


def _since(estimate: Callable[..., Estimate], cells: np.ndarray) -> list[Estimate]:
    """A figure of cells `[people, turns]`, then that of each turn; a NaN counts nowhere."""
    people = np.broadcast_to(np.arange(len(cells))[:, None], cells.shape)
    known = np.isfinite(cells)
    return [estimate(cells[known], people[known]), *(estimate(turn[np.isfinite(turn)]) for turn in cells.T)]


def _heard(script: Script, message: int) -> Dialogue:
    """The messages of a person up to one of them."""
    return Dialogue(script.person_at(message), tuple(Turn('user', line) for line in script.lines[: message + 1]))


def _is_stale(parsed: ParsedCompletion, script: Script) -> bool:
    new = [fact for fact in script.person_at(CHANGED).facts if fact not in script.person.facts]
    return mentions(parsed.reply, _old(script)) and not names(parsed, new)


def _old(script: Script) -> str:
    return split_fact(script.told[0])[1]


def reply_to(talk: Talk, message: int) -> ParsedCompletion | None:
    """The well-formed reply to a message, by its number from 0; None where the dialogue had none."""
    return talk[message].parsed if message < len(talk) else None


def names(parsed: ParsedCompletion, facts: Iterable[str]) -> bool:
    """True where a reply names the value of one of the facts."""
    return any(mentions(parsed.reply, split_fact(fact)[1]) for fact in facts)


def share(hits: Iterable[bool | None]) -> Estimate:
    """The share of hits, one a person; a person of None, who got no reply, does not count."""
    return intervals.share(np.array([hit for hit in hits if hit is not None], float))
