"""The rule judge: five yes-or-no criteria on a reply, without a model (RLPA section 3.3, IV.2 of the toy world).

naturalness     short, plain, whole sentences, no lists of words; no markup, no placeholders, no talk of being a
                program nor its stock phrases; no echo, none of its own replies again, and no recital of known facts
relevance       uses something this person told, or asks about one or two topics that are still open
logic           picks up a telling word of the person's last message (a bare greeting has none), and is no echo of it
engagement      asks or invites, in other sentences than before
informativeness at least three content words that are new in this dialogue, beyond the told facts; no flattery

A policy will find any fixed text that satisfies a rule, so no text may be liked in every round. Words put together by
chance may still meet every rule: a language model has to judge whether a sentence makes sense
(`recipes/rlpa/naturalness.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from pal_jax.data.holdouts import normal
from pal_jax.judges.wording import is_copy, list_share
from pal_jax.recipes.rlpa.people import SCHEMA
from pal_jax.recipes.rlpa.profiles import mentions, split_fact
from pal_jax.run import files
from pal_jax.types import Dialogue, Verdict

CRITERIA = ('naturalness', 'relevance', 'logic', 'engagement', 'informativeness')
SCORES = (*CRITERIA, 'graded', 'strict')

_MAX_TOKENS = 60
_MIN_WORDS = 4
_NEW_WORDS = 3
_RECITED = 3  # a reply with so many values recites a profile
# From these shares on a run of words is copied from the person's lines, or from the policy's replies.
_ECHO, _AGAIN = 0.5, 0.9
# From these shares of common words on (`_overlap`) two texts are the same.
_SAME_REPLY, _SAME_SENTENCE = 0.5, 0.67

_WORDS = files.beside(__name__)
_STOP_WORDS, _SMALL_TALK_WORDS = frozenset(_WORDS['stop_words']), frozenset(_WORDS['small_talk'])
_MARKUP = re.compile(r'[<>\[\]{}*#`|_\\^~=]|https?:|^\s*(?:[-•]|\d+[.)])\s|\n', re.MULTILINE)


def judge_by_rules(
    dialogues: Sequence[Dialogue], inferred: Sequence[Sequence[str]], replies: Sequence[str], seed: int
) -> list[Verdict]:
    """The rule `ResponseJudge`: scores of 0 or 1 for the `CRITERIA`, and two totals.

    `graded` = N (R + L + G + F) / 4, `strict` = N R L G F. The judge is deterministic, so `seed` plays no part.
    """
    return [Verdict(_scores(*case)) for case in zip(dialogues, inferred, replies, strict=True)]


def questions(text: str) -> list[str]:
    """The sentences of a text that end with a question mark."""
    return [sentence for sentence in _sentences(text) if sentence.endswith('?')]


def _scores(dialogue: Dialogue, inferred: Sequence[str], reply: str) -> dict[str, float]:
    lines = [turn.content for turn in dialogue.turns if turn.role == 'user']
    earlier = [turn.content for turn in dialogue.turns if turn.role == 'assistant']
    values = _told_values(lines, inferred)
    copied = is_copy(reply, lines, _ECHO) or is_copy(reply, earlier, _AGAIN)
    met = (
        _is_natural(reply) and not copied and not _recites(reply, values),
        _is_relevant(reply, values),
        _is_logical(reply, lines),
        _is_engaging(reply, lines, earlier, values),
        _is_informative(reply, lines, earlier, values),
    )
    natural, *others = map(float, met)
    return dict(zip(CRITERIA, map(float, met), strict=True)) | {
        # An unnatural reply scores nothing, however well it meets the other criteria.
        'graded': natural * sum(others) / 4,
        'strict': float(all(met)),
    }


def _is_natural(reply: str) -> bool:
    words = _words(reply)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return (
        len(words) >= _MIN_WORDS
        and len(re.findall(r"[\w'-]+|[^\w\s]", reply)) <= _MAX_TOKENS
        and reply.rstrip()[-1] in '.!?'
        and reply.count('?') <= 2
        and reply.count('!') <= 2
        and _MARKUP.search(reply.strip()) is None
        and not any(mentions(reply, phrase) for phrase in _WORDS['program_talk'])
        # No word stands twice in a row, and no three words come again.
        and not any(word == following for word, following in itertools.pairwise(words))
        and len(set(trigrams)) == len(trigrams)
        and not list_share(reply)
    )


def _recites(reply: str, known: dict[str, str]) -> bool:
    """True where a reply lists values, told ones or those of the schema, instead of taking up one or two."""
    values = {normal(value) for value in (*known.values(), *(value for _, value in _SCHEMA_VALUES))}
    # A list of all told facts is no attention.
    return sum(mentions(reply, value) for value in values) >= _RECITED


def _is_relevant(reply: str, known_values: dict[str, str]) -> bool:
    """True where a reply uses a told value, or asks about one or two open topics, and never asks for a told one
    again."""
    topics = {slot for question in questions(reply) for slot in _topics(question)}
    used = any(_uses(reply, value) for value in known_values.values())
    # Asking for a told value again shows that nobody listened: its topic may come up only beside the value.
    known = topics & known_values.keys()
    if any(not _uses(reply, known_values[slot]) for slot in known):
        return False
    # A list of all topics is no question.
    return len(topics) <= 2 and (used or bool(topics - known))


def _is_logical(reply: str, lines: Sequence[str]) -> bool:
    """True where a reply picks up a telling word of the last message without saying that message back."""
    last = lines[-1] if lines else ''
    telling = _telling_words(last)
    # Common words of user lines do not count as picked up, and saying a line back is no answer.
    return (not telling or bool(telling & _content_words(reply))) and not _repeats(reply, [last], _word_set)


def _is_engaging(reply: str, lines: Sequence[str], earlier: Sequence[str], known: dict[str, str]) -> bool:
    def frame(text: str) -> frozenset[str]:
        """The words that are neither a topic nor a value: the same for all fillings of one template."""
        return _word_set(text) - _TOPIC_WORDS - _VALUE_WORDS - _content_words(' '.join(known.values()))

    invites = bool(questions(reply)) or any(mentions(reply, phrase) for phrase in _WORDS['invitations'])
    # Replies are compared with their values and topics taken out.
    fresh = all(_overlap(frame(reply), frame(old)) < _SAME_REPLY for old in earlier)
    return invites and fresh and not _repeats(reply, (*earlier, *lines), frame)


def _is_informative(reply: str, lines: Sequence[str], earlier: Sequence[str], known: dict[str, str]) -> bool:
    old = _content_words(' '.join((*lines[-1:], *earlier, *known.values())))
    return len(_content_words(reply) - old) >= _NEW_WORDS and not any(
        mentions(reply, word) for word in _WORDS['flattery']
    )


def _told_values(lines: Sequence[str], inferred: Sequence[str]) -> dict[str, str]:
    """Values by slot that the person's own lines confirm: schema values, and inferred facts found in the lines."""
    text = '\n'.join(lines)
    # A value without a content word confirms nothing: every line would confirm `note: is`.
    facts = [(normal(slot) or value, value) for slot, value in map(split_fact, inferred) if _content_words(value)]
    # The judge trusts no inferred fact by itself: a policy would invent the profile that suits its reply.
    # A free sentence stands under itself, and is confirmed when two of its content words were said.
    confirmed = {slot: value for slot, value in facts if _uses(text, value)}
    return confirmed | {slot: value for slot, value in _SCHEMA_VALUES if mentions(text, value)}


