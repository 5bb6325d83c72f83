"""The figures of what a reward model makes of summaries, with people and models whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.evals import conditioning
from pal_jax.feedback import pets

PEOPLE = pets.make_people(20, seed=0, split='test')


def describe(people, temperature):
    """Right where it is greedy; drawn, it always speaks of dogs."""
    return [f'The user prefers {person.kind if temperature == 0 else "dogs"}.' for person in people]


def gaps(texts, choices):
    """A reward model that likes what the text names, and the longer reply where it names nothing."""

    def score(text, reply):
        words = reply.lower().split()
        return 10.0 * (words[0] in text.lower()) + 0.01 * len(reply)

    return np.array([[score(t, c.chosen) - score(t, c.rejected) for c in each]
                     for t, each in zip(texts, choices, strict=True)])  # fmt: skip


def test_true_summaries_are_right_and_the_controls_are_not():
    record, people = conditioning.evaluate(describe, gaps, {'test': PEOPLE}, temperature=1.0, shown=2)
    assert record['accuracy'] == 1.0
    assert record['named'] == 1.0
    assert record['other_accuracy'] == 0.0
    assert record['sampled_accuracy'] == record['sampled_named'] == 0.5
    assert record['none_accuracy'] == pytest.approx(0.5, abs=0.06)  # sides are judged swapped, too; ties are wrong
    kinds = [person.kind for person in PEOPLE]
    assert record['random_accuracy'] == np.mean(np.array(kinds) == conditioning.of_somebody(kinds))
    assert 0.3 < record['random_accuracy'] < 0.7
    assert record['reward'] > -0.01 > record['other_reward']
    assert record['accuracy_se'] == 0.0
    assert record['words'] == 4.0
    assert [each['person'] for each in people] == ['test 0', 'test 1']
    assert people[0]['turns'][1]['rewards']['accuracy'] == 1.0


def test_a_tie_is_wrong_and_a_split_has_its_name():
    def nothing(texts, choices):
        return np.zeros((len(texts), len(choices[0])))

    record, _ = conditioning.evaluate(describe, nothing, {'test': PEOPLE, 'new': PEOPLE[:4]}, temperature=1.0, shown=0)
    assert record['accuracy'] == record['new_accuracy'] == 0.0
    assert record['reward'] == pytest.approx(-0.693147, abs=1e-6)
    assert (record['people'], record['new_people']) == (20, 4)
    assert 'other_accuracy' in record
    assert 'new_other_accuracy' not in record  # controls stand beside the first split


def test_a_text_that_names_both_kinds_names_none():
    kinds = ['dogs', 'cats', 'cats']
    texts = ['likes a dog', 'likes dogs and cats', 'CATS']
    assert conditioning.names_the_kind(texts, kinds) == pytest.approx(2 / 3)
