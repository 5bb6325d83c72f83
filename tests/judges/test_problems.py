r"""Problems of mathematics: rows of a file, the answer of a text, and what counts as the same answer."""

from __future__ import annotations

import json

import pytest

from pal_jax.judges.problems import TASKS, Problem, measure, read_problems


@pytest.mark.parametrize(
    ('text', 'gsm8k', 'math500'),
    [
        (r'So it is \boxed{18}.', '18', '18'),
        (r'First \boxed{3}, no, \boxed{\frac{1}{2}}', r'\frac{1}{2}', r'\frac{1}{2}'),
        ('16 - 3 - 4 = 9, and 9 * 2 = $18.', '18', None),
        ('I do not know', None, None),
    ],
)
def test_the_answer_of_a_text(text, gsm8k, math500):
    assert (TASKS['gsm8k'].read(text), TASKS['math500'].read(text)) == (gsm8k, math500)


def test_rows_are_read_and_answers_measured(tmp_path):
    path = tmp_path / 'rows.jsonl'
    rows = [{'question': 'a', 'answer': '2 + 2 = <<2+2=4>>4\n#### 4'}, {'question': 'b', 'answer': '#### 1,000'}]
    path.write_text('\n'.join(map(json.dumps, rows)))
    problems = read_problems(path, 'gsm8k')
    assert problems == [Problem('a', '4'), Problem('b', '1,000')]
    record = measure(['so 4', 'nothing'], problems, 'gsm8k')
    assert (record['accuracy'], record['unanswered'], record['problems']) == (0.5, 0.5, 2)
    assert record['interval'] == pytest.approx([0.01258, 0.98742], abs=1e-5)  # exact, 1 of 2


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('', 'no problems'),
        ('1', 'line 1: expected an object'),
        ('{', 'line 1'),
        ('[1]', 'record 1: expected an object'),
        ('{"question": "a"}', r'line 1: answer=None'),
        ('{"question": "a", "answer": "4"}', r'line 1: answer has no ####'),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path, text, named):
    path = tmp_path / 'rows.jsonl'
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        read_problems(path, 'gsm8k')
