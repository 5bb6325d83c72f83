"""People from JSON lines: the fields of the reference, and a line's fault told with its number."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pal_jax.data import histories
from pal_jax.types import Choice

RECORD = {
    'context': 'Liked: A cat naps. Disliked: A dog runs.',
    'reward_prompt': 'Talk.', 'chosen': 'Cats purr.', 'rejected': 'Dogs guard.',
    'train_prompt': 'Talk on.', 'train_chosen': 'Cats groom.', 'train_rejected': 'Dogs dig.',
    'eval_prompt': 'And?', 'eval_chosen': 'Cats see well.', 'eval_rejected': 'Dogs bark.',
}  # fmt: skip


def write(tmp_path, *records):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(each if isinstance(each, str) else json.dumps(each) for each in records))
    return path


def test_fields_go_where_they_belong(tmp_path):
    asked = [{'role': 'user', 'content': 'Who is this?'}]
    path = write(tmp_path, RECORD | {'user': 'u1', 'kind': 'cats'}, '', RECORD | {'context_messages': asked})
    (one,), (two,) = histories.load(path)
    assert (one.user, one.kind, one.context, one.ask) == ('u1', 'cats', RECORD['context'], ())
    assert one.reward == Choice('Talk.', 'Cats purr.', 'Dogs guard.')
    assert one.train == (Choice('Talk on.', 'Cats groom.', 'Dogs dig.'),)
    assert one.held == (Choice('And?', 'Cats see well.', 'Dogs bark.'),)
    assert two.ask == tuple(asked)
    text = {key: value for key, value in RECORD.items() if key != 'context'} | {'context_messages': 'Who?'}
    ((three,),) = histories.load(write(tmp_path, text))
    assert (three.context, three.ask) == ('Who?', ({'role': 'user', 'content': 'Who?'},))


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ('{', r'line 2: not valid JSON'),
        ('[]', r"line 2: expected an object, got '\[\]'"),
        (RECORD | {'chosen': ''}, r"line 2 has chosen=''; give a text"),
        ({k: v for k, v in RECORD.items() if k != 'eval_chosen'}, r'line 2 has no eval_chosen'),
        (RECORD | {'context': None}, r'line 2 has neither context nor context_messages'),
        (RECORD | {'context_messages': [{'role': 'user'}]}, r'line 2 has a message .* give a role and a content'),
        (RECORD | {'eval_chosen': 'Cats purr.'}, r"line 2 tests with a reply it has told before: 'Cats purr.'"),
        (RECORD | {'eval_chosen': 'cats  PURR.'}, r"line 2 tests with a reply it has told before: 'cats  PURR.'"),
        (RECORD | {'context': 'I said: Dogs bark.'}, r"line 2 tests with a reply it has told before: 'Dogs bark.'"),
        (RECORD | {'context_messages': 'Dogs bark.'}, r"line 2 tests with a reply it has told before: 'Dogs bark.'"),
        (RECORD | {'train_prompt': 'Dogs bark.'}, r"line 2 tests with a reply it has told before: 'Dogs bark.'"),
    ],
)
def test_a_wrong_line_is_told_by_its_number(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        histories.load(write(tmp_path, RECORD, record))


def test_lines_of_one_user_are_of_one_person_and_kept_from_its_tests(tmp_path):
    lines = [RECORD | {'user': user} for user in ('ann', 'bob', 'ann')]
    ann, bob = histories.load(write(tmp_path, *lines))
    assert ([one.user for one in ann], [one.user for one in bob]) == (['ann', 'ann'], ['bob'])
    lines[2] |= {'train_chosen': 'Dogs bark.', 'eval_chosen': 'Cats hunt.', 'eval_rejected': 'Dogs beg.'}
    with pytest.raises(ValueError, match=r"line 3 tests with a reply it has told before: 'Dogs bark.'"):
        histories.load(write(tmp_path, *lines))
    lines[2] |= {'train_chosen': 'Cats groom.', 'chosen': 'Cats see well.'}
    with pytest.raises(ValueError, match=r'line 3 tests with'):
        histories.load(write(tmp_path, *lines))


def test_an_empty_file_is_told(tmp_path):
    with pytest.raises(ValueError, match='has no person'):
        histories.load(write(tmp_path, ''))


def choices(count, prompt='Talk.'):
    return [Choice(prompt, f'good {i} thing', f'bad {i} thing') for i in range(100, 100 + count)]


SETTINGS = {'in_context': 2, 'held': 2, 'max_words': 3, 'form': 'labelled', 'seed': 0}


def test_a_history_is_made_of_choices_that_stay_apart():  # rlpa_plus IV.4-9
    given = {'ann': choices(8), 'bob': choices(5)}
    ((ann,),) = histories.from_choices(given, **SETTINGS)  # bob's are too few
    assert ann.user == 'ann'
    assert len(ann.held) == 2
    kept = [ann.reward, *ann.train, *ann.held]
    assert len({reply for c in kept for reply in (c.chosen, c.rejected)}) == 8
    assert all(choice in given['ann'] for choice in kept)
    assert not any(reply in ann.context for c in kept for reply in (c.chosen, c.rejected))
    told = [c for c in given['ann'] if f'Liked: {c.chosen}' in ann.context]
    assert len(told) == ann.context.count('Disliked: ') == 2
    assert all(f'Disliked: {c.rejected}' in ann.context for c in told)


def test_replies_that_are_long_or_part_of_others_are_left_out():
    repeated = [Choice('Talk.', 'good 100 thing', f'bad {i} thing') for i in range(200, 210)]
    part_of_another = [Choice('Talk.', 'thing', f'bad {i} thing') for i in range(300, 310)]
    wordy = [Choice('Talk.', f'a good {i} thing', f'bad {i} thing') for i in range(400, 410)]
    same = [Choice('Talk.', f'{i}', f'{i}') for i in range(500, 510)]
    for extra in (repeated, wordy, same):
        ((person,),) = histories.from_choices({'ann': choices(6) + extra}, **SETTINGS)
        assert sum(c not in choices(6) for c in (person.reward, *person.train, *person.held)) <= (extra is repeated)
    assert not histories.from_choices({'ann': choices(5) + repeated[:0] + part_of_another}, **SETTINGS)


def test_prompts_are_told_where_they_differ():
    two = choices(4) + choices(8, prompt='And?')[4:]
    ((person,),) = histories.from_choices({'ann': two}, **SETTINGS | {'in_context': 4})
    assert 'Talk. ' in person.context
    assert 'And? ' in person.context
    ((alone,),) = histories.from_choices({'ann': choices(8)}, **SETTINGS | {'form': 'chosen'})
    assert 'Talk.' not in alone.context
    assert 'bad' not in alone.context


def test_of_a_chat_that_goes_on_no_prompt_tells_a_reply_of_another_choice():
    grown = [dataclasses.replace(c, prompt=' '.join(f'good {j} thing' for j in range(100, 100 + i)) + ' More?')
             for i, c in enumerate(choices(8))]  # fmt: skip
    assert not histories.from_choices({'ann': grown}, **SETTINGS)
    ((person,),) = histories.from_choices({'ann': choices(4) + grown[4:] + choices(16)[8:]}, **SETTINGS)
    kept = [*person.past, person.reward, *person.train, *person.held]
    assert not any(side in other.prompt for c in kept for side in (c.chosen, c.rejected) for other in kept)


def test_more_may_teach_and_change_places_with_what_is_told():
    many = {'ann': choices(12), 'bob': choices(7), 'eve': choices(6)}
    of_ann, of_bob = histories.from_choices(many, **SETTINGS, taught=2, per_user=4)  # eve's are too few
    assert [of_ann[0], of_bob[0]] == [own for (own,) in histories.from_choices(many, **SETTINGS, taught=2)]
    assert len(of_ann) == len(of_bob) == 4
    assert len({(one.reward, one.held) for one in of_ann}) == 1
    assert len({frozenset(one.train) for one in of_ann}) > 1
    for one in of_ann:
        used = {*one.past, *one.train, one.reward, *one.held}
        assert len(used) == 7 and used <= set(many['ann'])
    assert len({c for one in of_ann for c in (*one.past, *one.train)}) > 4  # all that she has may be drawn
