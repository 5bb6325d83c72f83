"""The figures of what a reward model makes of summaries, with people and models whose answers are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pal_jax.recipes.plus import conditioning, pets

PEOPLE = pets.make_pet_people(20, seed=0, split='test')


def describe(people, temperatures):
    """Right where it is greedy; drawn, it speaks of dogs first and then of birds."""
    animals = [None if t == 0 else 'birds' if 1.0 in temperatures[:k] else 'dogs' for k, t in enumerate(temperatures)]
    return [f'The user prefers {animal or person.kind}.' for person in people for animal in animals]


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


def test_several_samples_are_one_mean_of_each_person():
    people = [person for person in PEOPLE if person.kind == 'dogs'] * 2 + PEOPLE
    settings = {'temperature': 1.0, 'controls': False}
    record, *_ = conditioning.table(describe, gaps, people, samples=4, **settings)
    right = [
        [np.mean(gaps([f'The user prefers {animal}.'], [p.held])[0] > 0) for animal in ('dogs', *['birds'] * 3)]
        for p in people
    ]
    assert record['sampled_accuracy'] == pytest.approx(np.mean(right))
    means = np.mean(right, axis=1)
    assert record['sampled_accuracy_se'] == pytest.approx(np.std(means, ddof=1) / np.sqrt(len(people)))
    dogs = np.mean([person.kind == 'dogs' for person in people])
    assert record['sampled_named'] == pytest.approx(dogs / 4)
    assert record['sampled_misnamed'] == pytest.approx((1 - dogs) / 4)
    assert record['misnamed'] == 0.0
    assert record['accuracy_by_person'] == [1.0] * len(people)


def test_a_report_shows_whose_summary_is_read():
    splits = {'test': PEOPLE, 'animals': pets.make_pet_people(8, seed=0, split='animals')}
    record, _ = conditioning.evaluate(describe, gaps, splits, temperature=1.0, shown=0)
    (exhibit,) = conditioning.make_exhibits(record, list(splits))
    head, *rows = exhibit.table
    assert [row[0] for row in rows] == ['test, 20'] * 5 + ['animals, 8'] * 2
    assert rows[0][1:3] == ['their own, the likeliest', '1.000 ± 0.000']
    assert rows[2][1:3] == ['that of a person of another kind', '0.000 ± 0.000']
    assert dict(zip(head, rows[0], strict=True))['names the kind'] == '1.000'
    assert rows[4][4:] == ['', '', '']  # of no summary there is nothing to count
    unknown = {key: value for key, value in record.items() if 'named' not in key}
    assert 'names the kind' not in conditioning.make_exhibits(unknown, list(splits))[0].table[0]


def test_before_the_first_step_the_first_split_is_read_without_controls():
    splits = {'test': PEOPLE, 'animals': pets.make_pet_people(8, seed=0, split='animals')}
    settings = {'temperature': 1.0, 'shown': 1}
    whole, _ = conditioning.evaluate(describe, gaps, splits, **settings)
    record, people = conditioning.evaluate(describe, gaps, splits, **settings, whole=False)
    assert record == {key: value for key, value in whole.items() if key in record}
    left_out = {key for key in whole if key.startswith(('animals_', 'sampled_', 'other_', 'random_', 'none_'))}
    assert set(whole) - set(record) == left_out
    assert [each['person'] for each in people] == ['test 0']


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
    assert conditioning.shares_naming_kind(texts, kinds) == {'named': pytest.approx(2 / 3), 'misnamed': 0.0}


def test_a_kind_is_named_by_a_word_and_of_people_who_have_one():
    texts = ['is educated and dedicated', 'tea, and dogs', 'likes a DOG', 'wants helpfulness']
    kinds = ['cats', '', 'cats', 'helpfulness']
    assert conditioning.shares_naming_kind(texts, kinds) == {'named': pytest.approx(1 / 3), 'misnamed': 0.0}
    assert conditioning.shares_naming_kind(texts, ['dogs', '', 'cats', 'dogs']) == {
        'named': 0.0,
        'misnamed': pytest.approx(1 / 3),
    }
    assert conditioning.shares_naming_kind(texts, ['', '', '', '']) == {}


def test_somebody_is_always_somebody_else():
    for count in (2, 3, 46):
        found = conditioning.of_somebody(list(range(count)))
        assert sorted(found) == list(range(count))
        assert all(i != other for i, other in enumerate(found))


def test_replies_after_a_summary_suit_the_person_and_those_of_somebody_do_not():
    texts = describe(PEOPLE, [0.0])

    def model(chats, seed):
        """Speaks of what it is told the reader prefers; has no answer for the first person."""
        told = [next((k for k in pets.KINDS if f'prefers {k}' in chat[-1]['content']), 'birds') for chat in chats]
        return [None, *(f'{kind.capitalize()} sleep.' for kind in told[1:])]

    record, exhibit = conditioning.personalise(model, gaps, PEOPLE, texts, seed=0)
    assert record['written'] == len(PEOPLE) - 1
    assert record['written_better'] == 1.0
    kinds = [person.kind for person in PEOPLE]
    same = np.mean([a == b for a, b in zip(kinds, conditioning.of_somebody(kinds), strict=True)][1:])
    assert record['written_for_somebody_better'] == pytest.approx(same)  # shorter than birds, where nobody prefers them
    replies = f'{kinds[1].capitalize()} sleep.', 'Birds sleep.'
    assert exhibit.table[1][:5] == ['test 1', texts[1], pets.PROMPT, *replies]
    assert float(exhibit.table[1][5]) > 0.0


def test_a_model_without_answers_has_no_figures():
    record, exhibit = conditioning.personalise(lambda chats, seed: [''] * len(chats), gaps, PEOPLE, ['x'] * 20, seed=0)
    assert record == {'written': 0}
    assert len(exhibit.table) == 1


def test_nobody_stands_for_the_only_person_there_is():
    twin = dataclasses.replace(PEOPLE[0], user='twin')
    for people in (PEOPLE[:1], [PEOPLE[0], twin]):
        texts = describe(people, [0.0])
        assert conditioning.of_somebody(texts, people) is None
        record, _ = conditioning.personalise(lambda chats, seed: ['Yes.'] * len(chats), gaps, people, texts, seed=0)
        assert 'written_better' in record and 'written_for_somebody_better' not in record
        figures, *_ = conditioning.table(describe, gaps, people, temperature=1.0, samples=0, controls=True)
        assert 'none_accuracy' in figures and 'random_accuracy' not in figures
    *two, one = conditioning.of_somebody(['a', 'b', 'c'], [PEOPLE[0], twin, PEOPLE[1]]) or ()
    assert two == ['c', 'c'] and one in 'ab'
