"""Scripted dialogues: what their people say, and the figures of policies whose replies are written out by hand."""

from __future__ import annotations

import itertools

import pytest

from pal_jax.recipes.rlpa import restraint
from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.people import SCHEMA, make_people
from pal_jax.recipes.rlpa.profiles import match_exactly, mentions, render_completion, split_fact, to_sample
from pal_jax.recipes.rlpa.restraint import evaluate, make_scripts
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.recipes.rlpa.users import revealed
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.types import Completion, Dialogue, Turn
from tests import configs
from tests.recipes.rlpa.dialogues import BAD

PEOPLE = make_people(12, seed=0, split='heldout')
SCRIPTS = make_scripts(PEOPLE)
VALUES = [value for slot in SCHEMA for value in (*slot.known, *slot.unseen)]
REWARD = make_reward(match_exactly, judge_by_rules)


def policy(reply):
    """A policy whose text is made by `reply` from the dialogue, scored as in an evaluation."""

    def respond(dialogues, seed):
        return REWARD([to_sample(d, Completion(reply(d), (1,), (0.0,), 'stop')) for d in dialogues], seed)

    return respond


def says(line, profile=''):
    return policy(lambda dialogue: render_completion(profile, line(dialogue)))


def told_by(script):
    person, lines = script.person, script.lines
    return revealed(Dialogue(person, tuple(Turn('user', line) for line in lines)))


def test_no_fact_bears_on_a_question():
    keywords = [keyword for slot in SCHEMA for keyword in slot.keywords]
    for question, word in itertools.product(restraint.QUESTIONS, (*VALUES, *keywords)):
        assert not mentions(question, word)


def test_a_script_tells_two_facts_one_a_message():
    assert len({script.person.id for script in SCRIPTS}) == len(SCRIPTS)
    for script in SCRIPTS:
        assert told_by(script) == set(script.told) and len(script.told) == 2
    assert make_scripts(PEOPLE) == SCRIPTS  # every policy meets the same messages


def test_replies_that_name_a_fact_where_none_bears_are_counted():
    told = {script.person.id: script.told for script in SCRIPTS}
    asked = set(restraint.QUESTIONS)

    def named(dialogue):
        last, person = dialogue.turns[-1].content, dialogue.person.id
        rude = last in asked and sorted(told).index(person) % 4 == 0
        return f'So you have your {split_fact(told[person][0])[1]}.' if rude else 'It is 42.'

    record, ends, dialogues = evaluate(says(named), SCRIPTS)
    assert record['irrelevant_use'] == pytest.approx(3 / 12) and record['irrelevant_chance'] == 0
    low, high = ends['irrelevant_use']
    assert low == pytest.approx(0.0549, abs=1e-4) and high == pytest.approx(0.5719, abs=1e-4)  # Clopper and Pearson
    assert record['scripts_format'] == 1 and len(dialogues) == record['scripts'] == len(SCRIPTS)


def test_who_names_everything_names_the_facts_of_others_too():
    record, _, _ = evaluate(says(lambda dialogue: ', '.join(VALUES)), SCRIPTS)
    assert record['irrelevant_use'] == record['irrelevant_chance'] == 1


def test_a_policy_without_replies_has_no_shares():
    record, ends, dialogues = evaluate(policy(lambda dialogue: BAD), SCRIPTS)
    assert record['irrelevant_use'] is record['irrelevant_chance'] is ends['irrelevant_use'] is None
    assert record['scripts_format'] == 0 and all(len(talk['turns']) == 2 for talk in dialogues)


def test_an_evaluation_has_scripts_where_it_is_asked_for_them():
    assert make_world(configs.load('rlpa')).scripts == ()
    world = make_world(configs.load('rlpa', **{'eval.restraint': 3}))
    assert [script.person.facts for script in world.scripts] == [person.facts for person in PEOPLE[:3]]
    record, dialogues = world.evaluate(says(lambda dialogue: 'Hm.'), rounds=2)
    assert record['irrelevant_use'] == 0 and record['intervals']['irrelevant_use'][1] > 0.5
    assert {talk['person'] for talk in dialogues} > {script.person.id for script in world.scripts}


@pytest.mark.parametrize('changes', [{'eval.restraint': -1}, {'eval.restraint': 2, 'dialogue.facts': 1}])
def test_people_who_cannot_have_scripts_are_told(changes):
    with pytest.raises(ValueError, match=r'^eval\.restraint='):
        make_world(configs.load('rlpa', **changes))
