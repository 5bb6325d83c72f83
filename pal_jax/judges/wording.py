"""Rules that find texts without content, whatever their words: repetitions, lists of words, copies. They need no
model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from pal_jax.data.holdouts import normal

GRAMMAR = frozenset(  # words that make sentences of other words
    """
    a about after all am an and any are as at be because been before being both but by can could did do does doing done
    down for from get gets got had has have he her here him his how i if in into is it its just like let may me might
    more most much must my no nor not of off on once one only or our out over own she should since so some such than
    that the their them then there these they this those though through to too under until up us very was we were what
    when where which while who whom whose why will with without would yet you your yours
    """.split()
)
# A sentence has one word of `GRAMMAR` for every so many words, at least.
_EVERY = 16
# A sentence of fewer words needs no word of `GRAMMAR`.
_LONG = 5
# The least share of different triples among the triples of neighbouring words.
_NEW = 0.75
# From this share on an answer that repeats a run of the question's words is a copy.
_COPIED = 0.8
# Above this share of words in lists an answer is a list.
_LISTED = 0.5
_PERSONS = {
    'me': 'i', 'you': 'i', 'your': 'my', 'yours': 'mine', 'yourself': 'myself', 'are': 'am', "you're": "i'm",
    "you've": "i've", "you'd": "i'd", "you'll": "i'll", 'were': 'was',
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; words with an apostrophe or a hyphen are whole."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", normal(text))


def filled(pattern: str, parts: Mapping[str, str]) -> str:
    """A regular expression with its parts in the place of their names, which stand in braces, such as `{place}`."""
    return re.sub(r'\{([a-z]+)\}', lambda name: parts[name[1]], pattern)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text with their end marks."""
    return [sentence.strip() for sentence in re.findall(r'[^.!?]+[.!?]*', text) if sentence.strip()]


def list_share(text: str) -> float:
    """The share of a text's words that stand in sentences without joining words; 1 where the whole text has none."""
    words = words_of(text)
    if _is_bare(words):
        return 1.0
    bare = (sentence for sentence in map(words_of, sentences_of(text)) if _is_bare(sentence))
    return sum(map(len, bare)) / max(1, len(words))


def _is_bare(words: Sequence[str]) -> bool:
    # A word with an apostrophe, such as `don't`, joins others, too.
    joining = sum(word in GRAMMAR or bool(re.search("['’]", word)) for word in words)
    return len(words) >= _LONG and joining < max(1, len(words) // _EVERY)


def is_repetition(text: str) -> bool:
    """True where a word stands three times in a row, or a text goes round and round."""
    words = words_of(text)
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return any(a == b == c for a, b, c in threes) or (len(threes) > _LONG and len(set(threes)) < _NEW * len(threes))


def is_copy(text: str, earlier: Sequence[str], share: float) -> bool:
    """True where a run of `share` of the text's words, and at least three, stands in one of the `earlier` texts."""
    # `I` and `you` count as the same, so that an echo turned round is a copy.
    new = _turned(text)
    longest = max((_shared_run(new, _turned(old)) for old in earlier), default=0)
    return longest >= max(3, share * len(new))


def is_answer(question: str, text: str) -> bool:
    """True where a text can be compared with others at all: it has words, and is no list, repetition or copy of the
    question."""
    words = words_of(text)
    # An answer of three words or more has to bring a word that the question lacks.
    adds = len(words) < 3 or bool({*words} - {*words_of(question)})
    spoilt = list_share(text) > _LISTED or is_repetition(text) or is_copy(text, [question], _COPIED)
    return bool(words) and adds and not spoilt


def _turned(text: str) -> list[str]:
    return [_PERSONS.get(word, word) for word in words_of(text.replace('’', "'"))]


def _shared_run(new: Sequence[str], old: Sequence[str]) -> int:
    """The length of the longest run of words that stands in both."""
    return SequenceMatcher(None, new, old, autojunk=False).find_longest_match().size
