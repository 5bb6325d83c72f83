"""The scripted user: a person who gets to know the other one slowly, one fact a message.

It keeps no state.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from pal_jax.data.holdouts import normal
from pal_jax.recipes.rlpa.people import SCHEMA
from pal_jax.recipes.rlpa.profiles import mentions, split_fact
from pal_jax.run import files
from pal_jax.types import Dialogue, UserSimulator

_LINES = files.beside(__name__)
# Each sentence names its own value and no other, so that a message gives away one fact at most.
_TELLING: dict[str, list[str]] = _LINES['telling']
_FILLERS, _COMPLAINTS = _LINES['fillers'], _LINES['complaints']

_FIRST_PERSON = {'is': 'am', 'has': 'have', 'does': 'do', 'was': 'was', 'goes': 'go'}
_SUBJECT = re.compile(r"^(?:he|she)('s)?\b(?:\s+((?:also|often|always|currently|really|recently|\w+ly)\b))?\s*", re.I)
_OWN = {'his': 'my', 'her': 'my', 'himself': 'myself', 'herself': 'myself'}


def make_scripted_user(*, p_spontaneous: float = 0.3) -> UserSimulator:
    """A user who greets, then tells at most one new fact a message (IV.2 of the specification of the toy world).

    It tells a fact whose topic the last reply names; else any fact with probability `p_spontaneous`; else it fills the
    silence.

    Raises:
      ValueError: `p_spontaneous` is not in [0, 1].
    """
    if not 0 <= p_spontaneous <= 1:
        raise ValueError(f'p_spontaneous={p_spontaneous} is not a probability; use a number from 0 to 1')

    def answer(dialogues: Sequence[Dialogue], seed: int) -> list[str]:
        return [_answer(dialogue, seed, p_spontaneous) for dialogue in dialogues]

    return answer


class CountingUser:
    """A user simulator with counts of the answers it was asked for and of those it could not give."""

    def __init__(self, user: UserSimulator):
        self._user, self.asked, self.silent = user, 0, 0

    def __call__(self, dialogues: Sequence[Dialogue], seed: int) -> Sequence[str | None]:
        lines = self._user(dialogues, seed)
        self.count(lines)
        return lines

    def count(self, answers: Sequence[Any]) -> None:
        """Count answers, of which those that are None could not be given."""
        self.asked += len(answers)
        self.silent += sum(answer is None for answer in answers)


def revealed(dialogue: Dialogue) -> frozenset[str]:
    """The facts that the person has told: those whose value (or sentence) stands in a user turn."""
    lines = '\n'.join(turn.content for turn in dialogue.turns if turn.role == 'user')
    return frozenset(fact for fact in dialogue.person.facts if mentions(lines, _telling_words(fact)))


def raises_topic(reply: str, fact: str) -> bool:
    """True where `reply` names the slot of `fact`, or a keyword of it, or a longer word of a free sentence."""
    slot, sentence = split_fact(fact)
    known = (slot_of.keywords for slot_of in SCHEMA if slot_of.name == normal(slot))
    keywords = next(known, (slot,)) if slot else re.findall(r'\w{5,}', sentence)
    return any(mentions(reply, keyword) for keyword in keywords)


def tell(fact: str, rng: random.Random) -> str:
    """A message that tells a fact, and no other one."""
    slot, _ = split_fact(fact)
    phrasings: list[str] = _TELLING.get(slot) or _LINES['telling_slot' if slot else 'telling_sentence']
    return rng.choice(phrasings).format(slot=slot, value=_telling_words(fact))


def _answer(dialogue: Dialogue, seed: int, p_spontaneous: float) -> str:
    if not dialogue.turns:
        return dialogue.person.opening
    *earlier, last = dialogue.turns
    if last.role != 'assistant':
        raise ValueError(
            f'the user answers a reply, but the dialogue of {dialogue.person.id!r} ends with {last.role!r}'
        )
    # The line depends on the dialogue and the seed alone, so dialogues may be batched, split and replayed in any way.
    rng = random.Random('\n'.join((str(seed), dialogue.person.id, *(turn.content for turn in dialogue.turns))))
    # The user complains about a reply that was heard before.
    if any(turn.role == 'assistant' and _same(turn.content, last.content) for turn in earlier):
        return rng.choice(_COMPLAINTS)
    # The facts that were told are read off the user's own lines of the dialogue.
    known = revealed(dialogue)
    hidden = [fact for fact in dialogue.person.facts if fact not in known]
    raised = [fact for fact in hidden if raises_topic(last.content, fact)]
    if hidden and (raised or rng.random() < p_spontaneous):
        return tell(rng.choice(raised or hidden), rng)
    return rng.choice([line for line in _FILLERS if all(line != turn.content for turn in earlier)] or _FILLERS)


def _same(reply: str, other: str) -> bool:
    return re.findall(r'\w+', normal(reply)) == re.findall(r'\w+', normal(other))


def _telling_words(fact: str) -> str:
    """The words that give a fact away: its value, or a sentence of the person's own without its full stop."""
    slot, value = split_fact(fact)
    return value if slot else _first_person(value).rstrip('.!?')


def _first_person(sentence: str) -> str:
    """`She often knits with her sister` -> `I often knit with my sister`; other sentences are left as they are."""
    subject = _SUBJECT.match(sentence)
    if subject is None:
        return sentence
    contraction, adverb = subject.groups()
    first, *rest = sentence[subject.end() :].split(' ')
    verb = f'am {first}' if contraction else _FIRST_PERSON.get(first) or _plain_verb(first)
    return ' '.join(word for word in ('I', adverb, verb, *(_OWN.get(word, word) for word in rest)) if word)


def _plain_verb(verb: str) -> str:
    # `carries` becomes `carry`.
    if verb.endswith('ies'):
        return f'{verb[:-3]}y'
    # `watches` becomes `watch`.
    if re.search(r'(?:sh|ch|ss|x|o)es$', verb):
        return verb[:-2]
    # `knits` becomes `knit`; a verb that ends with ss stays.
    return verb[:-1] if re.search(r'[^s]s$', verb) else verb
