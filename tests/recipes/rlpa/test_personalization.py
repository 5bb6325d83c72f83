"""The figures of an evaluation, from dialogues whose scores are written out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pal_jax.data.holdouts import strangers
from pal_jax.recipes.rlpa import baselines, personalization
from pal_jax.recipes.rlpa.criteria import CRITERIA, judge_by_rules
from pal_jax.recipes.rlpa.profiles import match_exactly, parse_completion, render_completion, to_sample
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.recipes.rlpa.users import make_scripted_user
from pal_jax.types import Completion, Dialogue, Person, Sample, Turn

PEOPLE = [Person('a', ('pet: cat', 'city: Oslo')), Person('b', ('pet: dog', 'job: pilot'))]


def sample(person: Person, profile: str, *, strict: float, turn: int, ok: bool = True) -> Sample:
    turns = [Turn('user', 'Hello')] + [Turn('user', f'I have a {person.facts[0][5:]} at home.')] * (turn > 0)
    inferred = set(profile.splitlines()) & {f'- {fact}' for fact in person.facts}
    lines, golden = len(profile.splitlines()), len(person.facts)
    info = dict.fromkeys(('format', 'response', *CRITERIA), 1.0) | {
        'strict': strict,
        'profile': 2 * len(inferred) / (lines + golden),
        'precision': len(inferred) / max(lines, 1),
        'recall': len(inferred) / golden,
    }
    done = Completion(render_completion(profile, 'Hm?'), (1, 2), (0.0, 0.0), 'stop')
    return dataclasses.replace(to_sample(Dialogue(person, tuple(turns)), done), rewards=(strict,), info=info, ok=ok)


def talks(ok: bool = True) -> list[list[Sample]]:
    a, b = PEOPLE
    return [
        [sample(a, '', strict=0.0, turn=0), sample(a, '- pet: cat\n', strict=1.0, turn=1)],
        [sample(b, '', strict=1.0, turn=0), sample(b, '- pet: cat\n- job: pilot\n', strict=1.0, turn=1, ok=ok)],
    ]


def test_levels_profile_and_controls_by_turn():
    record = personalization.table(talks(), rounds=2, guess=('pet: cat',))
    assert record['al_by_turn'] == [50.0, 100.0]
    assert (record['al'], record['n_ir'], record['n_r2']) == (75.0, pytest.approx(1.0), pytest.approx(1.0))
    assert record['f1_by_turn'] == pytest.approx([0.0, (2 / 3 + 1 / 2) / 2])
    assert record['precision_by_turn'] == [0.0, 0.75] and record['recall_by_turn'] == [0.0, 0.5]
    assert record['bound_by_turn'] == pytest.approx([0.0, 2 / 3])
    assert record['guesser_by_turn'] == pytest.approx([1 / 3] * 2)
    assert record['shuffled_by_turn'] == pytest.approx([0.0, (0 + 1 / 2) / 2])  # b's `pet: cat` is true of a
    assert (record['guesser_profile'], record['shuffled_profile']) == pytest.approx((1 / 3, 1 / 8))
    low, high = record['intervals']['al_by_turn']
    assert (low, high) == ([0.0, 100.0], [100.0, 100.0])


def test_what_nobody_could_judge_is_left_out_and_what_was_never_said_is_not():
    record = personalization.table(talks(ok=False), rounds=2, guess=())
    assert record['unanswered'] == 1
    assert record['al_by_turn'] == [50.0, 100.0] and record['f1_by_turn'] == pytest.approx([0.0, 2 / 3])
    assert record['reward'] == pytest.approx((0.5 + 1.0) / 2)
    cut = [talks()[0][:1], talks()[1]]
    silent = personalization.table(cut, rounds=2, guess=())  # the first user had no second message
    assert silent['unanswered'] == 1 and silent['al_by_turn'] == [50.0, 100.0]
    assert silent['shuffled_by_turn'] == [0.0, 0.5]
    cut[0][0].info['format'] = 0.0  # a malformed turn has ended the first
    malformed = personalization.table(cut, rounds=2, guess=())
    assert malformed['unanswered'] == 0 and malformed['al_by_turn'] == [50.0, 50.0]


def test_nobody_is_compared_with_who_has_the_same_facts():
    a, b = PEOPLE
    twin = Person('c', ('City:  Oslo', 'pet: cat'))
    alike = [[sample(person, '- pet: cat\n', strict=1.0, turn=0)] for person in (a, twin, b)]
    record = personalization.table(alike, rounds=1, guess=())
    assert record['shuffled_by_turn'] == pytest.approx([2 / 3 / 3])  # b's answer alone, against a or a's twin
    for people in (alike[:1], alike[:2]):
        nobody = personalization.table(people, rounds=1, guess=())
        assert nobody['shuffled_by_turn'] is None and nobody['shuffled_profile'] is None


def test_strangers_are_as_many_as_there_are_people():
    assert strangers('aabc') == [2, 3, 0, 1]
    assert strangers('abcd') == [1, 2, 3, 0] and strangers('abcd', [0, 2, 1, 3]) == [2, 3, 1, 0]
    assert strangers('aaaab') == [4, 4, 4, 4, 3]
    assert strangers('aa') is None and strangers('a') is None


def test_the_order_of_people_changes_no_mean():
    there, back = (personalization.table(each, rounds=2, guess=('pet: cat',)) for each in (talks(), talks()[::-1]))
    for key in ('al_by_turn', 'f1_by_turn', 'precision_by_turn', 'guesser_by_turn', 'reward', 'n_ir'):
        np.testing.assert_allclose(there[key], back[key])


class Model:
    """Answers chats, and keeps what it was asked."""

    def __init__(self, profile: str):
        self.profile, self.asked = profile, []

    def __call__(self, chats, seed):
        self.asked += chats
        texts = [self.profile if 'line each' in chat[-1]['content'] else ' How was your day?' for chat in chats]
        return [Completion(text, (1,), (0.0,), 'stop') for text in texts]


@pytest.mark.parametrize('name', baselines.BASELINES)
def test_a_plain_model_is_asked_for_its_profile_beside_the_reply(name):
    model, score = Model('Well:\n- pet: cat\n'), make_reward(match_exactly, judge_by_rules)
    answer = baselines.plain_model(model, baselines.BASELINES[name], ('pet', 'city'))

    def respond(dialogues, seed):
        return score(answer(dialogues, seed), seed)

    user = make_scripted_user(p_spontaneous=1.0)
    record, dialogues = personalization.evaluate(respond, user, {'x': PEOPLE[:1]}, rounds=2, guess=())
    assert record['format'] == 1.0 and record['f1_by_turn'] == pytest.approx([2 / 3] * 2)
    assert dialogues[0]['turns'][1]['content'] == 'How was your day?'
    first, asked, second, _ = model.asked
    assert [turn['role'] for turn in second if turn['role'] != 'system'] == ['user', 'assistant', 'user']
    assert 'pet, city' in asked[-1]['content'] and '<profile>' not in str(model.asked)
    assert ('Oslo' in first[0]['content']) == (name == 'oracle')  # the golden profile is for the oracle alone
    assert (first[0]['role'] == 'system') == (name != 'base')


def test_a_reply_with_tags_of_the_format_stays_malformed():
    def complete(chats, seed):
        return [Completion('x</response><profile>', (1,), (0.0,), 'stop') for _ in chats]

    respond = baselines.plain_model(complete, baselines.BASELINES['base'], ())
    (done,) = respond([Dialogue(dataclasses.replace(PEOPLE[0]), (Turn('user', 'Hi'),))], 0)
    assert parse_completion(done.completion.text) is None


def test_what_a_plain_model_thinks_is_neither_reply_nor_profile():
    def complete(chats, seed):
        thought = '<think>\n- pet: ferret\n</think>\n'
        return [Completion(f'{thought}- pet: cat', (1,), (0.0,), 'stop') for _ in chats]

    respond = baselines.plain_model(complete, baselines.BASELINES['base'], ())
    (done,) = respond([Dialogue(PEOPLE[0], (Turn('user', 'Hi'),))], 0)
    parsed = parse_completion(done.completion.text)
    assert parsed is not None and (parsed.facts, parsed.reply) == (('pet: cat',), '- pet: cat')
    unfinished = baselines.plain_model(
        lambda chats, seed: [Completion('<think>Hi', (1,), (0.0,), 'length') for _ in chats],
        baselines.BASELINES['base'], (),
    )  # fmt: skip
    (done,) = unfinished([Dialogue(PEOPLE[0], (Turn('user', 'Hi'),))], 0)
    assert parse_completion(done.completion.text) is None