def _uses(text: str, value: str) -> bool:
    """True where `text` has `value`, or at least two content words of a long value."""
    words = _content_words(value)
    return mentions(text, value) or (bool(words) and len(words & _content_words(text)) >= min(2, len(words)))


def _topics(text: str) -> set[str]:
    return {slot.name for slot in SCHEMA if any(mentions(text, keyword) for keyword in slot.keywords)}


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.findall(r'[^.!?]+[.!?]*', text) if sentence.strip()]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+", normal(text))


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith('s') and not word.endswith('ss') else word


def _content_words(text: str) -> set[str]:
    """Words that carry matter: no stop words, no contractions, at least three letters, without a plural `s`."""
    words = (word for word in _words(text) if len(word) >= 3 and word not in _STOP_WORDS)
    return {_stem(word) for word in words if not re.search("['’]", word)}


def _telling_words(line: str) -> set[str]:
    """Content words of a user line that a fixed text could not hold for all lines: no topic or small-talk words."""
    return _content_words(line) - _SMALL_TALK_WORDS - _TOPIC_WORDS


def _word_set(text: str) -> frozenset[str]:
    return frozenset(map(_stem, _words(text)))


def _repeats(reply: str, earlier: Sequence[str], reduce: Callable[[str], frozenset[str]]) -> bool:
    """True where a sentence of `reply` is nearly one of `earlier`, both reduced to sets of at least three words."""
    new = [reduce(sentence) for sentence in _sentences(reply)]
    old = [reduce(sentence) for text in earlier for sentence in _sentences(text)]
    return any(len(a) >= 3 and _overlap(a, b) >= _SAME_SENTENCE for a in new for b in old)


def _overlap(frame: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard index: shared words over all words, in [0, 1]."""
    return len(frame & other) / max(1, len(frame | other))


_SCHEMA_VALUES = [(slot.name, value) for slot in SCHEMA for value in (*slot.known, *slot.unseen)]
_TOPIC_WORDS = _content_words(' '.join(keyword for slot in SCHEMA for keyword in slot.keywords))
_VALUE_WORDS = _content_words(' '.join(value for _, value in _SCHEMA_VALUES))
