"""Scripted dialogues: what their people say, and the figures of policies whose replies are written out by hand."""

from __future__ import annotations

import itertools

import pytest

from pal_jax.recipes.rlpa import restraint
from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import (
    match_exactly,
    mentions,
    render_completion,
    render_facts,
    split_fact,
    to_sample,
)
from pal_jax.recipes.rlpa.restraint import ASKED, CHANGED, asks_for, evaluate, make_scripts
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.recipes.rlpa.users import revealed
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.run.glossary import meaning, words_of
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


def says(line, profile=lambda dialogue: ''):
    return policy(lambda dialogue: render_completion(profile(dialogue), line(dialogue)))


def told_by(script):
    person, lines = script.person, script.lines
    return revealed(Dialogue(person, tuple(Turn('user', line) for line in lines)))


def test_no_fact_bears_on_a_question():
    keywords = [keyword for slot in SCHEMA for keyword in slot.keywords]
    for question, word in itertools.product(restraint.QUESTIONS, (*VALUES, *keywords)):
        assert not mentions(question, word)


@pytest.mark.parametrize('slot', SCHEMA, ids=SLOTS)
def test_a_question_that_needs_a_fact_does_not_ask_for_it_itself(slot):
    # So an echo of the question is no question for the fact.
    line, fact = restraint.ASKING[slot.name], f'{slot.name}: {slot.known[0]}'
    assert not asks_for(line, fact) and not any(mentions(line, value) for value in VALUES)
    assert asks_for(f'It depends. Which {slot.keywords[0]} is it?', fact)
    assert not asks_for(f'It depends on your {slot.name}. Is it late?', fact)
    assert not asks_for(f'Is {slot.known[0]} the {slot.name}?', fact)


def test_a_change_names_its_own_value_only():
    assert restraint.CHANGES.keys() == restraint.ASKING.keys() == set(SLOTS)
    for slot in SCHEMA:
        for value in (*slot.known, *slot.unseen):
            told = restraint.CHANGES[slot.name].format(value=value)
            assert [other for other in VALUES if mentions(told, other)] == [value]


def test_a_script_tells_two_facts_one_a_message():
    everyone = list(itertools.chain(*SCRIPTS))
    assert len({script.person.id for script in everyone}) == len(everyone) == 3 * len(PEOPLE)
    assert all(told_by(script) == set(script.told) for script in everyone)
    assert make_scripts(PEOPLE) == SCRIPTS  # every policy meets the same messages


def test_the_same_question_is_asked_after_its_fact_and_after_another_one():
    for known, unknown in zip(SCRIPTS.restraint, SCRIPTS.asking, strict=True):
        assert known.lines[ASKED] == unknown.lines[ASKED] and known.person.facts == unknown.person.facts
        slot, _ = split_fact(known.told[0])
        assert known.lines[ASKED] == restraint.ASKING[slot] and known.told[0] not in unknown.told


@pytest.mark.parametrize(('always', 'known'), [(True, 1.0), (False, 0.0)])
def test_who_asks_only_for_what_is_unknown_asks_where_it_is_due(always, known):
    def text(dialogue):
        open_facts = [fact for fact in dialogue.person.facts if always or fact not in revealed(dialogue)]
        return ' '.join(f'Which {split_fact(fact)[0]} is yours?' for fact in open_facts)

    record, ends, _ = evaluate(says(text), SCRIPTS)
    assert (record['asks_unknown'], record['asks_known']) == (1.0, known)
    assert ends['asks_unknown'][0] == pytest.approx(0.7353, abs=1e-4)


def test_a_change_replaces_the_fact_that_was_told_first():
    for script in SCRIPTS.change:
        old, new = (set(script.person_at(message).facts) for message in (CHANGED - 1, CHANGED))
        assert old - new == {script.told[0]} and len(new - old) == 1
        assert split_fact(script.told[0])[0] == split_fact(*(new - old))[0]
        assert new - old <= revealed(Dialogue(script.person_at(CHANGED), (Turn('user', script.lines[CHANGED]),)))


def test_replies_that_name_a_fact_where_none_bears_are_counted():
    told = {script.person.id: script.told for script in itertools.chain(*SCRIPTS)}
    asked, rude_people = set(restraint.QUESTIONS), {script.person.id for script in SCRIPTS.restraint[::4]}

    def named(dialogue):
        last, person = dialogue.turns[-1].content, dialogue.person.id
        rude = last in asked and person in rude_people
        return f'So you have your {split_fact(told[person][0])[1]}.' if rude else 'It is 42.'

    record, ends, dialogues = evaluate(says(named), SCRIPTS)
    assert record['irrelevant_use'] == pytest.approx(3 / 12) and record['irrelevant_chance'] == 0
    low, high = ends['irrelevant_use']
    assert low == pytest.approx(0.0549, abs=1e-4) and high == pytest.approx(0.5719, abs=1e-4)  # Clopper and Pearson
    assert record['scripts_format'] == 1 and len(dialogues) == record['scripts'] == 36


