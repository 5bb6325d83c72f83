"""Public sets of choices by person: small files of the true form, what they give, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from pal_jax.data.readers import crowds, opinions
from pal_jax.types import Choice


def jsonl(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def table(path, *rows):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def annotation(worker, preference):
    return {'evaluator': worker, 'overall_pref': preference, 'overall_confidence': 'fairly-confident'}


MULTIPREF = {
    'comparison_id': 'c1', 'prompt_id': 'p1', 'text': 'Who wins?', 'completion_a': 'A team.', 'completion_b': 'Nobody.',
    'normal_worker_annotations': [annotation('w1', 'A-is-clearly-better'), annotation('w2', 'Tie')],
    'expert_worker_annotations': [annotation('e1', 'B-is-slightly-better'), annotation('e2', 'A-is-slightly-better')],
}  # fmt: skip


def test_multipref(tmp_path):
    choices = list(opinions.read(f'multipref:{jsonl(tmp_path / "m.jsonl", MULTIPREF)}'))
    assert choices[0] == Choice('Who wins?', 'A team.', 'Nobody.', 'w1', 'normal')
    assert choices[1] == Choice('Who wins?', 'Nobody.', 'A team.', 'e1', 'expert')
    assert [choice.user for choice in choices] == ['w1', 'e1', 'e2']  # a tie is no choice


COMMUNITY = {
    'conversation_id': '7', 'annotator_id': '12', 'assigned_lang': 'en', 'first_turn_prompt': 'Hello?',
    **{f'first_turn_response_{letter}': f'reply {letter}' for letter in 'abcd'},
    'first_turn_preferred_response': 'response_b', 'second_turn_prompt': 'And?', 'second_turn_response_a': 'yes',
    'second_turn_response_b': 'no', 'second_turn_preferred_response': 'response_a', 'third_turn_prompt': '',
    'third_turn_preferred_response': '',
}  # fmt: skip


def test_community_alignment(tmp_path):
    choices = list(opinions.read(f'community:{table(tmp_path / "c.csv", COMMUNITY)}'))
    assert [choice.rejected for choice in choices] == ['reply a', 'reply c', 'reply d', 'no']
    assert choices[0] == Choice('Hello?', 'reply b', 'reply a', '12')
    assert choices[-1].prompt == 'Hello?\n\nreply b\n\nAnd?'


def summary(**changes):
    row = {
        'info': {'id': 't3', 'post': 'A long post.', 'subreddit': 'tifu'}, 'worker': 'XYZ', 'choice': 1,
        'summaries': [{'text': ' short', 'policy': 'sup1'}, {'text': ' a longer one', 'policy': 'ref'}],
        'split': 'train', 'extra': {'confidence': None},
    }  # fmt: skip
    return row | changes


def test_tldr_by_workers(tmp_path):
    jsonl(tmp_path / 'train.jsonl', summary(), summary(worker='ABC', choice=0))
    choices = list(opinions.read(f'tldr_workers:{tmp_path}'))
    assert choices == [
        Choice('A long post.', 'a longer one', 'short', 'XYZ'),
        Choice('A long post.', 'short', 'a longer one', 'ABC'),
    ]


def rating(rater, number, answer):
    return {
        'rater_id': rater,
        'item_id': number,
        'context': 'USER: hi',
        'response': f'no. {number}',
        'Q_overall': answer,
    }


def test_dices(tmp_path):
    answers = ('No', 'No', 'Yes', 'Unsure')
    path = table(tmp_path / 'd.csv', *(rating('296', i, answer) for i, answer in enumerate(answers)))
    choices = list(opinions.read(f'dices:{path}'))
    assert Counter(choice.chosen[-1] for choice in choices) == {'0': 1, '1': 1}
    assert {choice.rejected for choice in choices} == {'USER: hi\n\nno. 2'}


def test_personalllm_weighs_models_in_their_own_units(tmp_path):
    rows = []
    for i in range(30):
        row = {'prompt': f'prompt {i}', 'subset': 'x'}
        for k in range(1, 9):
            row |= {f'response_{k}': f'reply {i} {k}', f'response_{k}_model': 'm', f'response_{k}_up': k * 1e-3,
                    f'response_{k}_down': -k * 1e3}  # fmt: skip
        rows.append(row)
    choices = list(opinions.read(f'personalllm:{jsonl(tmp_path / "p.jsonl", *rows)}'))
    people = {}
    for choice in choices:
        up = int(choice.chosen.split()[-1]) > int(choice.rejected.split()[-1])
        people.setdefault(choice.user, []).append(up)
    assert len(people) == crowds.HOLDERS
    assert all(len(set(ups)) == 1 for ups in people.values())  # the two models disagree, and a person follows one
    share = sum(ups[0] for ups in people.values()) / len(people)
    assert 0.3 < share < 0.7  # the larger scale does not decide


def test_pairs_of_kinds_are_dealt_to_made_up_people(tmp_path):
    rows = [
        {'objective': kind, 'prompt': f'Human: {i}', 'responses': ['yes', 'no'], 'label': int(kind == 'harmless')}
        for i in range(50) for kind in ('helpful', 'harmless')
    ]  # fmt: skip
    choices = list(opinions.read(f'vpl:{jsonl(tmp_path / "v.jsonl", *rows)}'))
    assert Counter(choice.user for choice in choices) == {
        'helpful-0': 40, 'helpful-1': 10, 'harmless-0': 40, 'harmless-1': 10,
    }  # fmt: skip
    assert {(choice.group, choice.chosen) for choice in choices} == {('helpful', 'yes'), ('harmless', 'no')}
    messages = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    row = {'data_subset': '4', 'prompt': 'hi', 'chosen': messages, 'rejected': 'go away'}
    assert list(opinions.read(f'uf_p:{jsonl(tmp_path / "u.jsonl", row)}')) == [
        Choice('hi', 'hello', 'go away', '4-0', '4')
    ]
    row = {'ground_truth_persona': 'Be brief.', 'profile': 'Young', 'prompt': 'hi', 'chosen': 'yo', 'rejected': 'hello'}
    alike = row | {'rejected': 'Yo'}
    assert list(opinions.read(f'alignx:{jsonl(tmp_path / "x.jsonl", row, alike)}')) == [
        Choice('hi', 'yo', 'hello', 'Be brief.-0', 'Be brief.')
    ]


@pytest.mark.parametrize(
    ('kind', 'row', 'message'),
    [
        ('multipref', MULTIPREF | {'normal_worker_annotations': [annotation('w', 'better')]}, 'overall_pref'),
        ('multipref', MULTIPREF | {'normal_worker_annotations': ['w']}, 'give an object'),
        ('multipref', MULTIPREF | {'text': None}, 'no text'),
        ('community', COMMUNITY | {'first_turn_preferred_response': 'response_e'}, 'there is no such reply'),
        ('community', COMMUNITY | {'annotator_id': ''}, 'no annotator_id'),
        ('dices', rating('1', 1, 'Maybe'), 'Q_overall'),
        ('personalllm', {'prompt': 'p', 'response_1': 'r'}, 'no reward'),
        ('personalllm', {'prompt': 'p', 'response_1': 'r', 'response_1_m': 'high'}, 'give a number'),
        ('vpl', {'objective': 'a', 'prompt': 'p', 'responses': ['x'], 'label': 0}, 'two responses'),
        (
            'alignx',
            {'ground_truth_persona': 'k', 'prompt': 'p', 'chosen': 'x', 'rejected': ['y']},
            'rejected is .*text',
        ),
        ('uf_p', {'data_subset': '4', 'prompt': 'p', 'chosen': 'x', 'rejected': ['y']}, 'give a text'),
        ('multipref', MULTIPREF | {'completion_b': ['Nobody.']}, 'completion_b is .*give a text'),
        ('dices', rating('1', 1, 'No') | {'response': ['x']}, 'response is .*give a text'),
    ],
)
def test_rows_of_another_form_are_refused_by_name(tmp_path, kind, row, message):
    path = jsonl(tmp_path / 'x.jsonl', row)
    with pytest.raises(ValueError, match=rf'row 1.*{message}|line 1.*{message}'):
        list(opinions.read(f'{kind}:{path}'))


def test_a_choice_of_workers_that_is_none_is_refused(tmp_path):
    jsonl(tmp_path / 'train.jsonl', summary(choice=2))
    with pytest.raises(ValueError, match='choice is 2'):
        list(opinions.read(f'tldr_workers:{tmp_path}'))
