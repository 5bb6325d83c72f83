"""Made-up people who want one attribute of a reply, from replies with ratings by several attributes (UltraFeedback-P of
PLUS, arXiv 2507.13579, section 5).

JSON lines: {"prompt": "...", "replies": [{"text": "...", "ratings": {"helpfulness": 4, "honesty": 2}}, ...]}

A person prefers the reply that is rated higher on their attribute. Only pairs of replies about which people disagree
are kept. The context of a person has choices from one survey that no other attribute would explain.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.data.histories import History, context_of, repeated
from pal_jax.data.holdouts import normal
from pal_jax.types import Choice

SURVEY, DRAWS = 100, 1000  # pairs (or a few more) that contexts are made of; contexts that are tried


class RatedPair(NamedTuple):
    """Two replies to a prompt. `first` has the attributes on which the first reply is rated higher."""

    prompt: str
    texts: tuple[str, str]
    first: frozenset[str]

    def choice(self, attribute: str) -> Choice:
        """The choice of a person who wants this attribute."""
        chosen, rejected = self.texts if attribute in self.first else self.texts[::-1]
        return Choice(self.prompt, chosen, rejected)


def read(path: str, attributes: Sequence[str] = (), *, max_words: int) -> tuple[list[RatedPair], tuple[str, ...]]:
    """The pairs about which people disagree, and the attributes that people want.

    Replies have at most `max_words` words. The attributes are by default those of the first reply.

    Raises:
      ValueError: a line is wrong, or there are fewer than two attributes.
    """
    pairs: list[RatedPair] = []
    kinds = tuple(attributes)
    for place, record in records.rows(str(path)):
        prompt, rated = _checked(place, record)
        kinds = kinds or tuple(rated[0][1])
        if len(set(kinds)) < max(len(kinds), 2):
            raise ValueError(f'{place}: people want {", ".join(kinds) or "nothing"}; give two attributes or more')
        for text, ratings in rated:
            if missing := [name for name in kinds if not _is_number(ratings.get(name))]:
                raise ValueError(f'{place}: {text[:40]!r} has no finite number for {missing[0]}')
        short = [(text, ratings) for text, ratings in rated if len(text.split()) <= max_words]
        pairs += _disagreements(prompt, short, kinds)
    return pairs, kinds


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _checked(place: str, record: Mapping[str, Any]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The prompt of a record, and its replies with their ratings. Raises ValueError where the record is wrong."""
    prompt, replies = record.get('prompt'), record.get('replies')
    if not isinstance(prompt, str) or not isinstance(replies, list) or len(replies) < 2:
        raise ValueError(f'{place}: expected a prompt and two replies or more')
    for reply in replies:
        well_formed = (
            isinstance(reply, dict) and isinstance(reply.get('text'), str) and isinstance(reply.get('ratings'), dict)
        )
        if not well_formed or not reply['text'].strip():
            raise ValueError(f'{place}: a reply is {str(reply)[:40]!r}; give an object with text and ratings')
    return prompt.strip(), [(reply['text'].strip(), reply['ratings']) for reply in replies]


def _disagreements(
    prompt: str, rated: Sequence[tuple[str, Mapping[str, Any]]], kinds: Sequence[str]
) -> Iterator[RatedPair]:
    """The pairs of replies to a prompt about which people who want different attributes disagree."""
    for (first_text, first_ratings), (second_text, second_ratings) in itertools.combinations(rated, 2):
        # A tie is broken at random, the same way for everybody.
        tie = random.Random(f'{prompt} {first_text} {second_text}').random() < 0.5
        first = frozenset(
            name
            for name in kinds
            if first_ratings[name] > second_ratings[name] or (first_ratings[name] == second_ratings[name] and tie)
        )
        if first_text != second_text and 0 < len(first) < len(kinds):
            yield RatedPair(prompt, (first_text, second_text), first)


def make_attribute_people(
    path: str, attributes: Sequence[str], people: int, tested: int, *, in_context: int, held: int, max_words: int,
    form: str, seed: int, taught: int = 1,
) -> tuple[list[History], list[History]]:  # fmt: skip
    """The people to learn from, and the people to test on, whose held-out choices are of a tenth of the prompts.

    Args:
      people, tested: numbers of people to learn from and to test on.
      in_context, taught, held: a person's choices in the context, for the reward model, and held out.
      form: the form of the context, one of `histories.FORMS`.

    Raises:
      ValueError: as `read`, or there are too few pairs.
    """
    pairs, kinds = read(path, attributes, max_words=max_words)
    by_prompt: dict[str, list[RatedPair]] = {}
    for pair in pairs:
        by_prompt.setdefault(normal(pair.prompt), []).append(pair)
    groups = list(by_prompt.values())
    random.Random(0).shuffle(groups)
    # The held-out choices of people to test on are of prompts that nothing was learnt from: a tenth of them.
    new = -(-len(groups) // 10)
    survey_end = new + np.searchsorted(np.cumsum([len(group) for group in groups[new:]]), SURVEY) + 1
    # Of few prompts half are for the survey, half teach.
    survey_end = min(survey_end, (new + len(groups)) // 2)
    later, survey, teaching = (
        list(itertools.chain(*part)) for part in (groups[:new], groups[new:survey_end], groups[survey_end:])
    )
    if len(survey) < in_context or len(teaching) < 1 + taught + held or len(later) < held:
        raise ValueError(
            f'{path} has {len(pairs)} pairs of replies of at most {max_words} words about which people who want '
            f'{", ".join(kinds)} disagree, to {len(groups)} prompts; give more, or raise history.max_words'
        )

    def person(split: str, number: int, seed: int, judged: Sequence[RatedPair]) -> History:
        # People want the attributes in turn, so each attribute has as many people.
        rng, kind = random.Random(f'{split} {number} {seed}'), kinds[number % len(kinds)]
        # Choices are drawn until the context tells the attribute and no text stands there twice.
        for _ in range(DRAWS):
            past, (reward, *train) = rng.sample(survey, in_context), rng.sample(teaching, 1 + taught)
            history = History(
                user=f'{split} {number}',
                context=context_of([pair.choice(kind) for pair in past], rng, form, kind, asked=True),
                reward=reward.choice(kind),
                train=tuple(pair.choice(kind) for pair in train),
                held=tuple(pair.choice(kind) for pair in rng.sample(judged, held)),
                kind=kind,
                past=tuple(pair.choice(kind) for pair in past),
            )
            learnt = [text for pair in (reward, *train) for text in pair.texts]
            if identified(kind, past, kinds) and not repeated(history) and len(set(learnt)) == len(learnt):
                return history
        raise ValueError(
            f'{path}: {in_context} choices of {len(survey)} never tell who wants {kind}; raise history.told'
        )

    return (
        [person('train', number, seed, teaching) for number in range(people)],
        # The people to test on have the seed 0, so they are the same for every seed of a run.
        [person('test', number, 0, later) for number in range(tested)],
    )


def identified(kind: str, past: Sequence[RatedPair], kinds: Sequence[str]) -> bool:
    """True where a person who wants any other attribute would have made another choice in one of these pairs."""
    return all(any((kind in p.first) != (name in p.first) for p in past) for name in kinds if name != kind)
