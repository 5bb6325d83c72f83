"""Ratings beside their scale, and second judgements of one thing by one person."""

from __future__ import annotations

import json

import pytest

from pal_jax.data import records
from pal_jax.data.readers import opinions, safety
from pal_jax.data.readers.judgements import Judgement, settled
from pal_jax.types import Choice


def jester(folder, body, header='user,joke,rating'):
    (folder / 'jokes.jsonl').write_text(''.join(json.dumps({'joke': k, 'text': f'joke {k}'}) + '\n' for k in range(4)))
    (folder / 'ratings.csv').write_text(f'{header}\n{body}')
    return [(c.user, c.prompt, c.chosen, c.rejected) for c in opinions.read(f'jester:{folder}')]


def test_a_number_beside_the_scale_is_no_rating(tmp_path):
    with pytest.raises(
        ValueError, match=r"ratings.csv, row 4: the rating is '99', which is not from -10 to 10; .*empty"
    ):
        jester(tmp_path, 'a,0,8.5\na,1,-9\na,2,99\n')
    assert jester(tmp_path, 'a,0,8.5\na,1,-9\na,2,\n') == [('a', '', 'joke 0', 'joke 1')]
    (tmp_path / 'ml-100k.item').write_text('item_id:token\tmovie_title:token\tclass:x\n1\tA\tDrama\n2\tB\tDrama\n')
    inter = tmp_path / 'ml-100k.inter'
    inter.write_text('user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t1\n1\t2\t0\t9\n')
    with pytest.raises(ValueError, match="ml-100k.inter, row 3: the rating is '0', which is not from 0.5 to 5"):
        list(opinions.read(f'movielens:{tmp_path}'))


def test_a_film_rated_twice_has_its_last_rating_and_is_never_compared_with_itself(tmp_path):
    (tmp_path / 'ml-100k.item').write_text('item_id:token\tmovie_title:token\tclass:x\n1\tA\t\n2\tB\t\n')
    rows = '1\t1\t5\t9\n1\t1\t1\t3\n1\t2\t3\t5\n1\t2\t2\t1\n'
    (tmp_path / 'ml-100k.inter').write_text(f'user_id:token\titem_id:token\trating:float\ttimestamp:float\n{rows}')
    assert list(opinions.read(f'movielens:{tmp_path}')) == [Choice('', 'A', 'B', '1')]
    with pytest.raises(ValueError, match=r"ratings.csv, row 3: 'a' judges '0' a second time.*row 2"):
        jester(tmp_path, 'a,0,8.5\na,0,-9\n')
    assert jester(tmp_path, 'a,0,8,2\na,0,-9,1\na,1,0,1\n', 'user,joke,rating,time') == [('a', '', 'joke 0', 'joke 1')]


def test_raters_who_changed_their_minds_are_told_of(tmp_path):
    path = tmp_path / 'dices.jsonl'
    rows = [{'rater_id': 1, 'context': 'c', 'response': 'r', 'Q_overall': answer} for answer in ('Yes', 'No')]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    with pytest.raises(ValueError, match="line 2: '1' judges .* a second time"):
        list(opinions.read(f'dices:{path}'))
    texts = [{'id': k, 'debate': 'd', 'stance': 's', 'text': f't{k}'} for k in 'ab']
    (tmp_path / 'arguments.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in texts))
    pairs = [{'topic': 'd', 'arg1': x, 'arg2': y, 'worker': 'w', 'choice': c} for x, y, c in ('ab1', 'ba1')]
    pairs = [{**row, 'choice': f'a{row["choice"]}'} for row in pairs]
    said = tmp_path / 'judgements.jsonl'
    said.write_text(''.join(json.dumps(row) + '\n' for row in pairs))
    with pytest.raises(ValueError, match="line 2: 'w' judges 'a and b' a second time"):
        list(opinions.read(f'ukp:{tmp_path}'))
    said.write_text(''.join(json.dumps({**row, 'time': f'2024-05-0{2 - k}'}) + '\n' for k, row in enumerate(pairs)))
    assert [(c.chosen, c.rejected) for c in opinions.read(f'ukp:{tmp_path}')] == [('ta', 'tb')]


def test_the_last_by_time_counts_and_equal_judgements_are_one():
    def of(*said):
        return [(one.value, one.place) for one in settled(Judgement(f'{k}', 'p', 't', *v) for k, v in enumerate(said))]

    assert of((1, 3.0), (2, 5.0), (3, 4.0)) == [(2, '1')]
    assert of((1, 3.0), (2, 3.0)) == [(2, '1')]
    assert of((1,), (1,)) == [(1, '0')]
    with pytest.raises(ValueError, match=r"1: 'p' judges 't' a second time, .* 0; delete"):
        of((1,), (2, 3.0))


@pytest.mark.parametrize(
    'flags', [(True, False), ('True', 'False'), ('true', 'false'), (1, 0), (1.0, None), ('1', 'nan')]
)
def test_whether_a_reply_was_chosen_may_be_a_text(tmp_path, flags):
    turn = [{'turn': 0, 'role': 'user', 'content': 'Q', 'if_chosen': None}]
    turn += [
        {'turn': 0, 'role': 'model', 'content': text, 'if_chosen': flag} for text, flag in zip('AB', flags, strict=True)
    ]
    path = tmp_path / 'conversations.jsonl'
    path.write_text(json.dumps({'user_id': 'u', 'conversation_history': turn}))
    assert [(c.chosen, c.rejected) for c in opinions.read(f'prism:{tmp_path}')] == [('A', 'B')]
    path.write_text(
        json.dumps({'user_id': 'u', 'conversation_history': [*turn[:2], {**turn[2], 'if_chosen': 'maybe'}]})
    )
    with pytest.raises(ValueError, match="line 1: if_chosen is 'maybe'"):
        list(opinions.read(f'prism:{tmp_path}'))


def test_a_pair_that_ends_with_the_users_message_is_refused(tmp_path):
    sides = {
        side: [{'role': 'assistant', 'content': side}, {'role': 'user', 'content': f'{side}!'}]
        for side in ('chosen', 'rejected')
    }
    (tmp_path / 'a.jsonl').write_text(json.dumps({'data_subset': '8', 'prompt': 'Q', **sides}))
    with pytest.raises(ValueError, match="line 1: the last message of chosen is of 'user'"):
        list(opinions.read(f'uf_p:{tmp_path / "a.jsonl"}'))


def test_one_text_is_not_safe_and_unsafe():
    row = {
        'prompt': 'p', 'response_0': 'a', 'response_1': 'A ', 'is_response_0_safe': True, 'is_response_1_safe': False,
        'better_response_id': 0, 'safer_response_id': 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match='response_0 and response_1 are the same text'):
        safety.to_judged(row)
    assert safety.to_judged({**row, 'is_response_1_safe': True}).unsafe == (False, False)


def test_a_row_of_the_hub_is_told_with_its_source(tmp_path, monkeypatch):
    path = tmp_path / 'train.jsonl'
    path.write_text('{"user": "a"}')
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda *_, **__: str(path))
    with pytest.raises(ValueError, match='^hf:me/x/train.jsonl, line 1: no chosen'):
        list(records.read('hf:me/x/train.jsonl'))
    with pytest.raises(ValueError, match='hf:me/x names no file'):
        records.rows('hf:me/x')
