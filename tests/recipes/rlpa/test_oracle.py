"""The oracle's answers: as good as can be known, and of no held-out person."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.oracle import make_answers
from pal_jax.recipes.rlpa.people import make_people
from pal_jax.recipes.rlpa.profiles import match_exactly, to_sample
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.recipes.rlpa.users import make_scripted_user
from pal_jax.types import Completion

USER = make_scripted_user(p_spontaneous=1.0)


def rewarded(answers, which):
    texts = [getattr(each, which) for each in answers]
    samples = [to_sample(a.dialogue, Completion(t, (), (), 'stop')) for a, t in zip(answers, texts, strict=True)]
    return make_reward(match_exactly, judge_by_rules, response='strict')(samples, 0)


def test_good_answers_reach_the_bound_and_please_the_judge_and_worse_ones_do_not():
    answers = make_answers(make_people(20, seed=0), USER, rounds=3, seed=0)
    good, worse = rewarded(answers, 'good'), rewarded(answers, 'worse')
    assert len(answers) == 60 and all(sample.info['format'] for sample in [*good, *worse])
    assert np.mean([s.info['strict'] for s in good]) > 0.95 and np.mean([s.info['strict'] for s in worse]) == 0.0
    by_turn = np.reshape([s.info['profile'] for s in good], (3, 20)).mean(axis=1)
    np.testing.assert_allclose(by_turn, [0.0, 2 / 5, 4 / 6], atol=0.03)  # 2k / (k + 4) after k facts
    assert np.mean([s.info['profile'] for s in worse]) < 0.15


def test_the_same_seed_gives_the_same_answers_and_one_person_is_too_few():
    people = make_people(3, seed=1)
    assert make_answers(people, USER, rounds=2, seed=5) == make_answers(people, USER, rounds=2, seed=5)
    assert make_answers(people, USER, rounds=2, seed=5) != make_answers(people, USER, rounds=2, seed=6)
    with pytest.raises(ValueError, match='1 people and rounds=2'):
        make_answers(people[:1], USER, rounds=2, seed=5)
