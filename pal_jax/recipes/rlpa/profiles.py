"""Profiles: the policy's notes about its user, their reading, and their comparison with the truth.

A completion holds two blocks (RLPA section 3; the layout is that of the published code):

    <profile>
    - pet: ferret
    </profile>

    <response>
    A ferret! Who looks after it when you travel?</response>

A fact is one line, either `slot: value` or a free sentence.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pal_jax.data.holdouts import normal
from pal_jax.data.thoughts import spoken_reply
from pal_jax.types import Completion, Dialogue, Sample

_BLOCKS = re.compile(r'<profile>\n(.*?)</profile>\n\n<response>\n(.*?)</response>', re.DOTALL)
_TAG = re.compile(r'</?(?:profile|response)>')
_BULLET = re.compile(r'^(?:[-*•]+\s*|\d{1,2}[.)]\s+)')
_ARTICLE = re.compile(r'^(?:an?|the)\s+')
_SLOT_WORDS = 3


class ParsedCompletion(NamedTuple):
    """A well-formed completion: `profile` as it was written, the `facts` in it, and the bare `reply`."""

    profile: str
    facts: tuple[str, ...]
    reply: str


class ProfileScores(NamedTuple):
    """Agreement of an inferred with a golden profile; all but the count `matched` lie in [0, 1]."""

    matched: int
    precision: float
    recall: float
    f1: float


def parse_completion(text: str) -> ParsedCompletion | None:
    """The first pair of blocks in a completion, without its thoughts; None if there is none, for which the reward is
    0."""
    # A draft in a reasoning model's thought is no answer, and a thought that does not end has none.
    match = _BLOCKS.search(spoken_reply(text) or '')
    # With a tag in it a reply could carry a profile block into the history, where the user and the judges would see it.
    # A block that holds a tag of the format is malformed. In this point the reading is stricter than the published
    # code.
    if match is None or any(_TAG.search(block) for block in match.groups()):
        return None
    profile, reply = match.groups()
    return ParsedCompletion(profile, parse_facts(profile), reply.strip())


def to_sample(dialogue: Dialogue, completion: Completion, prompt_ids: tuple[int, ...] = (), group: int = 0) -> Sample:
    """A completion as an answer to a dialogue; its text is parsed here and nowhere else."""
    return Sample(prompt_ids, completion, group, source=dialogue, parsed=parse_completion(completion.text))


def render_completion(profile: str, reply: str) -> str:
    """The two blocks of a completion; the inverse of `parse_completion`.

    A non-empty `profile` ends its last line with a newline.
    """
    return f'<profile>\n{profile}</profile>\n\n<response>\n{reply}</response>'


def render_facts(facts: Iterable[str]) -> str:
    """Facts as the lines of a profile block: `- fact`, each with its newline."""
    return ''.join(f'- {fact}\n' for fact in facts)


def parse_facts(profile: str) -> tuple[str, ...]:
    """The facts of a profile text, one a line, without bullets, repeats, and lines that state nothing.

    In a JSON object of topics each value is a fact, and each element of a list.
    """
    facts, slots = {}, _json_object(profile)
    for line in profile.splitlines() if slots is None else slot_facts(slots):
        fact = _BULLET.sub('', line.strip()).strip()
        # Brackets and headings such as `Interests:` state nothing; counting them would punish layout.
        if re.search(r'\w', fact) and not fact.endswith(':'):
            facts.setdefault(fact_key(fact), fact)
    return tuple(facts.values())


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith('{'):
        return None
    try:
        content = json.loads(text)
    # JSON that is nested too deeply raises RecursionError.
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def slot_facts(slots: Mapping[str, Any]) -> list[str]:
    """The fact `slot: value` for each value of a slot, or for each element of its list; blank and nested values state
    nothing."""
    pairs = ((slot, value) for slot, held in slots.items() for value in (held if isinstance(held, list) else [held]))
    stated = ((slot, value) for slot, value in pairs if type(value) in (str, int, float))
    return [' '.join(f'{slot}: {value}'.split()) for slot, value in stated if str(value).strip()]


def split_fact(fact: str) -> tuple[str, str]:
    """The slot and the value of a fact: `('pet', 'ferret')` for `pet: ferret`, and `('', fact)` for a free sentence.

    A slot has at most three words.
    """
    slot, colon, value = fact.partition(':')
    # A colon after more words belongs to a sentence.
    if colon and slot.strip() and value.strip() and len(slot.split()) <= _SLOT_WORDS:
        return slot.strip(), value.strip()
    return '', fact.strip()


def fact_key(fact: str) -> tuple[str, str]:
    """A key that is the same for two spellings of one fact: in `holdouts.normal` form, without bullet, article or end
    punctuation."""
    slot, value = split_fact(_BULLET.sub('', normal(fact)))
    return _bare(slot), _bare(value)


def _bare(text: str) -> str:
    return _ARTICLE.sub('', text.strip(' .,;:!?"\'()[]'))


def match_exactly(inferred: Sequence[Sequence[str]], golden: Sequence[Sequence[str]]) -> list[int | None]:
    """The exact `ProfileMatcher`: the size of the intersection of two sets of facts, hence one-to-one by
    construction."""
    return [len({*map(fact_key, ours)} & {*map(fact_key, true)}) for ours, true in zip(inferred, golden, strict=True)]


def profile_scores(matched: int, inferred: int, golden: int) -> ProfileScores:
    """Precision c/n_hat, recall c/n and F1 = 2c/(n_hat + n), with c clamped to [0, min(n_hat, n)]."""
    # The clamp keeps a matcher that over-counts from paying more than 1 (the published code does not have it).
    c = max(0, min(matched, inferred, golden))
    if c == 0:
        return ProfileScores(0, 0.0, 0.0, 0.0)
    return ProfileScores(c, c / inferred, c / golden, 2 * c / (inferred + golden))


def profile_f1(matched: int, inferred: int, golden: int) -> float:
    """The profile reward R_p of RLPA: F1 of `matched` facts out of `inferred` and `golden` ones, in [0, 1]."""
    return profile_scores(matched, inferred, golden).f1


def mentions(text: str, phrase: str) -> bool:
    """True where `text` has `phrase` as whole words in any spelling (`holdouts.normal`); a plural `s` at its end is
    ignored."""
    return re.search(rf'(?<!\w){re.escape(normal(phrase))}s?(?!\w)', normal(text)) is not None


def plain_history(dialogue: Dialogue) -> Dialogue:
    """The dialogue as users and judges may see it: bare replies, without the profiles written beside them."""
    return dataclasses.replace(dialogue, turns=tuple(dataclasses.replace(turn, profile='') for turn in dialogue.turns))
