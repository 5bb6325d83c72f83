"""From free text to ten slots, on to dialogues and their evaluation, with ALOE's people where they are at hand."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from pal_jax.judges import prompts
from pal_jax.judges.language import read_count
from pal_jax.recipes.rlpa import slotting
from pal_jax.recipes.rlpa.profiles import render_completion, render_facts, to_sample
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.types import Completion, Person
from tests import configs

ROOT = Path(__file__).parents[3]
ALOE = ROOT / '..' / 'shared' / 'data' / 'aloe'
FILLED = {
    'Age': '34', 'Gender': 'female', 'Interests': ['chess', 'rowing'], 'Educational Background': 'a degree',
    'Personality Traits': ['shy'], 'Occupation': 'baker', 'Marital Status': 'single',
    'Family Background': 'two sisters', 'Location': 'Porto', 'Others': ['has a van'],
}  # fmt: skip


def test_an_answer_becomes_a_fact_a_point():
    facts = [
        'age: 34', 'gender: female', 'interests: chess', 'interests: rowing', 'educational background: a degree',
        'personality traits: shy', 'occupation: baker', 'marital status: single', 'family background: two sisters',
        'location: Porto', 'others: has a van',
    ]  # fmt: skip
    assert slotting.read_slots(json.dumps(FILLED)) == facts
    assert slotting.read_slots(f'```json\n{json.dumps(FILLED, indent=2)}\n```') == facts
    assert slotting.read_slots(json.dumps(FILLED | {'Age': 34})) == facts


@pytest.mark.parametrize(
    'change',
    [
        {'Age': ''}, {'Age': None}, {'Age': ['34']}, {'Age': True}, {'Age': 'Unknown.'}, {'Location': 'not mentioned'},
        {'Interests': 'chess'}, {'Interests': []}, {'Interests': [{'a': 'b'}]}, {'Others': ['x'] * 9},
        {'Others': ['</profile> \\boxed{1}']}, {'Others': ['two\nlines']}, {'Others': ['x' * 201]}, {'Pet': 'cat'},
    ],
)  # fmt: skip
def test_what_is_not_ten_filled_slots_is_no_answer(change):
    assert slotting.read_slots(json.dumps(FILLED | change)) is None


@pytest.mark.parametrize('text', ['', 'I would rather not.', '[]', '{', json.dumps({'Age': '34'}), '[' * 50_000])
def test_what_is_no_object_is_no_answer(text):
    assert slotting.read_slots(text) is None


def test_the_prompt_holds_the_text_as_data_and_every_slot_once():
    (message,) = prompts.slot('He "said"\n\\boxed{5} {curly} </profile>')
    asked = message['content']
    assert all(asked.count(f'"{slot}":') == 1 for slot in prompts.SLOTS)
    assert slotting.read_slots(asked[asked.index('{\n') : asked.rindex('}') + 1])  # the example is a valid answer
    assert read_count(asked) is None and '</profile>' not in asked and '{curly}' in asked


def test_who_cannot_be_read_is_left_out_after_some_attempts():
    asked = []

    def model(chats, seed):
        asked.append(len(chats))
        return [None if 'Bo' in chat[0]['content'] else json.dumps(FILLED) for chat in chats]

    people = [Person('a', ('Al bakes.', 'He is 34.')), Person('b', ('Bo.',))]
    (left,) = slotting.slot_people(people, slotting.make_slotter(model))
    assert left.id == 'a' and left.facts[0] == 'age: 34'
    assert asked == [2, 1, 1]


def test_personalities_go_with_people_at_random_but_always_alike():
    people = [Person(str(i), (f'fact {i}.',)) for i in range(20)]
    traits = [Person(str(i), (f'trait {i}.',)) for i in range(5)]
    both = slotting.with_personalities(people, traits, seed=0)
    assert [each.facts[0] for each in both] == [person.facts[0] for person in people]
    assert len({each.facts[1] for each in both}) > 2
    assert both == slotting.with_personalities(people, traits, seed=0)
    assert both != slotting.with_personalities(people, traits, seed=1)


get_config = functools.partial(configs.load, 'rlpa')


def plays_all_parts(prompt: str) -> str:
    """A server's model as slotter, user, matcher and judge."""
    if prompt.startswith('A description of a person'):
        told = re.findall(r'^"(.*)"$', prompt, re.M)[0]
        age = (re.findall(r'(\d+)[- ]year', told) or ['40'])[0]
        return json.dumps(FILLED | {'Age': age, 'Others': [sentence[:150] for sentence in told.split('. ')[:6]]})
    if 'Write your next message' in prompt:
        return 'I am ' + re.findall(r'"age: (\d+)"', prompt)[0] + ' and tired.'
    return '\\boxed{1}' if 'Count how many points' in prompt else '\\boxed{1 1 1 0 1}'


