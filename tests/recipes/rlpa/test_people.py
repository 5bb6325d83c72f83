import json
import re
from pathlib import Path

import pytest

from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, load_people, make_people, place_of
from pal_jax.recipes.rlpa.profiles import split_fact

ALOE = Path(__file__).parents[3] / '..' / 'shared' / 'data' / 'aloe' / 'profile.jsonl'
KNOWN = {value for slot in SCHEMA for value in slot.known}
UNSEEN = {value for slot in SCHEMA for value in slot.unseen}


def values(people):
    return {split_fact(fact)[1] for person in people for fact in person.facts}


def test_schema_has_twelve_slots_of_eight_known_and_three_unseen_values():
    assert len(SCHEMA) == 12
    assert all((len(slot.known), len(slot.unseen)) == (8, 3) for slot in SCHEMA)


def test_no_value_stands_in_two_slots_or_is_a_keyword():
    everything = [value.lower() for slot in SCHEMA for value in (*slot.known, *slot.unseen)]
    assert len(set(everything)) == len(everything) == 12 * 11
    assert not set(everything) & {keyword for slot in SCHEMA for keyword in slot.keywords}
    assert all(re.fullmatch(r'[A-Za-z]+( [a-z]+)?', value) for value in KNOWN | UNSEEN)


@pytest.mark.parametrize('split', ['train', 'heldout', 'unseen'])
def test_people_are_different_and_have_one_value_a_slot(split):
    people = make_people(400, seed=1, split=split)
    assert len({person.facts for person in people}) == len({person.id for person in people}) == 400
    for person in people:
        assert len({split_fact(fact)[0] for fact in person.facts}) == 4
        assert values([person]) <= (UNSEEN if split == 'unseen' else KNOWN)
        assert person.opening == 'Hello'


def test_train_and_heldout_share_values_but_no_combination_for_any_seed():
    train = [person for seed in range(5) for person in make_people(400, seed=seed, facts=2)]
    heldout = [person for seed in range(5) for person in make_people(400, seed=seed, split='heldout', facts=2)]
    assert values(train) == values(heldout) == KNOWN
    assert not {person.facts for person in train} & {person.facts for person in heldout}


def test_people_depend_on_the_seed_but_the_first_not_on_the_number():
    assert make_people(5, seed=3) == make_people(9, seed=3)[:5]
    assert make_people(5, seed=3) != make_people(5, seed=4)


def test_twelve_facts_are_the_whole_profile():
    for person in make_people(3, seed=0, facts=12):
        assert tuple(split_fact(fact)[0] for fact in person.facts) == SLOTS


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'split': 'test'}, "split='test'"),
        ({'facts': 0}, 'facts=0'),
        ({'facts': 13}, 'facts=13'),
        ({'facts': 1, 'split': 'unseen'}, 'only 36 different'),
    ],
)
def test_impossible_people_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_people(50, seed=0, **kwargs)


def write(path, *records):
    path.write_text('\n'.join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def test_loads_every_layout(tmp_path):
    path = write(
        tmp_path / 'people.jsonl',
        {'input': 'Hey', 'profile': '- 34 years old\n- plays the cello\n', 'id': 7},
        {'facts': {'city': 'Porto', 'interests': ['chess', 'tea'], 'age': 34}},
        json.dumps('She is a nurse. She has a cat named Dr. Paws! He likes her.'),
        {'profile': 'He bakes. He sings.'},
        '',
    )
    first, second, third, fourth = load_people(path)
    assert (first.id, first.opening, first.facts) == ('7', 'Hey', ('34 years old', 'plays the cello'))
    assert second.facts == ('city: Porto', 'interests: chess', 'interests: tea', 'age: 34')
    assert (second.id, second.opening) == ('people-2', 'Hello')
    assert third.facts == ('She is a nurse.', 'She has a cat named Dr. Paws!', 'He likes her.')
    assert fourth.facts == ('He bakes.', 'He sings.')


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"profile": ', 'not valid JSON, Expecting value at column 13'),
        ('[1, 2]', 'expected a string or an object'),
        ('{"label": "x"}', "'profile' or 'facts'"),
        ('{"profile": "- a\\n- b", "facts": {}}', "'profile' or 'facts'"),
        ('{"profile": 3}', 'must be a string'),
        ('{"profile": "- \\n"}', 'no facts'),
        ('{"facts": ["a"]}', 'must be an object'),
        ('{"facts": {"pet": null}}', "the slot 'pet'"),
        ('{"facts": {"pet": ""}}', "the slot 'pet'"),
        ('{"facts": {"pet": "cat"}, "input": ""}', "'input'"),
        ('{"facts": {"pet": "cat"}, "id": [1]}', "'id'"),
        ('{"facts": {"pet": "cat"}, "id": "a"}', 'is taken'),
        ('""', 'no facts'),
    ],
)
def test_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path / 'people.jsonl', {'facts': {'pet': 'dog'}, 'id': 'a'}, line)
    with pytest.raises(ValueError, match=message) as error:
        load_people(path)
    assert f'{path}, line 2: ' in str(error.value)
    assert '\n' not in str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_bytes(b'"She is a nurse."\n"\xff\xfe\xff"\n')
    with pytest.raises(ValueError, match='line 2'):
        load_people(path)


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no people'):
        load_people(write(tmp_path / 'people.jsonl', '', ''))


@pytest.mark.skipif(not ALOE.exists(), reason='needs ../shared/data/aloe')
def test_prose_profiles_become_one_fact_a_sentence():
    people = load_people(ALOE)
    assert len(people) == len(ALOE.read_text().splitlines())
    assert all(1 <= len(person.facts) <= 12 for person in people)
    assert all(fact.endswith(('.', '!', '?')) for person in people for fact in person.facts)


def test_a_person_is_found_again_by_file_and_line(tmp_path):
    path = tmp_path / 'own.jsonl'
    path.write_text('"I row."\n\n{"id": 7.0, "persona": "- a\\n- b", "greeting": "Hi"}\n')
    keys = {'input_key': 'greeting', 'label_key': 'persona'}
    found = load_people(path, **keys)
    assert [place_of(path, each, **keys) for each in found] == [f'{path}, line 1', f'{path}, line 3']