def test_who_names_everything_names_the_facts_of_others_too():
    record, _, _ = evaluate(says(lambda dialogue: ', '.join(VALUES)), SCRIPTS)
    assert record['irrelevant_use'] == record['irrelevant_chance'] == 1


def lags(dialogue, *, turns):
    """The value of the fact that changes, as a policy knows it that notices a change after some turns."""
    script = next(script for script in SCRIPTS.change if script.person.id == dialogue.person.id)
    (new,) = set(script.person_at(CHANGED).facts) - set(script.person.facts)
    return script.told[0] if dialogue.round < CHANGED + turns else new


@pytest.mark.parametrize('turns', [0, 1, 2])
def test_a_policy_is_stale_until_it_notices_the_change(turns):
    people = {script.person.id for script in SCRIPTS.change}

    def text(dialogue):
        fact = lags(dialogue, turns=turns) if dialogue.person.id in people else 'pet: ant'
        return render_completion(f'- {fact}\n', f'So it is {split_fact(fact)[1]}, is it not?')

    record, ends, _ = evaluate(policy(text), SCRIPTS)
    late = [1.0] * turns + [0.0] * (3 - turns)
    assert record['stale_use_by_turn'] == record['stale_profile_by_turn'] == late
    assert record['stale_use'] == pytest.approx(turns / 3)
    # One of four facts is known from the turn on in which the change is noticed.
    assert record['changed_profile_by_turn'] == pytest.approx([0.4 * (1 - cell) for cell in late])
    assert record['changed_bound_by_turn'] == pytest.approx([0.4, 0.4, 2 / 3])
    assert ends['stale_use_by_turn'][0][0] == pytest.approx(0.7353 * late[0], abs=1e-4)
    assert len(record['changed_response_by_turn']) == 3 and record['changed_response'] > 0


def test_who_is_told_the_profile_is_told_of_the_change():
    known = says(lambda dialogue: 'Hm.', lambda dialogue: render_facts(dialogue.person.facts))
    record, _, _ = evaluate(known, SCRIPTS)
    assert record['changed_profile_by_turn'] == [1.0] * 3 and record['stale_profile'] == 0


def test_both_values_in_a_reply_are_not_stale():
    everything = says(lambda dialogue: ', '.join(VALUES))
    assert evaluate(everything, SCRIPTS)[0]['stale_use'] == 0


def test_a_policy_without_replies_has_no_shares():
    record, ends, dialogues = evaluate(policy(lambda dialogue: BAD), SCRIPTS)
    for name in ('irrelevant_use', 'irrelevant_chance', 'asks_known', 'stale_use', 'stale_use_by_turn'):
        assert record[name] is ends[name] is None
    assert record['changed_profile_by_turn'] == [0.0] * 3
    assert record['scripts_format'] == 0 and all(len(talk['turns']) == 2 for talk in dialogues)


def test_an_evaluation_has_scripts_where_it_is_asked_for_them():
    assert make_world(configs.load('rlpa')).scripts is None
    world = make_world(configs.load('rlpa', **{'eval.restraint': 3}))
    assert world.scripts is not None
    assert [script.person.facts for script in world.scripts.restraint] == [person.facts for person in PEOPLE[:3]]
    record, dialogues = world.evaluate(says(lambda dialogue: 'Hm.'), rounds=2)
    assert record['irrelevant_use'] == 0 and record['intervals']['irrelevant_use'][1] > 0.5
    assert {talk['person'] for talk in dialogues} > {script.person.id for script in itertools.chain(*world.scripts)}
    # A report explains every figure that the scripts add to an evaluation.
    added = record.keys() - make_world(configs.load('rlpa')).evaluate(says(lambda dialogue: 'Hm.'), rounds=2)[0].keys()
    assert added > {*restraint.FIGURES} and all(meaning(name, words_of('rlpa')).words for name in added)


@pytest.mark.parametrize('changes', [{'eval.restraint': -1}, {'eval.restraint': 2, 'dialogue.facts': 1}])
def test_people_who_cannot_have_scripts_are_told(changes):
    with pytest.raises(ValueError, match=r'^eval\.restraint='):
        make_world(configs.load('rlpa', **changes))