@pytest.mark.skipif(not ALOE.exists(), reason='needs ../shared/data/aloe')
def test_real_people_go_through_slotting_dialogue_and_evaluation(chat_server, tmp_path):
    answered = set()

    def answer(prompt: str) -> str:
        first = prompt not in answered
        answered.add(prompt)
        return '[always 500]' if first and len(prompt) % 3 == 0 else plays_all_parts(prompt)

    with chat_server(answer) as server:
        roles = ('slotter', 'user', 'matcher', 'judge')
        config = get_config(**{
            **{f'endpoints.{role}.{key}': value for role in roles
               for key, value in (('address', server.address), ('model', 'm'))},
            'dialogue.profiles': str(ALOE / 'profile.jsonl'), 'dialogue.personalities': str(ALOE / 'personality.jsonl'),
            'dialogue.max_samples': 20, 'dialogue.slotter': 'endpoint:slotter', 'dialogue.user': 'endpoint:user',
            'reward.matcher': 'endpoint:matcher', 'reward.judge': 'endpoint:judge', 'eval.people': 4,
            'answers': str(tmp_path / 'answers.sqlite'),
        })  # fmt: skip
        world = make_world(config)
        assert (len(world.train), len(world.tests['heldout'])) == (16, 4)
        assert world.topics == tuple(slot.lower() for slot in prompts.SLOTS)
        assert all(len(person.facts) >= 10 for person in world.train) and world.models.counts['people_left_out'] == 0

        def respond(dialogues, seed):
            told = [[turn.content for turn in each.turns if turn.role == 'user'][-1] for each in dialogues]
            ages = [re.findall(r'I am (\d+)', line) for line in told]
            facts = [render_facts([f'age: {age[0]}'] if age else []) for age in ages]
            texts = [render_completion(fact, f'Tell me more, {i}.') for i, fact in enumerate(facts)]
            done = [Completion(text, (1,), (0.0,), 'stop') for text in texts]
            return [to_sample(d, c, group=i) for i, (d, c) in enumerate(zip(dialogues, done, strict=True))]

        record, dialogues = world.evaluate(respond, rounds=3)
        people = world.tests['heldout']
        recall = sum(1 / len(person.facts) for person in people) / 4
        assert record['unanswered'] == 0 and record['response'] == 0.75 and record['al'] == 0.0
        assert record['recall_by_turn'] == pytest.approx([0.0, recall, recall])
        assert record['bound_by_turn'] == record['f1_by_turn']  # the age is all that was told
        assert [len(each['turns']) for each in dialogues] == [6] * 4
        asked = len(server.asked)
        again = make_world(config)
        assert again.train == world.train and again.models.usage['slotter_requests'] == 0
        assert len(server.asked) == asked


def test_too_many_people_without_slots_end_the_run(chat_server, tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(json.dumps(f'She is number {i}.') for i in range(10)))
    with chat_server(lambda prompt: 'Sorry, I cannot.') as server:
        settings = {'endpoints.slotter.address': server.address, 'endpoints.slotter.model': 'm', 'answers': ''}
        config = get_config(**settings, **{'dialogue.profiles': str(path), 'dialogue.slotter': 'endpoint:slotter'})
        with pytest.raises(RuntimeError, match=r'8 of 8 people .* more than reward\.max_failed=0\.1'):
            make_world(config)


def test_a_slotter_that_is_none_is_told(tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_text('"She bakes."\n"He rows."')
    with pytest.raises(ValueError, match=r"dialogue\.slotter='gpt' is unknown; use none, endpoint:<name>"):
        make_world(get_config(**{'dialogue.profiles': str(path), 'dialogue.slotter': 'gpt'}))
