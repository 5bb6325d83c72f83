"""Pairs of right and wrong answers: nothing but the value tells them apart."""

from __future__ import annotations

import numpy as np

from pal_jax.recipes.rlpa.made import recall
from pal_jax.recipes.rlpa.people import make_people
from pal_jax.recipes.rlpa.profiles import split_fact


def test_one_answer_is_what_was_told_and_the_other_is_not():
    people = make_people(30, seed=3, facts=4)
    pairs = list(recall.make_pairs(people, 0))
    assert len(pairs) == 120
    for (asked, right, wrong), (slot, value) in zip(
        pairs, (split_fact(fact) for person in people for fact in person.facts), strict=True
    ):
        told = asked[-1]['content']
        assert told.endswith(f'What is my {slot}?') and f'My {slot}: {value}.' in told
        assert value in right and value not in wrong
    assert list(recall.make_pairs(people, 0)) == pairs != list(recall.make_pairs(people, 1))


def test_length_says_nothing():
    pairs = list(recall.make_pairs(make_people(400, seed=0), 0))
    longer = np.array([len(right) - len(wrong) for _, right, wrong in pairs])
    assert abs(np.mean(longer > 0) - np.mean(longer < 0)) < 0.06
