"""The test of whether people differ: its size where nobody does, and its power where they do."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal import heterogeneity, logit
from tests.recipes.personal.people import apart


@pytest.fixture(autouse=True)
def fewer_permutations(monkeypatch):
    monkeypatch.setattr(heterogeneity, 'PERMUTATIONS', 99)


def survey(rng, left, right, person, taste, bend=0.0):
    """The choices of people between the items `left` and `right` `[n, 2]`, by `taste` `[n, 2]` and a utility that is
    `bend` times the square of the first attribute beside."""
    x = left - right
    margin = np.sum(x * taste, axis=1) + bend * (left[:, 0] ** 2 - right[:, 0] ** 2)
    first = (rng.random(len(x)) < 1 / (1 + np.exp(-margin)))[:, None]
    names = tuple(map(str, range(person.max() + 1)))
    sides = np.where(first, left, right).astype(np.float32), np.where(first, right, left).astype(np.float32)
    return Comparisons(person.astype(np.int32), np.arange(len(x), dtype=np.int32), *sides, None, names, ('a', 'b'))


def rejected(make):
    """The share of 100 surveys for which the test says that people differ, at 5 %."""
    return np.mean([heterogeneity.p_of_same_wants(make(np.random.default_rng(seed))) <= 0.05 for seed in range(100)])


def test_where_nobody_differs_it_errs_as_often_as_it_says():
    person = np.repeat(np.arange(20), 8)

    def alike(rng):
        return survey(rng, *rng.normal(size=(2, 160, 2)), person, np.array([1.0, -0.5]))

    assert rejected(alike) <= 0.1


def test_questions_of_blocks_are_exchanged_within_blocks_so_the_logit_need_not_be_true():
    """Half of the people are asked about small values of an attribute, and half about large ones, of which all want
    less; a straight line errs for each block in its own direction."""
    person, block = np.repeat(np.arange(20), 8), np.repeat([0.0, 3.0], 80)
    questions = np.random.default_rng(0).uniform(0, 1, (2, 8, 2))

    def bent(rng):
        left, right = (np.tile(side, (20, 1)) + np.stack([block, 0 * block], axis=1) for side in questions)
        return survey(rng, left, right, person, np.array([6.0, 1.0]), bend=-2.0)

    assert rejected(bent) <= 0.1
    samples, wrong = [bent(np.random.default_rng(seed)) for seed in range(100)], 0
    for data in samples:
        scores = logit.scores(apart(data.difference, data.users))
        wrong += heterogeneity.permuted(scores, data.users, np.zeros(160, np.int64), 0) <= 0.05
    assert wrong >= 20


def test_people_who_want_different_things_are_found_in_few_choices():
    """50 people with 12 choices each, whose wants have a standard deviation of .7 about means of .3 and 1."""
    person = np.repeat(np.arange(50), 12)

    def differing(rng):
        taste = np.array([0.3, 1.0]) + 0.7 * rng.normal(size=(50, 2))
        return survey(rng, *rng.normal(size=(2, 600, 2)), person, taste[person])

    assert rejected(differing) >= 0.9


def test_one_choice_of_each_person_tells_nothing():
    rng = np.random.default_rng(0)
    data = survey(rng, *rng.normal(size=(2, 30, 2)), np.arange(30), np.array([1.0, 0.0]))
    assert heterogeneity.p_of_same_wants(data) == 1.0


def test_units_do_not_matter_and_people_who_choose_among_several_options_alike_are_alike():
    rng, person = np.random.default_rng(0), np.repeat(np.arange(12), 6)
    data = survey(rng, *rng.normal(size=(2, 72, 2)), person, rng.normal(size=(12, 2))[person])
    p = heterogeneity.p_of_same_wants(data)
    scaled = data._replace(chosen=data.chosen * [1, 64], rejected=data.rejected * [1, 64])
    assert heterogeneity.p_of_same_wants(scaled) == p

    def among_three(rng):
        items = rng.normal(size=(96, 3, 2)).astype(np.float32)
        best = np.argmax(items @ [1.0, -0.5] + rng.gumbel(size=(96, 3)), axis=1)
        situation = np.repeat(np.arange(96, dtype=np.int32), 2)
        others = items[np.arange(3) != best[:, None]]
        users = situation // 8
        return data._replace(
            users=users, situations=situation, chosen=items[situation, best[situation]], rejected=others
        )

    assert rejected(among_three) <= 0.1


def test_groups_that_want_different_things_are_told_from_people_who_do():
    person, group = np.repeat(np.arange(40), 10), np.arange(40, dtype=np.int32) % 2

    def by(taste, seed):
        rng = np.random.default_rng(seed)
        data = survey(rng, *rng.normal(size=(2, 400, 2)), person, taste(rng)[person])
        return heterogeneity.p_of_same_groups(data._replace(groups=group))

    people = [by(lambda rng: rng.normal(size=(40, 2)), seed) <= 0.05 for seed in range(100)]
    assert np.mean(people) <= 0.1
    assert by(lambda rng: np.stack([2.0 * group - 1.0, np.ones(40)], axis=1), 0) == 0.01
