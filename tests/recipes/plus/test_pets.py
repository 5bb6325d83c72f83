"""Made-up people who like dogs or cats: nothing but the animal tells the sides of their choices apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pal_jax.data.histories import check_disjoint
from pal_jax.recipes.plus import pets


def predicates(text):
    return {each for each in (*pets.TRAINED, *pets.HELD) if each in text}


@pytest.mark.parametrize('split', ['train', 'test', 'animals'])
def test_what_is_judged_is_nowhere_told(split):  # rlpa_plus IV.4-9
    for person in pets.make_pet_people(40, seed=0, split=split):
        check_disjoint(person, person.user)
        choices = [person.reward, *person.train, person.held[0]]
        judged = [predicates(side) for choice in choices for side in (choice.chosen, choice.rejected)]
        assert sum(map(len, judged)) == len(set().union(*judged)) == 6
        assert not set().union(*judged) & predicates(person.context)
        assert predicates(person.context) <= set(pets.TRAINED)
        if split != 'train':
            assert set().union(*judged) <= set(pets.HELD)


def test_kinds_are_even_and_agree_with_the_choices():
    people = pets.make_pet_people(40, seed=1, split='train')
    assert Counter(person.kind for person in people) == {'dogs': 20, 'cats': 20}
    for person in people:
        other = {'dogs': 'Cats', 'cats': 'Dogs'}[person.kind]
        for choice in (person.reward, *person.train, *person.held):
            assert choice.chosen.startswith(person.kind.capitalize())
            assert choice.rejected.startswith(other)
        assert person.context.count(f'Liked: {person.kind.capitalize()}') == 2
        assert person.context.count('Liked: Birds') == person.context.count('Disliked: Rabbits') == 2
    firsts = [person.context.startswith('Liked') for person in people]
    assert 5 < sum(firsts) < 35  # the sides stand in random order


def test_held_out_choices_swap_their_predicates():
    for person in pets.make_pet_people(4, seed=0, split='test'):
        one, two = person.held
        assert predicates(one.chosen) == predicates(two.rejected)
        assert predicates(one.rejected) == predicates(two.chosen)


def test_people_follow_from_seed_and_split():
    assert pets.make_pet_people(3, seed=0, split='train') == pets.make_pet_people(5, seed=0, split='train')[:3]
    assert pets.make_pet_people(3, seed=0, split='train') != pets.make_pet_people(3, seed=1, split='train')
    (alone,) = pets.make_pet_people(1, seed=0, split='train', form='chosen')
    assert sorted(word for word in alone.context.split() if word[0].isupper()) == ['Birds', 'Birds', 'Dogs', 'Dogs']


def test_more_choices_may_teach():
    (person,) = pets.make_pet_people(1, seed=0, split='train', taught=pets.TAUGHT)
    told = [*person.past, person.reward, *person.train, *person.held[:1]]
    assert len(set.union(*(predicates(text) for c in told for text in (c.chosen, c.rejected)))) == 2 * (6 + 14)
    with pytest.raises(ValueError, match='history.taught=15: there are predicates for 14'):
        pets.make_pet_people(1, seed=0, split='train', taught=15)


def words_apart(choice):
    """Counts of animals and predicates in the chosen sentence, less those in the other."""
    vocabulary = (*pets.KINDS, *pets.EVERYONE, *pets.TRAINED, *pets.HELD)
    chosen, rejected = choice.chosen.lower(), choice.rejected.lower()
    return np.array([(word in chosen) - (word in rejected) for word in vocabulary], float)


def fit(features, steps=400):
    """Bradley-Terry of a linear score, by gradient descent."""
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        weights += 0.5 * features.T @ (1.0 / (1.0 + np.exp(features @ weights))) / len(features)
    return weights


def test_without_the_person_there_is_nothing_to_learn_and_with_the_kind_everything():  # rlpa_plus IV.4-5
    """A linear reward model, for which the person is a factor of +1 or -1: of the kind, or of what the context says."""
    train, test = (pets.make_pet_people(400, seed=0, split=split) for split in ('train', 'test'))

    def nobody(person):
        return 1.0

    def kind(person):
        return 1.0 if person.kind == 'dogs' else -1.0

    def context(person):
        return float(np.sign(person.context.count('Liked: Dogs') - person.context.count('Liked: Cats')))

    accuracy = {}
    for reads in (nobody, kind, context):
        told = [reads(p) * words_apart(c) for p in train for c in (p.reward, *p.train)]
        weights = fit(np.stack(told))
        accuracy[reads] = np.mean([reads(p) * words_apart(c) @ weights > 0 for p in test for c in p.held])
    assert accuracy[nobody] == pytest.approx(0.5, abs=0.05)
    assert accuracy[kind] >= 0.95
    assert accuracy[context] >= 0.95
