"""Users and judges are asked for a share each, and the control for all people of a call together. Nobody who is tested
on has been met in training."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pal_jax.data.holdouts import normal
from pal_jax.recipes.psoups.questions import make_questions
from pal_jax.recipes.rlpa.people import content, make_people
from pal_jax.recipes.rlpa.profiles import to_sample
from pal_jax.recipes.rlpa.world import make_world, share_reward, share_user
from pal_jax.run.processes import Shares
from pal_jax.types import Completion, Dialogue, Person
from tests import configs

SAMPLES = [
    to_sample(Dialogue(Person(str(i), ()), ()), Completion(f'text {i}', (), (), 'stop'), (1,), i) for i in range(5)
]


@pytest.mark.parametrize(('together', 'calls'), [(False, [2, 3]), (True, [5])])
def test_a_reward_is_asked_by_share_or_for_all_together(together, calls):
    asked = []

    def reward(samples, seed):
        asked.append(len(samples))
        return [
            dataclasses.replace(s, rewards=(float(s.group + seed),), info={'x': 1.0}, ok=s.group > 0) for s in samples
        ]

    shared = share_reward(reward, Shares(2), together=together)(SAMPLES, 7)
    assert asked == calls
    assert shared == reward(SAMPLES, 7)


def test_users_are_asked_by_share():
    user = share_user(
        lambda dialogues, seed: [f'{each.person.id} {seed} {len(dialogues)}' for each in dialogues], Shares(2)
    )
    assert user([s.source for s in SAMPLES], 3) == ['0 3 2', '1 3 2', '2 3 3', '3 3 3', '4 3 3']


# --- who is tested on has other facts than who is trained on ----------------------------------------------------------


def write(path, profiles):
    path.write_text(''.join(json.dumps({'facts': facts}) + '\n' for facts in profiles))
    return str(path)


def contents(people):
    return set(map(content, people))


def test_people_with_the_same_facts_stand_on_one_side(tmp_path):
    profiles = [
        {'pet': 'cat {}', 'job': 'pilot'},
        {'job': 'Pilot', 'pet': 'Cat  {}'},
        {'pet': 'CAT {}', 'job': 'pilot'},
    ]
    lines = [{key: text.format(i) for key, text in each.items()} for each in profiles for i in range(10)]
    world = make_world(configs.load('rlpa', **{'dialogue.profiles': write(tmp_path / 'p.jsonl', lines)}))
    assert not contents(world.train) & contents(world.tests['heldout'])
    assert (len(world.train), len(world.tests['heldout']), world.moved) == (27, 3, 20)  # of at most four
    assert '27 people to learn from' in world.told and '20 people with the facts' in world.told


def test_who_is_trained_on_is_not_met_anew_in_another_file(tmp_path):
    people = [{'pet': f'cat {i}'} for i in range(10)]
    files = {
        'dialogue.profiles': write(tmp_path / 'a.jsonl', people),
        'eval.profiles': write(tmp_path / 'b.jsonl', [*({'Pet': f'Cat {i}'} for i in range(5)), {'pet': 'ant'}]),
    }
    world = make_world(configs.load('rlpa', **files))
    assert [person.facts for person in world.tests['extended']] == [('pet: ant',)]
    assert world.moved == 5
    write(tmp_path / 'b.jsonl', people[:3])
    with pytest.raises(ValueError, match='eval.profiles=.*all 3 people are trained on'):
        make_world(configs.load('rlpa', **files))


def test_embedded_people_in_a_file_have_been_met(tmp_path):
    met = make_people(8, seed=0, facts=4)[:3]
    lines = [dict(fact.split(': ') for fact in person.facts) for person in met]
    path = write(tmp_path / 'b.jsonl', [*lines, {'pet': 'ant'}])
    config = configs.load('rlpa', **{'eval.profiles': path})
    assert [person.facts for person in make_world(config).tests['extended']] == [('pet: ant',)]


def test_people_who_are_all_alike_can_neither_test_nor_stand_for_each_other(tmp_path):
    path = write(tmp_path / 'p.jsonl', [{'pet': 'cat'}, {'pet': 'Cat'}, {'pet': ' cat'}])
    with pytest.raises(ValueError, match=r'p.jsonl: 3 of the same content'):
        make_world(configs.load('rlpa', **{'dialogue.profiles': path}))
    write(tmp_path / 'p.jsonl', [{'pet': 'cat'}, {'pet': 'Cat'}, {'pet': 'ant'}])
    with pytest.raises(ValueError, match='the same facts'):
        make_world(configs.load('rlpa', **{'dialogue.profiles': path, 'reward.shuffled': True}))


def test_no_question_to_learn_from_is_one_to_test_on():
    train, test = ({normal(question) for question in make_questions(split)} for split in ('train', 'test'))
    assert len(train) == 210 and len(test) == 50 and not train & test
