"""Arguments that convince: files of our own in its form, faults told by their line, and the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_jax.data import ukp
from pal_jax.types import Choice

DATA = Path(__file__).parents[3] / 'shared' / 'data' / 'ukpconvarg1'
ARGUMENTS = [
    {'id': str(i), 'debate': 'Tea or coffee?', 'stance': 'Tea.', 'text': f' Reason {i} '} for i in range(3)
]  # fmt: skip


def judged(**changes):
    return {'arg1': '0', 'arg2': '1', 'worker': 'w', 'choice': 'a2'} | changes


def write(folder, *judgements):
    for name, records in {'arguments': ARGUMENTS, 'judgements': judgements}.items():
        (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, records)))
    return folder


def test_a_judgement_is_a_choice_and_equals_are_none(tmp_path):
    found = ukp.read(
        write(tmp_path, judged(), judged(choice='equal'), judged(choice='a1', arg2='2'), judged(worker='v'))
    )
    prompt = 'Tea or coffee? Give an argument for: Tea.'
    assert found == {
        'w': [Choice(prompt, 'Reason 1', 'Reason 0'), Choice(prompt, 'Reason 0', 'Reason 2')],
        'v': [Choice(prompt, 'Reason 1', 'Reason 0')],
    }


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        (judged(choice='a3'), "line 2: choice is 'a3'; give a1, a2 or equal"),
        (judged(arg2='9'), "line 2: argument '9' is not in arguments.jsonl"),
        ({'arg1': '0'}, 'line 2: expected an object with arg1, arg2, worker, choice'),
    ],
)
def test_a_wrong_line_is_told(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ukp.read(write(tmp_path, judged(), record))


def test_a_folder_without_the_files_is_told(tmp_path):
    with pytest.raises(ValueError, match='give the folder of arguments.jsonl and judgements.jsonl'):
        ukp.read(tmp_path)


def test_the_real_judgements():
    if not DATA.is_dir():
        pytest.skip('the shared data is not beside this checkout')
    found = ukp.read(DATA)
    assert len(found) == 454
    lines = (DATA / 'judgements.jsonl').read_text().splitlines()
    assert sum(map(len, found.values())) == sum(json.loads(each)['choice'] != 'equal' for each in lines)
