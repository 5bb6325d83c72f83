"""People who want one attribute of a reply: who prefers what, and who can be told apart."""

from __future__ import annotations

import json
import re

import pytest

from pal_jax.data.histories import check_disjoint
from pal_jax.recipes.plus import attributes

SETTINGS = {'in_context': 3, 'held': 2, 'max_words': 400, 'form': 'labelled', 'seed': 0}


def write(path, prompts, names=('clear', 'short', 'kind'), replies=3):
    """Every reply to a prompt is best by another attribute."""
    lines = [
        {
            'prompt': f'Question {i}?',
            'replies': [
                {'text': f'Answer {i} {j}.', 'ratings': {name: float(j == k) for k, name in enumerate(names)}}
                for j in range(replies)
            ],
        }
        for i in range(prompts)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return str(path)


def test_who_wants_what_prefers_what_is_rated_higher(tmp_path):
    pairs, wanted = attributes.read(write(tmp_path / 'a.jsonl', 1), max_words=10)
    assert wanted == ('clear', 'short', 'kind')
    first = next(pair for pair in pairs if pair.texts == ('Answer 0 0.', 'Answer 0 1.'))
    assert first.choice('clear').chosen == 'Answer 0 0.' and first.choice('short').chosen == 'Answer 0 1.'
    assert {first.choice('kind').chosen} < set(first.texts)  # a tie
    assert attributes.read(write(tmp_path / 'a.jsonl', 1), max_words=2)[0] == []


def test_people_agree_about_what_is_left_out(tmp_path):
    path = tmp_path / 'a.jsonl'
    ratings = [{'clear': 2, 'short': 2}, {'clear': 1, 'short': 1}]
    replies = [{'text': str(each), 'ratings': each} for each in ratings]
    path.write_text(json.dumps({'prompt': 'p', 'replies': replies}))
    assert attributes.read(str(path), max_words=10)[0] == []


@pytest.mark.parametrize('form', ['labelled', 'chosen', 'guide'])
def test_people_are_told_apart_and_tested_with_new_prompts(tmp_path, form):
    path = write(tmp_path / 'a.jsonl', 60)
    pairs, wanted = attributes.read(path, max_words=10)
    by_texts = {frozenset(pair.texts): pair for pair in pairs}
    train, tests = attributes.make_attribute_people(path, (), 30, 10, **SETTINGS | {'form': form})
    assert [person.kind for person in train[:4]] == [*wanted, wanted[0]] and len(tests) == 10
    for person in train + tests:
        check_disjoint(person, person.user)
        if form == 'guide':
            assert person.context == f'I prefer {person.kind}.'
        if form == 'labelled':
            liked, disliked = (
                re.findall(rf'{side}: (Answer \d+ \d\.)', person.context) for side in ('Liked', 'Disliked')
            )
            assert len(liked) == 3
            for other in set(wanted) - {person.kind}:
                told = [by_texts[frozenset(each)] for each in zip(liked, disliked, strict=True)]
                assert [pair.choice(other).chosen for pair in told] != liked
    learnt = {c.prompt for person in train for c in (person.reward, *person.train, *person.held)}
    assert not learnt & {c.prompt for person in tests for c in person.held}
    assert not any(c.prompt in person.context for person in tests for c in person.held)
    again, same = attributes.make_attribute_people(path, (), 30, 10, **SETTINGS | {'form': form, 'seed': 1})
    assert same == tests and again != train


def test_others_would_not_have_chosen_so():
    pairs = [
        attributes.RatedPair('p', ('a', 'b'), frozenset({'clear', 'short'})),
        attributes.RatedPair('q', ('c', 'd'), frozenset({'clear'})),
    ]
    assert attributes.identified('clear', pairs, ('clear', 'short'))
    assert not attributes.identified('clear', pairs[:1], ('clear', 'short'))
    assert attributes.identified('clear', pairs[:1], ('clear', 'kind'))


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ({'prompt': 'p', 'replies': []}, 'line 1: expected a prompt and two replies or more'),
        ({'prompt': 'p', 'replies': ['a', 'b']}, "line 1: a reply is 'a'; give an object with text and ratings"),
        ({'prompt': 'p', 'replies': 2 * [{'text': 'a', 'ratings': {'x': 1}}]}, 'people want x; give two attributes'),
        (
            {
                'prompt': 'p',
                'replies': [{'text': 'a', 'ratings': {'x': 1, 'y': 2}}, {'text': 'b', 'ratings': {'x': 1}}],
            },
            "'b' has no finite number for y",
        ),
    ],
)
def test_wrong_lines_are_told(tmp_path, line, message):
    path = tmp_path / 'a.jsonl'
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=message):
        attributes.read(str(path), max_words=10)


def test_too_few_pairs_are_told(tmp_path):
    with pytest.raises(ValueError, match='at most 400 words .* disagree, to 3 prompts; give more'):
        attributes.make_attribute_people(write(tmp_path / 'a.jsonl', 3), (), 2, 2, **SETTINGS)
